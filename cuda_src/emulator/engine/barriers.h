// Block barriers. A thread that syncs releases its past and acquires everyone's; one that only arrives
// releases its own, up to there.
#pragma once
#include "machine.h"

namespace emulator {

inline void check_barrier(Machine& m, int id, int threads, const Barrier& barrier, Site at) {
  if (id < 0 || id >= kBarriers)
    m.fail("barrier", format("barrier %d at {0}: there are barriers 0 to %d", id, kBarriers - 1), at);
  if (threads <= 0 || threads > m.threads || (threads % kWarpSize && threads != m.threads))
    m.fail("barrier",
           format("barrier %d at {0} for %d threads: the block has %d, and a barrier counts whole warps", id,
                  threads, m.threads),
           at);
  if (!barrier.count() || (barrier.expected == threads && (id || barrier.first_site == at))) return;
  const SiteId here = m.named_site(at);
  const SiteId there = m.named_site(barrier.first_site);
  const int other = (barrier.syncing.empty() ? barrier.arrived : barrier.syncing).front()->thread;
  if (barrier.expected != threads)
    m.fail({"barrier",
            format("barrier %d at {0} for %d threads meets the same barrier at {1} for %d threads", id,
                   threads, barrier.expected),
            {other, m.current->thread},
            {here, there}});
  m.fail(
      {"barrier_divergence",
       format("thread %d is in __syncthreads at {0}, thread %d in another at {1}", m.current->thread, other),
       {other, m.current->thread},
       {here, there}});
}

inline void complete_barrier(Machine& m, Barrier& barrier) {
  ++m.counters.barriers;
  std::vector<Fiber*> all = barrier.syncing;
  all.insert(all.end(), barrier.arrived.begin(), barrier.arrived.end());
  if (m.checking) m.synchronise(barrier.syncing, barrier.released);
  if (m.counting)
    for (Fiber* fiber : all)
      if (fiber->thread % kWarpSize == 0) m.bank_conflicts.flush(fiber->thread / kWarpSize);
  for (Fiber* fiber : barrier.syncing)
    if (fiber != m.current) m.ready.push(fiber);
  barrier.syncing.clear();
  barrier.arrived.clear();
}

inline Barrier& join_barrier(Machine& m, int id, int& threads, Site at) {
  if (!threads) threads = m.threads;
  Barrier& barrier = m.barriers[id & (kBarriers - 1)];
  check_barrier(m, id, threads, barrier, at);
  if (!barrier.count()) {
    barrier.expected = threads;
    barrier.first_site = at;
    barrier.reduce_or = false;
    barrier.reduce_and = true;
    barrier.reduce_count = 0;
  }
  return barrier;
}

inline void sync(Machine& m, Barrier& barrier, int id, Site at) {
  barrier.syncing.push_back(m.current);
  if (barrier.count() == barrier.expected)
    complete_barrier(m, barrier);
  else
    m.wait(State::kAtBarrier, id ? "barrier" : "", id, at);
}

}  // namespace emulator

extern "C" {

void emulator_barrier_sync(int id, int threads, const char* file, int line) {
  emulator::Machine& m = *emulator::machine;
  emulator::sync(m, emulator::join_barrier(m, id, threads, EMULATOR_HERE), id, EMULATOR_HERE);
}

void emulator_barrier_arrive(int id, int threads, const char* file, int line) {
  emulator::Machine& m = *emulator::machine;
  emulator::Barrier& barrier = emulator::join_barrier(m, id, threads, EMULATOR_HERE);
  barrier.arrived.push_back(m.current);
  if (m.checking) m.clocks.release(m.current->thread, barrier.released);
  if (barrier.count() == threads) emulator::complete_barrier(m, barrier);
}

// The last to come writes the result: it cannot be overwritten before all have read it and come to the
// barrier again.
int emulator_barrier_reduce(int id, int threads, int reduce, int predicate, const char* file, int line) {
  emulator::Machine& m = *emulator::machine;
  emulator::Barrier& barrier = emulator::join_barrier(m, id, threads, EMULATOR_HERE);
  barrier.reduce_or |= predicate != 0;
  barrier.reduce_and &= predicate != 0;
  barrier.reduce_count += predicate != 0;
  if (barrier.count() + 1 == threads)
    barrier.result = reduce == kReduceOr    ? barrier.reduce_or
                     : reduce == kReduceAnd ? barrier.reduce_and
                                            : barrier.reduce_count;
  emulator::sync(m, barrier, id, EMULATOR_HERE);
  return barrier.result;
}
}
