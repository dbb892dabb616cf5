// What the caller passes; cupy_flash/_src/backends/native.py reads the structures here.
#pragma once
#include "cpu/components.h"
#include "cpu/sizes.h"

enum DType : int64_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

// Where the heads of an array begin, and how rows and columns of a head lie apart: bytes, of any sign and alignment.
struct Layout {
  const int64_t* heads;
  int64_t row, col;
};

struct Shape {
  int64_t dtype, out_dtype;  // the second is that of out and dq in the backward
  int64_t heads_q, heads_k, seqlen_q, seqlen_k, head_dim, head_dim_v;
  int64_t q_offset;              // position of query 0 among the keys
  int64_t first_query, queries;  // that see a key: so many from the first on; the others are the caller's
  Components components;
  Layout q, k, v, out, lse, dout, dlse, dq, dk, dv;

  int64_t group() const { return heads_q / heads_k; }
};

// One call: its arrays, and how far it has come.
struct Call {
  const Shape* shape;
  char *q, *k, *v, *out, *lse, *dout, *dlse, *dq, *dk, *dv;
  char* memory;     // as many bytes as attention_*_memory says
  int64_t threads;
  int64_t next;     // item of work

  int64_t workers(int64_t items) const { return threads < items ? threads : items; }
};

inline char* at(char* data, const Layout& layout, int64_t head, int64_t row) {
  return data + layout.heads[head] + row * layout.row;
}
