// Merge of the partial results of split keys (Flash-Decoding, Dao et al. 2023), a warp for each row:
//
//   l_s = row_sum_s 2^(base_s - base),  O = sum_s l_s O_s / sum_s l_s
//
// Row maxima and sums rather than log-sum-exps of the splits: these would be rounded, with scores of millions by whole
// units.
#include "attention/online_softmax.cuh"
#include "attention/row.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"
#include "specialization.cuh"

static_assert(kNWarps == 1 && kBlockRows == 1, "a block is a warp with a row");
constexpr int kUnderWay = 16;  // loads of partial outputs
static_assert(32 % kUnderWay == 0, "the weights of what is under way are of the same 32 splits");

// The row of `g` from kCount columns a lane at a time. `weight` tells that of a split, 0 after the last.
template <int kCount, class Weight>
__device__ __forceinline__ void combine_row(const Matrix<Element>& g, int row, const float* gPartial, int64_t stride,
                                            int num_splits, Weight&& weight) {
  const int lane = threadIdx.x;
#pragma unroll 1
  for (int first_col = 0; first_col < g.cols; first_col += 32 * kCount) {
    const int col = first_col + lane * kCount;
    const float* src = gPartial + col;
    float out[kCount] = {};
#pragma unroll 1
    for (int split = 0; split < num_splits; split += kUnderWay) {
      ptx::Vec<float, kCount> x[kUnderWay] = {};
#pragma unroll
      for (int i = 0; i < kUnderWay; ++i) {
        if (split + i < num_splits && col < g.cols) x[i] = ptx::load_global<kCount>(src);
        src += stride;
      }
      const float own_weight = weight(split + lane % kUnderWay);
#pragma unroll
      for (int i = 0; i < kUnderWay; ++i) {
        const float split_weight = ptx::shfl(own_weight, i);
#pragma unroll
        for (int j = 0; j < kCount; ++j) out[j] += split_weight * x[i][j];
      }
    }
    if (col >= g.cols) continue;
    ptx::Vec<Element, kCount> rounded;
#pragma unroll
    for (int j = 0; j < kCount; ++j) from_accumulator(rounded[j], out[j]);
    if (g.vectorized()) {
      ptx::store_global(g.vector_at(row, col), rounded);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) *g.at(row, col + j) = rounded[j];
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads)
    attention_combine(const __grid_constant__ Composed<ForwardParams> params) {
  const Shape& shape = params.shape;
  const int lane = threadIdx.x, num_splits = params.schedule.num_splits;
  // Partial results are contiguous: rows follow one another as blocks do.
  const int64_t rows = query_rows(shape), index = blockIdx.x, stride = rows * shape.head_dim_v;
  const float* gPartialOut = static_cast<const float*>(params.partial_out.data) + index * shape.head_dim_v;
  const float* gPartialRows = static_cast<const float*>(params.partial_rows.data) + 2 * index;

  // A row with no key in any split has a sum of 0; one of NaN, which max passes over, a sum of NaN.
  using Softmax = OnlineSoftmax<float, 1, 1, kHeadroom<Element>>;
  float row_max = lane < num_splits ? gPartialRows[2 * lane * rows] : -infinity<float>();
  const RowBlock block = block_of_queries(shape);  // divisions, while that is under way
  const BlockPlace place(params.components, shape, block.batch_index, block.head);
  const float unit = Score<float>(params.components, place).unit();
  const auto gOut = matrix_of<Element>(block, params.out, shape.head_dim_v);
  const auto gLse = matrix_of<float>(block, params.lse, 1);
#pragma unroll 1
  for (int split = lane + 32; split < num_splits; split += 32) row_max = max(row_max, gPartialRows[2 * split * rows]);
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) row_max = max(row_max, ptx::shfl_xor(row_max, lane_mask));

  const auto weight = [&](int split) {
    if (split >= num_splits) return 0.0f;
    const auto statistics = ptx::load_global<2>(gPartialRows + 2 * split * rows);
    return statistics[1] * Softmax::change(statistics[0], row_max, unit);
  };
  float sum = 0;
#pragma unroll 1
  for (int first = 0; first < num_splits; first += 32) sum += weight(first + lane);
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) sum += ptx::shfl_xor(sum, lane_mask);

  // Weighted first: near the largest number, a sum of several outputs would overflow.
  const auto joined = [&] {
    const Sink sink(params.components, place);
    return Joined<float>(Softmax::log_sum_exp(row_max, sum, unit), sink.logit(block.begin, 0));
  };
  float inverse = Softmax::inverse(sum);
  if (Sink::kExists) inverse *= joined().share;
  const auto share = [&](int split) { return weight(split) * inverse; };
  if (params.partial_out.vector_bytes == 16) {
    combine_row<4>(gOut, block.begin, gPartialOut, stride, num_splits, share);
  } else {
    combine_row<1>(gOut, block.begin, gPartialOut, stride, num_splits, share);
  }
  // Not found before: held through the row, it would spill.
  if (lane == 0) {
    *gLse.at(block.begin, 0) = Sink::kExists ? joined().lse : Softmax::log_sum_exp(row_max, sum, unit);
  }
}
