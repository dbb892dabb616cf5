// Vector loads and stores: PTX ISA 9.7.9, ld / st with .v2 and .v4.
// A pointer must be aligned to the whole vector (2, 4, 8 or 16 bytes).
#pragma once
#include "platform.cuh"

namespace ptx {

template <class T, int kCount> struct __align__(sizeof(T) * kCount) Vec {
  static_assert(sizeof(T) * kCount <= 16, "a thread moves at most 16 bytes in one access");
  T data[kCount];

  __device__ __forceinline__ T& operator[](int i) { return data[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return data[i]; }
};

template <int kCount, class T> __device__ __forceinline__ Vec<T, kCount> load_global(const T* src) {
  return *reinterpret_cast<const Vec<T, kCount>*>(src);
}

template <class T, int kCount>
__device__ __forceinline__ void store_global(T* dst, const Vec<T, kCount>& value) {
  *reinterpret_cast<Vec<T, kCount>*>(dst) = value;
}

template <int kCount, class T> __device__ __forceinline__ Vec<T, kCount> load_shared(const T* src) {
  return *reinterpret_cast<const Vec<T, kCount>*>(src);
}

template <class T, int kCount>
__device__ __forceinline__ void store_shared(T* dst, const Vec<T, kCount>& value) {
  *reinterpret_cast<Vec<T, kCount>*>(dst) = value;
}

}  // namespace ptx
