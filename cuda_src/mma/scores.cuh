// The recomputation that the backward's kernels share: P and dS of one tile in registers.
//
// kWarpsM warps share the kBlockM query rows; the kAcross warps of each row part take its columns in 16-wide pieces by
// turns.
#pragma once
#include "attention/online_softmax.cuh"
#include "mma/columns.cuh"
#include "mma/fragment.cuh"
#include "ptx/opaque.cuh"

constexpr int kAcross = kNWarps / kWarpsM;
constexpr int kScoreRows = kBlockM / kWarpsM / 8;     // rows of S a lane
constexpr int kScoreCols = kBlockN / kAcross / 4;     // columns of S a lane
static_assert(kWarpsM > 0 && kNWarps % kWarpsM == 0, "as many warps share each part of the queries");
static_assert(kBlockM % (kPiece * kWarpsM) == 0 && kBlockN % (kPiece * kAcross) == 0, "warps own whole pieces");

// This warp's place among those that share the scores.
__device__ __forceinline__ int score_row0() { return threadIdx.x / 32 % kWarpsM * (kBlockM / kWarpsM); }
__device__ __forceinline__ int score_across() { return threadIdx.x / 32 / kWarpsM; }

// The log-sum-exp, in log2 units, and delta of this lane's rows; rows outside see nothing.
struct ResidentStatistics {
  float row_lse[kScoreRows], row_delta[kScoreRows];

  __device__ ResidentStatistics(const Matrix<float>& gLse, const Matrix<float>& gDelta, int row0) {
#pragma unroll
    for (int i = 0; i < kScoreRows; ++i) {
      const int row = row0 + row_of(i);
      const bool inside = gLse.holds(row, 0);
      row_lse[i] = inside ? lse_to_log2(*gLse.at(row, 0)) : infinity<float>();
      row_delta[i] = inside ? *gDelta.at(row, 0) : 0.0f;
    }
  }

  __device__ float lse(int i) const { return row_lse[i]; }
  __device__ float delta(int i) const { return row_delta[i]; }
};

// P = exp(score(S) - lse) and dS = score'(P * (dP - delta)) of this warp's part of the tile at (m0, n0):
//   S = Q K^T  [kBlockM, kBlockN],  dP = dO V^T  [kBlockM, kBlockN]
// `member`: how many heads after place.head it is. With kTerm dS is that of a parameter: of the score's step of this
// number. With kKeepsInput p is what the last step takes.
template <int kTerm = -1, bool kKeepsInput = false, class Query, class Dout, class Key, class Value, class Statistics>
__device__ __forceinline__ void recompute(float (&p)[kScoreRows][kScoreCols], float (&ds)[kScoreRows][kScoreCols],
                                          Query& query, Dout& dout, Key& key, Value& value, const Statistics& rows,
                                          const Mask& mask, const Score<float>& score, int member, int m0, int n0,
                                          bool is_whole) {
  const int row0 = score_row0(), across = score_across();
  const auto shown = mask.shown<kScoreRows>(KeyColumns<kAcross>{n0, across},
                                            [&](int i) { return QueryRow{m0 + row0 + row_of(i), member}; }, is_whole);
  const Pieces<Query, kRowsFirst> sQ(query, row0);
  const Pieces<Key, kColsFirst> sK(key, across * kPiece);
  set_zero(p);
  matmul<kHeadDim, kAcross>(p, sQ, sK);
  set_zero(ds);
  matmul<kHeadDimV, kAcross>(ds, Pieces<Dout, kRowsFirst>(dout, row0, 0, sQ, query),
                             Pieces<Value, kColsFirst>(value, across * kPiece, 0, sK, key));
#pragma unroll
  for (int i = 0; i < kScoreRows; ++i) {
    const int row = m0 + row0 + row_of(i);
    const float lse = rows.lse(i), delta = rows.delta(i);
    const auto scored = score.row(row, member, KeyColumns<kAcross>{n0, across});
    const bool exists = !Score<float>::kMakesAnything || row < mask.seqlen_q;
#pragma unroll
    for (int j = 0; j < kScoreCols; ++j) {
      const float s = p[i][j];
      p[i][j] = exists ? probability(fma(scored.forward(s, j), score.unit(), -lse)) : 0;
      ds[i][j] = exists ? scored.template gradient<kTerm>(p[i][j] * (ds[i][j] - delta), s, j) : 0;
      if constexpr (kKeepsInput) p[i][j] = scored.last_input(s, j);
    }
  }
  if (Mask::kElementwise && !ptx::all(shown.all())) {
#pragma unroll
    for (int i = 0; i < kScoreRows; ++i) {
#pragma unroll
      for (int j = 0; j < kScoreCols; ++j) {
        if (!shown.at(i, j)) p[i][j] = ds[i][j] = 0;
      }
    }
  }
  if (mask.covers(m0 + row0, m0 + row0 + kBlockM / kWarpsM - 1, n0, kBlockN)) return;
  // Rows and columns that were found before the loop would hold registers through it.
  const int first_row = ptx::opaque(m0 + row0);
  const KeyColumns<kAcross> columns{static_cast<int>(ptx::opaque(n0)), across};
#pragma unroll
  for (int i = 0; i < kScoreRows; ++i) {
    const auto visible = mask.row(first_row + row_of(i));
#pragma unroll
    for (int j = 0; j < kScoreCols; ++j) {
      if (!visible.sees(columns(j))) p[i][j] = ds[i][j] = 0;
    }
  }
}

// The query side of one head.
struct QueryHead {
  Matrix<Element> q, dout;
  Matrix<float> lse, delta;
};

__device__ __forceinline__ QueryHead query_head(const BackwardParams& params, int batch, int head) {
  const Shape& shape = params.shape;
  const int rows = shape.seqlen_q;
  return {head_matrix<Element>(params.q, shape, batch, head, rows, shape.head_dim),
          head_matrix<Element>(params.dout, shape, batch, head, rows, shape.head_dim_v),
          head_matrix<float>(params.lse, shape, batch, head, rows, 1),
          head_matrix<float>(params.delta, shape, batch, head, rows, 1)};
}
