// Forward attention on tensor cores (FlashAttention-2, Dao 2023, Algorithm 1 and section 3.3):
//
//   S = Q K^T,  P = softmax(score(S)),  O = P V,  lse = logsumexp(score(S))
//
// Grid: attention/schedule.cuh; a block has kBlockM query rows of one head, or of a packed group, and all their keys or
// one split of them (Flash-Decoding). A warp owns kBlockM / kNWarps whole rows, so that a row's statistics need only
// shuffles within a quad and P goes from S's registers to the next product without leaving them. K and V stream
// through a ring of kStages tiles, K and V of a block in turn, the last block first: only the first ones can be cut
// by the end of the keys.
#include "attention/online_softmax.cuh"
#include "attention/schedule.cuh"
#include "mma/columns.cuh"
#include "mma/fragment.cuh"
#include "mma/packed.cuh"
#include "mma/ring.cuh"
#include "mma/stream.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "ptx/opaque.cuh"
#include "ptx/warp.cuh"
#include "specialization.cuh"

constexpr int kWarpRows = kBlockM / kNWarps;
constexpr int kRows = kWarpRows / 8;      // rows of S and O a lane
constexpr int kCols = kBlockN / 4;        // columns of S a lane
constexpr int kOutCols = kHeadDimV / 4;   // columns of O a lane
static_assert(kBlockM % (kPiece * kNWarps) == 0 && kBlockN % kPiece == 0, "warps own whole pieces");
static_assert(kRows * (kCols + kOutCols) * sizeof(float) <= kSumBytes, "a thread's sums have 4 KiB");
static_assert(kStages >= 2, "one tile is read while the next arrives");

using QueryTile = Tile<kBlockM, kHeadDim>;
using KeyTile = Tile<kBlockN, kHeadDim>;
using ValueTile = Tile<kBlockN, kHeadDimV>;
using OutTile = Tile<kBlockM, kHeadDimV>;

using Softmax = OnlineSoftmax<float, kRows, kQuad, kHeadroom<Element>>;

union RingTile {
  KeyTile key;
  ValueTile value;
};

struct SharedStorage {
  union {
    QueryTile query;
    OutTile out;
  };
  RingTile ring[kStages];
};
static_assert(sizeof(SharedStorage) == kSharedBytes, "tiles.py and the kernel disagree on shared memory");

// K and V of key blocks from the last to the first, at position `begin`, in turn through the ring.
template <class Blocks>
struct Stream {
  SharedStorage& shared;
  const ForwardParams& params;
  const Blocks& blocks;
  Ring ring;
  TileStream<KeyTile> key;
  TileStream<ValueTile> value;
  int begin, key_begin, key_end;
  int next_key, next_value;  // of listed blocks the first row that is copied next

  __device__ __forceinline__ Stream(SharedStorage& shared, const ForwardParams& params, const Blocks& blocks,
                                    const Matrix<Element>& gK, const Matrix<Element>& gV, int begin, int end)
      : shared(shared),
        params(params),
        blocks(blocks),
        key(params.k, gK, blocks.template row<kBlockN>(end - 1)),
        value(params.v, gV, blocks.template row<kBlockN>(end - 1)),
        begin(begin),
        key_begin(gK.row_begin),
        key_end(gK.rows),
        next_key(blocks.template row<kBlockN>(end - 1)),
        next_value(next_key) {
    ring.fill(
        2 * (end - begin),
        [&](int step) {
          const int position = end - 1 - step / 2;
          step % 2 == 0 ? start<true>(step, position, true) : start<false>(step, position, true);
        },
        [&](int step) { step % 2 == 0 ? finish<true>(step) : finish<false>(step); });
  }

  // Start copying K or V of the next block, at a position, of whose rows some may not exist.
  template <bool kIsKey>
  __device__ __forceinline__ void start(int slot, int position, bool may_be_cut) {
    int n0 = position * kBlockN, rows_on = -kBlockN;
    if constexpr (Mask::kListed) {
      int& next = kIsKey ? next_key : next_value;
      n0 = next;
      next = blocks.template row<kBlockN>(position - 1);
      rows_on = next - n0;
    }
    const int first = Mask::kCutsBelow ? key_begin - n0 : 0, rows = may_be_cut ? key_end - n0 : kBlockN;
    if constexpr (kIsKey) {
      key.start(shared.ring[slot].key, first, rows, rows_on * params.k.row_stride);
    } else {
      value.start(shared.ring[slot].value, first, rows, rows_on * params.v.row_stride);
    }
  }

  template <bool kIsKey>
  __device__ __forceinline__ void finish(int slot) {
    if constexpr (kIsKey) {
      key.finish(shared.ring[slot].key);
    } else {
      value.finish(shared.ring[slot].value);
    }
  }

