// Query i sees key j where mask[..., i, j] is not 0.
#pragma once
#include "attention/flags.cuh"
#include "attention/matrix.cuh"
#include "attention/place.cuh"

struct BooleanParams {
  Tensor mask;  // [batch..., Hq, Sq, Sk], bytes, 0: hidden
};

struct Boolean {
  static constexpr bool kCutsBelow = false, kCutsAbove = false, kElementwise = true;
  Matrix<const uint8_t> first;  // of place.head
  const int64_t& head_stride;

  __device__ Boolean(const BooleanParams& params, const Place& place)
      : first(head_matrix<const uint8_t>(params.mask, place.shape, place.batch, place.head, place.seqlen_q,
                                         place.seqlen_k)),
        head_stride(params.mask.head_stride) {}

  template <class Flags>
  struct Shown : Flags {
    template <class Columns, class RowOf>
    __device__ Shown(const Boolean& mask, const Columns& columns, const RowOf& row, bool is_whole)
        : Flags(columns, [&](int i) { return mask.flags(row(i).query, row(i).head); }) {}
  };

 private:
  __device__ FlagRow flags(int query, int head) const {
    return {first.at(query, 0) + head * head_stride, first.col_stride, first.has_row(query) ? first.cols : 0,
            first.vector_bytes};
  }
};
