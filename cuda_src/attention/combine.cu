// Merge of the partial results of split keys, one warp a row (Flash-Decoding, Dao et al. 2023):
//
//   lse = logsumexp_s(lse_s),  O = sum_s exp(lse_s - lse) O_s
#include "attention/matrix.cuh"
#include "attention/online_softmax.cuh"
#include "attention/row.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "specialization.cuh"

extern "C" __global__ void __launch_bounds__(kThreads) attention_combine(const __grid_constant__ ForwardParams params) {
  const Shape& shape = params.shape;
  const Row r = query_row_of_warp(shape);
  if (!r.inside) return;
  // Partial results are contiguous: rows follow one another as they are counted.
  const float* gPartialOut = static_cast<const float*>(params.partial_out.data) + r.index * shape.head_dim_v;
  const float* gPartialLse = static_cast<const float*>(params.partial_lse.data) + r.index;
  const auto gOut = head_matrix<Element>(params.out, shape, r.batch, r.head, shape.seqlen_q, shape.head_dim_v);
  const auto gLse = head_matrix<float>(params.lse, shape, r.batch, r.head, shape.seqlen_q, 1);
  const int64_t rows = query_rows(shape);
  const int num_splits = params.schedule.num_splits;

  // A row with no key in any split has lse -inf in all. The loops are unrolled little: more would spill around the
  // calls that 64-bit divisions are.
  float row_max = -infinity<float>();
#pragma unroll 1
  for (int split = r.lane; split < num_splits; split += 32) {
    row_max = max(row_max, gPartialLse[split * rows]);
  }
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) row_max = max(row_max, ptx::shfl_xor(row_max, lane_mask));
  const bool empty = row_max == -infinity<float>();
  const float base = empty ? 0.0f : row_max * static_cast<float>(kLog2E);

  const auto weight = [&](int split) {
    return ptx::ex2(gPartialLse[split * rows] * static_cast<float>(kLog2E) - base);
  };
  float sum = 0;
#pragma unroll 2
  for (int split = 0; split < num_splits; ++split) sum += weight(split);
  const float inverse = empty ? 0.0f : 1 / sum;
  for (int col = r.lane; col < shape.head_dim_v; col += 32) {
    float out = 0;
#pragma unroll 4
    for (int split = 0; split < num_splits; ++split) {
      out += weight(split) * gPartialOut[split * rows * shape.head_dim_v + col];
    }
    from_accumulator(*gOut.at(r.row, col), out * inverse);
  }
  if (r.lane == 0) *gLse.at(r.row, 0) = empty ? -infinity<float>() : row_max + ptx::lg2(sum) * static_cast<float>(kLn2);
}
