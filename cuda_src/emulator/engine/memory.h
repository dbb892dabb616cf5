// Every access that is checked or counted comes through Machine::access: from the instrumentation the
// compiler inserts (hooks.h) and from calls that move data themselves.
#pragma once
#include <dlfcn.h>
#include <link.h>

#include "machine.h"

namespace emulator {

inline void Machine::synchronise(const std::vector<Fiber*>& waiting, std::vector<uint32_t>& released) {
  waiting_threads.clear();
  for (const Fiber* fiber : waiting) waiting_threads.push_back(fiber->thread);
  clocks.synchronise(waiting_threads, released);
  released.clear();
}

inline void Machine::shared_access(Fiber& fiber, size_t offset, uint32_t bytes, Access kind, SiteId id) {
  if (checking) {
    Finding finding;
    if (!shared_shadow.access(clocks, fiber.thread, offset, bytes, kind, id, &finding))
      fail(std::move(finding));
  } else if (offset + bytes > launch->shared_bytes) {
    fail({"out_of_bounds",
          format("access of %u bytes at shared+%zu, but the block has %llu bytes of shared memory, at {0}",
                 bytes, offset, static_cast<unsigned long long>(launch->shared_bytes)),
          {fiber.thread},
          {id}});
  }
}

inline bool Machine::in_module(uint64_t address, uint32_t bytes) const {
  for (const auto& [begin, end] : module_ranges)
    if (address >= begin && address + bytes <= end) return true;
  return false;
}

// Of the call that returns there, as an offset in the kernel's library.
inline uint64_t Machine::instruction_before(const void* return_address) const {
  return reinterpret_cast<uintptr_t>(return_address) - 1 - module_base;
}

inline void Machine::access(const void* p, uint32_t bytes, Access kind, SiteId id, bool aligned) {
  const uint64_t address = reinterpret_cast<uintptr_t>(p);
  Fiber& fiber = *current;
  if (address - reinterpret_cast<uintptr_t>(fiber.stack) < kStackBytes) return;
  const uint64_t offset = address - reinterpret_cast<uintptr_t>(shared);
  const bool in_shared = offset < kMaxShared;
  if (!in_shared && !global.contains(address, bytes)) {
    if (kind == Access::kRead && in_module(address, bytes)) return;
    fail(global.out_of_bounds(address, bytes, kind, fiber.thread, id));
  }
  if (aligned && address % bytes)
    fail({"misaligned",
          format("access of %u bytes at %s, not a multiple of its size, at {0}", bytes,
                 in_shared ? format("shared+%llu", static_cast<unsigned long long>(offset)).c_str()
                           : global.place(address).c_str()),
          {fiber.thread},
          {id}});
  if (in_shared) {
    shared_access(fiber, offset, bytes, kind, id);
    if (counting && kind != Access::kAtomic &&
        bank_conflicts.access(fiber.thread, static_cast<uint32_t>(offset), bytes, id))
      yield();
    return;
  }
  if (counting) global.count(address, bytes, kind);
  Finding finding;
  if (checking && !global.check(clocks, block_number, fiber.thread, address, bytes, kind, id, &finding))
    fail(std::move(finding));
}

// The kernel's own library: its constants may be read, and instruction addresses are reported relative to it.
inline void Machine::map_module(const EmulatorLaunch& l) {
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(l.entry), &info);
  module_base = reinterpret_cast<uintptr_t>(info.dli_fbase);
  module_ranges.clear();
  const auto params = reinterpret_cast<uintptr_t>(l.params);
  module_ranges.emplace_back(params, params + l.params_bytes);
  dl_iterate_phdr(
      [](dl_phdr_info* object, size_t, void* self) {
        Machine& m = *static_cast<Machine*>(self);
        if (object->dlpi_addr != m.module_base) return 0;
        for (int i = 0; i < object->dlpi_phnum; ++i) {
          const auto& segment = object->dlpi_phdr[i];
          if (segment.p_type != PT_LOAD) continue;
          const uint64_t begin = object->dlpi_addr + segment.p_vaddr;
          m.module_ranges.emplace_back(begin, begin + segment.p_memsz);
        }
        return 1;
      },
      this);
}

