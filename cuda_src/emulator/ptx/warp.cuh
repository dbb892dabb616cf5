// Host version of cuda_src/ptx/warp.cuh.
#pragma once
#include "platform.cuh"

namespace ptx {

constexpr uint32_t kFullWarp = 0xffffffffu;

template <class T>
__forceinline__ T shfl_xor(T value, int lane_mask, int width = kWarpSize, EMULATOR_SITE) {
  return __shfl_xor_sync(kFullWarp, value, lane_mask, width, file, line);
}
template <class T>
__forceinline__ T shfl(T value, int lane, int width = kWarpSize, EMULATOR_SITE) {
  return __shfl_sync(kFullWarp, value, lane, width, file, line);
}
template <class T>
__forceinline__ T shfl_up(T value, unsigned delta, int width = kWarpSize, EMULATOR_SITE) {
  return __shfl_up_sync(kFullWarp, value, delta, width, file, line);
}
template <class T>
__forceinline__ T shfl_down(T value, unsigned delta, int width = kWarpSize, EMULATOR_SITE) {
  return __shfl_down_sync(kFullWarp, value, delta, width, file, line);
}
__forceinline__ uint32_t ballot(bool predicate, EMULATOR_SITE) {
  return __ballot_sync(kFullWarp, predicate, file, line);
}
__forceinline__ bool any(bool predicate, EMULATOR_SITE) {
  return __any_sync(kFullWarp, predicate, file, line);
}
__forceinline__ bool all(bool predicate, EMULATOR_SITE) {
  return __all_sync(kFullWarp, predicate, file, line);
}

}  // namespace ptx
