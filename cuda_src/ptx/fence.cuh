// Order between ordinary accesses to memory and those of the async proxy (TMA, bulk copies, wgmma): PTX ISA
// 9.7.13, fence.proxy (sm_90).
#pragma once
#include "platform.cuh"

namespace ptx {

// What this thread wrote to shared memory so far is seen by asynchronous operations that start later; those of
// other threads too, after a barrier on top.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace ptx
