// Tiles moved between global and shared memory by the tensor memory accelerator, started by one thread: PTX ISA
// 9.7.9, cp.async.bulk.tensor, cp.async.bulk, cp.reduce.async.bulk, prefetch.tensormap (sm_90).
// x0 is the coordinate of the box's first element along the innermost dimension; coordinates may be negative or
// beyond the tensor. A load writes zeros for elements outside it and counts their bytes; a store drops them.
// Seen on an H200: loads at negative starts answer so. It refused, as an illegal instruction, a series of loads in
// which one x0 was no multiple of 16 bytes and one box lay wholly outside along x1, and each series of stores, all
// with a negative start; tests/golden/hopper.py has a primitive for each kind, which will tell them apart.
// In shared memory a box lies densely, innermost dimension first, 128-byte aligned. With 128-byte swizzle its rows
// are 128 bytes and 16-byte chunk c of row r lies in place c ^ r % 8: bits 4-6 of the address ^= bits 7-9, so the
// tile starts at a multiple of 1024.
// Loads complete on an mbarrier, which must expect their bytes. Stores read shared memory after a
// fence_proxy_async of its writers, and complete in bulk groups.
#pragma once
#include "platform.cuh"

namespace ptx {

// What cuTensorMapEncodeTiled fills in. A field of the kernel's __grid_constant__ parameters.
struct __align__(64) TensorMap {
  uint64_t opaque[16];
};

__device__ __forceinline__ void tma_prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

__device__ __forceinline__ void tma_load_2d(uint32_t dst, const TensorMap& map, uint32_t barrier, int x0, int x1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(dst), "l"(&map), "r"(barrier), "r"(x0), "r"(x1)
      : "memory");
}

__device__ __forceinline__ void tma_load_3d(uint32_t dst, const TensorMap& map, uint32_t barrier, int x0, int x1,
                                            int x2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(dst),
      "l"(&map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2)
      : "memory");
}

__device__ __forceinline__ void tma_load_4d(uint32_t dst, const TensorMap& map, uint32_t barrier, int x0, int x1,
                                            int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(dst),
      "l"(&map), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}

__device__ __forceinline__ void tma_store_2d(const TensorMap& map, uint32_t src, int x0, int x1) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(src),
               "r"(x0), "r"(x1)
               : "memory");
}

__device__ __forceinline__ void tma_store_3d(const TensorMap& map, uint32_t src, int x0, int x1, int x2) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(src), "r"(x0), "r"(x1), "r"(x2)
               : "memory");
}

__device__ __forceinline__ void tma_store_4d(const TensorMap& map, uint32_t src, int x0, int x1, int x2, int x3) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(src), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
               : "memory");
}

// `bytes` contiguous bytes, a multiple of 16, both addresses 16-byte aligned.
__device__ __forceinline__ void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
               "l"(__cvta_generic_to_global(src)), "r"(bytes), "r"(barrier)
               : "memory");
}

// Adds contiguous float32 values to global memory, each atomically; sizes and addresses as in bulk_load.
__device__ __forceinline__ void bulk_add_f32(float* dst, uint32_t src, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                   __cvta_generic_to_global(dst)),
               "r"(src), "r"(bytes)
               : "memory");
}

// Closes the thread's current group of stores.
__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until at most the kPending most recent groups of the thread are in flight.
template <int kPending> __device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

// As bulk_wait, but only until their shared memory has been read and may be written again.
template <int kPending> __device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

}  // namespace ptx
