// Where each batch element's first query stands: what an array says, or the last one that exists at the last such key.
#pragma once
#include "attention/number.cuh"
#include "attention/place.cuh"

struct OffsetsParams {
  Tensor q_offset, k_lengths, q_lengths;  // [batch..., Hq, 1, 1]; data null where not given
  int q_offset_wide, k_lengths_wide, q_lengths_wide;
};

struct Offsets {
  static constexpr int kFarthest = 1 << 29;  // positions.py: kernels add positions up in 32 bits

  __device__ static void move(Place& place, const OffsetsParams& params) {
    if (params.q_offset.data != nullptr) {
      place.q_offset = number_of(params.q_offset, params.q_offset_wide, place, -kFarthest, kFarthest);
    } else {
      place.q_offset = length_of(params.k_lengths, params.k_lengths_wide, place, place.seqlen_k) -
                       length_of(params.q_lengths, params.q_lengths_wide, place, place.seqlen_q);
    }
  }
};
