// Query i exists when i < q_lengths of its batch element: the others see nothing.
#pragma once
#include "attention/number.cuh"
#include "attention/place.cuh"

struct QueryLengthsParams {
  Tensor q_lengths;  // [batch..., Hq, 1, 1]
  int wide;
};

struct QueryLengths {
  static constexpr bool kCutsBelow = true, kCutsAbove = false, kElementwise = false;
  int length, seqlen_k;

  __device__ QueryLengths(const QueryLengthsParams& params, const Place& place)
      : length(number_of(params.q_lengths, params.wide, place, 0, place.seqlen_q)), seqlen_k(place.seqlen_k) {}

  __device__ int key_begin(int query) const { return query < length ? 0 : seqlen_k; }

  __device__ int query_end(int key) const { return length; }
};
