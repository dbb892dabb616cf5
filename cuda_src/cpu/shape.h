// What the caller passes; cupy_flash/_src/backends/native.py reads the structures here.
#pragma once
#include "cpu/components.h"
#include "cpu/dtype.h"
#include "cpu/layout.h"
#include "cpu/sizes.h"

// An option whose gradient is wanted: heads of q in equal groups that have its elements in common, one group after the
// other, and whether queries and keys have elements of their own.
struct Term {
  int64_t step;  // of the score behind the first that learns
  int64_t groups, members;
  const int64_t* heads;     // [groups][members]; negative where a group has one less
  const int64_t* group_of;  // each head of q
  int64_t own_rows, own_cols;
};

// Key heads in the order in which they are taken: what the heads of a unit have in common then stays in a cache.
struct Order {
  int64_t units, members;
  const int64_t* heads;  // [units][members]
};

struct Shape {
  int64_t dtype, out_dtype;  // the second is that of out and dq in the backward
  int64_t heads_q, heads_k, seqlen_q, seqlen_k, head_dim, head_dim_v;
  int64_t q_offset;              // position of query 0 among the keys, unless the place is moved
  int64_t first_query, queries;  // that may see a key: so many from the first on; the others are the caller's
  int64_t heads_alike;           // whether query heads of a key head have the same of every option
  Components components;
  Order order;
  Term term;
  Layout q, k, v, out, lse, dout, dlse, dq, dk, dv;

  int64_t group() const { return heads_q / heads_k; }
};

// One call: its arrays, and how far it has come.
struct Call {
  const Shape* shape;
  char *q, *k, *v, *out, *lse, *dout, *dlse, *dq, *dk, *dv;  // of the last three null where not wanted
  char* dterm;  // [groups, rows, cols] of `Shape::term`, of the arithmetic's type
  Arrays arrays;    // of options
  char* memory;     // as many bytes as attention_*_memory says
  int64_t threads;
  int64_t next;     // item of work

  int64_t workers(int64_t items) const { return threads < items ? threads : items; }
};

// Of a head of a call, and as far as it is known before.
inline Place place_of(const Call& call, int64_t head) { return {*call.shape, call.arrays, head}; }
inline Place anywhere(const Shape& shape) {
  static constexpr Arrays kNone = {};
  return {shape, kNone, 0};
}
