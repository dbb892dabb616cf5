// The keys of a lane's columns of scores, and how it comes by the flags of a mask that belong to them.
#pragma once
#include "attention/flags.cuh"
#include "mma/fragment.cuh"
#include "ptx/warp.cuh"

template <int kAcross, int kRows>
class PieceFlags;

// The keys of this lane's columns of a tile that begins with key n0.
template <int kAcross>
struct KeyColumns {
  static constexpr int kCount = kBlockN / kAcross / kQuad, kTogether = 2;  // of a lane, and next to one another
  template <int kRows>
  using Flags = PieceFlags<kAcross, kRows>;

  int n0, across;

  __device__ int operator()(int j) const { return n0 + col_of<kAcross>(j, across); }
};

// Flags of a lane's columns: of each 16-column piece two, and two more 8 columns further on. The lanes of a quad read
// four pieces, or what there is, side by side and hand the bits on to one another: a warp reads the bytes of its rows
// once, up to 16 a lane, where a lane's own columns would take a load for every two.
template <int kAcross, int kRows_>
class PieceFlags {
 public:
  using Columns = KeyColumns<kAcross>;
  static constexpr int kRows = kRows_;

  template <class RowOf>
  __device__ __forceinline__ PieceFlags(const KeyColumns<kAcross>& columns, const RowOf& row) {
    const int t = threadIdx.x % kQuad;
#pragma unroll
    for (int word = 0; word < kWords; word += kTogether) {
      const int first = kPiece * 2 * word + t * kFlags, piece = first / kPiece;  // among the warp's columns
      uint32_t own[kRows] = {};
      if (piece < kPieces) {
        read_flags<kFlags>(own, row, columns.n0 + (piece * kAcross + columns.across) * kPiece + first % kPiece);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const uint32_t half = own[i] << first % 32, low = half | ptx::shfl_xor(half, 1);
        const uint32_t high = ptx::shfl_xor(low, 2);
        if (kTogether == 1) {
          words_[i][word] = (low | high) >> 2 * t;
        } else {
          words_[i][word] = (t < 2 ? low : high) >> 2 * t;
          if (word + 1 < kWords) words_[i][word + 1] = (t < 2 ? high : low) >> 2 * t;
        }
      }
    }
  }

  // Whether there are any; they may be another lane's.
  __device__ bool any() const {
    uint32_t some = 0;
    each_word([&](uint32_t word) { some |= word; });
    return some != 0;
  }

  // Whether the lane's are all set.
  __device__ bool all() const {
    uint32_t every = kOwn;
    each_word([&](uint32_t word) { every &= word; });
    return every == kOwn;
  }

  __device__ bool at(int i, int j) const { return words_[i][j / 8] >> (j / 4 % 2 * 16 + j % 4 / 2 * 8 + j % 2) & 1; }

 private:
  static constexpr int kPieces = kBlockN / (kPiece * kAcross), kWords = (kPieces + 1) / 2;
  static constexpr int kFlags = kPieces < 3 ? kPiece * kPieces / kQuad : kPiece;  // that a lane reads at a time
  static constexpr int kTogether = kQuad * kFlags > 32 ? 2 : 1;                   // words of them that a quad reads
  // Bits of two pieces, shifted so that the lane's lie where the first lane's do, which are these.
  static constexpr uint32_t kOwn = kPieces == 1 ? 0x0303 : 0x03030303;
  uint32_t words_[kRows][kWords];

  template <class Use>
  __device__ __forceinline__ void each_word(Use&& use) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kWords; ++j) use(words_[i][j]);
    }
  }
};
