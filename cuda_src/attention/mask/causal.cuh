// Query i sees key j when j <= i + q_offset.
#pragma once
#include "attention/place.cuh"

struct CausalParams {};

struct Causal {
  static constexpr bool kCutsBelow = false, kCutsAbove = true, kElementwise = false;
  int q_offset;

  __device__ Causal(const CausalParams& params, const Place& place) : q_offset(place.q_offset) {}

  __device__ int key_end(int query) const { return query + q_offset + 1; }

  __device__ int query_begin(int key) const { return key - q_offset; }
};
