// Gradients of arrays that a score's function captures: what each score has of them goes to the elements that it was
// made of, wherever these lie.
//
//   kGather == 1   by atomic additions of floats, in any order
//   kGather == 2   how large the parts are: the largest exponent, before
//   kGather == 3   by atomic additions of whole numbers, which come to the same in every order
//
// A thread adds up in registers as long as one element is meant. A part x is, as whole numbers, x / 2^e in limbs of
// kLimbBits bits, e the largest exponent: 2^40 parts of them stay within 63 bits (Demmel and Nguyen, "Parallel
// Reproducible Summation", 2015, bins numbers likewise).
#pragma once
#include "attention/expression.cuh"
#include "numeric.cuh"
#include "ptx/warp.cuh"

constexpr int kLimbBits = 22, kNotFinite = 5000;
template <class Accumulator>
constexpr int kLimbs = sizeof(Accumulator) == 4 ? 2 : 3;

template <class Accumulator, int kGather>
__device__ __forceinline__ void add_part(void* gradient, const int* exponent, int64_t elements, int64_t at,
                                         Accumulator part) {
  if (part == Accumulator(0)) return;  // also before the first
  if constexpr (kGather == 1) {
    atomicAdd(static_cast<Accumulator*>(gradient) + at, part);
  } else if constexpr (kGather == 2) {
    const bool finite = part - part == Accumulator(0);
    atomicMax(static_cast<int*>(gradient), finite ? ilogb(part) + 2000 : kNotFinite);
  } else {
    double rest = ldexp(static_cast<double>(part), kLimbBits - 1 - (*exponent - 2000));
    if (!(rest - rest == 0.0)) return;  // the result is NaN
    auto* sum = static_cast<unsigned long long*>(gradient) + at;
#pragma unroll
    for (int limb = 0; limb < kLimbs<Accumulator>; ++limb) {
      const double whole = rint(rest);
      atomicAdd(sum + limb * elements, static_cast<unsigned long long>(static_cast<long long>(whole)));
      rest = ldexp(rest - whole, kLimbBits);
    }
  }
}

// The parts of a thread, of kSites places where arrays enter the score.
template <class Accumulator, int kSites, int kGather>
class Sites {
 public:
  template <int kSite, class Array>
  __device__ __forceinline__ void add(const Array& array, int64_t element, Accumulator part) {
    if (array.gradient == nullptr) return;
    if (element != at_[kSite]) {
      flush<kSite>(array);
      at_[kSite] = element;
    }
    sums_[kSite] += part;
  }

  // What is left of a site. All lanes of a warp call it; if they mean the same element, it is added once.
  template <int kSite, class Array>
  __device__ __forceinline__ void finish(const Array& array) {
    if (array.gradient == nullptr) return;
    const int64_t first = ptx::shfl(at_[kSite], 0);
    if (ptx::all(first == at_[kSite])) {
#pragma unroll
      for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) sums_[kSite] += ptx::shfl_xor(sums_[kSite], lane_mask);
      if (threadIdx.x % 32 != 0) sums_[kSite] = 0;
    }
    flush<kSite>(array);
  }

 private:
  int64_t at_[kSites + 1] = {};  // and of none a place
  Accumulator sums_[kSites + 1] = {};

  template <int kSite, class Array>
  __device__ __forceinline__ void flush(const Array& array) {
    add_part<Accumulator, kGather>(array.gradient, static_cast<const int*>(array.exponent), np::count(array.sizes),
                                   at_[kSite], sums_[kSite]);
    sums_[kSite] = 0;
  }
};

// What a kernel does with the scores of its tiles. With kGather == 0 nothing.
template <class Accumulator, int kGather>
struct GatheredOf {
  Sites<Accumulator, Score<Accumulator>::sites(), kGather> sites;

  // d loss / d score, and what the score's last step took.
  template <class Row>
  __device__ __forceinline__ void add(const Row& row, Accumulator dscore, Accumulator x, int j) {
    if (dscore != Accumulator(0)) row.gather(sites, dscore, x, j);
  }
  template <class Params>
  __device__ __forceinline__ void finish(const Params& params) {
    Score<Accumulator>::finish(sites, params);
  }
};
template <class Accumulator>
struct GatheredOf<Accumulator, 0> {
  template <class Row>
  __device__ __forceinline__ void add(const Row& row, Accumulator dscore, Accumulator x, int j) {}
  template <class Params>
  __device__ __forceinline__ void finish(const Params& params) {}
};
