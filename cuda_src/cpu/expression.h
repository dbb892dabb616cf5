// What the text of a traced function is made of (expressions/cxx.py) on a CPU: operations with NumPy's meaning, of
// numbers and of vectors of them, a query or a key in each lane. What depends on lanes is a vector, all else a number.
// IntLanes have as many bits as floats, Wide ones 64; bools of lanes are masks.
#pragma once
#include "cpu/convert.h"
#include "cpu/vector.h"

typedef NUMBER Number;
typedef Integer<Number> Int;
typedef int64_t Wide;
typedef Number Float;
typedef bool Bool;
typedef Vector<Number> FloatLanes;
typedef Mask<Number> IntLanes;
typedef int64_t WideLanes __attribute__((vector_size(kLanes<Number> * sizeof(int64_t))));

namespace np {

constexpr double nan() { return __builtin_nan(""); }
constexpr double infinite() { return __builtin_inf(); }

// The vector that has such numbers in its lanes, and whether a type is one.
template <class T>
struct LanesOf {
  typedef T Type;
  static constexpr bool kIsVector = true;
};
#define LANES_OF(Scalar, Lanes)              \
  template <>                                \
  struct LanesOf<Scalar> {                   \
    typedef Lanes Type;                      \
    static constexpr bool kIsVector = false; \
  };
LANES_OF(float, Vector<float>)
LANES_OF(double, Vector<double>)
LANES_OF(int32_t, Mask<float>)
LANES_OF(bool, IntLanes)
#undef LANES_OF
template <>
struct LanesOf<int64_t> {
  typedef WideLanes Type;
  static constexpr bool kIsVector = false;
};
template <class T>
constexpr bool kIsVector = LanesOf<T>::kIsVector;
template <class T>
using Lanes = typename LanesOf<T>::Type;

// The same number in all lanes; a vector is as it is.
template <class T>
inline ALWAYS_INLINE Lanes<T> lanes(T x) {
  if constexpr (kIsVector<T>) {
    return x;
  } else if constexpr (sizeof(T) == 1) {
    return IntLanes{} - Int(x);  // a bool
  } else {
    return x - Lanes<T>{};
  }
}

// compare(x, y) as a mask of IntLanes. What takes two registers g++ would compare lane by lane: it does so by halves.
template <class V, class Compare>
inline ALWAYS_INLINE IntLanes compared(V x, V y, Compare compare) {
  if constexpr (sizeof(V) == sizeof(IntLanes)) {
    return (IntLanes)compare(x, y);
  } else {
#if defined(__clang__)
    return __builtin_convertvector(compare(x, y), IntLanes);
#else
    typedef Vector<int64_t> Half;
    const auto half = [](const V& v, int n) { return load_as<Half>((const char*)&v + n * sizeof(Half)); };
    const auto mask = [&](int n) { return (IntLanes)compare(half(x, n), half(y, n)); };
    return __builtin_shuffle(mask(0), mask(1), 2 * lane_index<Number>());
#endif
  }
}

template <class A, class B>
constexpr bool kAnyVector = kIsVector<A> || kIsVector<B>;

#define OPERATION(name, symbol)              \
  template <class A, class B>                \
  inline ALWAYS_INLINE auto name(A a, B b) { \
    return a symbol b;                       \
  }
OPERATION(add, +)
OPERATION(subtract, -)
OPERATION(multiply, *)
OPERATION(divide, /)
#undef OPERATION

#define COMPARISON(name, symbol)                                                      \
  template <class A, class B>                                                         \
  inline ALWAYS_INLINE auto name(A a, B b) {                                          \
    if constexpr (kAnyVector<A, B>) {                                                 \
      return compared(lanes(a), lanes(b), [](auto x, auto y) { return x symbol y; }); \
    } else {                                                                          \
      return a symbol b;                                                              \
    }                                                                                 \
  }
COMPARISON(less, <)
COMPARISON(less_equal, <=)
COMPARISON(equal, ==)
COMPARISON(not_equal, !=)
#undef COMPARISON

#define BITS(name, symbol)                   \
  template <class A, class B>                \
  inline ALWAYS_INLINE auto name(A a, B b) { \
    if constexpr (kAnyVector<A, B>) {        \
      return lanes(a) symbol lanes(b);       \
    } else {                                 \
      return A(a symbol b);                  \
    }                                        \
  }
BITS(bitwise_and, &)
BITS(bitwise_or, |)
BITS(bitwise_xor, ^)
#undef BITS

template <class A>
inline ALWAYS_INLINE A square(A a) {
  return a * a;
}
template <class A>
inline ALWAYS_INLINE A negative(A a) {
  return -a;
}
inline ALWAYS_INLINE bool invert(bool a) { return !a; }
template <class A>
inline ALWAYS_INLINE A invert(A a) {
  return ~a;
}

template <class C, class A, class B>
inline ALWAYS_INLINE auto where(C condition, A a, B b) {
  if constexpr (!kIsVector<C> && !kAnyVector<A, B>) {
    return condition ? a : b;
  } else if constexpr (!kIsVector<C>) {
    return condition ? lanes(a) : lanes(b);
  } else {
    using V = Lanes<A>;
    if constexpr (sizeof(V) == sizeof(IntLanes)) {
      return condition ? lanes(a) : lanes(b);
    } else {
      return __builtin_convertvector(condition, WideLanes) ? lanes(a) : lanes(b);
    }
  }
}

// NaN if either is.
template <class A, class B>
inline ALWAYS_INLINE auto minimum(A a, B b) {
  return where(bitwise_or(less(a, b), not_equal(a, a)), a, b);
}
template <class A, class B>
inline ALWAYS_INLINE auto maximum(A a, B b) {
  return where(bitwise_or(less(b, a), not_equal(a, a)), a, b);
}
template <class A>
inline ALWAYS_INLINE A absolute(A a) {
  return where(less(a, A{}), -a, a + A{});  // -0 + 0 is 0
}
template <class A>
inline ALWAYS_INLINE A sign(A a) {
  const A one = A{} + 1;
  return where(less(A{}, a), one, where(less(a, A{}), -one, a));
}

// What has no vectors, a lane at a time.
template <class V, class Function>
inline ALWAYS_INLINE V each(V x, Function function) {
  for (int i = 0; i < kLanes<Number>; ++i) x[i] = function(x[i]);
  return x;
}
#define EACH(name, call)                                                                                   \
  template <class A>                                                                                       \
  inline ALWAYS_INLINE A name(A a) {                                                                       \
    if constexpr (kIsVector<A>) {                                                                          \
      return each(a, [](Number x) { return sizeof(Number) == 4 ? call##f(x) : Number(call(double(x))); }); \
    } else {                                                                                               \
      return sizeof(Number) == 4 ? call##f(a) : Number(call(double(a)));                                   \
    }                                                                                                      \
  }
EACH(floor, __builtin_floor)
EACH(log, __builtin_log)
EACH(log2, __builtin_log2)
EACH(log1p, __builtin_log1p)
EACH(sqrt, __builtin_sqrt)
EACH(sin, __builtin_sin)
EACH(cos, __builtin_cos)
#undef EACH

template <class A, class B>
inline ALWAYS_INLINE auto power(A a, B b) {
  const auto one = [](Number x, Number y) { return Number(__builtin_pow(double(x), double(y))); };
  if constexpr (kAnyVector<A, B>) {
    FloatLanes x = lanes(a), y = lanes(b);
    for (int i = 0; i < kLanes<Number>; ++i) x[i] = one(x[i], y[i]);
    return x;
  } else {
    return one(a, b);
  }
}

// 2^(unit x), infinite where it is too large.
inline ALWAYS_INLINE FloatLanes power_of_2(FloatLanes x, Number unit) {
  const FloatLanes top = splat(Number(Exp2<Number>::kBias + 1) / unit);
  return ::exp2<Number>(x > top ? top : x, unit);
}
template <class A>
inline ALWAYS_INLINE A exp2(A a) {
  if constexpr (kIsVector<A>) {
    return power_of_2(a, 1);
  } else {
    return Number(__builtin_exp2(double(a)));
  }
}
template <class A>
inline ALWAYS_INLINE A exp(A a) {
  if constexpr (kIsVector<A>) {
    return power_of_2(a, Number(1.4426950408889634074));
  } else {
    return Number(__builtin_exp(double(a)));
  }
}
// -z / (z + 2) with z = e^-2|x| - 1, as cpu/score/softcap.h has it.
template <class A>
inline ALWAYS_INLINE A tanh(A a) {
  if constexpr (kIsVector<A>) {
    FloatLanes part[1] = {a < FloatLanes{} ? a : -a}, power[1];
    exp2_parts<Number>(part, power, Number(2 * 1.4426950408889634074), Number(0));
    const FloatLanes z = part[0] * power[0] + (power[0] - Number(1));
    const FloatLanes size = z / (z + Number(2));
    return a < FloatLanes{} ? size : -size;
  } else {
    return Number(__builtin_tanh(double(a)));
  }
}

template <class A>
inline ALWAYS_INLINE auto isfinite(A a) {
  return equal(a - a, A{});
}

// Towards minus infinity. An int by 0 is 0, a float what it is by division; of others the quotient is a whole number
// before it is rounded.
template <class T>
inline ALWAYS_INLINE T floor_divide_one(T x, T y) {
  if constexpr (T(0.5) != T(0)) {
    const T rest = __builtin_fmod(x, y), whole = __builtin_rint((x - rest) / y);
    return y == 0 ? x / y : rest != 0 && (rest < 0) != (y < 0) ? whole - 1 : whole;
  } else {
    if (y == 0) return 0;
    if (y == -1) return -x;
    return x / y - T(x % y != 0 && (x < 0) != (y < 0));
  }
}
template <class T>
inline ALWAYS_INLINE T remainder_one(T x, T y) {
  if constexpr (T(0.5) != T(0)) {
    const T rest = __builtin_fmod(x, y);
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
  } else {
    if (y == 0 || y == -1) return 0;
    const T rest = x % y;
    return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
  }
}
#define DIVISION(name)                                                        \
  template <class A, class B>                                                 \
  inline ALWAYS_INLINE auto name(A a, B b) {                                  \
    if constexpr (kAnyVector<A, B>) {                                         \
      auto x = lanes(a);                                                      \
      const auto y = lanes(b);                                                \
      for (int i = 0; i < kLanes<Number>; ++i) x[i] = name##_one(x[i], y[i]); \
      return x;                                                               \
    } else {                                                                  \
      return name##_one(a, b);                                                \
    }                                                                         \
  }
DIVISION(floor_divide)
DIVISION(remainder)
#undef DIVISION

inline ALWAYS_INLINE Wide wide(Int x) { return x; }
template <class A>
inline ALWAYS_INLINE auto wide(A x) {
  if constexpr (kIsVector<A>) {
    return __builtin_convertvector(x, WideLanes);
  } else {
    return Wide(x);
  }
}
template <class A>
inline ALWAYS_INLINE auto narrow(A x) {
  if constexpr (kIsVector<A>) {
    return __builtin_convertvector(x, IntLanes);
  } else {
    return Int(x);
  }
}
template <class To, class A>
inline ALWAYS_INLINE auto int_to_float(A x) {
  if constexpr (kIsVector<A>) {
    return __builtin_convertvector(x, FloatLanes);
  } else {
    return Float(x);
  }
}
template <class To, class A>
inline ALWAYS_INLINE auto bool_to_float(A x) {
  if constexpr (kIsVector<A>) {
    return __builtin_convertvector(-x, FloatLanes);
  } else {
    return Float(x);
  }
}
template <class To, class A>
inline ALWAYS_INLINE auto bool_to_int(A x) {
  if constexpr (kIsVector<A>) {
    return -x;
  } else {
    return Int(x);
  }
}
// Cut towards 0: NaN is 0, and what lies beyond 32 bits the nearest.
template <class To, class A>
inline ALWAYS_INLINE auto float_to_int(A x) {
  constexpr Number kMost = 2147483647.0;
  const auto high = less_equal(Number(kMost), x), low = less_equal(x, Number(-kMost));
  const auto inside = where(bitwise_or(bitwise_or(high, low), not_equal(x, x)), A{}, x);
  if constexpr (kIsVector<A>) {
    return where(high, Int(2147483647), where(low, Int(-2147483647), __builtin_convertvector(inside, IntLanes)));
  } else {
    return high ? Int(2147483647) : low ? Int(-2147483647) : Int(inside);
  }
}

// An index into an axis of so many: negative ones count from the end, and of those beyond there are none.
template <class Index>
inline ALWAYS_INLINE auto wrapped(Index i, int size) {
  return where(less(i, Index{}), i + size, i);
}
template <class Index>
inline ALWAYS_INLINE auto held(Index i, int size) {
  const auto x = wrapped(i, size);
  const Index last = Index{} + (size - 1);
  return maximum(minimum(x, last), Index{});
}

template <class A>
inline ALWAYS_INLINE int64_t lane(A x, int i) {
  if constexpr (kIsVector<A>) {
    return x[i];
  } else {
    return x;
  }
}

// An element of an array that is stored as Storage; of vectors of indices a vector.
template <class To, class Storage>
inline ALWAYS_INLINE To number(const Storage* x) {
  Storage value;
  __builtin_memcpy(&value, x, sizeof value);
  return To(value);
}
template <class To>
inline ALWAYS_INLINE To number(const Float16* x) {
  return widen(Float16(), words(load_as<uint16_t>(x)))[0];
}
template <class To>
inline ALWAYS_INLINE To number(const BFloat16* x) {
  return widen(BFloat16(), words(load_as<uint16_t>(x)))[0];
}
template <class To, class Storage, class Array, class... Index>
inline ALWAYS_INLINE auto element(const Array& array, Index... index) {
  const auto at = [&](int i) {
    int64_t offset = 0;
    int axis = 0;
    ((offset += lane(index, i) * array.strides[axis++]), ...);
    return number<To>((const Storage*)array.data + offset);
  };
  if constexpr ((false || ... || kIsVector<Index>)) {
    Lanes<To> found;
    for (int i = 0; i < kLanes<Number>; ++i) found[i] = sizeof(To) == 1 ? -Int(at(i)) : at(i);
    return found;
  } else {
    return at(0);
  }
}

}  // namespace np