  // Wait for the tile of K or V of the block at a position.
  template <bool kIsKey>
  __device__ __forceinline__ RingTile& arrive(int position) {
    // The next tile to copy is kStages - 1 further on: of a block before this one, K or V as that is even or odd.
    constexpr int kStep = (kIsKey ? 0 : 1) + kStages - 1;
    // Only the last block may be cut; with three stages its tiles are on their way before the first arrives.
    ring.arrive(
        2 * (position - begin) + (kIsKey ? 2 : 1),
        [&](int slot) { start<kStep % 2 == 0>(slot, position - kStep / 2, kStages <= 2); },
        [&](int slot) { finish<kStep % 2 == 1>(slot); });
    return shared.ring[ring.slot];
  }
};

// The score of every element, -inf where the mask hides the key.
template <class Shown>
__device__ __forceinline__ void score_tile(float (&acc_s)[kRows][kCols], const Score<float>& score, const Mask& mask,
                                           const Shown& shown, Packing packing, int first_row, int n0) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = first_row + row_of(i);
    const auto scored = score.row(packing.query(row), packing.head(row), KeyColumns<1>{n0});
#pragma unroll
    for (int j = 0; j < kCols; ++j) acc_s[i][j] = scored.forward(acc_s[i][j], j);
  }
  if (Mask::kElementwise && !ptx::all(shown.all())) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        if (!shown.at(i, j)) acc_s[i][j] = -infinity<float>();
      }
    }
  }
  if (mask.covers(packing.query(first_row), packing.query(first_row + kWarpRows - 1), n0, kBlockN)) return;
  // Rows and columns that were found before the loop would hold registers through it.
  const int own_row = ptx::opaque(first_row);
  const KeyColumns<1> columns{static_cast<int>(ptx::opaque(n0))};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = own_row + row_of(i);
    const auto visible = mask.row(packing.query(row));
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      if (!visible.sees(columns(j))) acc_s[i][j] = -infinity<float>();
    }
  }
}

// O of this warp's rows to global memory through its rows of the tile, 16 bytes a lane.
__device__ __forceinline__ void store_out(OutTile& tile, const PackedMatrix<Element>& gO, int m0,
                                          const float (&acc_o)[kRows][kOutCols]) {
  const int warp_row = threadIdx.x / 32 * kWarpRows;
  store_fragment<1>(tile, warp_row, 0, acc_o);
  __syncwarp();
  store_rows<kWarpRows, 32>(tile, warp_row, threadIdx.x % 32, gO, m0);
}

