// Rows of a head in their storage type, to and from scratch in the type of the arithmetic. Half types are converted
// by integer arithmetic on vectors: exact, rounding to nearest even, no instruction set assumed.
#pragma once
#include "cpu/dtype.h"
#include "cpu/layout.h"
#include "cpu/pair.h"
#include "cpu/sizes.h"
#include "cpu/vector.h"

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

typedef Vector<Pair> Words;
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

// A row of `width` elements; zeros follow up to `pitch`.
template <class T>
inline void load_row(int64_t dtype, T* y, int64_t pitch, const char* x, int64_t stride, int64_t width) {
  if constexpr (sizeof(T) == sizeof(double)) {
    load_elements<double>(y, x, stride, width);
  } else {
    if (dtype == kFloat16) load_elements<Float16>(y, x, stride, width);
    if (dtype == kBFloat16) load_elements<BFloat16>(y, x, stride, width);
    if (dtype == kFloat32) load_elements<float>(y, x, stride, width);
  }
  for (int64_t i = round_up(width, kLanes<T>); i < pitch; ++i) y[i] = 0;
}
inline void store_row(int64_t dtype, char* y, int64_t stride, const float* x, int64_t count) {
  if (dtype == kFloat16) store_elements<Float16>(y, stride, x, count);
  if (dtype == kBFloat16) store_elements<BFloat16>(y, stride, x, count);
  if (dtype == kFloat32) store_elements<float>(y, stride, x, count);
}
inline void store_row(int64_t, char* y, int64_t stride, const double* x, int64_t count) {
  store_elements<double>(y, stride, x, count);
}

// Rows of scratch are `pitch` apart.
template <class T>
void load_rows(int64_t dtype, T* y, int64_t pitch, const char* x, const Layout& layout, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) load_row(dtype, y + r * pitch, pitch, x + r * layout.row, layout.col, width);
}

inline double load_number(int64_t dtype, const char* x) {
  if (dtype == kFloat64) return load_as<double>(x);
  float y[kLanes<float>];
  load_row(dtype, y, 0, x, 0, 1);
  return y[0];
}

// The same as the broadcast factor of a product: with zeros up to a whole unit of rows, and where the rows
// lie (then nothing is copied, and products overlap with fetching them) if they lie as they would in scratch.
template <class T>
const T* load_factor(int64_t dtype, T* y, int64_t pitch, const char* x, const Layout& layout, int64_t rows,
                     int64_t width) {
  const bool same = sizeof(T) == 8 ? dtype == kFloat64 : dtype == kFloat32;
  if (same && layout.col == sizeof(T) && layout.row == pitch * int64_t(sizeof(T)) && width == pitch &&
      rows % kRowUnit == 0 && int64_t(x) % sizeof(T) == 0) {
    return (const T*)x;
  }
  load_rows(dtype, y, pitch, x, layout, rows, width);
  __builtin_memset(y + rows * pitch, 0, (round_up(rows, kRowUnit) - rows) * pitch * sizeof(T));
  return y;
}

// Rows of bfloat16 as pairs of neighbours in a row, `pitch` pairs apart: the bits as they are.
inline void load_pairs(Pair* y, int64_t pitch, const char* x, const Layout& layout, int64_t rows, int64_t width) {
  __builtin_memset(y, 0, rows * pitch * sizeof(Pair));
  for (int64_t r = 0; r < rows; ++r) {
    char* row = (char*)(y + r * pitch);
    const char* from = x + r * layout.row;
    if (layout.col == sizeof(BFloat16)) {
      __builtin_memcpy(row, from, width * sizeof(BFloat16));
    } else {
      for (int64_t c = 0; c < width; ++c) __builtin_memcpy(row + 2 * c, from + c * layout.col, sizeof(BFloat16));
    }
  }
}

// Pairs of neighbours in a column: rows 2j and 2j + 1 become row j; 0 where there is none.
inline void load_row_pairs(Pair* y, int64_t pitch, const char* x, const Layout& layout, int64_t rows, int64_t width) {
  constexpr int kStep = kLanes<float>;
  for (int64_t r = 0; r < rows; r += 2, y += pitch) {
    const char *low = x + r * layout.row, *high = low + layout.row;
    for (int64_t c = 0; c < pitch; c += kStep) {
      BFloat16 buffer[2][kStep] = {};
      for (int64_t e = c; e < width && e < c + kStep; ++e) {
        __builtin_memcpy(&buffer[0][e - c], low + e * layout.col, sizeof(BFloat16));
        if (r + 1 < rows) __builtin_memcpy(&buffer[1][e - c], high + e * layout.col, sizeof(BFloat16));
      }
      const auto half = [&](int i) { return __builtin_convertvector(load_as<Halves>(buffer[i]), Words); };
      store(y + c, half(0) | half(1) << 16);
    }
  }
}

// Numbers as the nearest bfloat16, rows 2j and 2j + 1 of a panel in pairs.
inline void round_to_pairs(Pair* y, const float* x, int64_t panel, int64_t rows) {
  for (int64_t r = 0; r < rows; r += 2) {
    for (int64_t i = 0; i < panel; i += kLanes<float>) {
      const Words low = narrow(BFloat16(), load(x + r * panel + i));
      const Words high = r + 1 < rows ? narrow(BFloat16(), load(x + (r + 1) * panel + i)) : Words{};
      store(y + r / 2 * panel + i, low | high << 16);
    }
  }
}
