// Row-wise kernels: a block for every kBlockRows rows of queries, or of keys, of a head. What depends on the head is
// worked out once for all of them, and a thread has parts of several rows under way: these kernels wait for memory.
#pragma once
#include "attention/matrix.cuh"
#include "params.cuh"
#include "ptx/memory.cuh"
#include "ptx/warp.cuh"
#include "specialization.cuh"

constexpr int kThreads = 32 * kNWarps;

// Rows [begin, end) of a head.
struct RowBlock {
  int batch_index, batch[kBatchDims], head, begin, end;
};

__device__ __forceinline__ int blocks_of_head(int seqlen) { return ceil_div(seqlen, kBlockRows); }

// Of the block's index alone: the same in all threads.
__device__ __forceinline__ RowBlock block_of_rows(const Shape& shape, const Divisor& num_heads, int seqlen, int block) {
  const int per_head = blocks_of_head(seqlen), head_index = block / per_head;
  const int begin = block % per_head * kBlockRows;
  int rest = head_index / num_heads;
  RowBlock rows = {rest, {}, head_index % num_heads, begin, min(begin + kBlockRows, seqlen)};
#pragma unroll
  for (int dim = kBatchDims - 1; dim > 0; --dim) {
    rows.batch[dim] = rest % shape.batch[dim];
    rest = rest / shape.batch[dim];
  }
  rows.batch[0] = rest;
  return rows;
}
__device__ __forceinline__ RowBlock block_of_queries(const Shape& shape, int block = blockIdx.x) {
  return block_of_rows(shape, shape.num_heads_q, shape.seqlen_q, block);
}
__device__ __forceinline__ RowBlock block_of_keys(const Shape& shape, int block = blockIdx.x) {
  return block_of_rows(shape, shape.num_heads_k, shape.seqlen_k, block);
}

// The block's head of a tensor; rows after the block's do not take part.
template <class T>
__device__ __forceinline__ Matrix<T> matrix_of(const RowBlock& block, const Tensor& tensor, int cols) {
  int64_t offset = block.head * tensor.head_stride;
#pragma unroll
  for (int dim = 0; dim < kBatchDims; ++dim) offset += block.batch[dim] * tensor.batch_strides[dim];
  return {static_cast<T*>(tensor.data) + offset, tensor.row_stride, tensor.col_stride, 0, block.end, cols,
          static_cast<int>(tensor.vector_bytes)};
}

// How the threads of a block share its rows: kLanes neighbours have a row, kCount elements next to one another each at
// a time, and so kRows rows at once, kStep apart, whose loads are under way together.
template <int kLanes_, int kCount_>
struct Lanes {
  static constexpr int kLanes = kLanes_, kCount = kCount_, kCols = kLanes * kCount;
  static constexpr int kRows = 4, kStep = kThreads / kLanes;

  // kCount elements of each row, in vectors of at most 16 bytes.
  template <class T>
  struct Values {
    static constexpr int kVec = kCount * sizeof(T) < 16 ? kCount : 16 / sizeof(T);
    ptx::Vec<T, kVec> vectors[kRows][kCount / kVec];

    __device__ __forceinline__ T& at(int i, int j) { return vectors[i][j / kVec][j % kVec]; }
    __device__ __forceinline__ const T& at(int i, int j) const { return vectors[i][j / kVec][j % kVec]; }
  };

  // Where this thread is in its rows. Pointers that move on: from rows and columns the compiler works every address
  // out again, 4 instructions an access, and then has few loads under way.
  template <class T>
  struct Cursor {
    using V = Values<T>;
    T* at[kRows];
    int64_t step;
    int rows_left;  // from the thread's first row on

    // Rows after the last have no values: to make them 0 would take an instruction for each pair of half types.
    __device__ __forceinline__ V next() {
      V x;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kCount && i * kStep < rows_left; j += V::kVec) {
          x.vectors[i][j / V::kVec] = ptx::load_global<V::kVec>(at[i] + j);
        }
        at[i] += step;
      }
      return x;
    }

    __device__ __forceinline__ void put(const V& x) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kCount && i * kStep < rows_left; j += V::kVec) {
          ptx::store_global(at[i] + j, x.vectors[i][j / V::kVec]);
        }
        at[i] += step;
      }
    }
  };

  int lane;           // within a row
  int row, col, end;  // this thread's first row and column; the end of the block's rows

  __device__ explicit Lanes(int first_row, int end)
      : lane(threadIdx.x % kLanes), row(first_row + threadIdx.x / kLanes), col(lane * kCount), end(end) {}

  template <class T>
  __device__ __forceinline__ Cursor<T> begin(const Matrix<T>& g) const {
    Cursor<T> cursor;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      cursor.at[i] = kCount == 1 ? g.at(row + i * kStep, col) : g.vector_at(row + i * kStep, col);
    }
    cursor.step = kCount == 1 ? kCols * g.col_stride : kCols;
    cursor.rows_left = end - row;
    return cursor;
  }

  // What is one number of a row is the i-th lane's for the i-th row, if there is one.
  __device__ __forceinline__ int own_row() const { return row + lane * kStep; }
  __device__ __forceinline__ bool owns() const { return lane < kRows && own_row() < end; }

  // That of this lane's own row.
  template <class T>
  __device__ __forceinline__ T own(const T (&numbers)[kRows]) const {
    T mine = numbers[0];
#pragma unroll
    for (int i = 1; i < kRows; ++i) mine = lane == i ? numbers[i] : mine;
    return mine;
  }

  // That of the i-th row.
  template <class T>
  __device__ __forceinline__ static T of_row(int i, T own) {
    return ptx::shfl(own, i, kLanes);
  }

  // The sum over the lanes of a row, the same in all of them: over neighbours last.
  template <class T>
  __device__ __forceinline__ static T sum(T x) {
#pragma unroll
    for (int lane_mask = kLanes / 2; lane_mask > 0; lane_mask /= 2) x += ptx::shfl_xor(x, lane_mask);
    return x;
  }
};

// use(lanes) until all rows of the block have been some lanes'. Warps without a row take part: were they left out, the
// compiler would expect warps to have come apart where lanes exchange sums, and keep registers for calls.
template <class Lanes, class Use>
__device__ __forceinline__ void each_row(const RowBlock& block, Use&& use) {
#pragma unroll 1
  for (int row = block.begin; row < block.end; row += Lanes::kRows * Lanes::kStep) use(Lanes(row, block.end));
}

// The same, with vectors if all tensors have them: 16 bytes of Element a lane, a cache line of 128 a row.
template <class Use>
__device__ __forceinline__ void each_row(bool vectorized, const RowBlock& block, Use&& use) {
  if (vectorized) {
    each_row<Lanes<8, 16 / sizeof(Element)>>(block, use);
  } else {
    each_row<Lanes<32, 1>>(block, use);
  }
}
