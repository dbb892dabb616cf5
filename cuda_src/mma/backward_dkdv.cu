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
#include "ptx/opaque.cuh"
#include "ptx/reduce.cuh"
#include "specialization.cuh"

constexpr int kKeyAcross = kNWarps / kWarpsN;                   // warps that share keys of dK and dV
constexpr int kKeyRows = kBlockN / kWarpsN / 8;                 // rows of dK and dV a lane
constexpr int kKeyCols = kHeadDim / kKeyAcross / 4;             // columns of dK a lane
constexpr int kValueCols = kHeadDimV / kKeyAcross / 4;          // columns of dV a lane
constexpr int kQueryCols = kHeadDim / kAcross / 4;              // columns of dQ a lane
static_assert(kWarpsN > 0 && kNWarps % kWarpsN == 0, "as many warps share each part of the keys");
static_assert(kBlockN % (kPiece * kWarpsN) == 0, "warps own whole pieces of keys");
static_assert(kHeadDim % (kPiece * kKeyAcross) == 0 && kHeadDimV % (kPiece * kKeyAcross) == 0,
              "warps own whole pieces of dK and dV");
static_assert(kHeadDim % (kPiece * kAcross) == 0, "warps own whole pieces of dQ");
static_assert((2 * kScoreRows * kScoreCols + kKeyRows * (kKeyCols + kValueCols)) * sizeof(float) <= kSumBytes,
              "a thread's sums have 4 KiB");

using KeyTile = Tile<kBlockN, kHeadDim>;
using ValueTile = Tile<kBlockN, kHeadDimV>;
using ScoreTile = Tile<kBlockM, kBlockN>;

// As Pieces asks: a warp reads its keys of P^T and dS^T, and of K, Q and dO the pieces whose turn it is.
static_assert(kNoCarry<ScoreTile, kBlockN / kWarpsN>, "a warp's keys are whole swizzled groups, or parts of one");
static_assert(kNoCarry<KeyTile, kPiece * kAcross> && kNoCarry<KeyTile, kPiece * kKeyAcross> &&
                  kNoCarry<ValueTile, kPiece * kKeyAcross>,
              "turns of the warps are whole swizzled groups, or parts of one");

struct SharedStorage {
  KeyTile key;      // in the end dK
  ValueTile value;  // in the end dV
  struct {
    Tile<kBlockM, kHeadDim> query;
    Tile<kBlockM, kHeadDimV> dout;
    float lse[kBlockM], delta[kBlockM];
  } ring[kStages];
  ScoreTile p, ds;
  // What the loop over queries needs now and then: kept in registers, it would spill.
  QueryHead first;  // of this block's first head, as is gDq
  Matrix<float> gDq;
  int n0, m_begin, m_blocks, steps;  // query blocks of a head that see the keys, and of all heads
};
static_assert(sizeof(SharedStorage) == kSharedBytes, "tiles.py and the kernel disagree on shared memory");

// g += acc, for the rows from row0 on, two neighbouring columns at once or one by one.
template <int kAcross, bool kPairs, int kRows, int kCols>
__device__ __forceinline__ void add_columns(const Matrix<float>& g, int row0, int across,
                                            const float (&acc)[kRows][kCols]) {
  const int col0 = col_of<kAcross>(0, across);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const bool inside = row0 + row_of(i) < g.rows;
    float* dst = g.at(row0 + row_of(i), col0);
#pragma unroll
    for (int j = 0; j < kCols; j += 2) {
      const int step = col_of<kAcross>(j) - col_of<kAcross>(0);  // a constant
      if (kPairs) {
        ptx::add_global(dst + step, acc[i][j], acc[i][j + 1], inside && col0 + step < g.cols);
      } else {
        ptx::add_global(dst + step, acc[i][j], inside && col0 + step < g.cols);
        ptx::add_global(dst + step + 1, acc[i][j + 1], inside && col0 + step + 1 < g.cols);
      }
    }
  }
}

