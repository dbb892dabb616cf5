// Gradient of a term of the scores on CUDA cores: of a bias or of slopes (attention/term.cuh).
//
//   dTerm = sum of dS d score / d term,  dS = P * (dO V^T - delta)
#include "platform.cuh"
#include "params.cuh"
#include "numeric.cuh"
#include "specialization.cuh"
#include "attention/schedule.cuh"
#include "attention/gather.cuh"
#include "attention/term_sums.cuh"
#include "simt/backward_tiles.cuh"

static_assert(3 * kRows * kCols * sizeof(Accumulator) <= kSumBytes, "a thread's sums have 4 KiB");

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_dterm(const __grid_constant__ Composed<TermParams> params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;
  TermWalk walk(shape, params.schedule, blockIdx.x);
  Accumulator sums[kRows][kCols];
  set_zero(sums);
  GatheredOf<Accumulator, kGather> gathered;

  while (walk.has_next()) {
    const auto [query_block, key_block, head_q, batch] = walk.next();
    const int m0 = query_block * kBlockM, n0 = key_block * kBlockN;
    const BlockPlace place(params.components, shape, batch, head_q);
    const Mask mask(params.components, place);
    const Interval keys = mask.keys(m0, min(m0 + kBlockM, shape.seqlen_q) - 1);
    if (max(n0, keys.begin) >= min(n0 + kBlockN, keys.end)) continue;
    const auto blocks = mask.key_blocks(head_q, query_block);
    const int position = blocks.position<kBlockN>(n0);
    if (position < 0) continue;

    const Interval queries = mask.queries(n0, min(n0 + kBlockN, shape.seqlen_k) - 1);
    const Head head = query_head(params, batch, head_q, queries, keys);
    const Score<Accumulator> score(params.components, place);
    Accumulator p[kRows][kCols], ds[kRows][kCols];
    recompute<kTerm, kGather != 0>(p, ds, shared, head, mask, score, 0, m0, false, n0, false,
                                  blocks.is_whole(position));
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if constexpr (kGather != 0) {
        const auto scored = score.row(m0 + row_of<kRows>(i), 0, KeyColumns{n0});
#pragma unroll
        for (int j = 0; j < kCols; ++j) gathered.add(scored.last(), ds[i][j], p[i][j], j);
      } else {
#pragma unroll
        for (int j = 0; j < kCols; ++j) sums[i][j] += ds[i][j];
      }
    }
  }
  if constexpr (kGather != 0) return gathered.finish(params.components);

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCols; ++j) *shared.p.at(row_of<kRows>(i), col_of(j)) = sums[i][j];
  }
  store_sums<Accumulator>(shared.p, params, walk);
}
