// Host version of cuda_src/ptx/memory.cuh. Instrumented kernels let the engine check and count the access;
// the others just copy (memcpy: a misaligned address must not crash the host), so the compiler keeps its
// freedom in inner loops.
#pragma once
#include "platform.cuh"

namespace ptx {

template <class T, int kCount>
struct __align__(sizeof(T) * kCount) Vec {
  static_assert(sizeof(T) * kCount <= 16, "a thread moves at most 16 bytes in one access");
  T data[kCount];

  __forceinline__ T& operator[](int i) { return data[i]; }
  __forceinline__ const T& operator[](int i) const { return data[i]; }
};

namespace detail {
template <int kCount, class T>
__forceinline__ Vec<T, kCount> load(const T* src, const char* file, int line) {
  Vec<T, kCount> value;
#ifdef EMULATOR_INSTRUMENTED
  const EmulatorVector loaded = emulator_load(src, sizeof(value), file, line);
  __builtin_memcpy(&value, &loaded, sizeof(value));
#else
  __builtin_memcpy(&value, src, sizeof(value));
#endif
  return value;
}
template <class T, int kCount>
__forceinline__ void store(T* dst, const Vec<T, kCount>& value, const char* file, int line) {
#ifdef EMULATOR_INSTRUMENTED
  EmulatorVector stored{};
  __builtin_memcpy(&stored, &value, sizeof(value));
  emulator_store(dst, stored, sizeof(value), file, line);
#else
  __builtin_memcpy(dst, &value, sizeof(value));
#endif
}
}  // namespace detail

template <int kCount, class T>
__forceinline__ Vec<T, kCount> load_global(const T* src, EMULATOR_SITE) {
  return detail::load<kCount>(src, file, line);
}
template <class T, int kCount>
__forceinline__ void store_global(T* dst, const Vec<T, kCount>& value, EMULATOR_SITE) {
  detail::store(dst, value, file, line);
}
template <int kCount, class T>
__forceinline__ Vec<T, kCount> load_shared(const T* src, EMULATOR_SITE) {
  return detail::load<kCount>(src, file, line);
}
template <class T, int kCount>
__forceinline__ void store_shared(T* dst, const Vec<T, kCount>& value, EMULATOR_SITE) {
  detail::store(dst, value, file, line);
}

}  // namespace ptx
