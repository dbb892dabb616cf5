// Tiles in shared memory, in the accumulator type, and how they are filled from global memory.
#pragma once
#include "attention/matrix.cuh"
#include "numeric.cuh"
#include "ptx/memory.cuh"
#include "specialization.cuh"

using Accumulator = AccumulatorOf<Element>::Type;

constexpr int kThreads = 32 * kNWarps;
constexpr int kVec = 16 / sizeof(Accumulator);  // accumulators in the widest shared-memory access
constexpr int kSlices = kHeadDim / kSliceD;     // the head dimension passes through shared memory in slices
// What a thread sums up at a time. More than four times its registers takes the compiler minutes and gigabytes.
constexpr int kSumBytes = 4096;
static_assert(kNWarps >= 1 && kNWarps <= 32, "a block has 1 to 32 warps");
static_assert(kBlockM > 0 && kBlockN > 0 && kSliceD > 0 && kMinBlocks > 0, "sizes and counts of a tile are positive");
static_assert(kHeadDim % kSliceD == 0, "slices must fill the head dimension");

// Rows are padded. By one 16-byte vector, kVec-wide reads down a column of 8 rows touch all 32 banks once.
template <int kRows, int kCols, int kPadding = kVec>
struct __align__(16) Tile {
  static constexpr int kStride = kCols + kPadding;
  static_assert(kStride % kVec == 0, "vectors stay aligned from row to row");
  Accumulator data[kRows * kStride];

  __device__ __forceinline__ Accumulator* at(int row, int col) { return data + row * kStride + col; }
};

// A tile of scores: padded by kLanes elements, the rows of a warp's scalar writes (one group of lanes each) fall on
// banks next to one another.
using ScoreTile = Tile<kBlockM, kBlockN, kLanes>;

// Copy rows [row0, row0 + kRows) x columns [col0, col0 + kCols) of g to the tile; what lies outside g becomes 0.
template <int kRows, int kCols>
__device__ __forceinline__ void load_tile(Tile<kRows, kCols>& tile, const Matrix<Element>& g, int row0, int col0) {
  if (g.vector_bytes >= kVec * static_cast<int>(sizeof(Element))) {
    // kVec elements a thread, 8 bytes for half types: 16 bytes would split its shared stores over the same banks.
    constexpr int kRowChunks = kCols / kVec;
#pragma unroll 4
    for (int chunk = threadIdx.x; chunk < kRows * kRowChunks; chunk += kThreads) {
      const int row = chunk / kRowChunks, col = chunk % kRowChunks * kVec;
      ptx::Vec<Element, kVec> x = {};
      if (g.holds(row0 + row, col0 + col)) x = ptx::load_global<kVec>(g.at(row0 + row, col0 + col));
      ptx::Vec<Accumulator, kVec> y;
#pragma unroll
      for (int i = 0; i < kVec; ++i) y.data[i] = to_accumulator(x.data[i]);
      ptx::store_shared(tile.at(row, col), y);
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < kRows * kCols; i += kThreads) {
      const int row = i / kCols, col = i % kCols;
      const bool inside = g.holds(row0 + row, col0 + col);
      *tile.at(row, col) = inside ? to_accumulator(*g.at(row0 + row, col0 + col)) : Accumulator(0);
    }
  }
}
