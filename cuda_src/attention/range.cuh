// Intervals in the place of numbers, for the text of a traced mask (expressions/cxx.py): between which numbers its
// values lie over a block of queries and keys. The rules are those of expressions/ranges.py.
#pragma once
#include "attention/expression.cuh"
#include "numeric.cuh"

struct Range {
  double low, high;

  __device__ bool is_one() const { return low == high; }
  __device__ bool around_zero() const { return low <= 0 && high >= 0; }
};

// Ints; infinite bounds where they are not known.
struct IntRange : Range {
  IntRange() = default;
  __device__ IntRange(double x) : Range{x, x} {}
  __device__ IntRange(double low, double high) : Range{low, high} {}
};

// Floats, of 32 bits in the masks of kernels; where one may be NaN, and what is made of that, both bounds are infinite.
struct FloatRange : Range {
  FloatRange() = default;
  __device__ FloatRange(double x) : Range{double(float(x)), double(float(x))} {
    if (x != x) low = -np::infinite(), high = np::infinite();
  }
  __device__ FloatRange(double low, double high) : Range{low, high} {}

  __device__ bool is_lost() const { return low == -np::infinite() && high == np::infinite(); }
};

// 0: false, 1: true; [0, 1]: either.
struct BoolRange : Range {
  BoolRange() = default;
  __device__ BoolRange(bool x) : Range{double(x), double(x)} {}
  __device__ BoolRange(bool low, bool high) : Range{double(low), double(high)} {}
};

// Whether it holds wherever in their bounds two numbers are. Of floats that may be NaN it is not sure.
__device__ __forceinline__ BoolRange operator<(Range x, Range y) { return {x.high < y.low, x.low < y.high}; }
__device__ __forceinline__ BoolRange operator<=(IntRange x, IntRange y) { return {x.high <= y.low, x.low <= y.high}; }
__device__ __forceinline__ BoolRange operator<=(FloatRange x, FloatRange y) {
  return {x.high <= y.low && !x.is_lost() && !y.is_lost(), x.low <= y.high};
}
__device__ __forceinline__ BoolRange operator==(Range x, Range y) {
  return {x.is_one() && y.is_one() && x.low == y.low, x.low <= y.high && y.low <= x.high};
}
__device__ __forceinline__ BoolRange operator!=(Range x, Range y) {
  const BoolRange equal = x == y;
  return {equal.high == 0, equal.low == 0};
}

// What the text of a function is read with.
struct Ranges {
  using Float = FloatRange;
  using Bool = BoolRange;
};

namespace np {

__device__ __forceinline__ IntRange wide(IntRange x) { return x; }
__device__ __forceinline__ IntRange narrow(IntRange x) { return x; }

// 64 bits may overflow, and doubles do not tell ints beyond 2^53 apart: nothing is known then.
__device__ __forceinline__ IntRange computed(double low, double high) {
  return low > -0x1p53 && high < 0x1p53 ? IntRange(low, high) : IntRange(-infinite(), infinite());
}

// Rounding keeps the order: a result is no less than its bound as the kernel would have rounded that. Whole numbers up
// to `exact` are not rounded.
__device__ __forceinline__ FloatRange rounded(double low, double high, double exact = 0) {
  if (fabs(low) > exact) low -= 0x1p-20 * fabs(low) + 1e-37;
  if (fabs(high) > exact) high += 0x1p-20 * fabs(high) + 1e-37;
  if (low != low || high != high) return {-infinite(), infinite()};
  return {low < -3.4028234e38 ? -infinite() : low, high > 3.4028234e38 ? infinite() : high};
}

__device__ __forceinline__ FloatRange lost() { return {-infinite(), infinite()}; }

// The least and the largest of the corners' values.
struct Corners {
  double low, high;

  template <class Operation>
  __device__ Corners(Range x, Range y, Operation&& operation) {
    low = high = operation(x.low, y.low);
    include(operation(x.low, y.high));
    include(operation(x.high, y.low));
    include(operation(x.high, y.high));
  }

