// One launch on this OS thread's machine.
#pragma once
#include <numeric>

#include "machine.h"

namespace emulator {

thread_local Machine* machine __attribute__((tls_model("initial-exec"))) = nullptr;

inline Machine::Machine() : shared(map_guarded(kMaxShared)) {}

inline Machine::~Machine() {
  unmap_guarded(shared, kMaxShared);
  for (const auto& fiber : fibers) unmap_guarded(fiber->stack, kStackBytes);
}

inline void Machine::run(const EmulatorLaunch& l, EmulatorResult* result) {
  launch = &l;
  threads = static_cast<int>(l.block[0] * l.block[1] * l.block[2]);
  checking = l.check;
  counting = l.count;
  random = Random(l.seed);
  counters = {};
  conflicts.clear();
  named_sites.clear();
  memset(site_cache, 0, sizeof site_cache);
  failed = false;
  failure = {};
  global.reset(l.buffers, l.buffer_count);
  if (counting) bank_conflicts.reset(threads);
  map_module(l);
  while (static_cast<int>(fibers.size()) < threads) {
    fibers.emplace_back(new Fiber());
    fibers.back()->stack = map_guarded(kStackBytes);
  }

  std::vector<uint32_t> blocks(size_t{l.grid[0]} * l.grid[1] * l.grid[2]);
  std::iota(blocks.begin(), blocks.end(), 0u);
  if (l.random_order)
    for (size_t i = blocks.size(); i > 1; --i)
      std::swap(blocks[i - 1], blocks[random.below(static_cast<uint32_t>(i))]);
  for (size_t i = 0; i < blocks.size() && !failed; ++i) run_block(blocks[i]);
  current = nullptr;

  *result = counters;
  result->bytes = global.bytes.data();
  if (counting) {
    conflicts = bank_conflicts.sites();
    for (EmulatorConflict& c : conflicts) {
      c.site = site(static_cast<SiteId>(c.site.offset));
      result->bank_conflicts += c.wavefronts;
      result->shared_accesses += c.instructions;
    }
  }
  result->conflicts = conflicts.data();
  result->conflict_count = conflicts.size();
  if (!failed) return;
  result->kind = failure.kind;
  result->message = failure.text.c_str();
  result->site_count = std::min(failure.sites.size(), std::size(result->sites));
  for (size_t i = 0; i < result->site_count; ++i) result->sites[i] = site(failure.sites[i]);
  result->threads = failure.threads.data();
  result->thread_count = failure.threads.size();
  memcpy(result->block, block_index, sizeof block_index);
}

}  // namespace emulator

extern "C" __attribute__((visibility("default"))) void emulator_run(const EmulatorLaunch* launch,
                                                                    EmulatorResult* result) {
  static thread_local std::unique_ptr<emulator::Machine> own;
  if (!own) own.reset(new emulator::Machine());
  emulator::machine = own.get();
  own->run(*launch, result);
}
