// What the backward's kernels share: their shared memory and the recomputation of P and dS of one tile.
#pragma once
#include "attention/online_softmax.cuh"
#include "simt/matmul.cuh"

constexpr int kRows = kBlockM / kRowGroups;  // rows of S a thread
constexpr int kCols = kBlockN / kLanes;      // columns of S a thread

// With a single slice Q, dO, K and V each have a tile, and what stays the same between blocks is loaded once;
// otherwise slices of Q and dO take turns in one, slices of K and V in the other.
constexpr bool kResident = kSlices == 1;

struct SharedStorage {
  Tile<kBlockM, kSliceD> query[kResident ? 2 : 1];
  Tile<kBlockN, kSliceD> key[kResident ? 2 : 1];
  ScoreTile p;  // P, then dS

  __device__ auto& q() { return query[0]; }
  __device__ auto& dout() { return query[kResident ? 1 : 0]; }
  __device__ auto& k() { return key[0]; }
  __device__ auto& v() { return key[kResident ? 1 : 0]; }
};
static_assert(sizeof(SharedStorage) == kSharedBytes, "tiles.py and the kernel disagree on shared memory");

// The matrices of one query head, narrowed to these queries and keys: the others do not see, or are not seen by, the
// block's, and what they hold must not spread.
struct Head {
  Matrix<Element> q, k, v, dout;
  Matrix<Accumulator> lse, delta;
};

template <class Params>
__device__ __forceinline__ Head query_head(const Params& params, int batch, int head, Interval queries,
                                           Interval keys) {
  const Shape& shape = params.shape;
  const int head_k = head / shape.group_size, rows = shape.seqlen_q;
  return {head_matrix<Element>(params.q, shape, batch, head, queries.end, shape.head_dim, queries.begin),
          head_matrix<Element>(params.k, shape, batch, head_k, keys.end, shape.head_dim, keys.begin),
          head_matrix<Element>(params.v, shape, batch, head_k, keys.end, shape.head_dim_v, keys.begin),
          head_matrix<Element>(params.dout, shape, batch, head, queries.end, shape.head_dim_v, queries.begin),
          head_matrix<Accumulator>(params.lse, shape, batch, head, rows, 1),
          head_matrix<Accumulator>(params.delta, shape, batch, head, rows, 1)};
}

// acc = A B^T for a block of A and a block of B, slice by slice; a tile flagged as held is not loaded again.
template <class TileA, class TileB>
__device__ __forceinline__ void block_product(Accumulator (&acc)[kRows][kCols], TileA& sA, const Matrix<Element>& gA,
                                              int m0, bool a_held, TileB& sB, const Matrix<Element>& gB, int n0,
                                              bool b_held) {
  set_zero(acc);
  for (int col0 = 0; col0 < gA.cols; col0 += kSliceD) {
    __syncthreads();  // the tiles' last readers are done
    if (!a_held) load_tile(sA, gA, m0, col0);
    if (!b_held) load_tile(sB, gB, n0, col0);
    __syncthreads();
    add_slice_nt(acc, sA, sB, min(kSliceD, gA.cols - col0));
  }
}

// P = exp(score(S) - lse) and dS = score'(P * (dP - delta)) of the tile at (m0, n0):
//   S = Q K^T  [kBlockM, kBlockN],  dP = dO V^T  [kBlockM, kBlockN]
// `member`: how many heads after place.head it is. With kTerm dS is that of a parameter: of the score's step of this
// number. With kKeepsInput p is what the last step takes. On return the tiles of q, dout, k and v hold their last
// slice.
template <int kTerm = -1, bool kKeepsInput = false>
__device__ __forceinline__ void recompute(Accumulator (&p)[kRows][kCols], Accumulator (&ds)[kRows][kCols],
                                          SharedStorage& shared, const Head& head, const Mask& mask,
                                          const Score<Accumulator>& score, int member, int m0, bool query_held,
                                          int n0, bool key_held, bool is_whole) {
  block_product(p, shared.q(), head.q, m0, query_held, shared.k(), head.k, n0, key_held);
  block_product(ds, shared.dout(), head.dout, m0, query_held, shared.v(), head.v, n0, key_held);
  const bool whole = mask.covers(m0, m0 + kBlockM - 1, n0, kBlockN);
  const auto shown =
      mask.shown<kRows>(KeyColumns{n0}, [&](int i) { return QueryRow{m0 + row_of<kRows>(i), member}; },
                        is_whole);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = m0 + row_of<kRows>(i);
    const bool inside = row < head.lse.rows;
    const Accumulator lse = inside ? lse_to_log2(*head.lse.at(row, 0)) : infinity<Accumulator>();
    const Accumulator delta = inside ? *head.delta.at(row, 0) : Accumulator(0);
    const KeyColumns columns{n0};
    const auto visible = mask.row(row);
    const auto scored = score.row(row, member, columns);
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      const Accumulator s = p[i][j];
      const bool seen = shown.at(i, j) && inside && (whole || visible.sees(columns(j)));
      p[i][j] = seen ? probability(fma(scored.forward(s, j), score.unit(), -lse)) : Accumulator(0);
      ds[i][j] = seen ? scored.template gradient<kTerm>(p[i][j] * (ds[i][j] - delta), s, j) : Accumulator(0);
      if constexpr (kKeepsInput) p[i][j] = scored.last_input(s, j);
    }
  }
}

// Publish a thread's part of P or dS to the block; the barriers order it after the last readers of the tile.
__device__ __forceinline__ void publish(SharedStorage& shared, const Accumulator (&p)[kRows][kCols]) {
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCols; ++j) *shared.p.at(row_of<kRows>(i), col_of(j)) = p[i][j];
  }
  __syncthreads();
}

// Bring slice `col0` of g into a tile, unless the tile holds it because there is only one.
template <class TileT>
__device__ __forceinline__ void reload_slice(TileT& tile, const Matrix<Element>& g, int row0, int col0) {
  if (!kResident) {
    __syncthreads();
    load_tile(tile, g, row0, col0);
    __syncthreads();
  }
}
