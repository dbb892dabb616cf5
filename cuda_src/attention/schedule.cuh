// Which queries, and which keys, a block has.
#pragma once
#include "params.cuh"
#include "specialization.cuh"

// A block for every kBlockM query rows of a head; the last rows, which see the most keys, come first.
struct QueryBlock {
  int m0, head, batch;
};

__device__ __forceinline__ QueryBlock query_block(const Shape& shape, const Schedule& schedule, int block) {
  const int head = block / schedule.query_blocks;
  return {(schedule.query_blocks - 1 - block % schedule.query_blocks) * kBlockM, head % shape.num_heads_q,
          head / shape.num_heads_q};
}

// A block for every kBlockN keys of a head, and for each split of its group's query heads.
struct KeyBlock {
  int n0, split, head_k, batch;
};

__device__ __forceinline__ KeyBlock key_block(const Shape& shape, const Schedule& schedule, int block) {
  const int part = block / schedule.key_blocks, head = part / schedule.num_splits;
  return {block % schedule.key_blocks * kBlockN, part % schedule.num_splits, head % shape.num_heads_k,
          head / shape.num_heads_k};
}

// The forward on tensor cores, where blocks may share a tile's keys, and a tile hold rows of several heads.
//
// Blocks are dealt in sections of key heads whose keys and values fit the L2 cache together; within a section the
// last query rows come first: under a causal mask they see the most keys, and the short blocks fill the gaps at the
// end. The splits of one tile are neighbours, then the query heads that read the same keys.
struct Work {
  int m_block, head, head_k, batch, split;  // head: the first of the packed heads
};

__device__ __forceinline__ Work work_of_block(const Shape& shape, const Schedule& schedule, int block) {
  const int section = block / schedule.section_blocks, first = section * schedule.section_heads;
  const Divisor& heads = section == schedule.last_section ? schedule.last_section_heads : schedule.section_heads;
  const int tile = block % schedule.section_blocks / schedule.num_splits, rest = tile / schedule.members;
  const int key_head = first + rest % heads, head_k = key_head % shape.num_heads_k;
  return {schedule.query_blocks - 1 - rest / heads,
          (head_k * schedule.members + tile % schedule.members) * schedule.packed_heads, head_k,
          key_head / shape.num_heads_k, block % schedule.section_blocks % schedule.num_splits};
}
