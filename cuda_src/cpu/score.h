// The step between s = q . k and the softmax, forward and backward, as in attention/score.cuh, for vectors.
#pragma once
#include "cpu/shape.h"
#include "cpu/vector.h"

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// score = scale * s. Scores live in log2 units, so that exp is a bare exp2.
template <class T>
struct ScaledScore {
  T scale, scale_log2;

  explicit ScaledScore(const Shape& shape) : scale(T(shape.scale)), scale_log2(T(shape.scale * kLog2E)) {}

  // In log2 units. Of rows and columns, numbers of queries and keys, either are those of the lanes.
  template <class Rows, class Columns>
  Vector<T> forward(Vector<T> s, Rows rows, Columns columns) const { return s * scale_log2; }

  // d loss / d s, from d loss / d score (natural units). A step that is not linear will need s too: keep it beside p.
  template <class Rows, class Columns>
  Vector<T> backward(Vector<T> dscore, Rows rows, Columns columns) const { return dscore * scale; }
};
