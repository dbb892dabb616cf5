// Which queries, and which keys, a block has.
#pragma once
#include "attention/mask.cuh"
#include "params.cuh"
#include "specialization.cuh"

// A block for every kBlockM query rows of a head; the last rows, which see the most keys, come first.
struct QueryBlock {
  int m0, head, batch;
};

__device__ __forceinline__ QueryBlock query_block(const Shape& shape, unsigned block) {
  const unsigned m_blocks = ceil_div(shape.seqlen_q, kBlockM), head_index = block / m_blocks;
  return {static_cast<int>(m_blocks - 1 - block % m_blocks) * kBlockM,
          static_cast<int>(head_index % shape.num_heads_q), static_cast<int>(head_index / shape.num_heads_q)};
}

// The forward on tensor cores, where blocks may share a tile's keys, and a tile hold rows of several heads.
//
// Blocks are dealt in sections of key heads whose keys and values fit the L2 cache together; within a section the
// last query rows come first: under a causal mask they see the most keys, and the short blocks fill the gaps at the
// end. The splits of one tile are neighbours, then the query heads that read the same keys.
struct Work {
  int m_block, head, head_k, batch, split;  // head: the first of the packed heads
};

__device__ __forceinline__ Work work_of_block(const Shape& shape, const Schedule& schedule, int m_blocks,
                                             int block) {
  const int members = shape.num_heads_q / shape.num_heads_k / schedule.packed_heads;
  const int per_head = m_blocks * members * schedule.num_splits;
  const int key_heads = static_cast<int>(gridDim.x) / per_head;  // of the whole batch
  const int section = block / (per_head * schedule.section_heads);
  const int first = section * schedule.section_heads, count = min(schedule.section_heads, key_heads - first);
  int rest = block - first * per_head;

  const int split = rest % schedule.num_splits;
  rest /= schedule.num_splits;
  const int member = rest % members;
  rest /= members;
  const int key_head = first + rest % count, head_k = key_head % shape.num_heads_k;
  return {m_blocks - 1 - rest / count, (head_k * members + member) * schedule.packed_heads, head_k,
          key_head / shape.num_heads_k, split};
}