__device__ __forceinline__ void store_result(OutTile& tile, const Composed<ForwardParams>& params,
                                             float (&acc_o)[kRows][kOutCols], const Softmax& softmax) {
  const Shape& shape = params.shape;
  const Packing packing(params.schedule);
  // Found again: kept through the main loop, it would spill.
  const Work work = work_of_block(shape, params.schedule, ptx::opaque(blockIdx.x));
  const int m0 = work.m_block * kBlockM;
  const bool partial = params.schedule.num_splits > 1;
  const BlockPlace place(params.components, shape, work.batch, work.head);
  const float unit = Score<float>(params.components, place).unit();
  float lse[kRows];  // with sinks
  if (Sink::kExists) {
    const Sink sink(params.components, place);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = m0 + threadIdx.x / 32 * kWarpRows + row_of(i);
      if (partial || row >= packing.rows(shape)) continue;
      const Joined<float> joined(Softmax::log_sum_exp(softmax.row_max[i], softmax.row_sum[i], unit),
                                 sink.logit(packing.query(row), packing.head(row)));
      lse[i] = joined.lse;
#pragma unroll
      for (int j = 0; j < kOutCols; ++j) acc_o[i][j] *= joined.share;
    }
  }
  if (partial) {  // for attention_combine
    store_unrounded(split_matrix(params.partial_out, shape, work, packing, shape.head_dim_v),
                    m0 + threadIdx.x / 32 * kWarpRows, acc_o);
  } else {
    store_out(tile, packed_matrix<Element>(params.out, shape, work, packing, shape.head_dim_v), m0, acc_o);
  }
  const auto gRows = partial ? split_matrix(params.partial_rows, shape, work, packing, 2)
                             : packed_matrix<float>(params.lse, shape, work, packing, 1);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = m0 + threadIdx.x / 32 * kWarpRows + row_of(i);
    if (threadIdx.x % kQuad != 0 || !gRows.holds(row, 0)) continue;
    if (partial) {
      *gRows.at(row, 0) = softmax.row_max[i];
      *gRows.at(row, 1) = softmax.row_sum[i];
    } else if (Sink::kExists) {
      *gRows.at(row, 0) = lse[i];
    } else {
      *gRows.at(row, 0) = Softmax::log_sum_exp(softmax.row_max[i], softmax.row_sum[i], unit);
    }
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_forward(const __grid_constant__ Composed<ForwardParams> params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;
  const Schedule& schedule = params.schedule;
  const Packing packing(schedule);
  const int total_rows = packing.rows(shape);
  const Work work = work_of_block(shape, schedule, blockIdx.x);
  const int m0 = work.m_block * kBlockM;

  // Keys that no query of the block sees are not even loaded, so what they hold cannot spread.
  const BlockPlace place(params.components, shape, work.batch, work.head);
  const Mask mask(params.components, place);
  const Interval keys = mask.keys(packing.query(m0), packing.query(min(m0 + kBlockM, total_rows) - 1));
  const int key_end = ptx::opaque(keys.end);
  const auto blocks = mask.key_blocks(work.head / schedule.packed_heads, work.m_block);
  const auto gQ = packed_matrix<Element>(params.q, shape, work, packing, shape.head_dim);
  const auto gK = head_matrix<Element>(params.k, shape, work.batch, work.head_k, key_end, shape.head_dim, keys.begin);
  const auto gV = head_matrix<Element>(params.v, shape, work.batch, work.head_k, key_end, shape.head_dim_v, keys.begin);

  // This split's share of the key blocks.
  const auto [first, last] = blocks.template positions<kBlockN>(keys.begin, key_end);
  const int per_split = ceil_div(last - first, schedule.num_splits);
  const int n_begin = ptx::opaque(min(first + work.split * per_split, last));
  const int n_end = min(n_begin + per_split, last);

  // What this warp's rows see of them. A warp beyond the last row, or past its keys, only helps to copy.
  const int warp_row = threadIdx.x / 32 * kWarpRows, first_row = ptx::opaque(m0 + warp_row);
  const int last_row = min(first_row + kWarpRows, total_rows) - 1;
  const int warp_key_end = first_row < total_rows ? mask.keys(0, packing.query(last_row)).end : 0;

  const Score<float> score(params.components, place);
  Softmax softmax;
  float acc_o[kRows][kOutCols];
  set_zero(acc_o);

  load_tile(shared.query, gQ, m0);  // in the group of the first K tile
  Stream<decltype(blocks)> stream(shared, params, blocks, gK, gV, n_begin, n_end);
  const Pieces<QueryTile, kRowsFirst> sQ(shared.query, warp_row);

  // Blocks that the mask hides from all of the warp's rows come first.
  int at = n_end - 1;  // a position
  for (; at >= n_begin && ptx::any(blocks.template row<kBlockN>(at) >= warp_key_end); --at) {
    stream.template arrive<true>(at);
    stream.template arrive<false>(at);
  }

  for (; at >= n_begin; --at) {
    const int n0 = blocks.template row<kBlockN>(at);
    const auto shown = mask.shown<kRows>(KeyColumns<1>{n0}, [&](int i) {
      const int row = first_row + row_of(i);
      return QueryRow{packing.query(row), packing.head(row)};
    }, blocks.is_whole(at));
    if (Mask::kElementwise && !ptx::any(shown.any())) {
      stream.template arrive<true>(at);
      stream.template arrive<false>(at);
      continue;
    }

    // S = Q K^T  [kWarpRows, kBlockN]
    float acc_s[kRows][kCols];
    set_zero(acc_s);
    matmul<kHeadDim>(acc_s, sQ, Pieces<KeyTile, kColsFirst>(stream.template arrive<true>(at).key));

    // P = exp(S - m); O is owed the same change of reference.
    score_tile(acc_s, score, mask, shown, packing, first_row, n0);
    softmax.update(acc_s, score.unit(), [&](int i, float factor) {
#pragma unroll
      for (int j = 0; j < kOutCols; ++j) acc_o[i][j] *= factor;
    });

    // O += P V  [kWarpRows, kHeadDimV]; P is packed before copies want registers.
    const PackedOperand<kRows, kCols> p(acc_s);
    matmul(acc_o, p, Pieces<ValueTile, kRowsFirst>(stream.template arrive<false>(at).value));
  }
  if (kAsyncCopy) ptx::cp_async_wait_all();
  meet();  // O's tile lies where Q is, or, if there was no block, is still arriving

  softmax.finish();
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float inverse = Softmax::inverse(softmax.row_sum[i]);
#pragma unroll
    for (int j = 0; j < kOutCols; ++j) acc_o[i][j] *= inverse;
  }
  store_result(shared.out, params, acc_o, softmax);
}
