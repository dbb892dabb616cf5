// Where a block works, and what exists there: what components are told beside their parameters.
#pragma once
#include "params.cuh"

struct Place {
  int batch;
  int head;  // the first of the query heads that the block has
  int seqlen_q, seqlen_k;
  int q_offset;  // query i stands at key i + q_offset

  __device__ Place(const Shape& shape, int batch, int head)
      : batch(batch), head(head), seqlen_q(shape.seqlen_q), seqlen_k(shape.seqlen_k), q_offset(shape.q_offset) {}
};
