// Rows of a group's query heads as one matrix: with few query rows a key head, its keys and values are then read once
// for the whole group. Packed row r is query r / heads of head first + r % heads; one head is the ordinary case.
#pragma once
#include "attention/matrix.cuh"
#include "attention/schedule.cuh"

template <class T>
struct PackedMatrix {
  Matrix<T> first;  // of the first head
  int64_t head_stride;
  int heads, row_begin, rows;
  bool vectorized;

  __device__ bool holds(int row, int col) const { return row < rows && col < first.cols; }
  __device__ T* at(int row, int col) const { return first.at(row / heads, col) + row % heads * head_stride; }
};

template <class T>
__device__ __forceinline__ PackedMatrix<T> packed_matrix(const Tensor& tensor, const Shape& shape, int batch, int head,
                                                         int heads, int cols) {
  const Matrix<T> first = head_matrix<T>(tensor, shape, batch, head, shape.seqlen_q, cols);
  return {first, tensor.head_stride, heads, 0, shape.seqlen_q * heads, first.vectorized};
}

// One split's part of the partial results: `tensor` holds those of the whole problem one after the other.
__device__ __forceinline__ PackedMatrix<float> split_matrix(const Tensor& tensor, const Shape& shape, const Work& work,
                                                            int heads, int cols) {
  auto g = packed_matrix<float>(tensor, shape, work.batch, work.head, heads, cols);
  g.first.data += work.split * query_rows(shape) * cols;
  return g;
}
