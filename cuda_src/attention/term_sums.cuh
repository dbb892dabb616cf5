// The end of a kernel that adds up tiles of scores for an option (attention/term.cuh).
#pragma once
#include "attention/term.cuh"

// What the block has added up, a tile of scores in shared memory, to global memory.
template <class Accumulator, class SumTile>
__device__ __forceinline__ void store_sums(SumTile& sums, const TermParams& params, const TermWalk& walk) {
  const TermSchedule& schedule = walk.schedule;
  const bool own_rows = schedule.own_rows, own_cols = schedule.own_cols;
  const int rows = own_rows ? kBlockM : 1;
  __syncthreads();
  if (!own_rows) {
    for (int col = threadIdx.x; col < kBlockN; col += 32 * kNWarps) {
      Accumulator sum = 0;
      for (int row = 0; row < kBlockM; ++row) sum += *sums.at(row, col);
      *sums.at(0, col) = sum;
    }
    __syncthreads();
  }
  if (!own_cols) {
    for (int row = threadIdx.x; row < rows; row += 32 * kNWarps) {
      Accumulator sum = 0;
      for (int col = 0; col < kBlockN; ++col) sum += *sums.at(row, col);
      *sums.at(row, 0) = sum;
    }
    __syncthreads();
  }

  const TermElements<Accumulator> elements(params, walk, own_rows ? walk.shape.seqlen_q : 1,
                                           own_cols ? walk.shape.seqlen_k : 1);
  const int m0 = walk.own_query_block * kBlockM, n0 = walk.own_key_block * kBlockN;
  for (int i = threadIdx.x; i < rows * (own_cols ? kBlockN : 1); i += 32 * kNWarps) {
    const int row = own_cols ? i / kBlockN : i, col = own_cols ? i % kBlockN : 0;
    elements.store(m0 + row, n0 + col, *sums.at(row, col));
  }
}
