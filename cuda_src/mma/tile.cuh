// Tiles of half-type elements in shared memory: swizzled, filled from global memory in chunks of 16 bytes.
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

// Elements of a row from `src` on.
struct Chunk {
  const Element* src;
  int count;  // of them exist; none if not above 0
};
using ChunkVec = ptx::Vec<Element, kChunk>;

// A chunk by accesses of kBytes, or element by element if that is 0; what does not exist is 0.
template <int kBytes>
__device__ __forceinline__ ChunkVec load_chunk(const Chunk& chunk, int64_t col_stride) {
  constexpr int kEach = kBytes ? kBytes / sizeof(Element) : 1;
  ChunkVec x = {};
#pragma unroll
  for (int i = 0; i < kChunk; i += kEach) {
    if (i >= chunk.count) continue;
    const auto part = ptx::load_global<kEach>(chunk.src + i * (kBytes ? 1 : col_stride));
#pragma unroll
    for (int j = 0; j < kEach; ++j) x.data[i + j] = part.data[j];
  }
  return x;
}

// The same straight to shared memory, complete after the thread's cp_async_wait.
template <int kBytes>
__device__ __forceinline__ void copy_chunk(Element* dst, const Chunk& chunk) {
  constexpr int kEach = kBytes / sizeof(Element);
#pragma unroll
  for (int i = 0; i < kChunk; i += kEach) {
    const int bytes = i < chunk.count ? kBytes : 0;
    if constexpr (kBytes == 16) ptx::cp_async_16(ptx::shared_address(dst + i), chunk.src + i, bytes);
    if constexpr (kBytes == 8) ptx::cp_async_8(ptx::shared_address(dst + i), chunk.src + i, bytes);
    if constexpr (kBytes == 4) ptx::cp_async_4(ptx::shared_address(dst + i), chunk.src + i, bytes);
  }
}

// The chunks of a tile that this thread copies: neighbouring threads share a row, the rows of one are kDown apart.
template <class TileT>
struct Share {
  static constexpr int kAcross = TileT::kGroup / kChunk, kDown = kThreads / kAcross;
  static constexpr int kPasses = (TileT::kRows + kDown - 1) / kDown, kGroups = TileT::kCols / TileT::kGroup;
  static_assert(TileT::kRows % kDown == 0 || kPasses == 1, "threads share the rows evenly, or in one pass");
  int row, col;  // of the first one

  __device__ Share() : row(threadIdx.x / kAcross), col(threadIdx.x % kAcross * kChunk) {}

  // There may be fewer rows than rows of threads.
  __device__ bool any() const { return kDown <= TileT::kRows || row < TileT::kRows; }

  __device__ Element* at(TileT& tile, int pass, int group) const {
    if (kDown % 8) return tile.at(pass * kDown + row, group * TileT::kGroup + col);
    return tile.at(row, col) + pass * kDown * TileT::kCols + group * TileT::kGroup;  // the same: all are swizzled alike
  }
};

// Copy a tile by accesses of kBytes. chunk(pass, group) says where a chunk of this thread comes from.
template <int kBytes, int kUnroll, class TileT, class ChunkOf>
__device__ __forceinline__ void copy_tile(TileT& tile, int64_t col_stride, ChunkOf&& chunk) {
  const Share<TileT> share;
  if (!share.any()) return;
#pragma unroll kUnroll
  for (int pass = 0; pass < share.kPasses; ++pass) {
#pragma unroll kUnroll
    for (int group = 0; group < share.kGroups; ++group) {
      if constexpr (kAsyncCopy && kBytes) {
        copy_chunk<kBytes>(share.at(tile, pass, group), chunk(pass, group));
      } else {
        ptx::store_shared(share.at(tile, pass, group), load_chunk<kBytes>(chunk(pass, group), col_stride));
      }
    }
  }
}

// The same by the accesses that `vector_bytes` allows. The narrow ones are not unrolled: they should not fill the
// instruction cache where nobody takes them.
template <int kUnroll, class TileT, class ChunkOf>
__device__ __forceinline__ void copy_tile(TileT& tile, int vector_bytes, int64_t col_stride, ChunkOf&& chunk) {
  if (vector_bytes == 16) {
    copy_tile<16, kUnroll>(tile, 1, chunk);
  } else if (vector_bytes == 8) {
    copy_tile<8, 1>(tile, 1, chunk);
  } else if (vector_bytes == 4) {
    copy_tile<4, 1>(tile, 1, chunk);
  } else {
    copy_tile<0, 1>(tile, col_stride, chunk);
  }
}

// Copy rows [row0, row0 + kRows) of g, which may be packed, to a tile; what lies outside g becomes 0. The copy is
// complete after the thread's cp_async_wait, and seen by others after a barrier.
template <class TileT, class Source>
__device__ __forceinline__ void load_tile(TileT& tile, const Source& g, int row0) {
  const Share<TileT> share;
  constexpr int kUnroll = Source::kAffine ? 8 : 1;  // divisions hold registers
  copy_tile<kUnroll>(tile, g.vector_bytes, g.col_stride, [&](int pass, int group) {
    const int row = row0 + pass * share.kDown + share.row, col = group * TileT::kGroup + share.col;
    return Chunk{g.at(row, col), g.has_row(row) ? g.cols - col : 0};
  });
}

// Copy kRows rows of the tile, from row `first` on, to rows row0 + first... of g by kTeam threads, `member` among them.
template <int kRows, int kTeam, class TileT, class Destination>
__device__ __forceinline__ void store_rows(TileT& tile, int first, int member, const Destination& g, int row0) {
  constexpr int kRowChunks = TileT::kCols / kChunk, kUnroll = Destination::kAffine ? 4 : 1;
#pragma unroll kUnroll
  for (int chunk = member; chunk < kRows * kRowChunks; chunk += kTeam) {
    const int row = first + chunk / kRowChunks, col = chunk % kRowChunks * kChunk;
    const auto x = ptx::load_shared<kChunk>(tile.at(row, col));
    if (g.vector_bytes == 16) {
      if (g.holds(row0 + row, col)) ptx::store_global(g.vector_at(row0 + row, col), x);
    } else {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        if (g.holds(row0 + row, col + i)) *g.at(row0 + row, col + i) = x.data[i];
      }
    }
  }
}
