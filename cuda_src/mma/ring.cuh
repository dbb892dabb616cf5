// A ring of kStages slots in shared memory that copies fill ahead of their use.
#pragma once
#include "mma/tile.cuh"
#include "ptx/barrier.cuh"

// Warps of a block that have nothing to compute meet the others from another place in the code.
__device__ __forceinline__ void meet() { ptx::barrier_sync(1, kThreads); }

constexpr int kAhead = kStages > 1 || kAsyncCopy ? kStages - 1 : 1;  // steps that are copied before the first is read

// start(slot) begins the copies of the next step into a slot; where they are not asynchronous, finish(slot) ends those
// that were begun last.
struct Ring {
  int slot = kStages - 1;  // of the step that was read last

  // Copy the first of so many steps; their slots are numbered like them.
  template <class Start, class Finish>
  __device__ __forceinline__ void fill(int steps, Start&& start, Finish&& finish) const {
#pragma unroll
    for (int step = 0; step < kAhead; ++step) {
      if (step < steps) {
        start(step);
        if (!kAsyncCopy && step + 1 < kAhead) finish(step);
      }
      if (kAsyncCopy) ptx::cp_async_commit();
    }
  }

  // Wait until what the next step reads is there, which is one of `left`. The readers of the slot before have arrived
  // then, and it is filled again; a single slot at once, and waited for again.
  template <class Start, class Finish>
  __device__ __forceinline__ void arrive(int left, Start&& start, Finish&& finish) {
    if (kStages == 1) meet();
    if (kStages == 1 && kAsyncCopy) {
      start(slot);
      ptx::cp_async_wait_all();
    } else if (kAsyncCopy) {
      ptx::cp_async_wait<(kStages > 1 ? kStages - 2 : 0)>();
    } else if (left >= kAhead) {
      finish(slot == 0 ? kStages - 1 : slot - 1);
    }
    meet();
    if ((kStages > 1 || !kAsyncCopy) && left > kAhead) start(slot);
    if (kStages > 1 && kAsyncCopy) ptx::cp_async_commit();
    slot = slot + 1 == kStages ? 0 : slot + 1;
  }
};
