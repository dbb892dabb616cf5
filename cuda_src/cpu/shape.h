// What the caller passes; cupy_flash/_src/backends/native.py has the same structures.
#pragma once
#include <stdint.h>

enum DType : int64_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

// Where the heads of an array begin, and how rows and columns of a head lie apart: bytes, of any sign and alignment.
struct Layout {
  const int64_t* heads;
  int64_t row, col;
};

struct Shape {
  int64_t dtype, out_dtype;  // the second is that of out and dq in the backward
  int64_t heads_q, heads_k, seqlen_q, seqlen_k, head_dim, head_dim_v;
  int64_t q_offset;     // without a causal mask seqlen_k
  int64_t first_query;  // those before it see no key, and are the caller's
  double scale;
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

inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

constexpr int64_t ceil_div(int64_t n, int64_t size) { return (n + size - 1) / size; }
constexpr int64_t round_up(int64_t n, int64_t unit) { return ceil_div(n, unit) * unit; }

// Size of n's parts when it is cut into the fewest of at most `most`: all but the last are equal, rounded up to units.
inline int64_t even_part(int64_t n, int64_t most, int64_t unit) {
  return n <= 0 ? unit : round_up(ceil_div(n, ceil_div(n, most)), unit);
}
