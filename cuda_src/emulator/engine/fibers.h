// Fibers: stacks and the switch between them. The switch saves what a called function must preserve and
// nothing else (the compiler has saved the rest around the call): 2-3 ns, where swapcontext's signal mask
// costs a system call.
#pragma once
#include <sys/mman.h>

#include "types.h"

extern "C" void emulator_switch(void** save_stack_pointer, void* stack_pointer);

#if defined(__x86_64__)
__asm__(R"(
  .text
  .p2align 4
  .globl emulator_switch
  .hidden emulator_switch
  .type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulator_switch, . - emulator_switch
)");
#elif defined(__aarch64__)
__asm__(R"(
  .text
  .p2align 4
  .globl emulator_switch
  .hidden emulator_switch
  .type emulator_switch, %function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size emulator_switch, . - emulator_switch
)");
#else
#error "the emulator's fibers need x86-64 or aarch64"
#endif

namespace emulator {

constexpr size_t kGuardBytes = 4096;

inline uint8_t* map_guarded(size_t bytes) {
  void* base =
      mmap(nullptr, bytes + 2 * kGuardBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  uint8_t* memory = static_cast<uint8_t*>(base) + kGuardBytes;
  mprotect(memory, bytes, PROT_READ | PROT_WRITE);
  return memory;
}

inline void unmap_guarded(uint8_t* memory, size_t bytes) {
  if (memory) munmap(memory - kGuardBytes, bytes + 2 * kGuardBytes);
}

// Prepares a stack on which the first switch to the fiber enters `start`.
inline void prepare_fiber(Fiber& fiber, void (*start)()) {
  // Stacks that all begin at the same page offset would fight for the same L1 sets: shift each by a few
  // lines.
  uint8_t* top = fiber.stack + kStackBytes - fiber.thread * 832 % 24576;
  void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63});
#if defined(__x86_64__)
  *--sp = nullptr;  // the return address of `start`, which never returns; also what aligns its frame
  *--sp = reinterpret_cast<void*>(start);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
#else
  sp -= 20;
  memset(sp, 0, 160);
  sp[11] = reinterpret_cast<void*>(start);
#endif
  fiber.stack_pointer = sp;
}

}  // namespace emulator
