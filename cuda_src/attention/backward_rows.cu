// The row-wise kernels around the backward's main pass, one warp a row, shared by all kernel families:
//
//   attention_delta         delta = rowsum(dO * O) - dlse   (FlashAttention-2, Dao 2023, Algorithm 2, line 4)
//   attention_convert_dq    dq = dq_acc, rounded to the storage type
//   attention_convert_dkdv  dk = dk_acc and dv = dv_acc, likewise
#include "attention/matrix.cuh"
#include "attention/row.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "ptx/warp.cuh"
#include "specialization.cuh"

using Accumulator = AccumulatorOf<Element>::Type;
extern "C" __global__ void __launch_bounds__(kThreads) attention_delta(const __grid_constant__ BackwardParams params) {
  const Shape& shape = params.shape;
  const Row r = query_row_of_warp(shape);
  if (!r.inside) return;
  const auto gO = head_matrix<Out>(params.out, shape, r.batch, r.head, shape.seqlen_q, shape.head_dim_v);
  const auto gDout = head_matrix<Element>(params.dout, shape, r.batch, r.head, shape.seqlen_q, shape.head_dim_v);
  const auto gDelta = head_matrix<Accumulator>(params.delta, shape, r.batch, r.head, shape.seqlen_q, 1);

  Accumulator sum = 0;
  for (int col = r.lane; col < shape.head_dim_v; col += 32) {
    sum += to_accumulator(*gO.at(r.row, col)) * to_accumulator(*gDout.at(r.row, col));
  }
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) sum += ptx::shfl_xor(sum, lane_mask);
  if (r.lane == 0) {
    if (params.dlse.data != nullptr) {
      sum -= *head_matrix<Accumulator>(params.dlse, shape, r.batch, r.head, shape.seqlen_q, 1).at(r.row, 0);
    }
    *gDelta.at(r.row, 0) = sum;
  }
}

// One row of `to`, rounded from `from`.
__device__ __forceinline__ void convert_row(const Tensor& to, const Tensor& from, const Shape& shape, const Row& r,
                                            int cols) {
  const auto gFrom = head_matrix<Accumulator>(from, shape, r.batch, r.head, r.row + 1, cols);
  const auto gTo = head_matrix<Element>(to, shape, r.batch, r.head, r.row + 1, cols);
  for (int col = r.lane; col < cols; col += 32) from_accumulator(*gTo.at(r.row, col), *gFrom.at(r.row, col));
}

extern "C" __global__ void __launch_bounds__(kThreads)
    attention_convert_dq(const __grid_constant__ BackwardParams params) {
  const Row r = query_row_of_warp(params.shape);
  if (r.inside) convert_row(params.dq, params.dq_acc, params.shape, r, params.shape.head_dim);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    attention_convert_dkdv(const __grid_constant__ BackwardParams params) {
  const Row r = key_row_of_warp(params.shape);
  if (!r.inside) return;
  convert_row(params.dk, params.dk_acc, params.shape, r, params.shape.head_dim);
  convert_row(params.dv, params.dv_acc, params.shape, r, params.shape.head_dim_v);
}
