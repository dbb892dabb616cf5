// What kernels compiled with -fsanitize=thread,undefined call. Neither sanitizer runtime is linked: these are
// the functions, and each access or undefined operation comes to this engine with its place in the source.
#pragma once
#include "memory.h"

namespace emulator {

inline void hook(const void* p, uint32_t bytes, Access kind, void* return_address, bool aligned) {
  Machine& m = *machine;
  if (!m.current) return;
  const SiteId site = static_cast<SiteId>(m.instruction_before(return_address));
  m.access(p, bytes, kind, site, aligned);
  m.spend(1, site);
  const uint32_t preempt = m.launch->preempt;
  if (preempt && m.random.below(preempt) == 0) m.yield();
}

inline void hook_range(const void* p, uint64_t bytes, Access kind, void* return_address) {
  const uint8_t* at = static_cast<const uint8_t*>(p);
  for (const uint8_t* end = at + bytes; at < end;) {
    const uint64_t left = static_cast<uint64_t>(end - at), address = reinterpret_cast<uintptr_t>(at);
    const uint32_t step = left >= 4 && address % 4 == 0 ? 4 : left >= 2 && address % 2 == 0 ? 2 : 1;
    hook(at, step, kind, return_address, true);
    at += step;
  }
}

// All of UBSan's data begin with the source location.
struct UbsanLocation {
  const char* file;
  uint32_t line, column;
};

[[noreturn]] inline void undefined_behaviour(const char* what, const void* data, const void* return_address) {
  const auto* at = static_cast<const UbsanLocation*>(data);
  machine->fail("undefined", format("undefined behaviour at {0}: %s", what),
                {at->file, static_cast<int>(at->line), return_address});
}

}  // namespace emulator

#define EMULATOR_HOOK(name, bytes, kind, aligned)                                           \
  void name(void* p) {                                                                      \
    emulator::hook(p, bytes, emulator::Access::kind, __builtin_return_address(0), aligned); \
  }
#define EMULATOR_HOOKS(bytes)                                      \
  EMULATOR_HOOK(__tsan_read##bytes, bytes, kRead, true)            \
  EMULATOR_HOOK(__tsan_write##bytes, bytes, kWrite, true)          \
  EMULATOR_HOOK(__tsan_volatile_read##bytes, bytes, kRead, true)   \
  EMULATOR_HOOK(__tsan_volatile_write##bytes, bytes, kWrite, true) \
  EMULATOR_HOOK(__tsan_unaligned_read##bytes, bytes, kRead, false) \
  EMULATOR_HOOK(__tsan_unaligned_write##bytes, bytes, kWrite, false)
#define EMULATOR_RANGE(name, kind)                                                       \
  void name(void* p, uint64_t bytes) {                                                   \
    emulator::hook_range(p, bytes, emulator::Access::kind, __builtin_return_address(0)); \
  }
#define EMULATOR_UNDEFINED(what) \
  emulator::undefined_behaviour(what, data, __builtin_return_address(0))
#define EMULATOR_UBSAN(name, what)                                             \
  void __ubsan_handle_##name##_abort(void* data) { EMULATOR_UNDEFINED(what); } \
  void __ubsan_handle_##name(void* data) { EMULATOR_UNDEFINED(what); }

extern "C" {
EMULATOR_HOOKS(1)
EMULATOR_HOOKS(2)
EMULATOR_HOOKS(4)
EMULATOR_HOOKS(8)
EMULATOR_HOOKS(16)
EMULATOR_RANGE(__tsan_read_range, kRead)
EMULATOR_RANGE(__tsan_write_range, kWrite)
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}

// clang's names for copies and fills.
void* __tsan_memcpy(void* to, const void* from, uint64_t bytes) {
  emulator::hook_range(from, bytes, emulator::Access::kRead, __builtin_return_address(0));
  emulator::hook_range(to, bytes, emulator::Access::kWrite, __builtin_return_address(0));
  return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, uint64_t bytes) {
  emulator::hook_range(from, bytes, emulator::Access::kRead, __builtin_return_address(0));
  emulator::hook_range(to, bytes, emulator::Access::kWrite, __builtin_return_address(0));
  return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, uint64_t bytes) {
  emulator::hook_range(to, bytes, emulator::Access::kWrite, __builtin_return_address(0));
  return memset(to, value, bytes);
}

EMULATOR_UBSAN(out_of_bounds, "array index out of bounds")
EMULATOR_UBSAN(shift_out_of_bounds, "shift out of range")
EMULATOR_UBSAN(add_overflow, "signed addition overflows")
EMULATOR_UBSAN(sub_overflow, "signed subtraction overflows")
EMULATOR_UBSAN(mul_overflow, "signed multiplication overflows")
EMULATOR_UBSAN(negate_overflow, "signed negation overflows")
EMULATOR_UBSAN(divrem_overflow, "division by zero or overflow")
EMULATOR_UBSAN(pointer_overflow, "pointer arithmetic overflows")
EMULATOR_UBSAN(load_invalid_value, "bool or enum with an invalid value")
EMULATOR_UBSAN(type_mismatch_v1, "null or misaligned pointer")
EMULATOR_UBSAN(float_cast_overflow, "float does not fit the integer")
EMULATOR_UBSAN(invalid_builtin, "clz or ctz of zero")
EMULATOR_UBSAN(vla_bound_not_positive, "array bound is not positive")
EMULATOR_UBSAN(nonnull_arg, "null argument")
EMULATOR_UBSAN(alignment_assumption, "broken alignment assumption")
void __ubsan_handle_builtin_unreachable(void* data) { EMULATOR_UNDEFINED("unreachable code"); }
void __ubsan_handle_missing_return(void* data) { EMULATOR_UNDEFINED("no value returned"); }
}

#undef EMULATOR_HOOK
#undef EMULATOR_HOOKS
#undef EMULATOR_RANGE
#undef EMULATOR_UBSAN
#undef EMULATOR_UNDEFINED
