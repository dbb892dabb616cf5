// Host version of cuda_src/ptx/stmatrix.cuh; the lane map is in engine/matrix.h.
#pragma once
#include "platform.cuh"

namespace ptx {

__forceinline__ void stmatrix_x1(uint32_t shared_addr, const uint32_t (&r)[1], EMULATOR_SITE) {
  emulator_stmatrix(shared_addr, r, 1, 0, file, line);
}
__forceinline__ void stmatrix_x2(uint32_t shared_addr, const uint32_t (&r)[2], EMULATOR_SITE) {
  emulator_stmatrix(shared_addr, r, 2, 0, file, line);
}
__forceinline__ void stmatrix_x4(uint32_t shared_addr, const uint32_t (&r)[4], EMULATOR_SITE) {
  emulator_stmatrix(shared_addr, r, 4, 0, file, line);
}
__forceinline__ void stmatrix_x1_trans(uint32_t shared_addr, const uint32_t (&r)[1], EMULATOR_SITE) {
  emulator_stmatrix(shared_addr, r, 1, 1, file, line);
}
__forceinline__ void stmatrix_x2_trans(uint32_t shared_addr, const uint32_t (&r)[2], EMULATOR_SITE) {
  emulator_stmatrix(shared_addr, r, 2, 1, file, line);
}
__forceinline__ void stmatrix_x4_trans(uint32_t shared_addr, const uint32_t (&r)[4], EMULATOR_SITE) {
  emulator_stmatrix(shared_addr, r, 4, 1, file, line);
}

}  // namespace ptx
