// Host version of cuda_src/ptx/mma.cuh; the lane maps are in engine/matrix.h.
#pragma once
#include "platform.cuh"

namespace ptx {

__forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                      const float (&c)[4], EMULATOR_SITE) {
  emulator_mma_m16n8k16(d, a, b, c, kHalfF16, file, line);
}
__forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                       const float (&c)[4], EMULATOR_SITE) {
  emulator_mma_m16n8k16(d, a, b, c, kHalfBf16, file, line);
}
__forceinline__ void mma_m16n8k8_f16(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                                     const float (&c)[4], EMULATOR_SITE) {
  emulator_mma_m16n8k8(d, a, b, c, kHalfF16, file, line);
}

}  // namespace ptx
