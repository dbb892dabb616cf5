// Forward attention on CUDA cores, any GPU and dtype (FlashAttention-2, Dao 2023, Algorithm 1):
//
//   S = Q K^T,  P = softmax(score(S)),  O = P V,  lse = logsumexp(score(S))
//
// Grid: query_block in attention/schedule.cuh.
// A row belongs to kLanes lanes of one warp, from scores to output, so row statistics need only shuffles. Per key
// block: S by slices of the head dimension, one online-softmax step, P into shared memory for the other lanes of its
// rows (the barriers around V's load order that too), then O by slices. Nothing of size Sq x Sk leaves the SM. Very
// many keys come in spans, one launch each, whose results meet unrounded: short sums are more exact.
#include "attention/matrix.cuh"
#include "attention/online_softmax.cuh"
#include "attention/schedule.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "simt/matmul.cuh"
#include "simt/tile.cuh"
#include "specialization.cuh"

constexpr int kRows = kBlockM / kRowGroups;  // rows of S and O a thread
constexpr int kCols = kBlockN / kLanes;      // columns of S a thread
static_assert(kRows * (kCols + kSlices * kSliceCols) * sizeof(Accumulator) <= kSumBytes, "a thread's sums have 4 KiB");
constexpr int kQueryTiles = kQueryResident ? kSlices : 1;

struct SharedStorage {
  Tile<kBlockM, kSliceD> query[kQueryTiles];
  Tile<kBlockN, kSliceD> key;  // K, then V
  ScoreTile p;
};
static_assert(sizeof(SharedStorage) == kSharedBytes, "tiles.py and the kernel disagree on shared memory");

using Out = Accumulator[kSlices][kRows][kSliceCols];
using Softmax = ExactSoftmax<Accumulator, kRows, kLanes, kHeadroom<Element>>;

// The keys of this launch.
struct Span {
  int begin, end;
  bool is_first, is_last;

  __device__ Span(const Schedule& schedule, int seqlen_k) {
    const int keys = ceil_div(ceil_div(seqlen_k, kBlockN), schedule.num_spans) * kBlockN;
    begin = schedule.span * keys;
    is_first = schedule.span == 0;
    is_last = schedule.span == schedule.num_spans - 1;
    end = is_last ? seqlen_k : begin + keys;
  }
};

// The sum O of the spans so far, and the maxima and sums of its rows.
struct Partial {
  Matrix<Accumulator> out, rows;

  __device__ Partial(const ForwardParams& params, int batch, int head)
      : out(head_matrix<Accumulator>(params.partial_out, params.shape, batch, head, params.shape.seqlen_q,
                                     params.shape.head_dim_v)),
        rows(head_matrix<Accumulator>(params.partial_rows, params.shape, batch, head, params.shape.seqlen_q, 2)) {}
};

// O, and the statistics of its rows, of this span become those of all spans so far.
__device__ __forceinline__ void add_earlier_spans(Out& acc_o, Softmax& softmax, Accumulator unit,
                                                  const ForwardParams& params, int batch, int head, int m0) {
  const Partial g(params, batch, head);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = m0 + row_of<kRows>(i);
    if (row >= g.rows.rows) continue;
    const Accumulator earlier_max = *g.rows.at(row, 0), row_max = max(earlier_max, softmax.row_max[i]);
    const Accumulator earlier = Softmax::change(earlier_max, row_max, unit);
    const Accumulator own = Softmax::change(softmax.row_max[i], row_max, unit);
    softmax.row_max[i] = row_max;
    softmax.row_sum[i] = own * softmax.row_sum[i] + earlier * *g.rows.at(row, 1);
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
      for (int j = 0; j < kSliceCols; ++j) {
        const int col = slice * kSliceD + vector_col_of(j);
        if (!g.out.holds(row, col)) continue;
        acc_o[slice][i][j] = own * acc_o[slice][i][j] + earlier * *g.out.at(row, col);
      }
    }
  }
  __syncwarp();  // all lanes of a row have read its statistics
}

template <class T>
__device__ __forceinline__ void store_out(const Matrix<T>& g, int m0, const Out& acc_o) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      store_row(g, m0 + row_of<kRows>(i), slice * kSliceD, acc_o[slice][i]);
    }
  }
}

