// What the caller passes; cupy_flash/backends/native.py has the same structures.
#pragma once
#include <stdint.h>

enum DType : int64_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

// Of one head, in bytes: any strides, any alignment.
struct Strides {
  int64_t row, col;
};

struct Shape {
  int64_t dtype, seqlen_q, seqlen_k, head_dim, head_dim_v, q_offset;
  double scale;
  Strides q, k, v, out, dout;
  int64_t lse, dlse;  // strides of the row statistics
};
