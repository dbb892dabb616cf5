// Forward attention on CUDA cores, any GPU and dtype (FlashAttention-2, Dao 2023, Algorithm 1):
//
//   S = Q K^T,  P = softmax(score(S)),  O = P V,  lse = logsumexp(score(S))
//
// Grid: one block for kBlockM query rows of one head; the last rows, which see the most keys, come first.
// A row belongs to kLanes lanes of one warp, from scores to output, so row statistics need only shuffles. Per key
// block: S by slices of the head dimension, one online-softmax step, P into shared memory for the other lanes of its
// rows (the barriers around V's load order that too), then O by slices. Nothing of size Sq x Sk leaves the SM.
#include "attention/mask.cuh"
#include "attention/matrix.cuh"
#include "attention/online_softmax.cuh"
#include "attention/score.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "simt/matmul.cuh"
#include "simt/tile.cuh"
#include "specialization.cuh"

constexpr int kRows = kBlockM / kRowGroups;  // rows of S and O a thread
constexpr int kCols = kBlockN / kLanes;      // columns of S a thread
constexpr int kQueryTiles = kQueryResident ? kSlices : 1;

struct SharedStorage {
  Tile<kBlockM, kSliceD> query[kQueryTiles];
  Tile<kBlockN, kSliceD> key;  // K, then V
  ScoreTile p;
};
static_assert(sizeof(SharedStorage) == kSharedBytes, "plan.py and the kernel disagree on shared memory");

using Out = Accumulator[kSlices][kRows][kSliceCols];
using Softmax = ExactSoftmax<Accumulator, kRows, kLanes, kHeadroom<Element>>;

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_forward(const __grid_constant__ ForwardParams params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;

  const int m_blocks = ceil_div(shape.seqlen_q, kBlockM);
  const int m0 = (m_blocks - 1 - static_cast<int>(blockIdx.x % m_blocks)) * kBlockM;
  const int head = blockIdx.x / m_blocks % shape.num_heads_q;
  const int batch = blockIdx.x / m_blocks / shape.num_heads_q;
  const int head_k = head / (shape.num_heads_q / shape.num_heads_k);

  // Keys that no query of the block sees are not even loaded, so what they hold cannot spread.
  const Mask mask(shape);
  const int key_end = mask.key_end(min(m0 + kBlockM, shape.seqlen_q) - 1);
  const auto gQ = head_matrix<Element>(params.q, shape, batch, head, shape.seqlen_q, shape.head_dim);
  const auto gK = head_matrix<Element>(params.k, shape, batch, head_k, key_end, shape.head_dim);
  const auto gV = head_matrix<Element>(params.v, shape, batch, head_k, key_end, shape.head_dim_v);
  const auto gO = head_matrix<Element>(params.out, shape, batch, head, shape.seqlen_q, shape.head_dim_v);
  const auto gLse = head_matrix<Accumulator>(params.lse, shape, batch, head, shape.seqlen_q, 1);

  const Score<Accumulator> score(shape);
  Softmax softmax;
  Out acc_o;
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) set_zero(acc_o[slice]);

  if (kQueryResident) {
#pragma unroll
    for (int slice = 0; slice < kQueryTiles; ++slice) load_tile(shared.query[slice], gQ, m0, slice * kSliceD);
  }

  for (int n0 = 0; n0 < key_end; n0 += kBlockN) {
    // S = Q K^T  [kBlockM, kBlockN]
    Accumulator acc_s[kRows][kCols];
    set_zero(acc_s);
    for (int slice = 0; slice * kSliceD < shape.head_dim; ++slice) {
      __syncthreads();  // the tiles' last readers are done
      if (!kQueryResident) load_tile(shared.query[0], gQ, m0, slice * kSliceD);
      load_tile(shared.key, gK, n0, slice * kSliceD);
      __syncthreads();
      add_slice_nt(acc_s, shared.query[kQueryResident ? slice : 0], shared.key,
                   min(kSliceD, shape.head_dim - slice * kSliceD));
    }

    const bool whole = mask.covers(m0, n0, kBlockN);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = m0 + row_of<kRows>(i);
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const int col = n0 + col_of(j);
        const bool seen = whole || mask.sees(row, col);
        acc_s[i][j] = seen ? score.forward(acc_s[i][j], row, col) : -infinity<Accumulator>();
      }
    }

    // P = exp(S - m); O is owed the same change of reference.
    softmax.update(acc_s, score.multiplier, [&](int i, Accumulator factor) {
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
        for (int j = 0; j < kSliceCols; ++j) acc_o[slice][i][j] *= factor;
      }
    });
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) *shared.p.at(row_of<kRows>(i), col_of(j)) = acc_s[i][j];
    }

    // O += P V  [kBlockM, head_dim_v]
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      if (slice * kSliceD < shape.head_dim_v) {
        __syncthreads();  // K's, then the previous slice's, readers are done; P is written
        load_tile(shared.key, gV, n0, slice * kSliceD);
        __syncthreads();
        if (kHasSpans) {
          add_part(acc_o[slice], [&](auto& part) { matmul_nn<kBlockN>(part, shared.p, shared.key); });
        } else {
          matmul_nn<kBlockN>(acc_o[slice], shared.p, shared.key);
        }
      }
    }
  }

  softmax.finish();
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = m0 + row_of<kRows>(i);
    const Accumulator inverse = Softmax::inverse(softmax.row_sum[i]);
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
      for (int j = 0; j < kSliceCols; ++j) acc_o[slice][i][j] *= inverse;
      store_row(gO, row, slice * kSliceD, acc_o[slice][i]);
    }
    if (lane_of_row() == 0 && row < shape.seqlen_q) {
      *gLse.at(row, 0) = Softmax::log_sum_exp(softmax.row_max[i], softmax.row_sum[i], score.multiplier);
    }
  }
}