template <class T, class Apply>
inline T atomic(T* p, Apply apply, const Site& at) {
  Machine& m = *machine;
  ++m.counters.atomics;
  const SiteId site = m.named_site(at);
  if (m.checking || m.counting) m.access(p, sizeof(T), Access::kAtomic, site);
  constexpr uint64_t kWork = 4096;  // atomics are what threads spin on
  m.spend(kWork, site);
  const T old = *p;
  *p = apply(old);
  return old;
}

template <class T>
inline T apply_float(int operation, T old, T value) {
  switch (operation) {
    case kAtomicAdd:
      return old + value;
    case kAtomicMin:
      return value < old ? value : old;
    case kAtomicMax:
      return value > old ? value : old;
    default:
      return value;
  }
}

template <class T>
inline T apply_integer(int operation, T old, T value, T compare) {
  using Unsigned = std::make_unsigned_t<T>;
  switch (operation) {
    case kAtomicAdd:
      return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(value));
    case kAtomicMin:
      return std::min(old, value);
    case kAtomicMax:
      return std::max(old, value);
    case kAtomicAnd:
      return old & value;
    case kAtomicOr:
      return old | value;
    case kAtomicXor:
      return old ^ value;
    case kAtomicCas:
      return old == compare ? value : old;
    default:
      return value;
  }
}

}  // namespace emulator

extern "C" {

uint32_t emulator_shared_address(const void* pointer, const char* file, int line) {
  emulator::Machine& m = *emulator::machine;
  const size_t offset = static_cast<size_t>(static_cast<const uint8_t*>(pointer) - m.shared);
  if (offset > m.launch->shared_bytes)
    m.fail("out_of_bounds",
           "the pointer whose shared address is taken at {0} does not point into shared memory",
           EMULATOR_HERE);
  return static_cast<uint32_t>(offset);
}

EmulatorVector emulator_load(const void* memory, uint32_t bytes, const char* file, int line) {
  emulator::Machine& m = *emulator::machine;
  if (m.checking || m.counting) m.access(memory, bytes, emulator::Access::kRead, m.named_site(EMULATOR_HERE));
  EmulatorVector value{};
  memcpy(&value, memory, bytes);
  return value;
}

void emulator_store(void* memory, EmulatorVector value, uint32_t bytes, const char* file, int line) {
  emulator::Machine& m = *emulator::machine;
  if (m.checking || m.counting) m.access(memory, bytes, emulator::Access::kWrite, m.named_site(EMULATOR_HERE));
  memcpy(memory, &value, bytes);
}

#define EMULATOR_FLOAT_ATOMIC(suffix, type)                                                       \
  type emulator_atomic_##suffix(int operation, type* p, type value, const char* file, int line) { \
    return emulator::atomic(                                                                      \
        p, [&](type old) { return emulator::apply_float(operation, old, value); }, EMULATOR_HERE);   \
  }
#define EMULATOR_INTEGER_ATOMIC(suffix, type)                                                              \
  type emulator_atomic_##suffix(int operation, type* p, type value, type compare, const char* file,        \
                                int line) {                                                                \
    return emulator::atomic(                                                                               \
        p, [&](type old) { return emulator::apply_integer(operation, old, value, compare); }, EMULATOR_HERE); \
  }
EMULATOR_FLOAT_ATOMIC(f32, float)
EMULATOR_FLOAT_ATOMIC(f64, double)
EMULATOR_INTEGER_ATOMIC(u32, uint32_t)
EMULATOR_INTEGER_ATOMIC(s32, int32_t)
EMULATOR_INTEGER_ATOMIC(u64, uint64_t)
EMULATOR_INTEGER_ATOMIC(s64, int64_t)
#undef EMULATOR_FLOAT_ATOMIC
#undef EMULATOR_INTEGER_ATOMIC

void emulator_add_f32x2(float* p, float x, float y, const char* file, int line) {
  if (reinterpret_cast<uintptr_t>(p) % 8)
    emulator::machine->fail("misaligned", "addition to two floats at {0}: the address is no multiple of 8",
                            EMULATOR_HERE);
  emulator::atomic(p, [x](float old) { return old + x; }, EMULATOR_HERE);
  emulator::atomic(p + 1, [y](float old) { return old + y; }, EMULATOR_HERE);
}

void emulator_trap(const char* message, const char* file, int line) {
  emulator::machine->fail("trap", emulator::format("%s at {0}", message), EMULATOR_HERE);
}
}
