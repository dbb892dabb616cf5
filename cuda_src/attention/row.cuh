// Row-wise kernels: one warp for each query row, or each key row, of the whole batch.
#pragma once
#include "attention/matrix.cuh"
#include "params.cuh"
#include "specialization.cuh"

constexpr int kThreads = 32 * kNWarps;

// Rows are counted in 32 bits, which the plan sees to: a 64-bit division is a call, with registers saved around it.
struct Row {
  unsigned index;  // counted through the whole batch
  int batch, head, row, lane;
  bool inside;
};

__device__ __forceinline__ Row row_of_warp(const Shape& shape, int num_heads, int seqlen) {
  const unsigned index = blockIdx.x * kNWarps + threadIdx.x / 32;
  const unsigned head_index = index / seqlen, batch = head_index / num_heads;
  return {index, static_cast<int>(batch), static_cast<int>(head_index % num_heads), static_cast<int>(index % seqlen),
          static_cast<int>(threadIdx.x % 32), batch < num_batches(shape)};
}
__device__ __forceinline__ Row query_row_of_warp(const Shape& shape) {
  return row_of_warp(shape, shape.num_heads_q, shape.seqlen_q);
}
__device__ __forceinline__ Row key_row_of_warp(const Shape& shape) {
  return row_of_warp(shape, shape.num_heads_k, shape.seqlen_k);
}