template <int kAcross, int kRows, int kCols>
__device__ __forceinline__ void add_fragment(const Matrix<float>& g, int row0, int across,
                                             const float (&acc)[kRows][kCols]) {
  if (kAddsPairs && g.vectorized) {
    add_columns<kAcross, true>(g, row0, across, acc);
  } else {
    add_columns<kAcross, false>(g, row0, across, acc);
  }
}

// dQ += dS K  [kBlockM, kHeadDim], in two halves of the columns where beside dK and dV there is no room for all.
__device__ __forceinline__ void add_to_dq(SharedStorage& shared, const Matrix<float>& gDq, int m0) {
  constexpr int kParts = kQueryCols % 8 == 0 && kScoreRows * kQueryCols > 32 ? 2 : 1, kTurns = kParts * kAcross;
  const int row0 = score_row0();
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int turn = part * kAcross + score_across();
    float acc_dq[kScoreRows][kQueryCols / kParts];
    set_zero(acc_dq);
    matmul<kBlockN, kTurns>(acc_dq, Pieces<ScoreTile, kRowsFirst>(shared.ds, row0),
                            Pieces<KeyTile, kRowsFirst>(shared.key, 0, turn * kPiece));
    add_fragment<kTurns>(gDq, m0 + row0, turn, acc_dq);
  }
}

// dK and dV to global memory: whole, through the tiles of K and V, or as a share of their sums.
__device__ __forceinline__ void store_result(SharedStorage& shared, const BackwardParams& params,
                                             const float (&acc_dk)[kKeyRows][kKeyCols],
                                             const float (&acc_dv)[kKeyRows][kValueCols]) {
  const Shape& shape = params.shape;
  const int warp = threadIdx.x / 32, row0 = warp % kWarpsN * (kBlockN / kWarpsN), across = warp / kWarpsN;
  // Found again: kept through the main loop, it would spill.
  const KeyBlock keys = key_block(shape, params.schedule, ptx::opaque(blockIdx.x));
  const int rows = shape.seqlen_k;
  if (params.schedule.num_splits > 1) {
    add_fragment<kKeyAcross>(
        head_matrix<float>(params.dk_acc, shape, keys.batch, keys.head_k, rows, shape.head_dim), keys.n0 + row0,
        across, acc_dk);
    add_fragment<kKeyAcross>(
        head_matrix<float>(params.dv_acc, shape, keys.batch, keys.head_k, rows, shape.head_dim_v), keys.n0 + row0,
        across, acc_dv);
    return;
  }
  store_fragment<kKeyAcross>(shared.key, row0, across, acc_dk);
  store_fragment<kKeyAcross>(shared.value, row0, across, acc_dv);
  __syncthreads();
  store_rows<kBlockN, kThreads>(
      shared.key, 0, threadIdx.x,
      head_matrix<Element>(params.dk, shape, keys.batch, keys.head_k, rows, shape.head_dim), keys.n0);
  store_rows<kBlockN, kThreads>(
      shared.value, 0, threadIdx.x,
      head_matrix<Element>(params.dv, shape, keys.batch, keys.head_k, rows, shape.head_dim_v), keys.n0);
}

// Log-sum-exp and delta of the query block in shared memory; rows outside see nothing.
struct StreamedStatistics {
  const float *lse_column, *delta_column;
  int rows;

