// Rows of numbers in global memory, of which lanes want those of their columns.
#pragma once
#include "numeric.cuh"
#include "ptx/memory.cuh"

template <class Storage>
struct NumberRow {
  const Storage* data;
  int64_t col_stride;
  int count;         // of them exist; the others count as 0
  int vector_bytes;  // Tensor::vector_bytes
};

// What a register holds of them: a number.
template <class Storage, bool kPaired>
struct NumberWord {
  static constexpr int kCount = 1;
  Storage number = {};

  __device__ void set(int i, Storage x) { number = x; }
  __device__ Storage at(int i) const { return number; }
};

// Or two of 16 bits. Apart, each would take a register and instructions to come there.
template <class Half>
struct NumberWord<Half, true> {
  static constexpr int kCount = 2;
  uint32_t halves = 0;

  __device__ void set(int i, Half x) { halves |= static_cast<uint32_t>(x.bits) << 16 * i; }
  __device__ Half at(int i) const { return {static_cast<uint16_t>(halves >> 16 * i)}; }
};

// Those of a lane's columns, which has Columns::kTogether next to one another at a time, as they are stored.
template <class Columns, class Storage>
class NumbersOf {
 public:
  __device__ __forceinline__ NumbersOf(const Columns& columns, const NumberRow<Storage>& row) {
    const int first = columns(0), left = row.count - first;
    if (kTogether > 1 && row.vector_bytes >= kTogether * static_cast<int>(sizeof(Storage))) {
      const Storage* from = row.data + first;
#pragma unroll
      for (int j = 0; j < kCount; j += kTogether) {
        const int step = columns(j) - first;  // a constant
        if (step >= left) continue;
        const auto loaded = ptx::load_global<kTogether / Word::kCount>(reinterpret_cast<const Word*>(from + step));
#pragma unroll
        for (int i = 0; i < kTogether / Word::kCount; ++i) words_[j / Word::kCount + i] = loaded[i];
      }
    } else {
      const Storage* from = row.data + first * row.col_stride;
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        const int step = columns(j) - first;
        if (step < left) words_[j / Word::kCount].set(j % Word::kCount, from[step * row.col_stride]);
      }
    }
  }

  __device__ auto at(int j) const { return to_accumulator(words_[j / Word::kCount].at(j % Word::kCount)); }

 private:
  static constexpr int kCount = Columns::kCount, kTogether = Columns::kTogether;
  using Word = NumberWord<Storage, kTogether == 2 && sizeof(Storage) == 2>;
  Word words_[kCount / Word::kCount];
};
