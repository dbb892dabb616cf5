// Query i sees key j when i + q_offset - left <= j <= i + q_offset + right, or one of both where one side is open.
#pragma once
#include "attention/place.cuh"

struct WindowParams {
  int left, right;
};

template <bool kBelow, bool kAbove>
struct WindowOf {
  static constexpr bool kCutsBelow = kBelow, kCutsAbove = kAbove, kElementwise = false;
  // Distances of the first and of the last key from the query's number, `left` to the left; no more than there is, for
  // they are added to numbers.
  int left, right;

  __device__ WindowOf(const WindowParams& params, const Place& place)
      : left(min(params.left - place.q_offset, place.seqlen_q)),
        right(min(params.right + place.q_offset, place.seqlen_k)) {}

  __device__ int key_begin(int query) const { return query - left; }
  __device__ int key_end(int query) const { return query + right + 1; }
  __device__ int query_begin(int key) const { return key - right; }
  __device__ int query_end(int key) const { return key + left + 1; }
};

using Window = WindowOf<true, true>;
using WindowLeft = WindowOf<true, false>;
using WindowRight = WindowOf<false, true>;
