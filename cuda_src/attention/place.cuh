// Where a block works, and what exists there: what components are told beside their parameters.
#pragma once
#include "params.cuh"

struct Components;  // what the components in effect are told, all together

struct Place {
  const Shape& shape;
  int batch;
  int head;  // the first of the query heads that the block has
  int seqlen_q, seqlen_k;
  int q_offset;  // query i stands at key i + q_offset

  __device__ Place(const Shape& shape, int batch, int head)
      : shape(shape),
        batch(batch),
        head(head),
        seqlen_q(shape.seqlen_q),
        seqlen_k(shape.seqlen_k),
        q_offset(shape.q_offset) {}
};

// Of a step of the score (attention/score.cuh), whether it may make anything of 0, which rows that do not exist have.
template <template <class> class Step>
constexpr bool kMakesAnything = false;

// A query in the head that is so many after place.head.
struct QueryRow {
  int query, head;
};

// The same as its parts have changed it, a compile-time list of types: Part::move(place, params), one after another.
template <class... Parts>
struct PlaceOf : Place {
  __device__ PlaceOf(const Components& params, const Shape& shape, int batch, int head) : Place(shape, batch, head) {
    (Parts::move(*this, params), ...);
  }
};
