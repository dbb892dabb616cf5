// The sink of a head: one more logit in the sums of its rows.
#pragma once
#include "attention/number.cuh"
#include "attention/place.cuh"
#include "numeric.cuh"

struct SinksParams {
  Tensor sinks;      // [batch..., Hq, 1, 1]
  Tensor q_lengths;  // [batch..., Hq, 1, 1]; data null where not given
  int q_lengths_wide;
};

template <class Storage>
struct SinksOf {
  Matrix<const Storage> first;  // of place.head
  const int64_t& head_stride;
  int queries;  // that exist

  __device__ SinksOf(const SinksParams& params, const Place& place)
      : first(head_matrix<const Storage>(params.sinks, place.shape, place.batch, place.head, 1, 1)),
        head_stride(params.sinks.head_stride),
        queries(length_of(params.q_lengths, params.q_lengths_wide, place, place.seqlen_q)) {}

  __device__ auto logit(int query, int head) const {
    const auto sink = to_accumulator(first.data[head * head_stride]);
    return query < queries ? sink : -infinity<decltype(+sink)>();
  }
};

using Sinks = SinksOf<Element>;
using FloatSinks = SinksOf<float>;
