// Host version of cuda_src/ptx/cp_async.cuh.
#pragma once
#include "platform.cuh"
#include "ptx/shared.cuh"

namespace ptx {

__forceinline__ void cp_async_16(uint32_t dst, const void* src, int src_bytes, EMULATOR_SITE) {
  emulator_cp_async(dst, src, 16, src_bytes, file, line);
}
__forceinline__ void cp_async_8(uint32_t dst, const void* src, int src_bytes, EMULATOR_SITE) {
  emulator_cp_async(dst, src, 8, src_bytes, file, line);
}
__forceinline__ void cp_async_4(uint32_t dst, const void* src, int src_bytes, EMULATOR_SITE) {
  emulator_cp_async(dst, src, 4, src_bytes, file, line);
}
__forceinline__ void cp_async_commit() { emulator_cp_async_commit(); }
template <int kPending>
__forceinline__ void cp_async_wait() {
  emulator_cp_async_wait(kPending);
}
__forceinline__ void cp_async_wait_all() { emulator_cp_async_wait(-1); }

}  // namespace ptx
