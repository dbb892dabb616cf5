// Rows of a matrix that come tile after tile.
#pragma once
#include "mma/tile.cuh"
#include "ptx/opaque.cuh"

// The rows of a tile that exist, [begin, end), and this thread's first chunk of it.
struct TileRows {
  const Element* src;
  int begin, end;
};

// A thread keeps the address of its first chunk in the next tile, and copies its share of each. Asynchronous copies
// hold no registers; Turing has none: start() loads 16-byte chunks into registers and finish(), after a product, stores
// them.
template <class TileT>
class TileStream {
 public:
  // The first tile begins with row `row0` of `g`.
  __device__ __forceinline__ TileStream(const Tensor& tensor, const Matrix<Element>& g, int row0)
      : tensor_(tensor), cols_(g.cols), next_(g.at(row0 + Mine().row, Mine().col)) {}

  // Start copying the next tile, of which rows [begin, end) exist; the others become 0. The one after it is `distance`
  // elements further in memory.
  __device__ __forceinline__ void start(TileT& tile, int begin, int end, int64_t distance) {
    const TileRows rows{next_, begin, end};
    if (tensor_.vector_bytes != 16) {
      if constexpr (kLater) {
        begun_ = rows;
      } else {
        copy(tile, rows);
      }
    } else if constexpr (!kAsyncCopy) {
      hold(rows);
    } else if (begin <= 0 && end >= TileT::kRows) {
      const TileRows all{next_, 0, TileT::kRows};
      copy_tile<16, 8>(tile, 1, [&](int pass, int group) { return chunk(all, pass, group, 1); });
    } else {
      copy_tile<16, 8>(tile, 1, [&](int pass, int group) { return chunk(rows, pass, group, 1); });
    }
    next_ = ptx::opaque(next_ + distance);
  }

  __device__ __forceinline__ void finish(TileT& tile) const {
    if constexpr (!kAsyncCopy) {
      if (tensor_.vector_bytes == 16) {
        store_held(tile);
      } else if constexpr (kLater) {
        copy(tile, begun_);
      }
    }
  }

 private:
  using Mine = Share<TileT>;
  static constexpr int kChunks = Mine::kPasses * Mine::kGroups;
  const Tensor& tensor_;
  int cols_;  // that exist
  const Element* next_;
  // On Turing: what was loaded, and, where the slot is still read at start(), which rows are to be copied.
  static constexpr bool kLater = !kAsyncCopy && kStages == 1;
  ChunkVec held_[kAsyncCopy ? 1 : kChunks];
  TileRows begun_;

  __device__ __forceinline__ Chunk chunk(const TileRows& rows, int pass, int group, int64_t col_stride) const {
    const Mine mine;
    const int row = pass * Mine::kDown + mine.row;
    const bool exists = (rows.begin <= 0 || row >= rows.begin) && (rows.end >= TileT::kRows || row < rows.end);
    return {rows.src + pass * (Mine::kDown * tensor_.row_stride) + group * (TileT::kGroup * col_stride),
            exists ? cols_ - group * TileT::kGroup - mine.col : 0};
  }

  __device__ __forceinline__ void copy(TileT& tile, const TileRows& rows) const {
    copy_tile<1>(tile, tensor_.vector_bytes, tensor_.col_stride,
                 [&](int pass, int group) { return chunk(rows, pass, group, tensor_.col_stride); });
  }

  __device__ __forceinline__ void hold(const TileRows& rows) {
    if (!Mine().any()) return;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      held_[i] = load_chunk<16>(chunk(rows, i / Mine::kGroups, i % Mine::kGroups, 1), 1);
    }
  }

  __device__ __forceinline__ void store_held(TileT& tile) const {
    const Mine mine;
    if (!mine.any()) return;
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      ptx::store_shared(mine.at(tile, i / Mine::kGroups, i % Mine::kGroups), held_[i]);
    }
  }
};

// The same of two column vectors, kRows entries of each at a time, one after the other in shared memory: a thread has
// entries of one, or of both in turn.
template <int kRows>
class ColumnStream {
 public:
  using Columns = float[2 * kRows];

  __device__ __forceinline__ ColumnStream(const Matrix<float>& first, const Matrix<float>& second, int row0) {
    each([&](int pass, int entry) {
      next_[pass] = (entry < kRows ? first : second).at(row0 + entry % kRows, 0);
    });
  }

  // The distances are those of the two vectors.
  __device__ __forceinline__ void start(Columns& columns, int begin, int end, int64_t first, int64_t second) {
    each([&](int pass, int entry) {
      const int row = entry % kRows;
      const bool exists = row >= begin && row < end;
      if constexpr (kAsyncCopy) {
        ptx::cp_async_4(ptx::shared_address(columns + entry), next_[pass], exists ? 4 : 0);
      } else {
        held_[pass] = exists ? *next_[pass] : 0.0f;
      }
      next_[pass] += entry < kRows ? first : second;
    });
  }

  __device__ __forceinline__ void finish(Columns& columns) const {
    if constexpr (!kAsyncCopy) each([&](int pass, int entry) { columns[entry] = held_[pass]; });
  }

 private:
  static constexpr int kPasses = (2 * kRows + kThreads - 1) / kThreads;
  const float* next_[kPasses];
  float held_[kPasses];

  // use(pass, entry) for the entries that this thread copies.
  template <class Use>
  __device__ __forceinline__ static void each(Use&& use) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int entry = pass * kThreads + threadIdx.x;
      if (entry < 2 * kRows) use(pass, entry);
    }
  }
};
