// 8x8 matrices of 16-bit elements from mma fragments to shared memory, ldmatrix the other way round: PTX ISA
// 9.7.14, stmatrix (sm_90).
// Lane 8i + j gives the address of row j of matrix i (16-byte aligned, 8 elements). r[i] holds, of matrix i,
//   plain: M[lane / 4][2 (lane % 4) + e]      _trans: M[2 (lane % 4) + e][lane / 4]
// with e = 0 in the lower half of the register and 1 in the upper.
#pragma once
#include "platform.cuh"

namespace ptx {

__device__ __forceinline__ void stmatrix_x1(uint32_t shared_addr, const uint32_t (&r)[1]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(shared_addr), "r"(r[0]) : "memory");
}

__device__ __forceinline__ void stmatrix_x2(uint32_t shared_addr, const uint32_t (&r)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(shared_addr), "r"(r[0]), "r"(r[1])
               : "memory");
}

__device__ __forceinline__ void stmatrix_x4(uint32_t shared_addr, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_addr), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

__device__ __forceinline__ void stmatrix_x1_trans(uint32_t shared_addr, const uint32_t (&r)[1]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(shared_addr), "r"(r[0])
               : "memory");
}

__device__ __forceinline__ void stmatrix_x2_trans(uint32_t shared_addr, const uint32_t (&r)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_addr), "r"(r[0]),
               "r"(r[1])
               : "memory");
}

__device__ __forceinline__ void stmatrix_x4_trans(uint32_t shared_addr, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_addr),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

}  // namespace ptx
