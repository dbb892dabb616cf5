// Register-blocked products of tiles in shared memory, and which thread owns what.
//
// A block of kThreads threads is kRowGroups rows of kLanes lanes. An accumulator of kRows x kCols a thread covers
// kRows * kRowGroups x kCols * kLanes elements:
//   rows     row_of(i): a warp owns consecutive rows, interleaved over its 32 / kLanes groups
//            (products over keys in matmul_tn: vector_row_of(i), kRows consecutive rows a group);
//   columns  interleaved over lanes where they index rows of a tile (matmul_nt: col_of(j)), in vectors where they
//            index columns (matmul_nn, matmul_tn: vector_col_of(j)).
// Both choices keep kVec-wide shared-memory reads of a warp free of bank conflicts.
#pragma once
#include "attention/flags.cuh"
#include "simt/tile.cuh"

constexpr int kRowGroups = kThreads / kLanes;
constexpr int kGroupsPerWarp = 32 / kLanes;
constexpr int kUnroll = 2 * kVec;  // depth of one unrolled step of matmul_nt
static_assert(kLanes > 0 && 32 % kLanes == 0, "a row's lanes are neighbours in one warp");
static_assert(kBlockM % kRowGroups == 0, "row groups share the queries evenly");
static_assert(kBlockN % kLanes == 0, "lanes share the keys evenly");
static_assert(kSliceD % kUnroll == 0 && kBlockN % kUnroll == 0, "depths are whole unrolled steps");

__device__ __forceinline__ int lane_of_row() { return threadIdx.x % kLanes; }

template <int kRows>
__device__ __forceinline__ int row_of(int i) {
  const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / kLanes;
  return (warp * kRows + i) * kGroupsPerWarp + group;
}
template <int kRows>
__device__ __forceinline__ int vector_row_of(int i) {
  return threadIdx.x / kLanes * kRows + i;
}
__device__ __forceinline__ int col_of(int j) { return lane_of_row() + j * kLanes; }

// The keys of this lane's columns of a tile that begins with key n0.
struct KeyColumns {
  static constexpr int kCount = kBlockN / kLanes, kTogether = 1;  // of a lane, and next to one another
  template <int kRows>
  using Flags = FlagsOf<KeyColumns, kRows>;  // neighbours read neighbouring bytes

  int n0;

  __device__ int operator()(int j) const { return n0 + col_of(j); }
};

// Columns of a slice come in vectors of kSliceVec a lane.
constexpr int kSliceCols = kSliceD / kLanes;
constexpr int kSliceVec = kSliceCols < kVec ? kSliceCols : kVec;
static_assert(kSliceD % kLanes == 0 && kSliceCols % kSliceVec == 0 && kVec % kSliceVec == 0,
              "lanes share a slice evenly, in whole vectors");

__device__ __forceinline__ int vector_col_of(int j) {
  return (j / kSliceVec * kLanes + lane_of_row()) * kSliceVec + j % kSliceVec;
}

template <int kRows, int kCols>
__device__ __forceinline__ void set_zero(Accumulator (&acc)[kRows][kCols]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCols; ++j) acc[i][j] = 0;
  }
}

// The error of a sum grows with the number of its terms, so the terms of a block are summed up on their own. One by
// one, a million equal terms are off by 1e-2, block by block by 2e-4, with a third level by 5e-6: dQ in a pass of its
// own has registers for it, and sums up stretches of blocks; the forward has a launch for each span of keys (plan.py).
// A double has digits to spare.
constexpr bool kFewDigits = sizeof(Accumulator) == 4;
constexpr int kStretch = 32;

// acc += what `product` adds to zeros: a block's terms.
template <int kRows, int kCols, class Product>
__device__ __forceinline__ void add_part(Accumulator (&acc)[kRows][kCols], Product&& product) {
  Accumulator part[kRows][kCols];
  set_zero(part);
  product(part);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCols; ++j) acc[i][j] += part[i][j];
  }
}

// At the end of a stretch: total += acc, and acc starts again with 0.
template <int kRows, int kCols>
__device__ __forceinline__ void end_stretch(Accumulator (&total)[kSlices][kRows][kCols],
                                            Accumulator (&acc)[kSlices][kRows][kCols]) {
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) total[slice][i][j] += acc[slice][i][j];
    }
    set_zero(acc[slice]);
  }
}

