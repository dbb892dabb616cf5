// s = s - slope |i + q_offset - j|
#pragma once
#include "cpu/place.h"
#include "cpu/score.h"

struct AlibiParams {
  Layout alibi_slopes;
};

template <class T>
class Alibi {
 public:
  static constexpr bool kKeeps = false, kAdds = true, kMultiplies = true, kPasses = false;

  template <class Place>
  Alibi(const AlibiParams& params, const Place& place, double unit)
      : used_(params.alibi_slopes.heads),
        slope_(T(place.number(params.alibi_slopes, place.arrays.alibi_slopes, 0.0f))),
        natural_(T(unit * kLn2)),
        offset_(place.q_offset) {}

  bool used() const { return used_; }
  double unit() const { return kLog2E; }

  // Either rows or columns are those of the lanes.
  template <class Rows, class Columns>
  Vector<T> forward(Vector<T> x, Rows rows, Columns columns, Vector<T>&) const {
    return x * natural_ - slope_ * distance(rows, columns);
  }

  template <class Rows, class Columns>
  Vector<T> term(Vector<T> g, Rows rows, Columns columns) const {
    return -g * distance(rows, columns);
  }

 private:
  template <class Rows, class Columns>
  Vector<T> distance(Rows rows, Columns columns) const {
    const Mask<T> apart = narrow(rows) + Integer<T>(offset_) - narrow(columns);
    return __builtin_convertvector(apart < 0 ? -apart : apart, Vector<T>);
  }
  static Integer<T> narrow(int64_t x) { return Integer<T>(x); }
  static Mask<T> narrow(Mask<T> x) { return x; }

  bool used_;
  T slope_, natural_;
  int64_t offset_;
};
