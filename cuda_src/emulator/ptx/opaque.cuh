// Host version of cuda_src/ptx/opaque.cuh.
#pragma once
#include "platform.cuh"

namespace ptx {

inline uint32_t opaque(uint32_t value) { return value; }
template <class T>
inline T* opaque(T* value) {
  return value;
}

}  // namespace ptx
