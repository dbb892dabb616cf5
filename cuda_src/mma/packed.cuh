// Rows of a group's query heads as one matrix: with few query rows a key head, its keys and values are then read
// once for the whole group. Packed row r is query r / heads of head first + r % heads. Without kPacked there is one
// head, and no division.
#pragma once
#include "attention/matrix.cuh"
#include "attention/schedule.cuh"
#include "specialization.cuh"

// The query and the head (counted from the first) of a packed row.
struct Packing {
  const Divisor& heads;

  __device__ explicit Packing(const Schedule& schedule) : heads(schedule.packed_heads) {}

  __device__ int rows(const Shape& shape) const { return kPacked ? shape.seqlen_q * heads : shape.seqlen_q; }
  __device__ int query(int row) const { return kPacked ? row / heads : row; }
  __device__ int head(int row) const { return kPacked ? row % heads : 0; }
};

template <class T>
struct PackedMatrix {
  static constexpr bool kAffine = !kPacked;
  Matrix<T> first;  // of the first head
  int64_t head_stride;
  Packing packing;
  int row_begin, rows;
  bool vectorized;

  __device__ bool holds(int row, int col) const { return row < rows && col < first.cols; }
  __device__ T* at(int row, int col) const {
    return first.at(packing.query(row), col) + packing.head(row) * head_stride;
  }
  __device__ T* vector_at(int row, int col) const {
    return first.vector_at(packing.query(row), col) + packing.head(row) * head_stride;
  }
};

template <class T>
__device__ __forceinline__ PackedMatrix<T> packed_matrix(const Tensor& tensor, const Shape& shape, const Work& work,
                                                         Packing packing, int cols) {
  const Matrix<T> first = head_matrix<T>(tensor, shape, work.batch, work.head, shape.seqlen_q, cols);
  return {first, tensor.head_stride, packing, 0, packing.rows(shape), first.vectorized};
}

// One split's part of the partial results: `tensor` holds those of the whole problem one after the other.
__device__ __forceinline__ PackedMatrix<float> split_matrix(const Tensor& tensor, const Shape& shape, const Work& work,
                                                            Packing packing, int cols) {
  auto g = packed_matrix<float>(tensor, shape, work, packing, cols);
  g.first.data += work.split * query_rows(shape) * cols;
  return g;
}
