// Gradients of keys and values on tensor cores (FlashAttention-2, Dao 2023, Algorithm 2):
//
//   dV = P^T dO,  dK = dS^T Q,  and with kAtomicDq also dQ += dS K by atomic additions
//
// Grid: one block for kBlockN keys of one key head and one share of the query heads of its group. It walks over these
// heads' query blocks; K and V stay in shared memory, Q and dO stream through a ring, dK and dV stay in registers, so
// grouped heads need no memory of their own. The warps' grids differ from product to product: S and dP have kWarpsM
// row parts (mma/scores.cuh), as has dQ; dK and dV have kWarpsN. P and dS change hands through shared memory.
#include "attention/schedule.cuh"
#include "mma/ring.cuh"
#include "mma/scores.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "specialization.cuh"

constexpr int kKeyAcross = kNWarps / kWarpsN;                   // warps that share keys of dK and dV
constexpr int kKeyRows = kBlockN / kWarpsN / 8;                 // rows of dK and dV a lane
constexpr int kKeyCols = kHeadDim / kKeyAcross / 4;             // columns of dK a lane
constexpr int kValueCols = kHeadDimV / kKeyAcross / 4;          // columns of dV a lane
constexpr int kQueryCols = kHeadDim / kAcross / 4;              // columns of dQ a lane
static_assert(kBlockN % (kPiece * kWarpsN) == 0, "warps own whole pieces");
static_assert(kHeadDim % (kPiece * kKeyAcross) == 0 && kHeadDimV % (kPiece * kKeyAcross) == 0, "of columns too");
static_assert(kHeadDim % (kPiece * kAcross) == 0, "of dQ's columns too");

using KeyTile = Tile<kBlockN, kHeadDim>;
using ValueTile = Tile<kBlockN, kHeadDimV>;
using ScoreTile = Tile<kBlockM, kBlockN>;

struct SharedStorage {
  KeyTile key;      // in the end dK
  ValueTile value;  // in the end dV
  struct {
    Tile<kBlockM, kHeadDim> query;
    Tile<kBlockM, kHeadDimV> dout;
  } ring[kStages];
  ScoreTile p, ds;
  QueryHead first;      // of this block's first head: kept in registers, its pointers would spill
  Matrix<float> gDq;
};
static_assert(sizeof(SharedStorage) == kSharedBytes, "plan.py and the kernel disagree on shared memory");

// dQ += dS K  [kBlockM, kHeadDim]
__device__ __forceinline__ void add_to_dq(SharedStorage& shared, const Matrix<float>& gDq, int m0) {
  const int row0 = score_row0(), across = score_across();
  float acc_dq[kScoreRows][kQueryCols];
  set_zero(acc_dq);
  matmul<kBlockN, kAcross>(acc_dq, Pieces<ScoreTile, kRowsFirst>(shared.ds, row0),
                           Pieces<KeyTile, kRowsFirst>(shared.key, 0, across * kPiece));
#pragma unroll
  for (int i = 0; i < kScoreRows; ++i) {
    const int row = m0 + row0 + row_of(i);
    if (row >= gDq.rows) continue;
    float* dst = gDq.at(row, 0);
#pragma unroll
    for (int j = 0; j < kQueryCols; ++j) {
      const int col = col_of<kAcross>(j, across);
      if (col < gDq.cols) atomicAdd(dst + col, acc_dq[i][j]);
    }
  }
}

