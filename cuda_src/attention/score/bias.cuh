// score = score + bias[..., i, j]. What goes out is in log2 units.
#pragma once
#include "attention/matrix.cuh"
#include "attention/numbers.cuh"
#include "attention/place.cuh"
#include "ptx/opaque.cuh"

struct BiasParams {
  Tensor bias;  // [batch..., Hq, Sq, Sk]
};

template <class Accumulator, class Storage>
struct BiasOf {
  Matrix<const Storage> first;  // of place.head
  const Tensor& bias;
  Accumulator input_unit;

  __device__ BiasOf(const BiasParams& params, const Place& place, Accumulator unit)
      : first(head_matrix<const Storage>(params.bias, place.shape, place.batch, place.head, place.seqlen_q,
                                         place.seqlen_k)),
        bias(params.bias),
        input_unit(unit) {}

  __device__ Accumulator unit() const { return 1; }

  template <class Columns>
  struct Row {
    NumbersOf<Columns, Storage> numbers;
    Accumulator input_unit;

    __device__ Row(const BiasOf& step, int query, int head, const Columns& columns)
        : numbers(columns, step.row(query, head)), input_unit(step.input_unit) {}

    __device__ Accumulator forward(Accumulator x, int j) const {
      return fma(x, input_unit, numbers.at(j) * static_cast<Accumulator>(kLog2E));
    }
    __device__ Accumulator backward(Accumulator dy, Accumulator x, int j) const { return dy; }
    __device__ Accumulator term(Accumulator dy, int j) const { return dy; }
  };

 private:
  // Of a query that does not exist there are no numbers. Addresses of rows that were found before a loop over keys, or
  // strides, would hold registers through it: those are found again, these read again.
  __device__ NumberRow<Storage> row(int query, int head) const {
    const Storage* data = first.data + ptx::opaque(query) * bias.row_stride + head * bias.head_stride;
    return {data, bias.col_stride, first.has_row(query) ? first.cols : 0, static_cast<int>(bias.vector_bytes)};
  }
};

template <class Accumulator>
using Bias = BiasOf<Accumulator, Element>;
template <class Accumulator>
using FloatBias = BiasOf<Accumulator, float>;
