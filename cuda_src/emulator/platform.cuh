// The CUDA C that kernels use, for a host compiler: takes the place of cuda_src/platform.cuh by include
// order. No standard header: what is needed is declared here, which keeps compiling a kernel to a fraction of
// a second.
#pragma once
#include "engine.h"
#include "half.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

// Default arguments that give the caller's place in the source.
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

constexpr int kWarpSize = 32;

struct uint3 {
  unsigned x, y, z;
};

namespace emulator {
inline __attribute__((always_inline)) uint3 special_registers(int first) {
  return {emulator_special_register(first), emulator_special_register(first + 1),
          emulator_special_register(first + 2)};
}
}  // namespace emulator

#define threadIdx (::emulator::special_registers(0))
#define blockIdx (::emulator::special_registers(3))
#define blockDim (::emulator::special_registers(6))
#define gridDim (::emulator::special_registers(9))

template <class T>
__forceinline__ T& shared_storage() {
  static_assert(alignof(T) <= 1024, "shared memory is 1024-byte aligned");
  return *reinterpret_cast<T*>(emulator_shared_memory());
}

// ---- synchronisation
__forceinline__ void __syncthreads(EMULATOR_SITE) { emulator_barrier_sync(0, 0, file, line); }
__forceinline__ int __syncthreads_or(int predicate, EMULATOR_SITE) {
  return emulator_barrier_reduce(0, 0, kReduceOr, predicate, file, line);
}
__forceinline__ int __syncthreads_and(int predicate, EMULATOR_SITE) {
  return emulator_barrier_reduce(0, 0, kReduceAnd, predicate, file, line);
}
__forceinline__ int __syncthreads_count(int predicate, EMULATOR_SITE) {
  return emulator_barrier_reduce(0, 0, kReducePopc, predicate, file, line);
}
__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_SITE) {
  emulator_syncwarp(mask, file, line);
}
__forceinline__ void __threadfence_block() {}
__forceinline__ void __threadfence() {}
__forceinline__ void __trap(EMULATOR_SITE) { emulator_trap("__trap()", file, line); }

namespace emulator {
template <class T>
__forceinline__ T shuffle(unsigned mask, T value, int mode, unsigned argument, int width, const char* file,
                          int line) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = emulator_shuffle(mask, bits, sizeof(T) / 4, mode, argument, width, nullptr, file, line);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace emulator

template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int lane, int width = kWarpSize, EMULATOR_SITE) {
  return emulator::shuffle(mask, value, kShuffleIndex, lane, width, file, line);
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = kWarpSize,
                                  EMULATOR_SITE) {
  return emulator::shuffle(mask, value, kShuffleXor, lane_mask, width, file, line);
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = kWarpSize,
                                 EMULATOR_SITE) {
  return emulator::shuffle(mask, value, kShuffleUp, delta, width, file, line);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = kWarpSize,
                                   EMULATOR_SITE) {
  return emulator::shuffle(mask, value, kShuffleDown, delta, width, file, line);
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return emulator_vote(mask, predicate, kVoteBallot, file, line);
}
__forceinline__ int __any_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return static_cast<int>(emulator_vote(mask, predicate, kVoteAny, file, line));
}
__forceinline__ int __all_sync(unsigned mask, int predicate, EMULATOR_SITE) {
  return static_cast<int>(emulator_vote(mask, predicate, kVoteAll, file, line));
}

// ---- atomics
__forceinline__ float atomicAdd(float* p, float value, EMULATOR_SITE) {
  return emulator_atomic_f32(kAtomicAdd, p, value, file, line);
}
__forceinline__ double atomicAdd(double* p, double value, EMULATOR_SITE) {
  return emulator_atomic_f64(kAtomicAdd, p, value, file, line);
}
__forceinline__ int atomicAdd(int* p, int value, EMULATOR_SITE) {
  return emulator_atomic_s32(kAtomicAdd, p, value, 0, file, line);
}
__forceinline__ unsigned atomicAdd(unsigned* p, unsigned value, EMULATOR_SITE) {
  return emulator_atomic_u32(kAtomicAdd, p, value, 0, file, line);
}
__forceinline__ unsigned long long atomicAdd(unsigned long long* p, unsigned long long value, EMULATOR_SITE) {
  return emulator_atomic_u64(kAtomicAdd, reinterpret_cast<uint64_t*>(p), value, 0, file, line);
}
__forceinline__ int atomicMax(int* p, int value, EMULATOR_SITE) {
  return emulator_atomic_s32(kAtomicMax, p, value, 0, file, line);
}
__forceinline__ int atomicMin(int* p, int value, EMULATOR_SITE) {
  return emulator_atomic_s32(kAtomicMin, p, value, 0, file, line);
}

