// Exchanges and votes among the 32 lanes of a warp: PTX ISA 9.7.9 shfl.sync, 9.7.13 vote.sync.
// Every lane takes part (full mask), so the calls stand in warp-uniform flow.
#pragma once
#include "platform.cuh"

namespace ptx {

constexpr uint32_t kFullWarp = 0xffffffffu;

// T: a 4- or 8-byte arithmetic type. `width` (a power of two) splits the warp into independent segments.
// In shfl_xor, shfl_up and shfl_down a lane whose source would lie outside its segment gets its own value back.

// Lane i reads lane i ^ lane_mask.
template <class T> __device__ __forceinline__ T shfl_xor(T value, int lane_mask, int width = kWarpSize) {
  return __shfl_xor_sync(kFullWarp, value, lane_mask, width);
}

// Every lane reads lane `lane` (modulo width) of its segment.
template <class T> __device__ __forceinline__ T shfl(T value, int lane, int width = kWarpSize) {
  return __shfl_sync(kFullWarp, value, lane, width);
}

// Lane i reads lane i - delta.
template <class T> __device__ __forceinline__ T shfl_up(T value, unsigned delta, int width = kWarpSize) {
  return __shfl_up_sync(kFullWarp, value, delta, width);
}

// Lane i reads lane i + delta.
template <class T> __device__ __forceinline__ T shfl_down(T value, unsigned delta, int width = kWarpSize) {
  return __shfl_down_sync(kFullWarp, value, delta, width);
}

// Bit i of the result is lane i's predicate.
__device__ __forceinline__ uint32_t ballot(bool predicate) { return __ballot_sync(kFullWarp, predicate); }

__device__ __forceinline__ bool any(bool predicate) { return __any_sync(kFullWarp, predicate); }

__device__ __forceinline__ bool all(bool predicate) { return __all_sync(kFullWarp, predicate); }

}  // namespace ptx
