// What the caller passes; cupy_flash/_src/backends/native.py reads the structures here.
#pragma once
#include "cpu/components.h"
#include "cpu/layout.h"
#include "cpu/sizes.h"

enum DType : int64_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

struct Shape {
  int64_t dtype, out_dtype;  // the second is that of out and dq in the backward
  int64_t heads_q, heads_k, seqlen_q, seqlen_k, head_dim, head_dim_v;
  int64_t q_offset;              // position of query 0 among the keys, unless the place is moved
  int64_t first_query, queries;  // that may see a key: so many from the first on; the others are the caller's
  int64_t heads_alike;           // whether query heads of a key head have the same of every option
  Components components;
  Layout q, k, v, out, lse, dout, dlse, dq, dk, dv;

  int64_t group() const { return heads_q / heads_k; }
};

// One call: its arrays, and how far it has come.
struct Call {
  const Shape* shape;
  char *q, *k, *v, *out, *lse, *dout, *dlse, *dq, *dk, *dv;
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
