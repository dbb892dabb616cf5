// One head of a Tensor as a matrix in global memory.
#pragma once
#include "params.cuh"

template <class Element>
struct Matrix {
  Element* data;
  int64_t row_stride, col_stride;
  int rows, cols;
  bool vectorized;

  // 64-bit throughout: a view may span more than 2^31 elements.
  __device__ Element* at(int row, int col) const { return data + row * row_stride + col * col_stride; }
};

// Offset of batch element `batch` (a linear index over shape.batch).
__device__ __forceinline__ int64_t batch_offset(const Tensor& tensor, const Shape& shape, int batch) {
  int64_t offset = 0;
#pragma unroll
  for (int dim = kBatchDims - 1; dim >= 0; --dim) {
    offset += batch % shape.batch[dim] * tensor.batch_strides[dim];
    batch /= shape.batch[dim];
  }
  return offset;
}

template <class Element>
__device__ __forceinline__ Matrix<Element> head_matrix(const Tensor& tensor, const Shape& shape, int batch, int head,
                                                       int rows, int cols) {
  Element* data = static_cast<Element*>(tensor.data) + batch_offset(tensor, shape, batch);
  return {data + head * tensor.head_stride, tensor.row_stride, tensor.col_stride, rows, cols,
          tensor.vectorized != 0};
}