// acc += A B^T over the first `depth` columns of both (rounded up to kUnroll; what lies beyond is 0).
template <int kRows, int kCols, class TileA, class TileB>
__device__ __forceinline__ void matmul_nt(Accumulator (&acc)[kRows][kCols], TileA& a, TileB& b, int depth) {
  for (int k0 = 0; k0 < depth; k0 += kUnroll) {
#pragma unroll
    for (int k = k0; k < k0 + kUnroll; k += kVec) {
      ptx::Vec<Accumulator, kVec> ra[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) ra[i] = ptx::load_shared<kVec>(a.at(row_of<kRows>(i), k));
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const ptx::Vec<Accumulator, kVec> rb = ptx::load_shared<kVec>(b.at(col_of(j), k));
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int v = 0; v < kVec; ++v) acc[i][j] += ra[i].data[v] * rb.data[v];
        }
      }
    }
  }
}

// acc += A B^T for one slice of the head dimension. Each slice is summed on its own first, as a blocked BLAS would:
// at head_dim 512 in float32 that takes the output's error from 2.7 to 0.5 times that of naive NumPy attention.
template <int kRows, int kCols, class TileA, class TileB>
__device__ __forceinline__ void add_slice_nt(Accumulator (&acc)[kRows][kCols], TileA& a, TileB& b, int depth) {
  if (kSlices == 1) return matmul_nt(acc, a, b, depth);
  add_part(acc, [&](auto& part) { matmul_nt(part, a, b, depth); });
}

// acc += A B over A's kDepth columns; B is a slice, one row a column of A.
template <int kDepth, int kRows, class TileA, class TileB>
__device__ __forceinline__ void matmul_nn(Accumulator (&acc)[kRows][kSliceCols], TileA& a, TileB& b) {
#pragma unroll 1
  for (int k = 0; k < kDepth; k += kVec) {
    ptx::Vec<Accumulator, kVec> ra[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) ra[i] = ptx::load_shared<kVec>(a.at(row_of<kRows>(i), k));
#pragma unroll
    for (int v = 0; v < kVec; ++v) {
#pragma unroll
      for (int j = 0; j < kSliceCols; j += kSliceVec) {
        const ptx::Vec<Accumulator, kSliceVec> rb = ptx::load_shared<kSliceVec>(b.at(k + v, vector_col_of(j)));
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int u = 0; u < kSliceVec; ++u) acc[i][j + u] += ra[i].data[v] * rb.data[u];
        }
      }
    }
  }
}

// acc += A^T B over A's and B's kDepth rows; rows of acc are columns of A, B is a slice.
template <int kDepth, int kRows, class TileA, class TileB>
__device__ __forceinline__ void matmul_tn(Accumulator (&acc)[kRows][kSliceCols], TileA& a, TileB& b) {
  constexpr int kRowVec = kRows < kVec ? kRows : kVec;
  static_assert(kRows % kRowVec == 0 && kVec % kRowVec == 0, "a thread's keys are whole vectors");
#pragma unroll 2
  for (int k = 0; k < kDepth; ++k) {
    ptx::Vec<Accumulator, kRowVec> ra[kRows / kRowVec];
#pragma unroll
    for (int i = 0; i < kRows / kRowVec; ++i) {
      ra[i] = ptx::load_shared<kRowVec>(a.at(k, vector_row_of<kRows>(i * kRowVec)));
    }
#pragma unroll
    for (int j = 0; j < kSliceCols; j += kSliceVec) {
      const ptx::Vec<Accumulator, kSliceVec> rb = ptx::load_shared<kSliceVec>(b.at(k, vector_col_of(j)));
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int u = 0; u < kSliceVec; ++u) acc[i][j + u] += ra[i / kRowVec].data[i % kRowVec] * rb.data[u];
      }
    }
  }
}

// Write this lane's columns of one accumulator row to row `row` of g, columns from col0; outside g nothing is written.
template <class Out>
__device__ __forceinline__ void store_row(const Matrix<Out>& g, int row, int col0,
                                          const Accumulator (&acc)[kSliceCols]) {
  if (row >= g.rows) return;
#pragma unroll
  for (int j = 0; j < kSliceCols; j += kSliceVec) {
    const int col = col0 + vector_col_of(j);
    ptx::Vec<Out, kSliceVec> y;
#pragma unroll
    for (int u = 0; u < kSliceVec; ++u) from_accumulator(y.data[u], acc[j + u]);
    if (g.vector_bytes >= kSliceVec * static_cast<int>(sizeof(Out))) {
      if (col < g.cols) ptx::store_global(g.at(row, col), y);
    } else {
#pragma unroll
      for (int u = 0; u < kSliceVec; ++u) {
        if (col + u < g.cols) *g.at(row, col + u) = y.data[u];
      }
    }
  }
}
