// The row of a step that does the same to all elements.
#pragma once

template <class Step>
struct UniformRow {
  const Step& step;

  template <class Columns>
  __device__ UniformRow(const Step& step, int query, int head, const Columns& columns) : step(step) {}

  template <class Accumulator>
  __device__ Accumulator forward(Accumulator s, int j) const {
    return step.forward(s);
  }

  template <class Accumulator>
  __device__ Accumulator backward(Accumulator ds, Accumulator s, int j) const {
    return step.backward(ds, s);
  }
};
