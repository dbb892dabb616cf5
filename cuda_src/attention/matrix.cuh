// One head of a Tensor as a matrix in global memory, narrowed to the rows that take part.
#pragma once
#include "params.cuh"

template <class Element>
struct Matrix {
  static constexpr bool kAffine = true;  // rows are equally far apart
  Element* data;
  int64_t row_stride, col_stride;
  int row_begin, rows, cols;  // rows [row_begin, rows) take part; the others are never read and count as 0
  int vector_bytes;         // Tensor::vector_bytes

  __device__ bool vectorized() const { return vector_bytes == 16; }
  __device__ bool has_row(int row) const { return row >= row_begin && row < rows; }
  __device__ bool holds(int row, int col) const { return has_row(row) && col < cols; }

  // 64-bit throughout: a view may span more than 2^31 elements.
  __device__ Element* at(int row, int col) const { return data + row * row_stride + col * col_stride; }

  // Where columns are contiguous.
  __device__ Element* vector_at(int row, int col) const { return data + row * row_stride + col; }
};

// Offset of batch element `batch` (a linear index over shape.batch).
__device__ __forceinline__ int64_t batch_offset(const Tensor& tensor, const Shape& shape, int batch) {
  int64_t offset = 0;
#pragma unroll
  for (int dim = kBatchDims - 1; dim > 0; --dim) {
    offset += batch % shape.batch[dim] * tensor.batch_strides[dim];
    batch = batch / shape.batch[dim];
  }
  return offset + batch * tensor.batch_strides[0];
}

__device__ __forceinline__ int64_t num_batches(const Shape& shape) {
  int64_t size = 1;
#pragma unroll
  for (int dim = 0; dim < kBatchDims; ++dim) size *= shape.batch[dim];
  return size;
}

// Query rows of all heads of the whole batch.
__device__ __forceinline__ int64_t query_rows(const Shape& shape) {
  return num_batches(shape) * shape.num_heads_q * shape.seqlen_q;
}

template <class Element>
__device__ __forceinline__ Matrix<Element> head_matrix(const Tensor& tensor, const Shape& shape, int batch, int head,
                                                       int rows, int cols, int row_begin = 0) {
  Element* data = static_cast<Element*>(tensor.data) + batch_offset(tensor, shape, batch);
  return {data + head * tensor.head_stride, tensor.row_stride, tensor.col_stride, row_begin,
          rows, cols, static_cast<int>(tensor.vector_bytes)};
}
