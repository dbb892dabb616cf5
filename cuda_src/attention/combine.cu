// Merge of the partial results of split keys, one warp a row (Flash-Decoding, Dao et al. 2023):
//
//   l_s = row_sum_s 2^(base_s - base),  O = sum_s l_s O_s / sum_s l_s
//
// Row maxima and sums rather than log-sum-exps of the splits: these would be rounded, with scores of millions by whole
// units.
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
  const int64_t index = r.index, rows = query_rows(shape);
  const float* gPartialOut = static_cast<const float*>(params.partial_out.data) + index * shape.head_dim_v;
  const float* gPartialRows = static_cast<const float*>(params.partial_rows.data) + 2 * index;
  const auto gOut = head_matrix<Element>(params.out, shape, r.batch, r.head, shape.seqlen_q, shape.head_dim_v);
  const auto gLse = head_matrix<float>(params.lse, shape, r.batch, r.head, shape.seqlen_q, 1);
  const int num_splits = params.schedule.num_splits;

  // A row with no key in any split has a sum of 0; one of NaN, which max passes over, a sum of NaN. The loops are
  // unrolled little: more would spill around the call that the rare path of a division is (sm_80, NVRTC 13.5).
  using Softmax = OnlineSoftmax<float, 1, 1, kHeadroom<Element>>;
  const float multiplier = Score<float>(shape).multiplier;
  float row_max = -infinity<float>();
#pragma unroll 1
  for (int split = r.lane; split < num_splits; split += 32) row_max = max(row_max, gPartialRows[2 * split * rows]);
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) row_max = max(row_max, ptx::shfl_xor(row_max, lane_mask));

  const auto weight = [&](int split) {
    const float* row = gPartialRows + 2 * split * rows;
    return row[1] * Softmax::change(row[0], row_max, multiplier);
  };
  float sum = 0;
#pragma unroll 2
  for (int split = 0; split < num_splits; ++split) sum += weight(split);
  const float inverse = Softmax::inverse(sum);
  for (int col = r.lane; col < shape.head_dim_v; col += 32) {
    float out = 0;
#pragma unroll 4
    for (int split = 0; split < num_splits; ++split) {
      // Weighted first: near the largest number, a sum of several would overflow.
      out += weight(split) * inverse * gPartialOut[split * rows * shape.head_dim_v + col];
    }
    from_accumulator(*gOut.at(r.row, col), out);
  }
  if (r.lane == 0) *gLse.at(r.row, 0) = Softmax::log_sum_exp(row_max, sum, multiplier);
}
