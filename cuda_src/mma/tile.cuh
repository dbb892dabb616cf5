// Tiles of half-type elements in shared memory: swizzled, filled from global memory in 16-byte chunks.
//
// A row is kCols / 8 chunks. Chunk c of row r stands at c ^ f(r), f below, so that eight rows of one chunk column
// (what a phase of ldmatrix reads) and eight chunks of one row (what a quarter-warp copies) each touch all 32 banks
// once, without padding.
#pragma once
#include "attention/matrix.cuh"
#include "numeric.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/memory.cuh"
#include "specialization.cuh"

constexpr int kThreads = 32 * kNWarps;
constexpr int kChunk = 8;  // elements of 16 bytes
// What a thread sums up at a time. More than four times its registers takes the compiler minutes and gigabytes.
constexpr int kSumBytes = 4096;
static_assert(kNWarps >= 1 && kNWarps <= 32, "a block has 1 to 32 warps");
static_assert(kBlockM > 0 && kBlockN > 0 && kStages > 0 && kMinBlocks > 0, "sizes and counts of a tile are positive");

template <int kRows_, int kCols_>
struct __align__(128) Tile {
  static constexpr int kRows = kRows_, kCols = kCols_;
  static_assert(kCols % 32 == 0, "the swizzle permutes chunks within 32 or 64 columns");
  // Columns whose chunks the swizzle permutes: 64 (128 bytes, all banks) where rows are whole multiples of them.
  static constexpr int kGroup = kCols % 64 == 0 ? 64 : 32;

  Element data[kRows * kCols];

  // What row r adds (by xor) to a column. With 32-column groups, even and odd rows lie 64 bytes apart modulo 128.
  __device__ static int swizzle(int row) { return kGroup == 64 ? row % 8 * kChunk : row / 2 % 4 * kChunk; }

  __device__ Element* at(int row, int col) { return data + row * kCols + (col ^ swizzle(row)); }
};

// Eight elements of a row as one vector.
template <class Source>
__device__ __forceinline__ void load_chunk(Element* dst, const Source& g, int row, int col) {
  const bool inside = g.holds(row, col);
  if (kAsyncCopy) {
    const Element* src = g.vector_at(inside ? row : g.row_begin, inside ? col : 0);
    ptx::cp_async_16(ptx::shared_address(dst), src, inside ? 16 : 0);
  } else {
    ptx::Vec<Element, kChunk> x = {};
    if (inside) x = ptx::load_global<kChunk>(g.vector_at(row, col));
    ptx::store_shared(dst, x);
  }
}

// The same one by one, for strides and sizes that vectors do not fit.
template <class Source>
__device__ __forceinline__ void gather_chunk(Element* dst, const Source& g, int row, int col) {
  ptx::Vec<Element, kChunk> x = {};
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    if (g.holds(row, col + i)) x.data[i] = *g.at(row, col + i);
  }
  ptx::store_shared(dst, x);
}

// Copy rows [row0, row0 + kRows) of g to the tile, from column 0 on; what lies outside g becomes 0. The copy is
// complete after the thread's cp_async_wait, and seen by others after a barrier.
template <int kRows, int kCols, class Source>
__device__ __forceinline__ void load_tile(Tile<kRows, kCols>& tile, const Source& g, int row0) {
  constexpr int kAcross = Tile<kRows, kCols>::kGroup / kChunk;  // neighbouring threads that share a row
  constexpr int kDown = kThreads / kAcross, kPasses = (kRows + kDown - 1) / kDown;
  static_assert(kRows % kDown == 0 || kPasses == 1, "threads share the rows evenly, or in one pass");
  // Asynchronous copies hold no registers; loads hold what they bring, and divisions their operands.
  constexpr int kUnroll = kAsyncCopy && Source::kAffine ? kPasses : 1;
  const int first_row = threadIdx.x / kAcross, first_col = threadIdx.x % kAcross * kChunk;
  if (kRows < kDown && first_row >= kRows) return;
  if (g.vectorized) {
#pragma unroll kUnroll
    for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll
      for (int col0 = 0; col0 < kCols; col0 += kAcross * kChunk) {
        const int row = pass * kDown + first_row, col = col0 + first_col;
        load_chunk(tile.at(row, col), g, row0 + row, col);
      }
    }
  } else {
#pragma unroll 1
    for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll 1
      for (int col0 = 0; col0 < kCols; col0 += kAcross * kChunk) {
        const int row = pass * kDown + first_row, col = col0 + first_col;
        gather_chunk(tile.at(row, col), g, row0 + row, col);
      }
    }
  }
}

// Copy entries [row0, row0 + kRows) of a column vector likewise.
template <int kRows>
__device__ __forceinline__ void load_column(float (&column)[kRows], const Matrix<float>& g, int row0) {
  for (int i = threadIdx.x; i < kRows; i += kThreads) {
    const bool inside = g.holds(row0 + i, 0);
    if (kAsyncCopy) {
      ptx::cp_async_4(ptx::shared_address(column + i), g.at(inside ? row0 + i : g.row_begin, 0), inside ? 4 : 0);
    } else {
      column[i] = inside ? *g.at(row0 + i, 0) : 0.0f;
    }
  }
}

// Copy kRows rows of the tile, from row `first` on, to rows row0 + first... of g by kTeam threads, `member` among them.
template <int kRows, int kTeam, class TileT, class Destination>
__device__ __forceinline__ void store_rows(TileT& tile, int first, int member, const Destination& g, int row0) {
  constexpr int kRowChunks = TileT::kCols / kChunk, kUnroll = Destination::kAffine ? 4 : 1;
#pragma unroll kUnroll
  for (int chunk = member; chunk < kRows * kRowChunks; chunk += kTeam) {
    const int row = first + chunk / kRowChunks, col = chunk % kRowChunks * kChunk;
    const auto x = ptx::load_shared<kChunk>(tile.at(row, col));
    if (g.vectorized) {
      if (g.holds(row0 + row, col)) ptx::store_global(g.vector_at(row0 + row, col), x);
    } else {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        if (g.holds(row0 + row, col + i)) *g.at(row0 + row, col + i) = x.data[i];
      }
    }
  }
}
