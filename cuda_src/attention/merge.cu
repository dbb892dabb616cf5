// Attention over two disjoint sets of keys from the attention over each:
//
//   lse = log(exp(lse_a) + exp(lse_b)),  O = exp(lse_a - lse) O_a + exp(lse_b - lse) O_b
//
// O_a may be of earlier merges, and O is to be merged again: it stays in the accumulator type.
#include "attention/row.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "ptx/math.cuh"
#include "specialization.cuh"

using Accumulator = AccumulatorOf<Element>::Type;

extern "C" __global__ void __launch_bounds__(kThreads) attention_merge(const __grid_constant__ MergeParams params) {
  const Shape& shape = params.shape;
  const RowBlock block = block_of_queries(shape);
  const auto gOutA = matrix_of<Out>(block, params.out_a, shape.head_dim_v);
  const auto gOutB = matrix_of<Element>(block, params.out_b, shape.head_dim_v);
  const auto gOut = matrix_of<Accumulator>(block, params.out, shape.head_dim_v);
  const auto gLseA = matrix_of<Accumulator>(block, params.lse_a, 1);
  const auto gLseB = matrix_of<Accumulator>(block, params.lse_b, 1);
  const auto gLse = matrix_of<Accumulator>(block, params.lse, 1);

  each_row(gOutA.vectorized() && gOutB.vectorized() && gOut.vectorized(), block, [&](auto lanes) {
    Accumulator lse_a = 0, lse_b = 0;
    if (lanes.owns()) {
      lse_a = *gLseA.at(lanes.own_row(), 0);
      lse_b = *gLseB.at(lanes.own_row(), 0);
    }
    // A row that sees no key in either set has -inf in both; subtracting 0 instead gives weights 0, not NaN.
    // Both are asked: the maximum passes over NaN, which the result must not.
    const bool empty = lse_a == -infinity<Accumulator>() && lse_b == -infinity<Accumulator>();
    const Accumulator high = max(lse_a, lse_b), base = empty ? Accumulator(0) : high;
    const Accumulator log2e = static_cast<Accumulator>(kLog2E);
    const Accumulator exp_a = ptx::ex2((lse_a - base) * log2e), exp_b = ptx::ex2((lse_b - base) * log2e);
    // Weights that add up to 1, before they meet the outputs: twice the largest number would overflow.
    const Accumulator sum = exp_a + exp_b, inverse = empty ? Accumulator(0) : 1 / sum;
    const Accumulator lse = empty ? high : high + ptx::lg2(sum) * static_cast<Accumulator>(kLn2);
    if (lanes.owns()) *gLse.at(lanes.own_row(), 0) = lse;

    Accumulator weight_a[lanes.kRows], weight_b[lanes.kRows];
#pragma unroll
    for (int i = 0; i < lanes.kRows; ++i) {
      weight_a[i] = lanes.of_row(i, exp_a * inverse);
      weight_b[i] = lanes.of_row(i, exp_b * inverse);
    }
    auto out_a = lanes.begin(gOutA);
    auto out_b = lanes.begin(gOutB);
    auto out = lanes.begin(gOut);
#pragma unroll 1
    for (int col = lanes.col; col < shape.head_dim_v; col += lanes.kCols) {
      const auto a = out_a.next();
      const auto b = out_b.next();
      typename decltype(lanes)::template Values<Accumulator> merged;
#pragma unroll
      for (int i = 0; i < lanes.kRows; ++i) {
#pragma unroll
        for (int j = 0; j < lanes.kCount; ++j) {
          merged.at(i, j) = weight_a[i] * to_accumulator(a.at(i, j)) + weight_b[i] * to_accumulator(b.at(i, j));
        }
      }
      out.put(merged);
    }
  });
}
