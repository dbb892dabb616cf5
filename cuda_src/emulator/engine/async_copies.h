// cp.async. The destination is poisoned when the copy is issued and the data land at the wait: as late as the
// hardware may. With a random schedule some land earlier, at any time; the checker lets nobody touch the
// destination either way.
#pragma once
#include "machine.h"

namespace emulator {

inline void Machine::land(Fiber& fiber, AsyncCopy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  memcpy(shared + copy.destination, copy.source, copy.source_bytes);
  memset(shared + copy.destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
  (void)fiber;
}

inline void Machine::land_one_early() {
  Fiber& fiber = *fibers[random.below(static_cast<uint32_t>(threads))];
  for (std::vector<AsyncCopy>& group : fiber.copy_groups)
    for (AsyncCopy& copy : group)
      if (!copy.landed) return land(fiber, copy);
}

inline void complete_copies(Machine& m, Fiber& fiber, std::vector<AsyncCopy>& group) {
  for (AsyncCopy& copy : group) {
    m.land(fiber, copy);
    if (m.checking) m.shared_shadow.end_copy(m.clocks, fiber.thread, copy.destination, copy.bytes);
  }
  m.copies_in_flight -= static_cast<int>(group.size());
  group.clear();
}

inline void check_copy(Machine& m, uint32_t destination, const void* source, int bytes, int source_bytes,
                       Site at) {
  const bool known = bytes == 4 || bytes == 8 || bytes == 16;
  if (!known || source_bytes < 0 || source_bytes > bytes)
    m.fail("async_copy",
           format("cp.async at {0} of %d of %d bytes: sizes are 4, 8 and 16", source_bytes, bytes), at);
  const uint32_t unit = static_cast<uint32_t>(bytes);
  if (destination % unit)
    m.fail("misaligned", format("cp.async at {0} to shared+%u, not a multiple of %d", destination, bytes),
           at);
  if (source_bytes && reinterpret_cast<uintptr_t>(source) % unit)
    m.fail("misaligned",
           format("cp.async at {0} from %s, not a multiple of %d",
                  m.global.place(reinterpret_cast<uintptr_t>(source)).c_str(), bytes),
           at);
}

}  // namespace emulator

extern "C" {

void emulator_cp_async(uint32_t shared_address, const void* source, int bytes, int source_bytes,
                       const char* file, int line) {
  emulator::Machine& m = *emulator::machine;
  emulator::check_copy(m, shared_address, source, bytes, source_bytes, EMULATOR_HERE);
  const emulator::SiteId site = m.named_site(EMULATOR_HERE);
  const uint32_t size = static_cast<uint32_t>(bytes);
  ++m.counters.cp_async;
  ++m.copies_in_flight;
  m.shared_access(*m.current, shared_address, size, emulator::Access::kWrite, site);
  if (source_bytes && (m.checking || m.counting))
    m.access(source, static_cast<uint32_t>(source_bytes), emulator::Access::kRead, site, false);
  if (m.checking) m.shared_shadow.begin_copy(shared_address, size);
  memset(m.shared + shared_address, 0xff, size);
  m.current->open_copies.push_back(
      {shared_address, source, static_cast<uint8_t>(bytes), static_cast<uint8_t>(source_bytes), false, site});
}

void emulator_cp_async_commit() {
  emulator::Fiber& fiber = *emulator::machine->current;
  fiber.copy_groups.emplace_back();
  fiber.copy_groups.back().swap(fiber.open_copies);
}

void emulator_cp_async_wait(int pending_groups) {
  emulator::Machine& m = *emulator::machine;
  emulator::Fiber& fiber = *m.current;
  if (pending_groups < 0) {
    emulator_cp_async_commit();
    pending_groups = 0;
  }
  auto& groups = fiber.copy_groups;
  const size_t keep = std::min(groups.size(), static_cast<size_t>(pending_groups));
  const auto end = groups.end() - static_cast<std::ptrdiff_t>(keep);
  for (auto group = groups.begin(); group != end; ++group) emulator::complete_copies(m, fiber, *group);
  groups.erase(groups.begin(), end);
  if (m.checking) m.clocks.tick(fiber.thread);
}
}
