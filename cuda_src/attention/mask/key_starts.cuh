// Key j exists when j >= k_starts of its batch element.
#pragma once
#include "attention/number.cuh"
#include "attention/place.cuh"

struct KeyStartsParams {
  Tensor k_starts;  // [batch..., Hq, 1, 1]
  int wide;
};

struct KeyStarts {
  static constexpr bool kCutsBelow = true, kCutsAbove = false, kElementwise = false;
  int start, seqlen_q;

  __device__ KeyStarts(const KeyStartsParams& params, const Place& place)
      : start(number_of(params.k_starts, params.wide, place, 0, place.seqlen_k)), seqlen_q(place.seqlen_q) {}

  __device__ int key_begin(int query) const { return start; }

  __device__ int query_end(int key) const { return key < start ? 0 : seqlen_q; }
};
