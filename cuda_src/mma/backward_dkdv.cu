// Gradients of keys and values on tensor cores (FlashAttention-2, Dao 2023, Algorithm 2):
//
//   dV = P^T dO,  dK = dS^T Q,  and with kAtomicDq also dQ += dS K by atomic additions; kWantsDk, kWantsDv: which
//
// Grid: one block for kBlockN keys of one key head and one share of the query heads of its group. It walks over these
// heads' query blocks; K and V stay in shared memory, Q and dO stream through a ring, dK and dV stay in registers, so
// grouped heads need no memory of their own. The warps' grids differ from product to product: S and dP have kWarpsM
// row parts (mma/scores.cuh), as has dQ; dK and dV have kWarpsN. P and dS change hands through shared memory.
#include "attention/schedule.cuh"
#include "mma/ring.cuh"
#include "mma/scores.cuh"
#include "mma/stream.cuh"
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
using QueryTile = Tile<kBlockM, kHeadDim>;
using DoutTile = Tile<kBlockM, kHeadDimV>;
using ScoreTile = Tile<kBlockM, kBlockN>;

// As Pieces asks: a warp reads its keys of P^T and dS^T, and of K, Q and dO the pieces whose turn it is.
static_assert(kNoCarry<ScoreTile, kBlockN / kWarpsN>, "a warp's keys are whole swizzled groups, or parts of one");
static_assert(kNoCarry<KeyTile, kPiece * kAcross> && kNoCarry<KeyTile, kPiece * kKeyAcross> &&
                  kNoCarry<ValueTile, kPiece * kKeyAcross>,
              "turns of the warps are whole swizzled groups, or parts of one");

struct QueryStage {
  QueryTile query;
  DoutTile dout;
  ColumnStream<kBlockM>::Columns statistics;  // of their rows: log-sum-exps, then deltas
};

struct SharedStorage {
  KeyTile key;      // in the end dK
  ValueTile value;  // in the end dV
  QueryStage ring[kStages];
  ScoreTile p, ds;
};
static_assert(sizeof(SharedStorage) == kSharedBytes, "tiles.py and the kernel disagree on shared memory");

// The query blocks that see the block's keys, in one head after another. Queries outside [begin, end) see none of them.
template <class KeyMask, bool kListed = KeyMask::kListed>
struct QueryWalk {
  int query_begin, query_end;
  int m0;
  int member = 0;  // how many heads after the first it is

  __device__ __forceinline__ QueryWalk(const KeyMask& mask, Interval queries, int heads, int head_begin, int n0)
      : query_begin(queries.begin), query_end(queries.end), m0(begin()) {}

  __device__ int begin() const { return query_begin / kBlockM * kBlockM; }
  __device__ int blocks() const { return query_begin < query_end ? ceil_div(query_end - begin(), kBlockM) : 0; }
  __device__ int steps(int heads) const { return blocks() * heads; }
  __device__ bool is_whole() const { return false; }

  __device__ bool ends_head() const { return m0 + kBlockM >= query_end; }
  __device__ void next() {
    member += ends_head();
    m0 = ends_head() ? begin() : m0 + kBlockM;
  }

  // The same, and how many elements further that is in a tensor.
  __device__ __forceinline__ int64_t advance(const Tensor& tensor) {
    const int64_t further = distance(tensor);
    next();
    return further;
  }

  // How many elements further the next block of a tensor is: next_block().distance(tensor). To the next head this is
  // found when it comes: found before the loop, those of all tensors would hold registers through it.
  __device__ __forceinline__ const QueryWalk& next_block() const { return *this; }
  __device__ __forceinline__ int64_t distance(const Tensor& tensor) const {
    if (!ends_head()) return kBlockM * tensor.row_stride;
    const int rows_back = static_cast<int>(ptx::opaque(blocks() - 1)) * kBlockM;
    return tensor.head_stride - rows_back * tensor.row_stride;
  }
};

// The same over lists of blocks, one for each head; some may be empty.
template <class KeyMask>
struct QueryWalk<KeyMask, true> {
  const KeyMask& mask;
  int query_begin, query_end;
  int heads, head_begin, key_block;
  int member = 0;
  ListedStep<kBlockM> step;
  int m0;

  __device__ __forceinline__ QueryWalk(const KeyMask& mask, Interval queries, int heads, int head_begin, int n0)
      : mask(mask),
        query_begin(queries.begin),
        query_end(queries.end),
        heads(heads),
        head_begin(head_begin),
        key_block(n0 / kBlockN),
        step(of_head(0)) {
    settle();
  }

