// D = A B or D += A B on the tensor cores by a warpgroup (4 warps, the first a multiple of 4): PTX ISA 9.7.15,
// wgmma.mma_async m64nNk16, float32 accumulation (sm_90a). D is 64 x N with N = 2 kRegisters, any multiple of 16
// to 256. With w the warp of the warpgroup, g = lane / 4 and t = lane % 4 (element e within a register):
//   D: d[i] = D[16w + g + 8 (i / 2 % 2)][2t + i % 2 + 8 (i / 4)]
//   A in registers: a[i] = A[16w + g + 8 (i % 2)][2t + e + 8 (i / 2)], as mma_m16n8k16's
// Operands in shared memory are tiles as TMA writes them: rows of 64 elements (128 bytes) with 128-byte swizzle,
// the start 1024-byte aligned; wider matrices are split into blocks of 64 columns, one tile behind the other.
//   Major::kK   a row runs along K: A is stored as A[m][k], B as B[n][k]
//   Major::kMN  a row runs along M or N: A is stored as A[k][m], B as B[k][n]
// How to use: writers of shared tiles fence_proxy_async and a barrier; wgmma_pin and wgmma_fence over registers that
// other instructions wrote; wgmma...; wgmma_commit; wgmma_wait; wgmma_pin. Until the wait the registers are not
// to be touched.
#pragma once
#include "platform.cuh"

namespace ptx {

enum class Major { kK = 0, kMN = 1 };

// Bytes from one k16 step to the next: along the row, or 16 rows down. Within a tile of 64 columns, so for kK of
// four steps.
template <Major kMajor> constexpr int kWgmmaStep = kMajor == Major::kK ? 32 : 2048;

// Where an operand lies. The address is `tile`'s, plus kWgmmaStep for each k16 step; `block_bytes` leads from a
// block of 64 columns to the next (used where kMN rows are longer than one block).
//   bits 0-13 address / 16    16-29 leading offset / 16: next block of columns (kMN; ignored with kK)
//   bits 32-45 stride offset / 16: the next 8 rows, 1024 bytes    49-51 base offset: 0, tiles being aligned
//   bits 62-63 swizzle: 1 for 128 bytes
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t tile, uint32_t block_bytes) {
  return static_cast<uint64_t>(tile >> 4 & 0x3fffu) | static_cast<uint64_t>(block_bytes >> 4 & 0x3fffu) << 16 |
         static_cast<uint64_t>(1024 >> 4) << 32 | static_cast<uint64_t>(1) << 62;
}

// Orders register accesses of the warpgroup before its next wgmma.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes the warpgroup's current group of wgmmas.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most the kPending most recent groups are in flight.
template <int kPending> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of the registers across: to it a wgmma has finished where it stands.
template <int kCount> __device__ __forceinline__ void wgmma_pin(float (&r)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(r[i])::"memory");
}

template <int kCount> __device__ __forceinline__ void wgmma_pin(uint32_t (&r)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(r[i])::"memory");
}

// The operands of inline PTX can be neither named nor counted by the compiler, so here is, for each N, the text
// of D's registers, their constraints, and the places of the seven operands behind them.
#define WGMMA_TEXT_16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_TEXT_32 WGMMA_TEXT_16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_TEXT_48 WGMMA_TEXT_32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_TEXT_64 WGMMA_TEXT_48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_TEXT_80 WGMMA_TEXT_64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_TEXT_96 WGMMA_TEXT_80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_TEXT_112 WGMMA_TEXT_96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_TEXT_128 WGMMA_TEXT_112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_TEXT_144 WGMMA_TEXT_128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_TEXT_160 WGMMA_TEXT_144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_TEXT_176 WGMMA_TEXT_160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_TEXT_192 WGMMA_TEXT_176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_TEXT_208 WGMMA_TEXT_192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_TEXT_224 WGMMA_TEXT_208 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_TEXT_240 WGMMA_TEXT_224 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_TEXT_256 WGMMA_TEXT_240 ", %120, %121, %122, %123, %124, %125, %126, %127"

