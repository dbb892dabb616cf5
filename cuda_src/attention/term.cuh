// Gradients of options that scores are made of: an element has the sum over all scores that it is part of.
//
// Grid: a block for each tile of the option's own positions and each split of what adds up to it. Along an axis that
// the option is constant on, a block has all positions; it walks over them in order, with the sums of a tile of scores
// in registers, and writes each element once: the same bits every time.
#pragma once
#include "attention/matrix.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "specialization.cuh"

// Which block of queries and of keys, and whose.
struct TermTile {
  int query_block, key_block, head, batch;
};

struct TermWalk {
  const Shape& shape;
  const TermSchedule& schedule;
  int split, own_query_block, own_key_block, own_head, own_batch;
  int part, end;  // of the tiles that add up

  __device__ TermWalk(const Shape& shape, const TermSchedule& schedule, int block) : shape(shape), schedule(schedule) {
    split = block % schedule.num_splits;
    int rest = block / schedule.num_splits;
    own_key_block = rest % schedule.own_key_blocks;
    rest = rest / schedule.own_key_blocks;
    own_query_block = rest % schedule.own_query_blocks;
    rest = rest / schedule.own_query_blocks;
    own_head = rest % schedule.own_heads;
    own_batch = rest / schedule.own_heads;
    int parts = schedule.summed_key_blocks * schedule.summed_query_blocks * schedule.summed_heads;
#pragma unroll
    for (int dim = 0; dim < kBatchDims; ++dim) parts *= schedule.summed_batch[dim];
    const int per_split = ceil_div(parts, schedule.num_splits);
    part = split * per_split;
    end = min(part + per_split, parts);
  }

  __device__ bool has_next() const { return part < end; }

  __device__ TermTile next() {
    int rest = part++;
    const int key_block = own_key_block + rest % schedule.summed_key_blocks;
    rest = rest / schedule.summed_key_blocks;
    const int query_block = own_query_block + rest % schedule.summed_query_blocks;
    rest = rest / schedule.summed_query_blocks;
    const int head = own_head + rest % schedule.summed_heads;
    return {query_block, key_block, head, batch(rest / schedule.summed_heads)};
  }

  // The head of the option's elements, of so many rows and columns, its own or 1, that the block writes some of.
  template <class T>
  __device__ Matrix<T> elements(const Tensor& tensor, int rows, int cols) const {
    return head_matrix<T>(tensor, shape, batch(0), own_head, rows, cols);
  }

 private:
  // The batch element of an index among those that add up.
  __device__ int batch(int summed) const {
    int own = own_batch, found = 0, stride = 1;
#pragma unroll
    for (int dim = kBatchDims - 1; dim >= 0; --dim) {
      found += (own % schedule.own_batch[dim] + summed % schedule.summed_batch[dim]) * stride;
      own = own / schedule.own_batch[dim];
      summed = summed / schedule.summed_batch[dim];
      stride *= shape.batch[dim];
    }
    return found;
  }
};

// Writes elements, whole or as this split's parts.
template <class Accumulator>
struct TermElements {
  const TermSchedule& schedule;
  Matrix<Out> whole;
  Matrix<Accumulator> parts;  // where there are several splits

  // Of so many rows and columns, its own or 1.
  __device__ TermElements(const TermParams& params, const TermWalk& walk, int rows, int cols)
      : schedule(walk.schedule),
        whole(walk.elements<Out>(params.dterm, rows, cols)),
        parts(walk.elements<Accumulator>(params.dterm_parts, rows, cols)) {
    parts.data += walk.split * schedule.split_stride;
  }

  __device__ void store(int row, int col, Accumulator sum) const {
    if (!whole.holds(row, col)) return;
    if (schedule.num_splits > 1) {
      *parts.at(row, col) = sum;
    } else {
      Out* const to = whole.at(row, col);
      from_accumulator(*to, schedule.is_added ? to_accumulator(*to) + sum : sum);
    }
  }
};
