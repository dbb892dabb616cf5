// Whether arrays that a vjp keeps still hold what they did, one warp for each row of queries and of keys:
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

constexpr int kQ = 0, kK = 1, kV = 2, kOut = 3, kLse = 4, kArrays = 5;

__device__ __forceinline__ uint64_t bits_of(Float16 x) { return x.bits; }
__device__ __forceinline__ uint64_t bits_of(BFloat16 x) { return x.bits; }
__device__ __forceinline__ uint64_t bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ uint64_t bits_of(double x) { return static_cast<uint64_t>(__double_as_longlong(x)); }

// One to one in `digest` and in `word`. The shifts bring down the upper bits, which a product only passes upwards; with
// one of them, changes of signs alone cancelled each other now and then.
__device__ __forceinline__ uint32_t mix(uint32_t digest, uint32_t word) {
  uint32_t x = (digest ^ word) * 0x9e3779b1u;
  x = (x ^ x >> 15) * 0x85ebca77u;
  return x ^ x >> 13;
}

// Of a row, the same in all lanes; lanes begin differently, or elements could change places.
template <class T>
__device__ __forceinline__ int digest(const Matrix<T>& g, int row, int lane) {
  uint32_t x = mix(0, lane);
  for (int col = lane; col < g.cols; col += 32) {
    const uint64_t bits = bits_of(*g.at(row, col));
    x = mix(x, static_cast<uint32_t>(bits));
    if (sizeof(T) == 8) x = mix(x, static_cast<uint32_t>(bits >> 32));
  }
  x = mix(x, g.cols);
#pragma unroll
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) x += ptx::shfl_xor(x, lane_mask);
  return static_cast<int>(x);
}

// use(array, digest, noted): of each row that this warp has, `noted` is where attention_seal leaves the digest.
template <class Use>
__device__ __forceinline__ void each_digest(const SealParams& params, Use&& use) {
  const Shape& s = params.shape;
  const auto rows = [&](auto element, int array, const Tensor& tensor, const Row& r, const Tensor& digests, int cols,
                        int place, int places) {
    const int end = r.row + 1;
    const auto g = head_matrix<decltype(element)>(tensor, s, r.batch, r.head, end, cols);
    use(array, digest(g, r.row, r.lane), head_matrix<int>(digests, s, r.batch, r.head, end, places).at(r.row, place));
  };
  if (const Row r = query_row_of_warp(s); r.inside) {
    rows(Element(), kQ, params.q, r, params.query_digests, s.head_dim, 0, 3);
    rows(Element(), kOut, params.out, r, params.query_digests, s.head_dim_v, 1, 3);
    rows(Accumulator(), kLse, params.lse, r, params.query_digests, 1, 2, 3);
  }
  if (const Row r = key_row_of_warp(s); r.inside) {
    rows(Element(), kK, params.k, r, params.key_digests, s.head_dim, 0, 2);
    rows(Element(), kV, params.v, r, params.key_digests, s.head_dim_v, 1, 2);
  }
}

extern "C" __global__ void __launch_bounds__(kThreads) attention_seal(const __grid_constant__ SealParams params) {
  each_digest(params, [](int, int digest, int* noted) {
    if (threadIdx.x % 32 == 0) *noted = digest;
  });
}

extern "C" __global__ void __launch_bounds__(kThreads)
    attention_find_changed(const __grid_constant__ SealParams params) {
  const auto changed = head_matrix<int>(params.changed, params.shape, 0, 0, 1, kArrays);
  each_digest(params, [&](int array, int digest, const int* noted) {
    if (threadIdx.x % 32 == 0 && *noted != digest) atomicMax(changed.at(0, array), 1);
  });
}

__device__ __forceinline__ void spoil_row(const Tensor& tensor, const Shape& shape, const Row& r, int cols) {
  const auto g = head_matrix<Element>(tensor, shape, r.batch, r.head, r.row + 1, cols);
  const Accumulator nan = __int_as_float(0x7fffffff);
  for (int col = r.lane; col < cols; col += 32) from_accumulator(*g.at(r.row, col), nan);
}

extern "C" __global__ void __launch_bounds__(kThreads) attention_spoil(const __grid_constant__ SealParams params) {
  const Shape& shape = params.shape;
  const auto changed = head_matrix<int>(params.changed, shape, 0, 0, 1, kArrays);
  int any = 0;
#pragma unroll
  for (int array = 0; array < kArrays; ++array) any |= *changed.at(0, array);
  if (!any) return;
  if (const Row r = query_row_of_warp(shape); r.inside) spoil_row(params.dq, shape, r, shape.head_dim);
  if (const Row r = key_row_of_warp(shape); r.inside) {
    spoil_row(params.dk, shape, r, shape.head_dim);
    spoil_row(params.dv, shape, r, shape.head_dim_v);
  }
}