#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_D_16 WGMMA_4(0), WGMMA_4(4)
#define WGMMA_D_32 WGMMA_D_16, WGMMA_4(8), WGMMA_4(12)
#define WGMMA_D_48 WGMMA_D_32, WGMMA_4(16), WGMMA_4(20)
#define WGMMA_D_64 WGMMA_D_48, WGMMA_4(24), WGMMA_4(28)
#define WGMMA_D_80 WGMMA_D_64, WGMMA_4(32), WGMMA_4(36)
#define WGMMA_D_96 WGMMA_D_80, WGMMA_4(40), WGMMA_4(44)
#define WGMMA_D_112 WGMMA_D_96, WGMMA_4(48), WGMMA_4(52)
#define WGMMA_D_128 WGMMA_D_112, WGMMA_4(56), WGMMA_4(60)
#define WGMMA_D_144 WGMMA_D_128, WGMMA_4(64), WGMMA_4(68)
#define WGMMA_D_160 WGMMA_D_144, WGMMA_4(72), WGMMA_4(76)
#define WGMMA_D_176 WGMMA_D_160, WGMMA_4(80), WGMMA_4(84)
#define WGMMA_D_192 WGMMA_D_176, WGMMA_4(88), WGMMA_4(92)
#define WGMMA_D_208 WGMMA_D_192, WGMMA_4(96), WGMMA_4(100)
#define WGMMA_D_224 WGMMA_D_208, WGMMA_4(104), WGMMA_4(108)
#define WGMMA_D_240 WGMMA_D_224, WGMMA_4(112), WGMMA_4(116)
#define WGMMA_D_256 WGMMA_D_240, WGMMA_4(120), WGMMA_4(124)

// wgmma_<type>: A and B in shared memory, or A in registers. With accumulate = false D's old value is not read.
#define WGMMA_OF(type, n, i0, i1, i2, i3, i4, i5, i6)                                                            \
  template <Major kMajorA, Major kMajorB>                                                                        \
  __device__ __forceinline__ void wgmma_##type(float (&d)[n / 2], uint64_t a, uint64_t b, bool accumulate) {     \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #i2 ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32."   \
                 #type "." #type " {" WGMMA_TEXT_##n "}, %" #i0 ", %" #i1 ", p, 1, 1, %" #i3 ", %" #i4 "; }"     \
                 : WGMMA_D_##n                                                                                   \
                 : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kMajorA)),            \
                   "n"(static_cast<int>(kMajorB)));                                                              \
  }                                                                                                              \
  template <Major kMajorB>                                                                                       \
  __device__ __forceinline__ void wgmma_##type(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b,            \
                                               bool accumulate) {                                                \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #i5 ", 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32."   \
                 #type "." #type " {" WGMMA_TEXT_##n "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #i4        \
                 ", p, 1, 1, %" #i6 "; }"                                                                        \
                 : WGMMA_D_##n                                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),        \
                   "n"(static_cast<int>(kMajorB)));                                                              \
  }

#define WGMMA(...)            \
  WGMMA_OF(f16, __VA_ARGS__)  \
  WGMMA_OF(bf16, __VA_ARGS__)

WGMMA(16, 8, 9, 10, 11, 12, 13, 14)
WGMMA(32, 16, 17, 18, 19, 20, 21, 22)
WGMMA(48, 24, 25, 26, 27, 28, 29, 30)
WGMMA(64, 32, 33, 34, 35, 36, 37, 38)
WGMMA(80, 40, 41, 42, 43, 44, 45, 46)
WGMMA(96, 48, 49, 50, 51, 52, 53, 54)
WGMMA(112, 56, 57, 58, 59, 60, 61, 62)
WGMMA(128, 64, 65, 66, 67, 68, 69, 70)
WGMMA(144, 72, 73, 74, 75, 76, 77, 78)
WGMMA(160, 80, 81, 82, 83, 84, 85, 86)
WGMMA(176, 88, 89, 90, 91, 92, 93, 94)
WGMMA(192, 96, 97, 98, 99, 100, 101, 102)
WGMMA(208, 104, 105, 106, 107, 108, 109, 110)
WGMMA(224, 112, 113, 114, 115, 116, 117, 118)
WGMMA(240, 120, 121, 122, 123, 124, 125, 126)
WGMMA(256, 128, 129, 130, 131, 132, 133, 134)

}  // namespace ptx
