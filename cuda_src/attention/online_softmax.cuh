// Online softmax over rows shared by kLanes neighbouring lanes (Milakov and Gimelshein 2018; the deferred division
// is FlashAttention-2's, Dao 2023, section 3.1). `multiplier` takes a score to log2 units (attention/score.cuh).
#pragma once
#include "numeric.cuh"
#include "ptx/math.cuh"
#include "ptx/warp.cuh"

template <class Accumulator, int kRows, int kLanes>
struct OnlineSoftmax {
  // The row's maximum in log2 units, rounded: equal in all lanes of a row. Were it multiplied again block by block, a
  // multiply-add would make 2^(m_old - m) of an unchanged maximum other than 1, an error that grows with the keys.
  Accumulator row_max[kRows];
  Accumulator row_sum[kRows];  // this lane's share; reduced once, in finish()

  __device__ OnlineSoftmax() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      row_max[i] = -infinity<Accumulator>();
      row_sum[i] = 0;
    }
  }

  // s becomes p = 2^(multiplier * s - m) with the new row maximum m; rescale is 2^(m_old - m), owed to everything
  // summed so far.
  template <int kCols>
  __device__ void update(Accumulator (&s)[kRows][kCols], Accumulator (&rescale)[kRows], Accumulator multiplier) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      Accumulator m = s[i][0];
#pragma unroll
      for (int j = 1; j < kCols; ++j) m = max(m, s[i][j]);
#pragma unroll
      for (int lane_mask = kLanes / 2; lane_mask > 0; lane_mask /= 2) {
        m = max(m, ptx::shfl_xor(m, lane_mask));
      }
      m = max(row_max[i], m * multiplier);
      // A row that has seen no key yet keeps m = -inf; subtracting 0 instead gives p = 0, not NaN.
      const Accumulator base = m == -infinity<Accumulator>() ? Accumulator(0) : m;
      rescale[i] = ptx::ex2(row_max[i] - base);
      row_max[i] = m;
      row_sum[i] *= rescale[i];
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        s[i][j] = ptx::ex2(s[i][j] * multiplier - base);
        row_sum[i] += s[i][j];
      }
    }
  }

  // Reduce the sums; inverse[i] is 1 / row_sum (0 for a row that saw no key), lse[i] the natural log-sum-exp.
  __device__ void finish(Accumulator (&inverse)[kRows], Accumulator (&lse)[kRows]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      Accumulator sum = row_sum[i];
#pragma unroll
      for (int lane_mask = kLanes / 2; lane_mask > 0; lane_mask /= 2) sum += ptx::shfl_xor(sum, lane_mask);
      const bool empty = row_max[i] == -infinity<Accumulator>() && sum == 0;
      inverse[i] = empty ? Accumulator(0) : 1 / sum;
      lse[i] = empty ? -infinity<Accumulator>() : (row_max[i] + ptx::lg2(sum)) * static_cast<Accumulator>(kLn2);
    }
  }
};

// For the backward: the log-sum-exp in log2 units, +inf for a row that saw no key so that 2^(s - lse) is 0.
template <class Accumulator>
__device__ __forceinline__ Accumulator lse_to_log2(Accumulator lse) {
  return lse == -infinity<Accumulator>() ? infinity<Accumulator>() : lse * static_cast<Accumulator>(kLog2E);
}
