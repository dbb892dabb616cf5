// score = scale * s, the first step of all.
#pragma once
#include "attention/place.cuh"
#include "attention/score/uniform.cuh"

struct ScaleParams {
  double scale, unit;  // unit * |s|, unit > 0, is the score's size in log2 units
  float scale_f32, unit_f32;  // for kernels that have no double
};

// For a scale >= 0.
template <class Accumulator>
struct Scale {
  template <class Columns>
  using Row = UniformRow<Scale>;

  Accumulator scale, log2_unit;

  __device__ Scale(const ScaleParams& params, const Place& place, Accumulator unit)
      : scale(sizeof(Accumulator) == 4 ? params.scale_f32 : params.scale),
        log2_unit(sizeof(Accumulator) == 4 ? params.unit_f32 : params.unit) {}

  __device__ Accumulator unit() const { return log2_unit; }
  __device__ Accumulator forward(Accumulator s) const { return s; }
  __device__ Accumulator backward(Accumulator ds, Accumulator s) const { return ds * scale; }
};

// For a scale < 0.
template <class Accumulator>
struct NegatedScale : Scale<Accumulator> {
  template <class Columns>
  using Row = UniformRow<NegatedScale>;

  using Scale<Accumulator>::Scale;

  __device__ Accumulator forward(Accumulator s) const { return -s; }
};
