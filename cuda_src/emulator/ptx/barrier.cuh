// Host version of cuda_src/ptx/barrier.cuh.
#pragma once
#include "platform.cuh"

namespace ptx {

__forceinline__ void barrier_sync(int id, int threads, EMULATOR_SITE) {
  emulator_barrier_sync(id, threads, file, line);
}
__forceinline__ void barrier_arrive(int id, int threads, EMULATOR_SITE) {
  emulator_barrier_arrive(id, threads, file, line);
}

}  // namespace ptx
