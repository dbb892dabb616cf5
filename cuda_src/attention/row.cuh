// Row-wise kernels: one warp for each row of a tensor with the shape of the output.
#pragma once
#include "attention/matrix.cuh"
#include "params.cuh"
#include "specialization.cuh"

constexpr int kThreads = 32 * kNWarps;

struct Row {
  int batch, head, row, lane;
  bool inside;
};

__device__ __forceinline__ Row row_of_warp(const Shape& shape) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kNWarps + threadIdx.x / 32;
  const int64_t head_index = index / shape.seqlen_q;
  return {static_cast<int>(head_index / shape.num_heads_q), static_cast<int>(head_index % shape.num_heads_q),
          static_cast<int>(index % shape.seqlen_q), static_cast<int>(threadIdx.x % 32), index < query_rows(shape)};
}
