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
  T* data;  // of the first head
  int64_t row_stride, col_stride, head_stride;
  Packing packing;
  int rows, cols;
  int vector_bytes;

  __device__ bool has_row(int row) const { return row < rows; }
  __device__ bool holds(int row, int col) const { return has_row(row) && col < cols; }
  __device__ T* at(int row, int col) const { return row_at(row) + col * col_stride; }
  __device__ T* vector_at(int row, int col) const { return row_at(row) + col; }

 private:
  __device__ T* row_at(int row) const {
    return data + packing.query(row) * row_stride + packing.head(row) * head_stride;
  }
};

template <class T>
__device__ __forceinline__ PackedMatrix<T> packed_matrix(const Tensor& tensor, const Shape& shape, const Work& work,
                                                         Packing packing, int cols) {
  const Matrix<T> g = head_matrix<T>(tensor, shape, work.batch, work.head, shape.seqlen_q, cols);
  return {g.data, g.row_stride, g.col_stride, tensor.head_stride, packing, packing.rows(shape), cols, g.vector_bytes};
}

// One split's part of the partial results: `tensor` holds those of the whole problem one after the other.
__device__ __forceinline__ PackedMatrix<float> split_matrix(const Tensor& tensor, const Shape& shape, const Work& work,
                                                            Packing packing, int cols) {
  auto g = packed_matrix<float>(tensor, shape, work, packing, cols);
  g.data += work.split * query_rows(shape) * cols;
  return g;
}