  __device__ ListedStep<kBlockM> of_head(int number) const {
    return ::steps<kBlockM>(mask.query_blocks(head_begin + number, key_block), query_begin, query_end);
  }
  __device__ int steps(int heads) const {
    int count = 0;
    for (int number = 0; number < heads; ++number) count += of_head(number).left();
    return count;
  }
  __device__ bool is_whole() const { return step.is_whole(); }

  __device__ void next() {
    step.next();
    settle();
  }
  __device__ void settle() {
    while (!step.exists() && member + 1 < heads) step = of_head(++member);
    m0 = step.at;
  }

  // Within a head it is downwards: a product without signs takes half of the instructions. To another head it is
  // seldom: the compiler would find all that always, were it no loop.
  struct Jump {
    int heads, rows;

    __device__ __forceinline__ int64_t distance(const Tensor& tensor) const {
      int64_t further = static_cast<uint32_t>(rows) * static_cast<uint64_t>(tensor.row_stride);
#pragma unroll 1
      for (int left = heads; left > 0; --left) {
        further += tensor.head_stride;
        if (left == 1 && rows < 0) further -= static_cast<int64_t>(static_cast<uint64_t>(tensor.row_stride) << 32);
      }
      return further;
    }
  };
  __device__ __forceinline__ Jump next_block() const {
    QueryWalk later = *this;
    return later.jump();
  }
  __device__ __forceinline__ int64_t advance(const Tensor& tensor) { return jump().distance(tensor); }

 private:
  __device__ __forceinline__ Jump jump() {
    const int last_member = member, last_m0 = m0;
    next();
    return {member - last_member, m0 - last_m0};
  }
};

using Walk = QueryWalk<Mask>;

// Q, dO and the statistics of their rows on this walk; what queries hold that see none of the keys must not spread.
struct QueryStream {
  const BackwardParams& params;
  TileStream<QueryTile> q;
  TileStream<DoutTile> dout;
  ColumnStream<kBlockM> statistics;

  __device__ __forceinline__ QueryStream(const BackwardParams& params, const QueryHead& head, const Walk& walk)
      : params(params),
        q(params.q, head.q, walk.m0),
        dout(params.dout, head.dout, walk.m0),
        statistics(head.lse, head.delta, walk.m0) {}

  // Start copying the block where `walk` is, the next one.
  __device__ __forceinline__ void start(QueryStage& stage, const Walk& walk) {
    const int begin = walk.query_begin - walk.m0, end = walk.query_end - walk.m0;
    const auto& next = walk.next_block();
    q.start(stage.query, begin, end, next.distance(params.q));
    dout.start(stage.dout, begin, end, next.distance(params.dout));
    statistics.start(stage.statistics, begin, end, next.distance(params.lse), next.distance(params.delta));
  }

  __device__ __forceinline__ void finish(QueryStage& stage) const {
    q.finish(stage.query);
    dout.finish(stage.dout);
    statistics.finish(stage.statistics);
  }
};

// A warp's part of a sum in global memory: the matrix, and where in it this lane's first element is.
struct Sum {
  Matrix<float> g;
  float* dst;
  int row, col;

  template <int kAcross>
  __device__ __forceinline__ static Sum at(const Matrix<float>& g, int row0, int across) {
    const int row = row0 + row_of(0), col = col_of<kAcross>(0, across);
    return {g, g.vector_at(row, col), row, col};
  }
};

// sum += acc, two neighbouring columns at once or one by one; kWhole: all of them are in the matrix.
template <int kAcross, bool kPairs, bool kWhole, int kRows, int kCols>
__device__ __forceinline__ void add_columns(const Sum& sum, const float (&acc)[kRows][kCols]) {
  // How many rows and columns there are. Found before a loop, they would hold registers through it.
  const int rows = kWhole ? 0 : ptx::opaque(sum.g.rows) - sum.row;
  const int cols = kWhole ? 0 : ptx::opaque(sum.g.cols) - sum.col;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int down = i / 2 * kPiece + i % 2 * 8;  // row_of(i) - row_of(0)
    float* dst = sum.dst + down * sum.g.row_stride;
    if (!kWhole && down >= rows) continue;
#pragma unroll
    for (int j = 0; j < kCols; j += 2) {
      const int across = (j / 4 * kAcross * 2 + j % 4 / 2) * 8;  // col_of(j) - col_of(0)
      if (kPairs) {
        if (kWhole || across < cols) ptx::add_global(dst + across, acc[i][j], acc[i][j + 1]);
      } else {
        if (kWhole || across < cols) ptx::add_global(dst + across, acc[i][j]);
        if (kWhole || across + 1 < cols) ptx::add_global(dst + across + 1, acc[i][j + 1]);
      }
    }
  }
}

