// Gradient of queries on tensor cores in a pass of its own, for the two-pass backward: dQ = dS K with the sum over keys
// in one warp, in order.
//
// Grid: query_block in attention/schedule.cuh. A warp owns whole rows, as in the forward, so dS goes from its registers
// to the product without leaving them. Q and dO stay in shared memory, K and V stream through a ring.
#include "attention/schedule.cuh"
#include "mma/ring.cuh"
#include "mma/scores.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "ptx/opaque.cuh"
#include "specialization.cuh"

constexpr int kQueryCols = kHeadDim / 4;  // columns of dQ a lane
static_assert(kWarpsM == kNWarps, "warps own whole rows");
static_assert(kScoreRows * (2 * kScoreCols + kQueryCols) * sizeof(float) <= kSumBytes, "a thread's sums have 4 KiB");

using KeyTile = Tile<kBlockN, kHeadDim>;

struct SharedStorage {
  Tile<kBlockM, kHeadDim> query;  // in the end dQ
  Tile<kBlockM, kHeadDimV> dout;
  struct {
    KeyTile key;
    Tile<kBlockN, kHeadDimV> value;
  } ring[kStages];
};
static_assert(sizeof(SharedStorage) == kSharedBytes, "tiles.py and the kernel disagree on shared memory");

// dQ of this warp's rows, rounded through its rows of `tile` or, if wanted so, as it was summed.
__device__ __forceinline__ void store_dq(Tile<kBlockM, kHeadDim>& tile, const BackwardParams& params,
                                         const float (&acc_dq)[kScoreRows][kQueryCols]) {
  const Shape& shape = params.shape;
  // Found again: kept through the main loop, it would spill.
  const auto [m0, head, batch] = query_block(shape, params.schedule, ptx::opaque(blockIdx.x));
  const int row0 = score_row0();
  if (params.dq_acc.data != nullptr) {
    store_unrounded(head_matrix<float>(params.dq_acc, shape, batch, head, shape.seqlen_q, shape.head_dim), m0 + row0,
                    acc_dq);
    return;
  }
  store_fragment<1>(tile, row0, 0, acc_dq);
  __syncwarp();
  store_rows<kBlockM / kNWarps, 32>(
      tile, row0, threadIdx.x % 32,
      head_matrix<Element>(params.dq, shape, batch, head, shape.seqlen_q, shape.head_dim), m0);
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_dq(const __grid_constant__ BackwardParams params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;

  const auto [m0, head, batch] = query_block(shape, params.schedule, blockIdx.x);
  const int head_k = head / shape.group_size;

  const Mask mask(shape);
  const int key_end = mask.key_end(min(m0 + kBlockM, shape.seqlen_q) - 1), steps = ceil_div(key_end, kBlockN);
  const auto gK = head_matrix<Element>(params.k, shape, batch, head_k, key_end, shape.head_dim);
  const auto gV = head_matrix<Element>(params.v, shape, batch, head_k, key_end, shape.head_dim_v);
  const auto fill = [&](int step) {
    if (step >= steps) return;
    load_tile(shared.ring[step % kStages].key, gK, step * kBlockN);
    load_tile(shared.ring[step % kStages].value, gV, step * kBlockN);
  };
  const QueryHead gHead = query_head(params, batch, head, 0);
  load_tile(shared.query, gHead.q, m0);  // in the group of the first keys
  load_tile(shared.dout, gHead.dout, m0);
  start_ring(fill);

  const Score<float> score(shape);
  const ResidentStatistics rows(gHead.lse, gHead.delta, m0 + score_row0());
  float acc_dq[kScoreRows][kQueryCols];
  set_zero(acc_dq);

  for (int step = 0; step < steps; ++step) {
    arrive(step, fill);
    auto& stage = shared.ring[step % kStages];
    float p[kScoreRows][kScoreCols], ds[kScoreRows][kScoreCols];
    recompute(p, ds, shared.query, shared.dout, stage.key, stage.value, rows, mask, score, m0, step * kBlockN);

    // dQ += dS K  [kBlockM, kHeadDim]
    matmul(acc_dq, PackedOperand<kScoreRows, kScoreCols>(ds), Pieces<KeyTile, kRowsFirst>(stage.key));
  }
  if (kAsyncCopy) ptx::cp_async_wait_all();
  __syncthreads();  // Q is there even if there was no step
  store_dq(shared.query, params, acc_dq);
}
