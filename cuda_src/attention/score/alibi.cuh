// score = score - slope * |i + q_offset - j|, of each head a slope. The distance does not depend on the score, whose
// gradient passes. What goes out is in log2 units: with another step's, however small, a slope could not be divided.
#pragma once
#include "attention/matrix.cuh"
#include "attention/place.cuh"
#include "numeric.cuh"

struct AlibiParams {
  Tensor alibi_slopes;  // [batch..., Hq, 1, 1], float
};

template <class Accumulator>
struct Alibi {
  const float* slopes;  // from place.head on
  int64_t head_stride;
  int q_offset;
  Accumulator input_unit, first_slope;

  __device__ Alibi(const AlibiParams& params, const Place& place, Accumulator unit)
      : slopes(head_matrix<const float>(params.alibi_slopes, place.shape, place.batch, place.head, 1, 1).data),
        head_stride(params.alibi_slopes.head_stride),
        q_offset(place.q_offset),
        input_unit(unit),
        first_slope(load_slope(0)) {}

  __device__ Accumulator unit() const { return 1; }

  template <class Columns>
  struct Row {
    Columns columns;
    Accumulator slope, apart;  // how far the query stands behind the lane's first key
    Accumulator input_unit;

    __device__ Row(const Alibi& step, int query, int head, const Columns& columns)
        : columns(columns),
          slope(step.slope(head)),
          apart(static_cast<Accumulator>(query + step.q_offset - columns(0))),
          input_unit(step.input_unit) {}

    __device__ Accumulator forward(Accumulator x, int j) const { return fma(x, input_unit, -slope * distance(j)); }
    __device__ Accumulator backward(Accumulator dy, Accumulator x, int j) const { return dy; }
    __device__ Accumulator term(Accumulator dy, int j) const { return -dy * distance(j); }

   private:
    // Columns are constants apart: no element has an integer to convert.
    __device__ Accumulator distance(int j) const {
      return fabs(apart - static_cast<Accumulator>(columns(j) - columns(0)));
    }
  };

 private:
  __device__ Accumulator load_slope(int head) const {
    return slopes[head * head_stride] * static_cast<Accumulator>(kLog2E);
  }

  // The first head's, in most blocks the only one, is loaded once: in the loop over keys its address, worked out again
  // there, made registers spill.
  __device__ Accumulator slope(int head) const { return head == 0 ? first_slope : load_slope(head); }
};