// Add a block's share of dK or dV to the sum over all shares.
template <int kCols>
__device__ __forceinline__ void add_to_sum(const Matrix<float>& g, int row0, int across,
                                           const float (&acc)[kKeyRows][kCols]) {
#pragma unroll
  for (int i = 0; i < kKeyRows; ++i) {
    const int row = row0 + row_of(i);
    if (row >= g.rows) continue;
    float* dst = g.at(row, 0);
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      const int col = col_of<kKeyAcross>(j, across);
      if (col < g.cols) atomicAdd(dst + col, acc[i][j]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_dkdv(const __grid_constant__ BackwardParams params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;

  const int n_blocks = ceil_div(shape.seqlen_k, kBlockN), num_splits = params.schedule.num_splits;
  const int n0 = blockIdx.x % n_blocks * kBlockN;
  const int split = blockIdx.x / n_blocks % num_splits;
  const int head_k = blockIdx.x / n_blocks / num_splits % shape.num_heads_k;
  const int batch = blockIdx.x / n_blocks / num_splits / shape.num_heads_k;

  // This block's query heads, and the query blocks of each that see its keys.
  const int group_size = shape.num_heads_q / shape.num_heads_k, per_split = ceil_div(group_size, num_splits);
  const int head_begin = head_k * group_size + min(split * per_split, group_size);
  const int head_end = min(head_begin + per_split, (head_k + 1) * group_size);
  const Mask mask(shape);
  const int query_begin = mask.query_begin(n0), key_end = mask.key_end(shape.seqlen_q - 1);
  const int m_begin = query_begin / kBlockM, m_blocks = ceil_div(shape.seqlen_q, kBlockM) - m_begin;
  const int steps = max(m_blocks, 0) * (head_end - head_begin);

  const auto gK = head_matrix<Element>(params.k, shape, batch, head_k, key_end, shape.head_dim);
  const auto gV = head_matrix<Element>(params.v, shape, batch, head_k, key_end, shape.head_dim_v);
  if (threadIdx.x == 0) {
    shared.first = query_head(params, batch, head_begin, query_begin);
    shared.gDq = head_matrix<float>(params.dq_acc, shape, batch, head_begin, shape.seqlen_q, shape.head_dim);
  }
  __syncthreads();
  const auto fill = [&](int step) {
    if (step >= steps) return;
    const int member = step / m_blocks, m0 = (m_begin + step % m_blocks) * kBlockM;
    load_tile(shared.ring[step % kStages].query, shifted(shared.first.q, member * params.q.head_stride), m0);
    load_tile(shared.ring[step % kStages].dout, shifted(shared.first.dout, member * params.dout.head_stride), m0);
  };
  load_tile(shared.key, gK, n0);  // in the group of the first queries
  load_tile(shared.value, gV, n0);
  start_ring(fill);

  const Score<float> score(shape);
  const int warp = threadIdx.x / 32, key_row0 = warp % kWarpsN * (kBlockN / kWarpsN), key_across = warp / kWarpsN;
  float acc_dk[kKeyRows][kKeyCols], acc_dv[kKeyRows][kValueCols];
  set_zero(acc_dk);
  set_zero(acc_dv);

  for (int step = 0; step < steps; ++step) {
    const int member = step / m_blocks, m0 = (m_begin + step % m_blocks) * kBlockM;
    const RowStatistics rows(shifted(shared.first.lse, member * params.lse.head_stride),
                             shifted(shared.first.delta, member * params.delta.head_stride), m0 + score_row0());
    arrive(step, fill);
    auto& stage = shared.ring[step % kStages];
    {
      float p[kScoreRows][kScoreCols], ds[kScoreRows][kScoreCols];
      recompute(p, ds, stage.query, stage.dout, shared.key, shared.value, rows, mask, score, m0, n0);
      store_fragment<kAcross>(shared.p, score_row0(), score_across(), p);
      store_fragment<kAcross>(shared.ds, score_row0(), score_across(), ds);
    }
    __syncthreads();

    // dV += P^T dO  [kBlockN, kHeadDimV],  dK += dS^T Q  [kBlockN, kHeadDim]
    matmul<kBlockM, kKeyAcross>(acc_dv, Pieces<ScoreTile, kColsFirst>(shared.p, 0, key_row0),
                                Pieces<decltype(stage.dout), kRowsFirst>(stage.dout, 0, key_across * kPiece));
    matmul<kBlockM, kKeyAcross>(acc_dk, Pieces<ScoreTile, kColsFirst>(shared.ds, 0, key_row0),
                                Pieces<decltype(stage.query), kRowsFirst>(stage.query, 0, key_across * kPiece));
    if (kAtomicDq) {
      add_to_dq(shared, shifted(shared.gDq, member * params.dq_acc.head_stride), m0);
    }
  }
  if (kAsyncCopy) ptx::cp_async_wait_all();
  __syncthreads();  // dK's and dV's tiles lie where K and V were

  if (num_splits > 1) {
    add_to_sum(head_matrix<float>(params.dk_acc, shape, batch, head_k, shape.seqlen_k, shape.head_dim), n0 + key_row0,
               key_across, acc_dk);
    add_to_sum(head_matrix<float>(params.dv_acc, shape, batch, head_k, shape.seqlen_k, shape.head_dim_v),
               n0 + key_row0, key_across, acc_dv);
    return;
  }
  store_fragment<kKeyAcross>(shared.key, key_row0, key_across, acc_dk);
  store_fragment<kKeyAcross>(shared.value, key_row0, key_across, acc_dv);
  __syncthreads();
  store_rows<kBlockN, kThreads>(shared.key, 0, threadIdx.x,
                                head_matrix<Element>(params.dk, shape, batch, head_k, shape.seqlen_k, shape.head_dim),
                                n0);
  store_rows<kBlockN, kThreads>(
      shared.value, 0, threadIdx.x,
      head_matrix<Element>(params.dv, shape, batch, head_k, shape.seqlen_k, shape.head_dim_v), n0);
}