// ---- math: the C library's functions, with the overloads CUDA has
extern "C" {
float exp2f(float) noexcept;
float log2f(float) noexcept;
float expf(float) noexcept;
float logf(float) noexcept;
float tanhf(float) noexcept;
float log1pf(float) noexcept;
float sinf(float) noexcept;
float cosf(float) noexcept;
float powf(float, float) noexcept;
float fmodf(float, float) noexcept;
int ilogbf(float) noexcept;
double exp2(double) noexcept;
double log2(double) noexcept;
double exp(double) noexcept;
double log(double) noexcept;
double tanh(double) noexcept;
double log1p(double) noexcept;
double sin(double) noexcept;
double cos(double) noexcept;
double pow(double, double) noexcept;
double fmod(double, double) noexcept;
double ldexp(double, int) noexcept;
int ilogb(double) noexcept;
}
#define EMULATOR_MATH(name) \
  __forceinline__ float name(float x) { return name##f(x); }
EMULATOR_MATH(exp2)
EMULATOR_MATH(log2)
EMULATOR_MATH(exp)
EMULATOR_MATH(log)
EMULATOR_MATH(tanh)
#undef EMULATOR_MATH
__forceinline__ float sqrtf(float x) { return __builtin_sqrtf(x); }
__forceinline__ double sqrt(double x) { return __builtin_sqrt(x); }
__forceinline__ float sqrt(float x) { return __builtin_sqrtf(x); }
__forceinline__ float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
__forceinline__ double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
__forceinline__ float fabsf(float x) { return __builtin_fabsf(x); }
__forceinline__ double fabs(double x) { return __builtin_fabs(x); }
__forceinline__ float fabs(float x) { return __builtin_fabsf(x); }
__forceinline__ float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
__forceinline__ double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
__forceinline__ float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
// IEEE maximumNumber: a NaN argument loses. Written out, because libm's call would stop vectorisation.
__forceinline__ float fmaxf(float a, float b) { return a > b || b != b ? a : b; }
__forceinline__ float fminf(float a, float b) { return a < b || b != b ? a : b; }
__forceinline__ double fmax(double a, double b) { return a > b || b != b ? a : b; }
__forceinline__ double fmin(double a, double b) { return a < b || b != b ? a : b; }
__forceinline__ float floorf(float x) { return __builtin_floorf(x); }
__forceinline__ double floor(double x) { return __builtin_floor(x); }
__forceinline__ int ilogb(float x) { return ilogbf(x); }
__forceinline__ float rintf(float x) { return __builtin_rintf(x); }
__forceinline__ double trunc(double x) { return __builtin_trunc(x); }
__forceinline__ double rint(double x) { return __builtin_rint(x); }
__forceinline__ float ceilf(float x) { return __builtin_ceilf(x); }
__forceinline__ double ceil(double x) { return __builtin_ceil(x); }
__forceinline__ bool isinf(float x) { return __builtin_isinf(x); }
__forceinline__ bool isinf(double x) { return __builtin_isinf(x); }
__forceinline__ bool isnan(float x) { return x != x; }
__forceinline__ bool isnan(double x) { return x != x; }
__forceinline__ float __fdividef(float a, float b) { return a / b; }
__forceinline__ float __frcp_rn(float x) { return 1.0f / x; }

__forceinline__ float max(float a, float b) { return fmaxf(a, b); }
__forceinline__ float min(float a, float b) { return fminf(a, b); }
__forceinline__ double max(double a, double b) { return fmax(a, b); }
__forceinline__ double min(double a, double b) { return fmin(a, b); }
#define EMULATOR_MIN_MAX(type)                                       \
  __forceinline__ type max(type a, type b) { return a < b ? b : a; } \
  __forceinline__ type min(type a, type b) { return b < a ? b : a; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(unsigned long)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(unsigned long long)
#undef EMULATOR_MIN_MAX
__forceinline__ int abs(int x) { return x < 0 ? -x : x; }

// ---- bits
__forceinline__ float __int_as_float(int x) { return emulator::bit_cast<float>(x); }
__forceinline__ float __uint_as_float(unsigned x) { return emulator::bit_cast<float>(x); }
__forceinline__ int __float_as_int(float x) { return emulator::bit_cast<int>(x); }
__forceinline__ unsigned __float_as_uint(float x) { return emulator::bit_cast<unsigned>(x); }
__forceinline__ double __longlong_as_double(long long x) { return emulator::bit_cast<double>(x); }
__forceinline__ long long __double_as_longlong(double x) { return emulator::bit_cast<long long>(x); }
__forceinline__ int __popc(unsigned x) { return __builtin_popcount(x); }
__forceinline__ int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
__forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
template <class T>
__forceinline__ T __ldg(const T* p) {
  return *p;
}