 private:
  __device__ void include(double corner) {
    low = corner < low || corner != corner ? corner : low;
    high = corner > high || corner != corner ? corner : high;
  }
};

// 0 times no bound is 0: every int is finite.
__device__ __forceinline__ double finite_product(double x, double y) { return x == 0 || y == 0 ? 0.0 : x * y; }

__device__ __forceinline__ IntRange add(IntRange x, IntRange y) { return computed(x.low + y.low, x.high + y.high); }
__device__ __forceinline__ IntRange subtract(IntRange x, IntRange y) {
  return computed(x.low - y.high, x.high - y.low);
}
__device__ __forceinline__ IntRange multiply(IntRange x, IntRange y) {
  const Corners corners(x, y, [](double a, double b) { return finite_product(a, b); });
  return computed(corners.low, corners.high);
}
__device__ __forceinline__ IntRange negative(IntRange x) { return computed(-x.high, -x.low); }
__device__ __forceinline__ IntRange absolute(IntRange x) {
  const double low = fabs(x.low), high = fabs(x.high);
  return computed(x.around_zero() ? 0.0 : min(low, high), max(low, high));
}
__device__ __forceinline__ IntRange square(IntRange x) {
  const IntRange size = absolute(x);
  return computed(size.low * size.low, size.high * size.high);
}

// Floor of the quotient, exact for doubles that are ints.
__device__ __forceinline__ double floor_quotient(double x, double y) {
  if (fabs(x) == infinite()) return (x > 0) == (y > 0) ? infinite() : -infinite();
  const double rest = fmod(x, y), quotient = (x - rest) / y;
  return rest != 0 && (rest < 0) != (y < 0) ? quotient - 1 : quotient;
}
__device__ __forceinline__ IntRange floor_divide(IntRange x, IntRange y) {
  const double most = max(fabs(x.low), fabs(x.high));
  if (y.around_zero()) return computed(-most, most);  // no int between -1 and 1 divides but 0
  const Corners corners(x, y, [](double a, double b) { return floor_quotient(a, b); });
  return computed(corners.low, corners.high);
}
__device__ __forceinline__ IntRange remainder(IntRange x, IntRange y) {
  if (y.is_one() && y.low > 0) {
    const double first = floor_quotient(x.low, y.low);
    if (first == floor_quotient(x.high, y.low)) return {x.low - first * y.low, x.high - first * y.low};
  }
  return {min(y.low + 1, 0.0), max(y.high - 1, 0.0)};
}

__device__ __forceinline__ bool loses(FloatRange x) { return x.is_lost(); }
__device__ __forceinline__ bool loses(FloatRange x, FloatRange y) { return x.is_lost() || y.is_lost(); }

__device__ __forceinline__ FloatRange add(FloatRange x, FloatRange y) {
  return loses(x, y) ? lost() : rounded(x.low + y.low, x.high + y.high);
}
__device__ __forceinline__ FloatRange subtract(FloatRange x, FloatRange y) {
  return loses(x, y) ? lost() : rounded(x.low - y.high, x.high - y.low);
}
__device__ __forceinline__ FloatRange multiply(FloatRange x, FloatRange y) {
  const Corners corners(x, y, [](double a, double b) { return a * b; });
  return loses(x, y) ? lost() : rounded(corners.low, corners.high);
}
__device__ __forceinline__ FloatRange divide(FloatRange x, FloatRange y) {
  const Corners corners(x, y, [](double a, double b) { return a / b; });
  return loses(x, y) || y.around_zero() ? lost() : rounded(corners.low, corners.high);
}
__device__ __forceinline__ bool is_bounded(FloatRange x) {
  return fabs(x.low) != infinite() && fabs(x.high) != infinite();
}
__device__ __forceinline__ FloatRange floor_divide(FloatRange x, FloatRange y) {
  if (!is_bounded(x) || loses(y) || y.around_zero()) return lost();
  const Corners corners(x, y, [](double a, double b) { return floor_quotient(a, b); });
  return rounded(corners.low, corners.high);
}
__device__ __forceinline__ FloatRange remainder(FloatRange x, FloatRange y) {
  return !is_bounded(x) || loses(y) || y.around_zero() ? lost() : rounded(min(y.low, 0.0), max(y.high, 0.0));
}
__device__ __forceinline__ FloatRange power(FloatRange x, FloatRange y) {
  if (loses(x, y) || !(x.low > 0)) return lost();
  const Corners corners(x, y, [](double a, double b) { return ::pow(a, b); });
  return rounded(corners.low, corners.high);
}
__device__ __forceinline__ FloatRange negative(FloatRange x) { return {-x.high, -x.low}; }
__device__ __forceinline__ FloatRange absolute(FloatRange x) {
  if (loses(x)) return x;
  const double low = fabs(x.low), high = fabs(x.high);
  return {x.around_zero() ? 0.0 : min(low, high), max(low, high)};
}
__device__ __forceinline__ FloatRange square(FloatRange x) {
  const FloatRange size = absolute(x);
  return loses(size) ? size : rounded(size.low * size.low, size.high * size.high);
}

// Of a function that never falls, and is defined from `least` on.
template <class Function>
__device__ __forceinline__ FloatRange rising(FloatRange x, Function&& function, double least = -infinite()) {
  return loses(x) || x.low < least ? lost() : rounded(function(x.low), function(x.high));
}
__device__ __forceinline__ FloatRange floor(FloatRange x) {
  return loses(x) ? x : rounded(::floor(x.low), ::floor(x.high), 0x1p24);
}
__device__ __forceinline__ FloatRange exp(FloatRange x) {
  return rising(x, [](double a) { return ::exp(a); });
}
__device__ __forceinline__ FloatRange exp2(FloatRange x) {
  return rising(x, [](double a) { return ::exp2(a); });
}
__device__ __forceinline__ FloatRange log(FloatRange x) {
  return rising(x, [](double a) { return ::log(a); }, 0.0);
}
__device__ __forceinline__ FloatRange log2(FloatRange x) {
  return rising(x, [](double a) { return ::log2(a); }, 0.0);
}
__device__ __forceinline__ FloatRange log1p(FloatRange x) {
  return rising(x, [](double a) { return ::log1p(a); }, -1.0);
}
__device__ __forceinline__ FloatRange tanh(FloatRange x) {
  return rising(x, [](double a) { return ::tanh(a); });
}
__device__ __forceinline__ FloatRange sqrt(FloatRange x) {
  return rising(x, [](double a) { return ::sqrt(a); }, 0.0);
}
__device__ __forceinline__ FloatRange sin(FloatRange x) {
  return is_bounded(x) ? rounded(-1, 1) : lost();
}
__device__ __forceinline__ FloatRange cos(FloatRange x) { return sin(x); }
__device__ __forceinline__ BoolRange isfinite(FloatRange x) {
  return {is_bounded(x), true};
}

__device__ __forceinline__ IntRange minimum(IntRange x, IntRange y) { return {min(x.low, y.low), min(x.high, y.high)}; }
__device__ __forceinline__ IntRange maximum(IntRange x, IntRange y) { return {max(x.low, y.low), max(x.high, y.high)}; }
__device__ __forceinline__ FloatRange minimum(FloatRange x, FloatRange y) {
  return loses(x, y) ? lost() : FloatRange(min(x.low, y.low), min(x.high, y.high));
}
__device__ __forceinline__ FloatRange maximum(FloatRange x, FloatRange y) {
  return loses(x, y) ? lost() : FloatRange(max(x.low, y.low), max(x.high, y.high));
}
__device__ __forceinline__ double sign_of(double x) { return x > 0 ? 1 : x < 0 ? -1 : x; }
__device__ __forceinline__ IntRange sign(IntRange x) { return {sign_of(x.low), sign_of(x.high)}; }
__device__ __forceinline__ FloatRange sign(FloatRange x) {
  return loses(x) ? x : FloatRange(sign_of(x.low), sign_of(x.high));
}

__device__ __forceinline__ BoolRange invert(BoolRange x) { return {x.high == 0, x.low == 0}; }
template <class T>
__device__ __forceinline__ T where(BoolRange condition, T x, T y) {
  if (condition.is_one()) return condition.low == 1 ? x : y;
  T either;
  either.low = min(x.low, y.low), either.high = max(x.high, y.high);
  return either;
}

__device__ __forceinline__ BoolRange bitwise_and(BoolRange x, BoolRange y) {
  return {x.low == 1 && y.low == 1, x.high == 1 && y.high == 1};
}
__device__ __forceinline__ BoolRange bitwise_or(BoolRange x, BoolRange y) {
  return {x.low == 1 || y.low == 1, x.high == 1 || y.high == 1};
}
__device__ __forceinline__ BoolRange bitwise_xor(BoolRange x, BoolRange y) {
  if (x.is_one() && y.is_one()) return {x.low != y.low, x.low != y.low};
  return {false, true};
}
__device__ __forceinline__ IntRange bitwise_and(IntRange x, IntRange y) {
  if (x.low < 0 && y.low < 0) return {-infinite(), infinite()};
  return {0.0, x.low < 0 ? y.high : y.low < 0 ? x.high : min(x.high, y.high)};
}
// Of ints that are not negative: those of as many bits as the longer has.
__device__ __forceinline__ IntRange bitwise_or(IntRange x, IntRange y) {
  if (x.low < 0 || y.low < 0) return {-infinite(), infinite()};
  const double most = max(x.high, y.high);
  double bits = 1;
  while (bits <= most && bits < 0x1p53) bits *= 2;
  return {0.0, most < infinite() ? bits - 1 : infinite()};
}
__device__ __forceinline__ IntRange bitwise_xor(IntRange x, IntRange y) { return bitwise_or(x, y); }
__device__ __forceinline__ IntRange invert(IntRange x) { return {-x.high - 1, -x.low - 1}; }

template <class Int>
__device__ __forceinline__ Int bool_to_int(BoolRange x) { return {x.low, x.high}; }
__device__ __forceinline__ double cut(double x) { return ::trunc(max(min(x, 2147483647.0), -2147483647.0)); }
template <class Int>
__device__ __forceinline__ Int float_to_int(FloatRange x) { return {cut(x.low), cut(x.high)}; }
template <class Float>
__device__ __forceinline__ Float bool_to_float(BoolRange x) { return {x.low, x.high}; }
template <class Float>
__device__ __forceinline__ Float int_to_float(IntRange x) {
  return rounded(max(x.low, -0x1p63), min(x.high, 0x1p63), 0x1p24);
}

// Indices that lie in [-size, size) as they count from the start, or all that there are.
__device__ __forceinline__ IntRange wrapped(IntRange i, int size) {
  if (i.low >= 0) return i;
  return i.high < 0 ? IntRange(i.low + size, i.high + size) : IntRange(0.0, size - 1.0);
}
__device__ __forceinline__ IntRange held(IntRange i, int size) {
  const IntRange x = wrapped(i, size);
  return {max(min(x.low, size - 1.0), 0.0), max(min(x.high, size - 1.0), 0.0)};
}

template <class Storage>
constexpr bool kIsFloat = false;
template <>
constexpr bool kIsFloat<Float16> = true;
template <>
constexpr bool kIsFloat<BFloat16> = true;
template <>
constexpr bool kIsFloat<float> = true;
template <>
constexpr bool kIsFloat<double> = true;

// What the ints of a type may be.
template <class Storage>
__device__ __forceinline__ Range values_of() {
  if constexpr (sizeof(Storage) == 8) return {-infinite(), infinite()};
  const double all = static_cast<double>(1ull << 8 * sizeof(Storage) % 64);
  return static_cast<Storage>(-1) < static_cast<Storage>(0) ? Range{-all / 2, all / 2 - 1} : Range{0, all - 1};
}
template <>
__device__ __forceinline__ Range values_of<bool>() {
  return {0, 1};
}

constexpr int kSummarized = 32, kMostSummaries = 64;

// Of the elements of an array, which attention_summaries has looked through along one axis. Of floats nothing is known.
template <class To, class Storage, class Array, class... Index>
__device__ __forceinline__ To element_range(const Array& array, Index... index) {
  To found;
  if constexpr (kIsFloat<Storage>) {
    found = lost();
  } else {
    const IntRange indices[sizeof...(Index) + 1] = {index..., 0.0};
    const Storage* data = static_cast<const Storage*>(array.data);
    const Range* summary = static_cast<const Range*>(array.summary);
    int64_t at = 0, step = 1;
    bool is_known = true, moves = false;
    int first = 0, last = 0;
    for (int axis = sizeof...(Index) - 1; axis >= 0; --axis) {
      const int64_t low = static_cast<int64_t>(indices[axis].low);
      data += low * array.strides[axis];
      if (axis == array.summary_axis) {
        moves = !indices[axis].is_one();
        first = low / kSummarized, last = static_cast<int>(indices[axis].high) / kSummarized;
      } else {
        is_known = is_known && indices[axis].is_one();
        at += low * step;
      }
      step *= axis == array.summary_axis ? 1 : array.sizes[axis];
    }
    const Range all = values_of<Storage>();
    found.low = all.low, found.high = all.high;
    if (is_known && !moves) {
      const double value = static_cast<double>(*data);
      found.low = found.high = value;
    } else if (is_known && summary != nullptr && last - first < kMostSummaries) {
      found.low = infinite(), found.high = -infinite();
      for (int chunk = max(first, 0); chunk <= min(last, array.chunks - 1); ++chunk) {
        const Range of_chunk = summary[at * array.chunks + chunk];
        found.low = min(found.low, of_chunk.low), found.high = max(found.high, of_chunk.high);
      }
    }
    // Doubles do not tell ints beyond 2^53 apart.
    const bool is_exact = found.low > -0x1p53 && found.high < 0x1p53;
    if (sizeof(Storage) == 8 && !is_exact) found.low = all.low, found.high = all.high;
  }
  return found;
}

}  // namespace np
