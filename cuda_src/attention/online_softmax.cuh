// Online softmax over rows shared by kLanes neighbouring lanes (Milakov and Gimelshein 2018; the deferred division
// is FlashAttention-2's, Dao 2023, section 3.1). `unit` takes a score to log2 units (attention/score.cuh).
#pragma once
#include "numeric.cuh"
#include "ptx/math.cuh"
#include "ptx/warp.cuh"

// What both kinds of softmax keep of their rows.
template <class Accumulator, int kRows, int kLanes>
struct SoftmaxRows {
  Accumulator row_max[kRows];  // of the scores before `unit`, or near it; equal in all lanes of a row
  Accumulator row_sum[kRows];  // this lane's share; reduced once, in finish()

  __device__ SoftmaxRows() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      row_max[i] = -infinity<Accumulator>();
      row_sum[i] = 0;
    }
  }

  // The maximum of this lane's scores of a row.
  template <int kCols>
  __device__ static Accumulator lane_max(const Accumulator (&s)[kCols]) {
    Accumulator m = s[0];
#pragma unroll
    for (int j = 1; j < kCols; ++j) m = max(m, s[j]);
    return m;
  }

  // That of the whole row, from its lanes'.
  __device__ static Accumulator row_max_of(Accumulator m) {
#pragma unroll
    for (int lane_mask = kLanes / 2; lane_mask > 0; lane_mask /= 2) m = max(m, ptx::shfl_xor(m, lane_mask));
    return m;
  }

  // Let every lane of a row have its whole sum.
  __device__ void finish() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int lane_mask = kLanes / 2; lane_mask > 0; lane_mask /= 2) {
        row_sum[i] += ptx::shfl_xor(row_sum[i], lane_mask);
      }
    }
  }

  // 1 / sum, 0 for a row that saw no key: all of its p are 0, even where they were made of scores of -inf.
  __device__ static Accumulator inverse(Accumulator sum) { return sum == 0 ? Accumulator(0) : 1 / sum; }
};

// A row has p = 2^(unit * s - base), one multiply-add and one ex2, with base = unit * m + kHeadroom and m a
// score near the row's maximum: row_max follows a larger one only when p would exceed 2^(kSlack - kHeadroom), since
// what is summed up must be rescaled then (as in FlashAttention-4). That base is rounded is no error: it is the same
// number in every p of the row; but p at m is then 2^(what was rounded off) rather than 1, and overflows where scores
// are large enough. From 2^24 (2^53 in double) on a row is "far": m is its maximum, is taken from its scores first, and
// its base is the exact product and kHeadroom.
template <class Accumulator, int kRows, int kLanes, int kHeadroom>
struct OnlineSoftmax : SoftmaxRows<Accumulator, kRows, kLanes> {
  static constexpr Accumulator kFar = sizeof(Accumulator) == 4 ? 0x1p24 : 0x1p53, kRoom = kHeadroom;
  using SoftmaxRows<Accumulator, kRows, kLanes>::row_max;
  using SoftmaxRows<Accumulator, kRows, kLanes>::row_sum;

