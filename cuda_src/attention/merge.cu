// Attention over two disjoint sets of keys from the attention over each, one warp a row:
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
  const Row r = query_row_of_warp(shape);
  if (!r.inside) return;
  const int rows = shape.seqlen_q, cols = shape.head_dim_v;
  const auto gOutA = head_matrix<Out>(params.out_a, shape, r.batch, r.head, rows, cols);
  const auto gOutB = head_matrix<Element>(params.out_b, shape, r.batch, r.head, rows, cols);
  const auto gOut = head_matrix<Accumulator>(params.out, shape, r.batch, r.head, rows, cols);
  const Accumulator lse_a = *head_matrix<Accumulator>(params.lse_a, shape, r.batch, r.head, rows, 1).at(r.row, 0);
  const Accumulator lse_b = *head_matrix<Accumulator>(params.lse_b, shape, r.batch, r.head, rows, 1).at(r.row, 0);

  // A row that sees no key in either set has -inf in both; subtracting 0 instead gives weights 0, not NaN.
  // Both are asked: the maximum passes over NaN, which the result must not.
  const bool empty = lse_a == -infinity<Accumulator>() && lse_b == -infinity<Accumulator>();
  const Accumulator high = max(lse_a, lse_b), base = empty ? Accumulator(0) : high;
  const Accumulator log2e = static_cast<Accumulator>(kLog2E);
  const Accumulator exp_a = ptx::ex2((lse_a - base) * log2e), exp_b = ptx::ex2((lse_b - base) * log2e);
  // Weights that add up to 1, before they meet the outputs: twice the largest number would overflow.
  const Accumulator sum = exp_a + exp_b, inverse = empty ? Accumulator(0) : 1 / sum;
  const Accumulator weight_a = exp_a * inverse, weight_b = exp_b * inverse;
  for (int col = r.lane; col < cols; col += 32) {
    const Accumulator a = to_accumulator(*gOutA.at(r.row, col)), b = to_accumulator(*gOutB.at(r.row, col));
    *gOut.at(r.row, col) = weight_a * a + weight_b * b;
  }
  if (r.lane == 0) {
    const Accumulator lse = empty ? high : high + ptx::lg2(sum) * static_cast<Accumulator>(kLn2);
    *head_matrix<Accumulator>(params.lse, shape, r.batch, r.head, rows, 1).at(r.row, 0) = lse;
  }
}
