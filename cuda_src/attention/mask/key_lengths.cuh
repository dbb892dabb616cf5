// Key j exists when j < k_lengths of its batch element.
#pragma once
#include "attention/number.cuh"
#include "attention/place.cuh"

struct KeyLengthsParams {
  Tensor k_lengths;  // [batch..., Hq, 1, 1]
  int wide;
};

struct KeyLengths {
  static constexpr bool kCutsBelow = false, kCutsAbove = true, kElementwise = false;
  int length, seqlen_q;

  __device__ KeyLengths(const KeyLengthsParams& params, const Place& place)
      : length(number_of(params.k_lengths, params.wide, place, 0, place.seqlen_k)), seqlen_q(place.seqlen_q) {}

  __device__ int key_end(int query) const { return length; }

  __device__ int query_begin(int key) const { return key < length ? 0 : seqlen_q; }
};
