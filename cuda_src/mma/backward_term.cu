// Gradient of a term of the scores on tensor cores: of a bias or of slopes (attention/term.cuh).
//
//   dTerm = sum of dS d score / d term,  dS = P * (dO V^T - delta)
//
// Two of the backward's five products once more, in a kernel of its own: in that of dK and dV, whose blocks meet an
// element of a shared bias at different times, the sums would need atomics, and its registers are taken.
#include "attention/schedule.cuh"
#include "attention/gather.cuh"
#include "attention/term_sums.cuh"
#include "mma/scores.cuh"
#include "mma/tile.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "specialization.cuh"

static_assert(kWarpsM == kNWarps, "warps own whole rows");
static_assert(3 * kScoreRows * kScoreCols * sizeof(float) <= kSumBytes, "a thread's sums have 4 KiB");

// Rows are padded by a quad's columns: four rows that half a warp writes at once lie on different banks.
struct SumTile {
  static constexpr int kStride = kBlockN + 8;
  alignas(8) float data[kBlockM * kStride];

  __device__ float* at(int row, int col) { return data + row * kStride + col; }
};

union SharedStorage {
  struct {
    Tile<kBlockM, kHeadDim> query;
    Tile<kBlockM, kHeadDimV> dout;
    Tile<kBlockN, kHeadDim> key;
    Tile<kBlockN, kHeadDimV> value;
  } tiles;
  SumTile sums;
};
static_assert(sizeof(SharedStorage) == kSharedBytes, "tiles.py and the kernel disagree on shared memory");

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_dterm(const __grid_constant__ Composed<TermParams> params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  auto& tiles = shared.tiles;
  const Shape& shape = params.shape;
  TermWalk walk(shape, params.schedule, blockIdx.x);
  float sums[kScoreRows][kScoreCols];
  set_zero(sums);
  GatheredOf<float, kGather> gathered;

  while (walk.has_next()) {
    const auto [query_block, key_block, head, batch] = walk.next();
    const int m0 = query_block * kBlockM, n0 = key_block * kBlockN;
    const int head_k = head / shape.group_size;
    const BlockPlace place(params.components, shape, batch, head);
    const Mask mask(params.components, place);
    const Interval keys = mask.keys(m0, min(m0 + kBlockM, shape.seqlen_q) - 1);
    if (max(n0, keys.begin) >= min(n0 + kBlockN, keys.end)) continue;
    const auto blocks = mask.key_blocks(head, query_block);
    const int position = blocks.position<kBlockN>(n0);
    if (position < 0) continue;

    // Of rows that do not see the tile nothing is read: what they hold must not spread.
    const Interval queries = mask.queries(n0, min(n0 + kBlockN, shape.seqlen_k) - 1);
    const int begin = queries.begin, end = queries.end;
    __syncthreads();  // the tiles' last readers are done
    load_tile(tiles.query, head_matrix<Element>(params.q, shape, batch, head, end, shape.head_dim, begin), m0);
    load_tile(tiles.dout, head_matrix<Element>(params.dout, shape, batch, head, end, shape.head_dim_v, begin), m0);
    load_tile(tiles.key, head_matrix<Element>(params.k, shape, batch, head_k, keys.end, shape.head_dim, keys.begin),
              n0);
    load_tile(tiles.value,
              head_matrix<Element>(params.v, shape, batch, head_k, keys.end, shape.head_dim_v, keys.begin), n0);
    const Score<float> score(params.components, place);
    const ResidentStatistics rows(head_matrix<float>(params.lse, shape, batch, head, shape.seqlen_q, 1),
                                  head_matrix<float>(params.delta, shape, batch, head, shape.seqlen_q, 1),
                                  m0 + score_row0());
    if (kAsyncCopy) ptx::cp_async_wait_all();
    __syncthreads();

    float p[kScoreRows][kScoreCols], ds[kScoreRows][kScoreCols];
    recompute<kTerm, kGather != 0>(p, ds, tiles.query, tiles.dout, tiles.key, tiles.value, rows, mask, score, 0, m0,
                                   n0, blocks.is_whole(position));
#pragma unroll
    for (int i = 0; i < kScoreRows; ++i) {
      if constexpr (kGather != 0) {
        const auto scored = score.row(m0 + score_row0() + row_of(i), 0, KeyColumns<kAcross>{n0, score_across()});
#pragma unroll
        for (int j = 0; j < kScoreCols; ++j) gathered.add(scored.last(), ds[i][j], p[i][j], j);
      } else {
#pragma unroll
        for (int j = 0; j < kScoreCols; ++j) sums[i][j] += ds[i][j];
      }
    }
  }
  if constexpr (kGather != 0) return gathered.finish(params.components);

  __syncthreads();  // the sums lie where the tiles are
#pragma unroll
  for (int i = 0; i < kScoreRows; ++i) {
#pragma unroll
    for (int j = 0; j < kScoreCols; j += 2) {
      const ptx::Vec<float, 2> pair = {sums[i][j], sums[i][j + 1]};
      ptx::store_shared(shared.sums.at(score_row0() + row_of(i), col_of(j)), pair);
    }
  }
  store_sums<float>(shared.sums, params, walk);
}
