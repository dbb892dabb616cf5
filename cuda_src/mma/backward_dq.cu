// Gradient of queries on tensor cores in a pass of its own, for the two-pass backward: dQ = dS K with the sum over keys
// in one warp, in order.
//
// Grid: query_block in attention/schedule.cuh. A warp owns whole rows, as in the forward, so dS goes from its registers
// to the product without leaving them. Q and dO stay in shared memory, K and V stream through a ring.
#include "attention/schedule.cuh"
#include "mma/ring.cuh"
#include "mma/scores.cuh"
#include "mma/stream.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "ptx/opaque.cuh"
#include "specialization.cuh"

constexpr int kQueryCols = kHeadDim / 4;  // columns of dQ a lane
static_assert(kWarpsM == kNWarps, "warps own whole rows");
static_assert(kScoreRows * (2 * kScoreCols + kQueryCols) * sizeof(float) <= kSumBytes, "a thread's sums have 4 KiB");

using KeyTile = Tile<kBlockN, kHeadDim>;
using ValueTile = Tile<kBlockN, kHeadDimV>;

struct SharedStorage {
  Tile<kBlockM, kHeadDim> query;  // in the end dQ
  Tile<kBlockM, kHeadDimV> dout;
  struct {
    KeyTile key;
    ValueTile value;
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
    attention_dq(const __grid_constant__ Composed<BackwardParams> params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;

  const auto [m0, head, batch] = query_block(shape, params.schedule, blockIdx.x);
  const int head_k = head / shape.group_size;

  const BlockPlace place(params.components, shape, batch, head);
  const Mask mask(params.components, place);
  const Interval keys = mask.keys(m0, min(m0 + kBlockM, shape.seqlen_q) - 1);
  const int key_end = ptx::opaque(keys.end), first = keys.begin / kBlockN * kBlockN;
  const auto gK = head_matrix<Element>(params.k, shape, batch, head_k, key_end, shape.head_dim);
  const auto gV = head_matrix<Element>(params.v, shape, batch, head_k, key_end, shape.head_dim_v);
  const QueryHead gHead = query_head(params, batch, head);
  load_tile(shared.query, gHead.q, m0);  // in the group of the first keys
  load_tile(shared.dout, gHead.dout, m0);

  const auto blocks = mask.key_blocks(head, m0 / kBlockM);
  auto step = steps<kBlockN>(blocks, first, key_end), copied = step;
  TileStream<KeyTile> key(params.k, gK, step.at);
  TileStream<ValueTile> value(params.v, gV, step.at);
  const auto start = [&](int slot) {
    const int n0 = copied.at, begin = Mask::kCutsBelow ? keys.begin - n0 : 0;
    copied.next();
    const int rows_on = Mask::kListed ? copied.at - n0 : kBlockN;
    key.start(shared.ring[slot].key, begin, key_end - n0, rows_on * params.k.row_stride);
    value.start(shared.ring[slot].value, begin, key_end - n0, rows_on * params.v.row_stride);
  };
  const auto finish = [&](int slot) {
    key.finish(shared.ring[slot].key);
    value.finish(shared.ring[slot].value);
  };
  Ring ring;
  ring.fill(step.left(), start, finish);

  const Score<float> score(params.components, place);
  const ResidentStatistics rows(gHead.lse, gHead.delta, m0 + score_row0());
  float acc_dq[kScoreRows][kQueryCols];
  set_zero(acc_dq);

  for (; step.exists(); step.next()) {
    const int n0 = step.at;
    ring.arrive(step.left(), start, finish);
    auto& stage = shared.ring[ring.slot];
    float p[kScoreRows][kScoreCols], ds[kScoreRows][kScoreCols];
    recompute(p, ds, shared.query, shared.dout, stage.key, stage.value, rows, mask, score, 0, m0, n0,
              step.is_whole());

    // dQ += dS K  [kBlockM, kHeadDim]
    matmul(acc_dq, PackedOperand<kScoreRows, kScoreCols>(ds), Pieces<KeyTile, kRowsFirst>(stage.key));
  }
  if (kAsyncCopy) ptx::cp_async_wait_all();
  meet();  // Q is there even if there was no step
  store_dq(shared.query, params, acc_dq);
}
