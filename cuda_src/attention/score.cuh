// The step between s = q . k and the softmax, forward and backward. Kernels know only this interface, so another
// struct with the same functions (a bias, a cap, a formula of the user's) takes its place by JIT.
#pragma once
#include "numeric.cuh"
#include "params.cuh"

// score = scale * s. Scores live in log2 units, so that exp is a bare ex2.
template <class Accumulator>
struct ScaledScore {
  Accumulator scale, scale_log2;

  __device__ explicit ScaledScore(const Shape& shape)
      : scale(static_cast<Accumulator>(shape.scale)),
        scale_log2(static_cast<Accumulator>(shape.scale * kLog2E)) {}

  // The score in log2 units.
  __device__ Accumulator forward(Accumulator s, int row, int col) const { return s * scale_log2; }

  // d loss / d s, from d loss / d score (natural units).
  __device__ Accumulator backward(Accumulator dscore, Accumulator s, int row, int col) const {
    return dscore * scale;
  }
};