  // s becomes p. rescale(i, factor): 2^(base_old - base) is owed to all that row i has summed.
  template <int kCols, class Rescale>
  __device__ void update(Accumulator (&s)[kRows][kCols], Accumulator unit, Rescale&& rescale) {
    Accumulator base[kRows];
    bool moves = false;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      base[i] = rounded_base(row_max[i], unit);  // -inf, which is far too, until the row sees a key
      moves |= (fma(this->lane_max(s[i]), unit, -base[i]) > kSlack - kRoom) | is_far(base[i]);
    }
    if (ptx::any(moves)) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const Accumulator m = max(row_max[i], this->row_max_of(this->lane_max(s[i])));
        const Accumulator factor = change(row_max[i], m, unit);
        row_max[i] = m;
        row_sum[i] *= factor;
        rescale(i, factor);
        base[i] = base_of(m, unit);
        if (is_far(base[i])) {
          base[i] = kRoom;
#pragma unroll
          for (int j = 0; j < kCols; ++j) s[i][j] -= m;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      Accumulator sum = 0;  // of these keys on their own: short sums are more exact
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        s[i][j] = ptx::ex2(fma(s[i][j], unit, -base[i]));
        sum += s[i][j];
      }
      row_sum[i] += sum;
    }
  }

  // What sums up to a row maximum of `from` are owed when it is `to`.
  __device__ static Accumulator change(Accumulator from, Accumulator to, Accumulator unit) {
    const Accumulator before = rounded_base(from, unit), after = base_of(to, unit);
    if (is_far(before) && from != -infinity<Accumulator>()) {
      return ptx::ex2(is_far(after) ? (from - to) * unit : fma(from, unit, -after) + kRoom);
    }
    return ptx::ex2(is_far(after) ? fma(to, -unit, before - kRoom) : before - after);
  }

  // The natural log-sum-exp of a row; -inf if it saw no key.
  __device__ static Accumulator log_sum_exp(Accumulator m, Accumulator sum, Accumulator unit) {
    const Accumulator base = rounded_base(m, unit), log_sum = ptx::lg2(sum);
    const Accumulator in_log2 = is_far(base) ? fma(m, unit, kRoom + log_sum) : base + log_sum;
    return sum == 0 ? -infinity<Accumulator>() : in_log2 * static_cast<Accumulator>(kLn2);
  }

 private:
  // -inf for a row that has seen no key yet.
  __device__ static Accumulator rounded_base(Accumulator m, Accumulator unit) {
    return fma(m, unit, kRoom);
  }

  // Of such a row 0: subtracting that from its scores gives p = 0, not NaN.
  __device__ static Accumulator base_of(Accumulator m, Accumulator unit) {
    const Accumulator base = rounded_base(m, unit);
    return base == -infinity<Accumulator>() ? Accumulator(0) : base;
  }

  __device__ static bool is_far(Accumulator base) { return fabs(base) >= kFar; }
};

// The same with every row far: one subtraction an element more, and no other path. For kernels on CUDA cores, where an
// element takes many multiply-adds anyway and the registers of that path would spill.
template <class Accumulator, int kRows, int kLanes, int kHeadroom>
struct ExactSoftmax : SoftmaxRows<Accumulator, kRows, kLanes> {
  using SoftmaxRows<Accumulator, kRows, kLanes>::row_max;
  using SoftmaxRows<Accumulator, kRows, kLanes>::row_sum;

  template <int kCols, class Rescale>
  __device__ void update(Accumulator (&s)[kRows][kCols], Accumulator unit, Rescale&& rescale) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Accumulator m = max(row_max[i], this->row_max_of(this->lane_max(s[i])));
      const Accumulator base = base_of(m), factor = change(row_max[i], m, unit);
      row_max[i] = m;
      rescale(i, factor);
      Accumulator sum = 0;  // of these keys on their own: simt/matmul.cuh, add_part
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const Accumulator x = (s[i][j] - base) * unit;
        s[i][j] = ptx::ex2(kHeadroom ? x - kHeadroom : x);
        sum += s[i][j];
      }
      row_sum[i] = fma(row_sum[i], factor, sum);
    }
  }

  // What sums up to a row maximum of `from` are owed when it is `to`.
  __device__ static Accumulator change(Accumulator from, Accumulator to, Accumulator unit) {
    return ptx::ex2((from - base_of(to)) * unit);
  }

  __device__ static Accumulator log_sum_exp(Accumulator m, Accumulator sum, Accumulator unit) {
    const Accumulator in_log2 = fma(m, unit, ptx::lg2(sum) + static_cast<Accumulator>(kHeadroom));
    return sum == 0 ? -infinity<Accumulator>() : in_log2 * static_cast<Accumulator>(kLn2);
  }

 private:
  // A row that has seen no key yet keeps m = -inf; subtracting 0 instead gives p = 0, not NaN.
  __device__ static Accumulator base_of(Accumulator m) { return m == -infinity<Accumulator>() ? Accumulator(0) : m; }
};

// For the backward: the log-sum-exp in log2 units, +inf for a row that saw no key so that 2^(s - lse) is 0.
template <class Accumulator>
__device__ __forceinline__ Accumulator lse_to_log2(Accumulator lse) {
  return lse == -infinity<Accumulator>() ? infinity<Accumulator>() : lse * static_cast<Accumulator>(kLog2E);
}

// P = 2^x for the backward. Its x is a score less the log-sum-exp, both rounded: never above 0 but by their errors,
// which with scores of millions are whole units.
template <class Accumulator>
__device__ __forceinline__ Accumulator probability(Accumulator x) {
  return ptx::ex2(ptx::min_nan(x, Accumulator(0)));
}
