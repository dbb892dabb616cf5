// s = scale * q . k
#pragma once
#include "cpu/score.h"

struct ScaleParams {
  double scale;
};

// What it makes of s is in log2 units unit * forward(s), so that exp is a bare exp2. What forward multiplies by is a
// power of 2: the differences of scores, all that a softmax sees, are then those of s however large they are.
template <class T>
class Scale {
 public:
  explicit Scale(const ScaleParams& params) : scale_(T(params.scale)), scale_log2_(T(params.scale * kLog2E)) {
    int exponent;
    const double fraction = __builtin_frexp(params.scale * kLog2E, &exponent);  // in [1/2, 1) but for its sign, or 0
    power_ = T(__builtin_ldexp(fraction < 0 ? -1 : fraction > 0 ? 1 : 0, exponent - 1));
    unit_ = fraction < 0 ? -2 * fraction : fraction > 0 ? 2 * fraction : 1;
  }

  double unit() const { return unit_; }

  Vector<T> forward(Vector<T> s) const { return s * power_; }
  Vector<T> in_log2(Vector<T> s) const { return s * scale_log2_; }
  Vector<T> backward(Vector<T> g) const { return g * scale_; }

 private:
  T scale_, scale_log2_, power_;
  double unit_;
};
