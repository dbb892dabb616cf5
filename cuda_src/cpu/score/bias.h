// s = s + bias[..., i, j]
#pragma once
#include "cpu/convert.h"
#include "cpu/place.h"
#include "cpu/score.h"
#include "cpu/tile.h"

struct BiasParams {
  Layout bias;
  int64_t wide;
};

template <class T>
class Bias {
 public:
  static constexpr bool kKeeps = false, kAdds = true, kMultiplies = false, kPasses = true;

  template <class Place>
  Bias(const BiasParams& params, const Place& place, double unit)
      : used_(params.bias.heads),
        data_(place.begin(params.bias, place.arrays.bias)),
        row_(params.bias.row),
        col_(params.bias.col),
        dtype_(params.wide ? kFloat32 : place.shape.dtype),
        seqlen_k_(place.shape.seqlen_k),
        natural_(T(unit * kLn2)) {}

  bool used() const { return used_; }
  double unit() const { return kLog2E; }

  template <class Tile>
  void forward(const Tile& tile, T* x, T*) const {
    if constexpr (sizeof(T) == sizeof(double)) {
      if (dtype_ == kFloat32) add<float>(tile, x);
      if (dtype_ == kFloat64) add<double>(tile, x);
    } else {
      if (dtype_ == kFloat16) add<Float16>(tile, x);
      if (dtype_ == kBFloat16) add<BFloat16>(tile, x);
      if (dtype_ == kFloat32) add<float>(tile, x);
    }
  }

 private:
  static constexpr int kStep = kLanes<T>;

  // Where queries are in the lanes, squares of queries and keys are transposed in registers.
  template <class Element, int N>
  __attribute__((noinline)) void add(const PanelTile<T, N>& tile, T* x) const {
    for (int64_t j = 0; j < tile.keys; j += kStep) {
      for (int n = 0; n < N; ++n) {
        const Integer<T>* queries = tile.queries + n * kStep;
        Vector<T> square[kStep];
        UNROLL
        for (int i = 0; i < kStep; ++i) square[i] = numbers<Element>(queries[i], tile.first_key + j);
        transpose_square<T>(square);
        UNROLL
        for (int w = 0; w < kStep; ++w) {
          if (j + w < tile.keys) add(x + (j + w) * tile.pitch + n * kStep, square[w]);
        }
      }
    }
  }

  template <class Element>
  void add(const RowTile<T>& tile, T* x) const {
    for (int64_t j = 0; j < tile.keys; j += kStep) add(x + j, numbers<Element>(tile.query, tile.first_key + j));
  }

  void add(T* x, Vector<T> numbers) const { store(x, load(x) * natural_ + numbers); }

  // Those of a query and as many keys as a vector has lanes; 0 beyond the last.
  template <class Element>
  ALWAYS_INLINE Vector<T> numbers(int64_t query, int64_t key) const {
    const char* from = data_ + query * row_ + key * col_;
    T x[kStep] = {};
    if (col_ == sizeof(Element) && key + kStep <= seqlen_k_) {
      convert<Element>(x, from);
    } else {
      Element buffer[kStep] = {};
      for (int64_t i = 0; i < clamp(seqlen_k_ - key, 0, kStep); ++i) {
        __builtin_memcpy(buffer + i, from + i * col_, sizeof(Element));
      }
      convert<Element>(x, buffer);
    }
    return load(x);
  }

  template <class Element>
  static ALWAYS_INLINE void convert(T* y, const void* x) {
    if constexpr (sizeof(T) == sizeof(double) && sizeof(Element) == sizeof(float)) {
      Element buffer[kStep];
      __builtin_memcpy(buffer, x, sizeof buffer);
      for (int i = 0; i < kStep; ++i) y[i] = buffer[i];
    } else {
      load_vector<Element>(y, x);
    }
  }

  bool used_;
  const char* data_;  // of the head
  int64_t row_, col_, dtype_, seqlen_k_;
  T natural_;
};