// A test of each element is a branch for each: not where the tile is whole.
template <int kAcross, int kRows, int kCols>
__device__ __forceinline__ void add_fragment(const Sum& sum, bool whole, const float (&acc)[kRows][kCols]) {
  const bool pairs = kAddsPairs && sum.g.vector_bytes >= 8;
  if (whole && pairs == kAddsPairs) {
    add_columns<kAcross, kAddsPairs, true>(sum, acc);
  } else if (pairs) {
    add_columns<kAcross, kAddsPairs, false>(sum, acc);
  } else {
    add_columns<kAcross, false, false>(sum, acc);
  }
}

// dQ += dS K  [kBlockM, kHeadDim], in two halves of the columns where beside dK and dV there is no room for all.
__device__ __forceinline__ void add_to_dq(SharedStorage& shared, const Sum& dq, bool whole) {
  constexpr int kParts = kQueryCols % 8 == 0 && kScoreRows * kQueryCols > 32 ? 2 : 1, kTurns = kParts * kAcross;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int first = part * kAcross * kPiece;  // column of this part
    float acc_dq[kScoreRows][kQueryCols / kParts];
    set_zero(acc_dq);
    matmul<kBlockN, kTurns>(acc_dq, Pieces<ScoreTile, kRowsFirst>(shared.ds, score_row0()),
                            Pieces<KeyTile, kRowsFirst>(shared.key, 0, first + score_across() * kPiece));
    add_fragment<kTurns>(Sum{dq.g, dq.dst + first, dq.row, dq.col + first}, whole, acc_dq);
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
    const auto gDk = head_matrix<float>(params.dk_acc, shape, keys.batch, keys.head_k, rows, shape.head_dim);
    const auto gDv = head_matrix<float>(params.dv_acc, shape, keys.batch, keys.head_k, rows, shape.head_dim_v);
    const bool whole = keys.n0 + kBlockN <= rows;
    const bool whole_dk = whole && gDk.cols == kHeadDim, whole_dv = whole && gDv.cols == kHeadDimV;
    if (kWantsDk) add_fragment<kKeyAcross>(Sum::at<kKeyAcross>(gDk, keys.n0 + row0, across), whole_dk, acc_dk);
    if (kWantsDv) add_fragment<kKeyAcross>(Sum::at<kKeyAcross>(gDv, keys.n0 + row0, across), whole_dv, acc_dv);
    return;
  }
  if (kWantsDk) store_fragment<kKeyAcross>(shared.key, row0, across, acc_dk);
  if (kWantsDv) store_fragment<kKeyAcross>(shared.value, row0, across, acc_dv);
  meet();
  if (kWantsDk) {
    store_rows<kBlockN, kThreads>(
        shared.key, 0, threadIdx.x,
        head_matrix<Element>(params.dk, shape, keys.batch, keys.head_k, rows, shape.head_dim), keys.n0);
  }
  if (kWantsDv) {
    store_rows<kBlockN, kThreads>(
        shared.value, 0, threadIdx.x,
        head_matrix<Element>(params.dv, shape, keys.batch, keys.head_k, rows, shape.head_dim_v), keys.n0);
  }
}

// Log-sum-exp and delta of the query block in shared memory. Those of rows outside are 0, as is all else of them: their
// p is at most 1 and meets only zeros.
struct StreamedStatistics {
  const QueryStage& stage;

