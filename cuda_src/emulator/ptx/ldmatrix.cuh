// Host version of cuda_src/ptx/ldmatrix.cuh; the lane map is in engine/matrix.h.
#pragma once
#include "platform.cuh"

namespace ptx {

__forceinline__ void ldmatrix_x1(uint32_t (&r)[1], uint32_t shared_addr, EMULATOR_SITE) {
  emulator_ldmatrix(r, 1, shared_addr, 0, file, line);
}
__forceinline__ void ldmatrix_x2(uint32_t (&r)[2], uint32_t shared_addr, EMULATOR_SITE) {
  emulator_ldmatrix(r, 2, shared_addr, 0, file, line);
}
__forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared_addr, EMULATOR_SITE) {
  emulator_ldmatrix(r, 4, shared_addr, 0, file, line);
}
__forceinline__ void ldmatrix_x1_trans(uint32_t (&r)[1], uint32_t shared_addr, EMULATOR_SITE) {
  emulator_ldmatrix(r, 1, shared_addr, 1, file, line);
}
__forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t shared_addr, EMULATOR_SITE) {
  emulator_ldmatrix(r, 2, shared_addr, 1, file, line);
}
__forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared_addr, EMULATOR_SITE) {
  emulator_ldmatrix(r, 4, shared_addr, 1, file, line);
}

}  // namespace ptx