  __device__ float lse(int i) const {
    const int row = score_row0() + row_of(i);
    return row < rows ? lse_to_log2(ptx::load_shared<1>(lse_column + row).data[0]) : infinity<float>();
  }
  __device__ float delta(int i) const { return ptx::load_shared<1>(delta_column + score_row0() + row_of(i)).data[0]; }
};

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_dkdv(const __grid_constant__ BackwardParams params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;

  const auto [n0, split, head_k, batch] = key_block(shape, params.schedule, blockIdx.x);

  // This block's query heads, and the query blocks of each that see its keys.
  const int group_size = shape.group_size, per_split = ceil_div(group_size, params.schedule.num_splits);
  const int head_begin = head_k * group_size + min(split * per_split, group_size);
  const int head_end = min(head_begin + per_split, (head_k + 1) * group_size);
  const Mask mask(shape);
  const int query_begin = mask.query_begin(n0), key_end = mask.key_end(shape.seqlen_q - 1);

  const auto gK = head_matrix<Element>(params.k, shape, batch, head_k, key_end, shape.head_dim);
  const auto gV = head_matrix<Element>(params.v, shape, batch, head_k, key_end, shape.head_dim_v);
  if (threadIdx.x == 0) {
    shared.first = query_head(params, batch, head_begin, query_begin);
    shared.gDq = head_matrix<float>(params.dq_acc, shape, batch, head_begin, shape.seqlen_q, shape.head_dim);
    shared.n0 = n0;
    shared.m_begin = query_begin / kBlockM;
    shared.m_blocks = query_begin < shape.seqlen_q ? ceil_div(shape.seqlen_q, kBlockM) - shared.m_begin : 0;
    shared.steps = shared.m_blocks * (head_end - head_begin);
  }
  __syncthreads();
  const auto fill = [&](int step) {
    if (step >= shared.steps) return;
    const int member = step / shared.m_blocks, m0 = (shared.m_begin + step % shared.m_blocks) * kBlockM;
    auto& stage = shared.ring[step % kStages];
    load_tile(stage.query, shifted(shared.first.q, member * params.q.head_stride), m0);
    load_tile(stage.dout, shifted(shared.first.dout, member * params.dout.head_stride), m0);
    load_column(stage.lse, shifted(shared.first.lse, member * params.lse.head_stride), m0);
    load_column(stage.delta, shifted(shared.first.delta, member * params.delta.head_stride), m0);
  };
  load_tile(shared.key, gK, n0);  // in the group of the first queries
  load_tile(shared.value, gV, n0);
  start_ring(fill);

  const Score<float> score(shape);
  const int warp = threadIdx.x / 32, key_row0 = warp % kWarpsN * (kBlockN / kWarpsN), key_across = warp / kWarpsN;
  float acc_dk[kKeyRows][kKeyCols], acc_dv[kKeyRows][kValueCols];
  set_zero(acc_dk);
  set_zero(acc_dv);

  for (int step = 0; step < shared.steps; ++step) {
    const int member = step / shared.m_blocks, m0 = (shared.m_begin + step % shared.m_blocks) * kBlockM;
    arrive(step, fill);
    auto& stage = shared.ring[step % kStages];
    {
      float p[kScoreRows][kScoreCols], ds[kScoreRows][kScoreCols];
      const StreamedStatistics rows{stage.lse, stage.delta, shape.seqlen_q - m0};
      recompute(p, ds, stage.query, stage.dout, shared.key, shared.value, rows, mask, score, m0, shared.n0);
      store_fragment<kAcross>(shared.p, score_row0(), score_across(), p);
      store_fragment<kAcross>(shared.ds, score_row0(), score_across(), ds);
    }
    __syncthreads();

    if (kAtomicDq) {
      add_to_dq(shared, shifted(shared.gDq, member * params.dq_acc.head_stride), m0);
    }
    // dV += P^T dO  [kBlockN, kHeadDimV],  dK += dS^T Q  [kBlockN, kHeadDim]
    matmul<kBlockM, kKeyAcross>(acc_dv, Pieces<ScoreTile, kColsFirst>(shared.p, 0, key_row0),
                                Pieces<decltype(stage.dout), kRowsFirst>(stage.dout, 0, key_across * kPiece));
    matmul<kBlockM, kKeyAcross>(acc_dk, Pieces<ScoreTile, kColsFirst>(shared.ds, 0, key_row0),
                                Pieces<decltype(stage.query), kRowsFirst>(stage.query, 0, key_across * kPiece));
  }
  if (kAsyncCopy) ptx::cp_async_wait_all();
  __syncthreads();  // dK's and dV's tiles lie where K and V were
  store_result(shared, params, acc_dk, acc_dv);
}
