// Rows of flags in global memory, a byte each, of which lanes want those of their columns.
#pragma once
#include "ptx/memory.cuh"

struct FlagRow {
  const uint8_t* data;
  int64_t col_stride;
  int count;         // of them exist; the others count as not set
  int vector_bytes;  // Tensor::vector_bytes

  __device__ bool at(int col) const { return col < count && data[col * col_stride] != 0; }

  // 4 * kWords from `col` on, of which all exist or none.
  template <int kWords>
  __device__ ptx::Vec<uint32_t, kWords> words(int col) const {
    ptx::Vec<uint32_t, kWords> found = {};
    if (col < count) found = ptx::load_global<kWords>(reinterpret_cast<const uint32_t*>(data + col));
    return found;
  }
};

// Of each byte of a word whether any bit is set: its upper one tells, and the product brings the four together.
__device__ __forceinline__ uint32_t bits_of(uint32_t word) {
  return (((word & 0x7f7f7f7f) + 0x7f7f7f7f | word) & 0x80808080) * 0x00204081 >> 28;
}

// kFlags of each row from `col` on, as bits, by accesses of kWords words: all rows' before the first is looked at.
template <int kFlags, int kWords, int kRows, class RowOf>
__device__ __forceinline__ void read_words(uint32_t (&bits)[kRows], RowOf&& row, int col) {
#pragma unroll 1
  for (int first = 0; first < kFlags; first += 4 * kWords) {
    ptx::Vec<uint32_t, kWords> words[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) words[i] = row(i).template words<kWords>(col + first);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kWords; ++j) bits[i] |= bits_of(words[i][j]) << (first + 4 * j);
    }
  }
}

// The same, 4, 8 or 16 from a multiple of so many on, by the accesses that the rows allow. `bits` are 0 before.
template <int kFlags, int kRows, class RowOf>
__device__ __forceinline__ void read_flags(uint32_t (&bits)[kRows], RowOf&& row, int col) {
  if (row(0).vector_bytes >= kFlags) {
    read_words<kFlags, kFlags / 4>(bits, row, col);
  } else if (row(0).vector_bytes != 0) {
    read_words<kFlags, 1>(bits, row, col);
  } else {
#pragma unroll 1
    for (int j = 0; j < kFlags; ++j) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) bits[i] |= static_cast<uint32_t>(row(i).at(col + j)) << j;
    }
  }
}

// Those of a lane's columns, each read when it is asked for.
template <class Columns_, int kRows_>
class FlagsOf {
 public:
  using Columns = Columns_;
  static constexpr int kRows = kRows_;

  template <class RowOf>
  __device__ FlagsOf(const Columns& columns, const RowOf& row) : columns_(columns) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) rows_[i] = row(i);
  }

  __device__ bool at(int i, int j) const { return rows_[i].at(columns_(j)); }
  __device__ bool any() const { return true; }
  __device__ bool all() const { return false; }

 private:
  FlagRow rows_[kRows];
  Columns columns_;
};
