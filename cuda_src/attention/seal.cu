// Whether arrays that a vjp keeps still hold what they did; blocks have rows of queries or rows of keys:
//
//   attention_seal          digests of the rows of q, out and lse, and of k and v
//   attention_find_changed  changed[n] = 1 if a row of the n-th of q, k, v, out, lse has another digest now
//   attention_spoil         dq, dk, dv = NaN if anything is changed: on a GPU an exception would have to wait
#include "attention/row.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "ptx/warp.cuh"
#include "specialization.cuh"

using Accumulator = AccumulatorOf<Element>::Type;

constexpr int kMinBlocks = 8;  // not told, the assembler aims at fewer registers than 64, and spills (NVRTC 13.5)
constexpr int kQ = 0, kK = 1, kV = 2, kOut = 3, kLse = 4, kArrays = 5;

__device__ __forceinline__ uint64_t bits_of(Float16 x) { return x.bits; }
__device__ __forceinline__ uint64_t bits_of(BFloat16 x) { return x.bits; }
__device__ __forceinline__ uint64_t bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ uint64_t bits_of(double x) { return static_cast<uint64_t>(__double_as_longlong(x)); }

// queries(rows) or keys(rows): which rows this block has.
template <class Queries, class Keys>
__device__ __forceinline__ void rows_of_block(const Shape& shape, Queries&& queries, Keys&& keys) {
  const int query_blocks = num_batches(shape) * shape.num_heads_q * blocks_of_head(shape.seqlen_q);
  if (blockIdx.x < query_blocks) {
    queries(block_of_queries(shape));
  } else {
    keys(block_of_keys(shape, blockIdx.x - query_blocks));
  }
}

// One to one in `digest` and in `word`. The shifts bring down the upper bits, which a product only passes upwards; with
// one of them, changes of signs alone cancelled each other now and then.
__device__ __forceinline__ uint32_t mix(uint32_t digest, uint32_t word) {
  uint32_t x = (digest ^ word) * 0x9e3779b1u;
  x = (x ^ x >> 15) * 0x85ebca77u;
  return x ^ x >> 13;
}

__device__ __forceinline__ uint32_t mix_all(uint32_t digest, uint64_t bits, int bytes) {
  digest = mix(digest, static_cast<uint32_t>(bits));
  return bytes > 4 ? mix(digest, static_cast<uint32_t>(bits >> 32)) : digest;
}

// use(row, digest) of each of the block's rows of g. Lanes begin differently, or elements could change places.
template <class T, class Use>
__device__ __forceinline__ void each_row_digest(const RowBlock& block, const Matrix<T>& g, Use&& use) {
  each_row(g.vectorized(), block, [&](auto lanes) {
    constexpr int kTogether = lanes.kCount > 1 && sizeof(T) == 2 ? 2 : 1;  // elements of a word
    uint32_t x[lanes.kRows];
#pragma unroll
    for (int i = 0; i < lanes.kRows; ++i) x[i] = mix(0, lanes.lane);
    auto elements = lanes.begin(g);
#pragma unroll 1
    for (int col = lanes.col; col < g.cols; col += lanes.kCols) {
      const auto y = elements.next();
#pragma unroll
      for (int j = 0; j < lanes.kCount; j += kTogether) {
#pragma unroll
        for (int i = 0; i < lanes.kRows; ++i) {
          const uint64_t bits = bits_of(y.at(i, j)) | bits_of(y.at(i, j + kTogether - 1)) << 16 * (kTogether - 1);
          x[i] = mix_all(x[i], bits, sizeof(T));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < lanes.kRows; ++i) x[i] = lanes.sum(x[i]);
    if (lanes.owns()) use(lanes.own_row(), static_cast<int>(lanes.own(x)));
  });
}

// The same of a column.
template <class T, class Use>
__device__ __forceinline__ void each_number_digest(const RowBlock& block, const Matrix<T>& g, Use&& use) {
  for (int row = block.begin + threadIdx.x; row < block.end; row += kThreads) {
    use(row, static_cast<int>(mix_all(0, bits_of(*g.at(row, 0)), sizeof(T))));
  }
}

// use(array, digest, noted) of each row that this block has: `noted` is where attention_seal leaves the digest.
template <class Use>
__device__ __forceinline__ void each_digest(const SealParams& params, Use&& use) {
  const Shape& shape = params.shape;
  const auto rows = [&](int array, const Tensor& tensor, int cols, const RowBlock& block, const Matrix<int>& digests,
                        int place) {
    each_row_digest(block, matrix_of<Element>(block, tensor, cols),
                    [&](int row, int digest) { use(array, digest, digests.at(row, place)); });
  };
  rows_of_block(
      shape,
      [&](const RowBlock& block) {
        const auto digests = matrix_of<int>(block, params.query_digests, 3);
        each_number_digest(block, matrix_of<Accumulator>(block, params.lse, 1),
                           [&](int row, int digest) { use(kLse, digest, digests.at(row, 2)); });
        rows(kQ, params.q, shape.head_dim, block, digests, 0);
        rows(kOut, params.out, shape.head_dim_v, block, digests, 1);
      },
      [&](const RowBlock& block) {
        const auto digests = matrix_of<int>(block, params.key_digests, 2);
        rows(kK, params.k, shape.head_dim, block, digests, 0);
        rows(kV, params.v, shape.head_dim_v, block, digests, 1);
      });
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_seal(const __grid_constant__ SealParams params) {
  each_digest(params, [](int, int digest, int* noted) { *noted = digest; });
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_find_changed(const __grid_constant__ SealParams params) {
  const auto changed = head_matrix<int>(params.changed, params.shape, 0, 0, 1, kArrays);
  each_digest(params, [&](int array, int digest, const int* noted) {
    if (*noted != digest) atomicMax(changed.at(0, array), 1);
  });
}

__device__ __forceinline__ void spoil(const Tensor& tensor, const RowBlock& block, int cols) {
  if (tensor.data == nullptr) return;  // a gradient that is not wanted
  const auto g = matrix_of<Element>(block, tensor, cols);
  each_row<Lanes<32, 1>>(block, [&](auto lanes) {
    typename decltype(lanes)::template Values<Element> nan;
#pragma unroll
    for (int i = 0; i < lanes.kRows; ++i) from_accumulator(nan.at(i, 0), Accumulator(__int_as_float(0x7fffffff)));
    auto elements = lanes.begin(g);
    for (int col = lanes.col; col < cols; col += lanes.kCols) elements.put(nan);
  });
}

extern "C" __global__ void __launch_bounds__(kThreads, kMinBlocks)
    attention_spoil(const __grid_constant__ SealParams params) {
  const Shape& shape = params.shape;
  const auto changed = head_matrix<int>(params.changed, shape, 0, 0, 1, kArrays);
  int any = 0;
#pragma unroll
  for (int array = 0; array < kArrays; ++array) any |= *changed.at(0, array);
  if (!any) return;
  rows_of_block(
      shape, [&](const RowBlock& block) { spoil(params.dq, block, shape.head_dim); },
      [&](const RowBlock& block) {
        spoil(params.dk, block, shape.head_dim);
        spoil(params.dv, block, shape.head_dim_v);
      });
}
