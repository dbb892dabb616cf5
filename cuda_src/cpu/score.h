// The step between s = q . k and the softmax, forward and backward, as in attention/score.cuh, for vectors.
#pragma once
#include "cpu/shape.h"
#include "cpu/vector.h"

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// score = scale * s, in log2 units unit * forward(s), so that exp is a bare exp2. What forward multiplies by is a power
// of 2: the differences of scores, all that a softmax sees, are then those of s however large they are.
template <class T>
struct ScaledScore {
  T scale, scale_log2, power, unit;

  explicit ScaledScore(const Shape& shape) : scale(T(shape.scale)), scale_log2(T(shape.scale * kLog2E)) {
    int exponent;
    const double fraction = __builtin_frexp(shape.scale * kLog2E, &exponent);  // in [1/2, 1) but for its sign, or 0
    power = T(__builtin_ldexp(fraction < 0 ? -1 : fraction > 0 ? 1 : 0, exponent - 1));
    unit = T(fraction < 0 ? -2 * fraction : fraction > 0 ? 2 * fraction : 1);
  }

  // Of rows and columns, numbers of queries and keys, either are those of the lanes.
  template <class Rows, class Columns>
  Vector<T> forward(Vector<T> s, Rows rows, Columns columns) const { return s * power; }

  template <class Rows, class Columns>
  Vector<T> in_log2(Vector<T> s, Rows rows, Columns columns) const { return s * scale_log2; }

  // d loss / d s, from d loss / d score (natural units). A step that is not linear will need s too: keep it beside p.
  template <class Rows, class Columns>
  Vector<T> backward(Vector<T> dscore, Rows rows, Columns columns) const { return dscore * scale; }
};