// store(i, row) in one lane of each row.
template <class Store>
__device__ __forceinline__ void each_own_row(int rows, int m0, Store&& store) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = m0 + row_of<kRows>(i);
    if (lane_of_row() == 0 && row < rows) store(i, row);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_forward(const __grid_constant__ Composed<ForwardParams> params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;

  const auto [m0, head, batch] = query_block(shape, params.schedule, blockIdx.x);
  const int head_k = head / shape.group_size;

  // Keys that no query of the block sees are not even loaded, so what they hold cannot spread.
  const BlockPlace place(params.components, shape, batch, head);
  const Mask mask(params.components, place);
  const Interval keys = mask.keys(m0, min(m0 + kBlockM, shape.seqlen_q) - 1);
  const Span span(params.schedule, shape.seqlen_k);
  const int n_begin = max(span.begin, keys.begin / kBlockN * kBlockN), n_end = min(span.end, keys.end);
  if (!span.is_first && !span.is_last && n_begin >= n_end) return;  // nothing to add
  const auto gQ = head_matrix<Element>(params.q, shape, batch, head, shape.seqlen_q, shape.head_dim);
  const auto gK = head_matrix<Element>(params.k, shape, batch, head_k, keys.end, shape.head_dim, keys.begin);
  const auto gV = head_matrix<Element>(params.v, shape, batch, head_k, keys.end, shape.head_dim_v, keys.begin);

  const Score<Accumulator> score(params.components, place);
  Softmax softmax;
  Out acc_o;
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) set_zero(acc_o[slice]);

  if (kQueryResident) {
#pragma unroll
    for (int slice = 0; slice < kQueryTiles; ++slice) load_tile(shared.query[slice], gQ, m0, slice * kSliceD);
  }

  for (auto step = steps<kBlockN>(mask.key_blocks(head, m0 / kBlockM), n_begin, n_end); step.exists(); step.next()) {
    const int n0 = step.at;
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

    const bool whole = mask.covers(m0, m0 + kBlockM - 1, n0, kBlockN);
    const auto shown =
        mask.shown<kRows>(KeyColumns{n0}, [m0 = m0](int i) { return QueryRow{m0 + row_of<kRows>(i), 0}; },
                          step.is_whole());
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = m0 + row_of<kRows>(i);
      const KeyColumns columns{n0};
      const auto visible = mask.row(row);
      const auto scored = score.row(row, 0, columns);
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const bool seen = (whole || visible.sees(columns(j))) && shown.at(i, j);
        acc_s[i][j] = seen ? scored.forward(acc_s[i][j], j) : -infinity<Accumulator>();
      }
    }

    // P = exp(S - m); O is owed the same change of reference.
    softmax.update(acc_s, score.unit(), [&](int i, Accumulator factor) {
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
        if (kFewDigits) {
          add_part(acc_o[slice], [&](auto& part) { matmul_nn<kBlockN>(part, shared.p, shared.key); });
        } else {
          matmul_nn<kBlockN>(acc_o[slice], shared.p, shared.key);
        }
      }
    }
  }

  softmax.finish();
  if (!span.is_first) add_earlier_spans(acc_o, softmax, score.unit(), params, batch, head, m0);
  if (span.is_last) {
    const auto log_sum_exp = [&](int i) {
      return Softmax::log_sum_exp(softmax.row_max[i], softmax.row_sum[i], score.unit());
    };
    Accumulator lse[kRows];  // with sinks
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      Accumulator inverse = Softmax::inverse(softmax.row_sum[i]);
      if (Sink::kExists) {
        const Sink sink(params.components, place);
        const Joined<Accumulator> joined(log_sum_exp(i), sink.logit(m0 + row_of<kRows>(i), 0));
        lse[i] = joined.lse;
        inverse *= joined.share;
      }
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
        for (int j = 0; j < kSliceCols; ++j) acc_o[slice][i][j] *= inverse;
      }
    }
    const auto gO = head_matrix<Element>(params.out, shape, batch, head, shape.seqlen_q, shape.head_dim_v);
    const auto gLse = head_matrix<Accumulator>(params.lse, shape, batch, head, shape.seqlen_q, 1);
    store_out(gO, m0, acc_o);
    each_own_row(shape.seqlen_q, m0, [&](int i, int row) {
      *gLse.at(row, 0) = Sink::kExists ? lse[i] : log_sum_exp(i);
    });
  } else {
    const Partial g(params, batch, head);
    store_out(g.out, m0, acc_o);
    each_own_row(shape.seqlen_q, m0, [&](int i, int row) {
      *g.rows.at(row, 0) = softmax.row_max[i];
      *g.rows.at(row, 1) = softmax.row_sum[i];
    });
  }
}
