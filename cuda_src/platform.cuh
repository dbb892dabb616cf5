// What differs between NVRTC and the emulator: fixed-width types and the block's dynamic shared memory.
// The emulator puts its own platform.cuh first on the include path: kernels include this name either way.
#pragma once

// NVRTC ships no <cstdint>.
using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;

constexpr int kWarpSize = 32;

// The block's dynamic shared memory as one T: the only `extern __shared__` of the project.
// 1024-byte alignment is what a 128-byte swizzled tile needs; the base has it anyway.
template <class T> __device__ __forceinline__ T& shared_storage() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  static_assert(alignof(T) <= 1024, "shared memory is 1024-byte aligned");
  return *reinterpret_cast<T*>(dynamic_shared_memory);
}
