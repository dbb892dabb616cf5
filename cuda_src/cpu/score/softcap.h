// s = cap * tanh(s / cap)
#pragma once
#include "cpu/score.h"

struct SoftcapParams {
  double cap;
};

template <class T>
class Softcap {
 public:
  static constexpr bool kKeeps = true, kAdds = false, kMultiplies = false, kPasses = false;

  template <class Place>
  Softcap(const SoftcapParams& params, const Place&, double unit)
      : cap_(params.cap), exponent_(T(2 * unit / params.cap)) {}

  bool used() const { return cap_ != 0; }
  double unit() const { return cap_ * kLog2E; }

  // tanh(y) = -z / (z + 2) with z = e^-2y - 1, for y >= 0: it never overflows, and z is accurate for any small y.
  template <class Rows, class Columns>
  Vector<T> forward(Vector<T> x, Rows, Columns, Vector<T>& kept) const {
    Vector<T> part[1] = {x < Vector<T>{} ? x : -x}, power[1];
    exp2_parts<T>(part, power, exponent_, T(0));
    const Vector<T> z = part[0] * power[0] + (power[0] - T(1));
    const Vector<T> tanh = z / (z + T(2));
    kept = T(1) - tanh * tanh;
    return x < Vector<T>{} ? tanh : -tanh;
  }

  template <class Rows, class Columns>
  Vector<T> backward(Vector<T> g, Rows, Columns, Vector<T> kept) const {
    return g * kept;
  }

 private:
  double cap_;
  T exponent_;  // exponent_ * x = 2 log2(e) y
};
