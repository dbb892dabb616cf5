// Rows of a head in their storage type, to and from scratch in the type of the arithmetic. Half types are converted
// by integer arithmetic on vectors: exact, rounding to nearest even, no instruction set assumed.
#pragma once
#include "cpu/shape.h"
#include "cpu/vector.h"

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
typedef Vector<float> Floats;

inline Words words(uint32_t x) { return x + Words{}; }

inline Floats widen(BFloat16, Words h) { return (Floats)(h << 16); }

// Exponent and mantissa move into place; the product corrects the bias, and makes subnormals normal.
inline Floats widen(Float16, Words h) {
  const Floats magnitude = (Floats)((h & 0x7fff) << 13) * 0x1p112f;
  const Words special = (Words)(magnitude >= splat(65536.0f)) & 0x7f800000;  // inf and nan
  return (Floats)((Words)magnitude | special | (h & 0x8000) << 16);
}

inline Words narrow(BFloat16, Floats x) {
  const Words u = (Words)x;
  const Words rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return (u & 0x7fffffff) > words(0x7f800000) ? (u >> 16) | 0x40 : rounded;
}

inline Words narrow(Float16, Floats x) {
  const Words u = (Words)x & 0x7fffffff;
  const Words normal = (u + 0xc8000fff + ((u >> 13) & 1)) >> 13;  // less (127 - 15) << 23, plus half a unit
  const Words subnormal = (Words)((Floats)u + 0.5f) - 0x3f000000;  // the sum rounds to units of 2^-24
  const Words special = u > words(0x7f800000) ? words(0x7e00) : words(0x7c00);
  const Words finite = u < words(0x38800000) ? subnormal : normal;
  return (u >= words(0x47800000) ? special : finite) | ((Words)x >> 16 & 0x8000);
}

// A vector of T from or to as many elements, at any address.
template <class Element, class T>
inline void load_vector(T* y, const void* x) {
  if constexpr (sizeof(Element) == sizeof(T)) store(y, load_as<Vector<T>>(x));
  else store(y, widen(Element(), __builtin_convertvector(load_as<Halves>(x), Words)));
}
template <class Element, class T>
inline void store_vector(void* y, const T* x) {
  if constexpr (sizeof(Element) == sizeof(T)) store(y, load(x));
  else store(y, __builtin_convertvector(narrow(Element(), load(x)), Halves));
}

// count elements, stride bytes apart. Those that do not fill a vector, or lie apart, go through a buffer.
template <class Element, class T>
void load_elements(T* y, const char* x, int64_t stride, int64_t count) {
  constexpr int kStep = kLanes<T>;
  int64_t i = 0;
  if (stride == sizeof(Element)) {
    for (; i + kStep <= count; i += kStep) load_vector<Element>(y + i, x + i * sizeof(Element));
  }
  for (; i < count; i += kStep) {
    Element buffer[kStep] = {};  // y has room for whole vectors, and gets 0 beyond count
    for (int64_t e = i; e < count && e < i + kStep; ++e) {
      __builtin_memcpy(buffer + e - i, x + e * stride, sizeof(Element));
    }
    load_vector<Element>(y + i, buffer);
  }
}

template <class Element, class T>
void store_elements(char* y, int64_t stride, const T* x, int64_t count) {
  constexpr int kStep = kLanes<T>;
  int64_t i = 0;
  if (stride == sizeof(Element)) {
    for (; i + kStep <= count; i += kStep) store_vector<Element>(y + i * sizeof(Element), x + i);
  }
  for (; i < count; i += kStep) {
    Element buffer[kStep];
    store_vector<Element>(buffer, x + i);
    for (int64_t e = i; e < count && e < i + kStep; ++e) {
      __builtin_memcpy(y + e * stride, buffer + e - i, sizeof(Element));
    }
  }
}

inline void load_row(int64_t dtype, float* y, const char* x, int64_t stride, int64_t count) {
  if (dtype == kFloat16) load_elements<Float16>(y, x, stride, count);
  if (dtype == kBFloat16) load_elements<BFloat16>(y, x, stride, count);
  if (dtype == kFloat32) load_elements<float>(y, x, stride, count);
}
inline void load_row(int64_t, double* y, const char* x, int64_t stride, int64_t count) {
  load_elements<double>(y, x, stride, count);
}
inline void store_row(int64_t dtype, char* y, int64_t stride, const float* x, int64_t count) {
  if (dtype == kFloat16) store_elements<Float16>(y, stride, x, count);
  if (dtype == kBFloat16) store_elements<BFloat16>(y, stride, x, count);
  if (dtype == kFloat32) store_elements<float>(y, stride, x, count);
}
inline void store_row(int64_t, char* y, int64_t stride, const double* x, int64_t count) {
  store_elements<double>(y, stride, x, count);
}

// Rows of `width` elements into rows of scratch `pitch` apart, a multiple of the vector that holds 0 at its end.
template <class T>
void load_rows(int64_t dtype, T* y, int64_t pitch, const char* x, Strides stride, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) load_row(dtype, y + r * pitch, x + r * stride.row, stride.col, width);
}

template <class T>
void store_rows(int64_t dtype, char* y, Strides stride, const T* x, int64_t pitch, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) store_row(dtype, y + r * stride.row, stride.col, x + r * pitch, width);
}

// Rows in scratch to panels of kPanel columns side by side, each [width][kPanel]; 0 in the columns past the last row.
template <class T>
void transpose(T* panels, const T* x, int64_t pitch, int64_t rows, int64_t width) {
  for (int64_t r0 = 0; r0 < rows; r0 += kPanel<T>, panels += width * kPanel<T>) {
    const int64_t n = rows - r0 < kPanel<T> ? rows - r0 : kPanel<T>;
    if (n < kPanel<T>) __builtin_memset(panels, 0, width * kPanel<T> * sizeof(T));
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < width; ++c) panels[c * kPanel<T> + r] = x[(r0 + r) * pitch + c];
    }
  }
}