  __device__ float lse(int i) const { return lse_to_log2(stage.statistics[score_row0() + row_of(i)]); }
  __device__ float delta(int i) const { return stage.statistics[kBlockM + score_row0() + row_of(i)]; }
};

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_dkdv(const __grid_constant__ Composed<BackwardParams> params) {
  SharedStorage& shared = shared_storage<SharedStorage>();
  const Shape& shape = params.shape;

  const KeyBlock keys = key_block(shape, params.schedule, blockIdx.x);
  const int n0 = ptx::opaque(keys.n0), head_k = keys.head_k, batch = keys.batch;
  // This block's query heads.
  const int group_size = shape.group_size, per_split = ceil_div(group_size, params.schedule.num_splits);
  const int head_begin = head_k * group_size + min(keys.split * per_split, group_size);
  const int heads = min(head_begin + per_split, (head_k + 1) * group_size) - head_begin;
  const BlockPlace place(params.components, shape, batch, head_begin);
  const Mask mask(params.components, place);
  const Interval queries = mask.queries(n0, min(n0 + kBlockN, shape.seqlen_k) - 1);
  const Interval seen = mask.keys(0, shape.seqlen_q - 1);
  const auto gK = head_matrix<Element>(params.k, shape, batch, head_k, seen.end, shape.head_dim, seen.begin);
  const auto gV = head_matrix<Element>(params.v, shape, batch, head_k, seen.end, shape.head_dim_v, seen.begin);
  load_tile(shared.key, gK, n0);  // in the group of the first queries
  load_tile(shared.value, gV, n0);

  // The query blocks of each head that see its keys.
  Walk walk(mask, queries, heads, head_begin, n0);
  QueryStream stream(params, query_head(params, batch, head_begin + walk.member), walk);
  // Start copying the block that is so many after the one of `walk`.
  const auto start = [&](int slot, int ahead) {
    Walk later = walk;
#pragma unroll
    for (int i = 0; i < ahead; ++i) later.next();
    stream.start(shared.ring[slot], later);
  };
  const auto finish = [&](int slot) { stream.finish(shared.ring[slot]); };
  Ring ring;
  ring.fill(walk.steps(heads), [&](int step) { start(step, step); }, finish);

  const auto gDq = head_matrix<float>(params.dq_acc, shape, batch, head_begin + walk.member,
                                      shape.seqlen_q, shape.head_dim);
  Sum dq = Sum::at<kAcross>(gDq, walk.m0 + score_row0(), score_across());
  const Score<float> score(params.components, place);
  const int warp = threadIdx.x / 32, key_row0 = warp % kWarpsN * (kBlockN / kWarpsN), key_across = warp / kWarpsN;
  float acc_dk[kKeyRows][kKeyCols], acc_dv[kKeyRows][kValueCols];
  set_zero(acc_dk);
  set_zero(acc_dv);

  for (int left = ptx::opaque(walk.steps(heads)); left > 0; --left) {
    ring.arrive(left, [&](int slot) { start(slot, kAhead); }, finish);
    QueryStage& stage = shared.ring[ring.slot];
    const int m0 = walk.m0;
    {
      float p[kScoreRows][kScoreCols], ds[kScoreRows][kScoreCols];
      const StreamedStatistics rows{stage};
      recompute(p, ds, stage.query, stage.dout, shared.key, shared.value, rows, mask, score, walk.member, m0, n0,
                walk.is_whole());
      store_fragment<kAcross>(shared.p, score_row0(), score_across(), p);
      store_fragment<kAcross>(shared.ds, score_row0(), score_across(), ds);
    }
    meet();

    if (kAtomicDq) {
      dq.row = m0 + score_row0() + row_of(0);
      add_to_dq(shared, dq, m0 + kBlockM <= shape.seqlen_q && shape.head_dim == kHeadDim);
      dq.dst += walk.advance(params.dq_acc);
    } else {
      walk.next();
    }
    // dV += P^T dO  [kBlockN, kHeadDimV],  dK += dS^T Q  [kBlockN, kHeadDim]
    const Pieces<ScoreTile, kColsFirst> sP(shared.p, 0, key_row0);
    const Pieces<DoutTile, kRowsFirst> sDout(stage.dout, 0, key_across * kPiece);
    if (kWantsDv) matmul<kBlockM, kKeyAcross>(acc_dv, sP, sDout);
    if (kWantsDk) {
      const Pieces<QueryTile, kRowsFirst> sQuery(stage.query, 0, key_across * kPiece, sDout, stage.dout);
      matmul<kBlockM, kKeyAcross>(acc_dk, Pieces<ScoreTile, kColsFirst>(shared.ds, 0, key_row0, sP, shared.p), sQuery);
    }
  }
  if (kAsyncCopy) ptx::cp_async_wait_all();
  meet();  // dK's and dV's tiles lie where K and V were
  store_result(shared, params, acc_dk, acc_dv);
}
