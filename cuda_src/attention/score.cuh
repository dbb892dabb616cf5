// The step between s = q . k and the softmax, forward and backward. Kernels know only this interface, so another
// struct with the same functions (a bias, a cap, a formula of the user's) takes its place by JIT.
//
// The score in log2 units is multiplier * forward(s), multiplier > 0: row maxima are taken of forward(s), and
// 2^(multiplier * forward(s) - ...) is one multiply-add and one ex2.
#pragma once
#include "numeric.cuh"
#include "params.cuh"

// score = scale * s for a scale >= 0.
template <class Accumulator>
struct ScaledScore {
  Accumulator scale, multiplier;

  __device__ explicit ScaledScore(const Shape& shape)
      : scale(sizeof(Accumulator) == 4 ? shape.scale_f32 : shape.scale),
        multiplier(sizeof(Accumulator) == 4 ? shape.multiplier_f32 : shape.multiplier) {}

  __device__ Accumulator forward(Accumulator s, int row, int col) const { return s; }

  // d loss / d s, from d loss / d score (natural units).
  __device__ Accumulator backward(Accumulator dscore, Accumulator s, int row, int col) const {
    return dscore * scale;
  }
};

// The same for a scale < 0: multiplier is that of -s.
template <class Accumulator>
struct NegatedScore : ScaledScore<Accumulator> {
  using ScaledScore<Accumulator>::ScaledScore;

  __device__ Accumulator forward(Accumulator s, int row, int col) const { return -s; }
};
