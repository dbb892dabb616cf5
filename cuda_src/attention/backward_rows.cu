// The row-wise kernels around the backward's main pass, shared by all kernel families:
//
//   attention_delta         delta = rowsum(dO * O) - dlse   (FlashAttention-2, Dao 2023, Algorithm 2, line 4)
//   attention_convert_dq    dq = dq_acc, rounded to the storage type
//   attention_convert_dkdv  dk = dk_acc and dv = dv_acc, likewise
#include "attention/row.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "specialization.cuh"

using Accumulator = AccumulatorOf<Element>::Type;

extern "C" __global__ void __launch_bounds__(kThreads) attention_delta(const __grid_constant__ BackwardParams params) {
  const Shape& shape = params.shape;
  const RowBlock block = block_of_queries(shape);
  const auto gO = matrix_of<Out>(block, params.out, shape.head_dim_v);
  const auto gDout = matrix_of<Element>(block, params.dout, shape.head_dim_v);
  const auto gDelta = matrix_of<Accumulator>(block, params.delta, 1);
  const auto gDlse = matrix_of<Accumulator>(block, params.dlse, 1);

  // A lane sums its columns in order; then neighbours add their sums up, over half the distance each time.
  each_row(gO.vectorized() && gDout.vectorized(), block, [&](auto lanes) {
    Accumulator sums[lanes.kRows] = {}, dlse = 0;
    if (params.dlse.data != nullptr && lanes.owns()) dlse = *gDlse.at(lanes.own_row(), 0);
    auto out = lanes.begin(gO);
    auto dout = lanes.begin(gDout);
#pragma unroll 1
    for (int col = lanes.col; col < shape.head_dim_v; col += lanes.kCols) {
      const auto x = out.next();
      const auto y = dout.next();
#pragma unroll
      for (int j = 0; j < lanes.kCount; ++j) {
#pragma unroll
        for (int i = 0; i < lanes.kRows; ++i) sums[i] += to_accumulator(x.at(i, j)) * to_accumulator(y.at(i, j));
      }
    }
#pragma unroll
    for (int i = 0; i < lanes.kRows; ++i) sums[i] = lanes.sum(sums[i]);
    if (lanes.owns()) *gDelta.at(lanes.own_row(), 0) = lanes.own(sums) - dlse;
  });
}

// The block's rows of `to`, rounded from `from`.
__device__ __forceinline__ void convert(const Tensor& to, const Tensor& from, const Shape& shape,
                                        const RowBlock& block, int cols) {
  const auto gFrom = matrix_of<Accumulator>(block, from, cols);
  const auto gTo = matrix_of<Element>(block, to, cols);
  each_row(gFrom.vectorized() && gTo.vectorized(), block, [&](auto lanes) {
    auto exact = lanes.begin(gFrom);
    auto rounded = lanes.begin(gTo);
#pragma unroll 1
    for (int col = lanes.col; col < cols; col += lanes.kCols) {
      const auto x = exact.next();
      typename decltype(lanes)::template Values<Element> y;
#pragma unroll
      for (int i = 0; i < lanes.kRows; ++i) {
#pragma unroll
        for (int j = 0; j < lanes.kCount; ++j) from_accumulator(y.at(i, j), x.at(i, j));
      }
      rounded.put(y);
    }
  });
}

extern "C" __global__ void __launch_bounds__(kThreads)
    attention_convert_dq(const __grid_constant__ BackwardParams params) {
  convert(params.dq, params.dq_acc, params.shape, block_of_queries(params.shape), params.shape.head_dim);
}

extern "C" __global__ void __launch_bounds__(kThreads)
    attention_convert_dkdv(const __grid_constant__ BackwardParams params) {
  const RowBlock block = block_of_keys(params.shape);
  if (params.dk.data != nullptr) convert(params.dk, params.dk_acc, params.shape, block, params.shape.head_dim);
  if (params.dv.data != nullptr) convert(params.dv, params.dv_acc, params.shape, block, params.shape.head_dim_v);
}
