// Which fiber runs: in the order they became ready, or in an order drawn from the seed.
#pragma once
#include "machine.h"

namespace emulator {

inline void Machine::switch_to(Fiber* next) {
  void** save = current ? &current->stack_pointer : &main_stack_pointer;
  current = next;
  work_since_switch = 0;
  ++counters.switches;
  emulator_switch(save, next ? next->stack_pointer : main_stack_pointer);
}

inline void Machine::run_next() {
  if (launch->random_order) {
    if (copies_in_flight && random.below(8) == 0) land_one_early();
    if (ready.size() > 1) ready.bring_to_front(random.below(ready.size()));
  }
  if (ready.empty()) {
    if (live) report_deadlock();
    switch_to(nullptr);
    return;
  }
  Fiber* next = ready.pop();
  next->state = State::kRunning;
  if (next != current) switch_to(next);
}

inline void Machine::yield() {
  work_since_switch = 0;
  if (ready.empty()) return;
  ready.push(current);
  run_next();
}

// A thread that does much without ever waiting may be spinning for another one: it lets others run. When all
// do nothing else for long, they spin for something that will not happen.
inline void Machine::spend(uint64_t work, SiteId at) {
  constexpr uint64_t kYieldAfter = uint64_t{1} << 22;
  constexpr uint32_t kGiveUpAfter = 1u << 14;
  work_since_switch += work;
  if (work_since_switch < kYieldAfter) return;
  if (++fruitless_yields > kGiveUpAfter)
    fail({"deadlock", "no thread makes progress: they spin, one of them at {0}", {current->thread}, {at}});
  yield();
}

inline void Machine::wait(State state, const char* what, int id, Site at) {
  fruitless_yields = 0;
  current->state = state;
  current->waiting_in = what;
  current->waiting_id = id;
  current->waiting_at = at;
  run_next();
}

// The body of every fiber.
inline void run_thread() {
  machine->launch->entry(machine->launch->params);
  Fiber& fiber = *machine->current;
  const auto pending = [](const std::vector<AsyncCopy>& group) { return !group.empty(); };
  if (pending(fiber.open_copies) ||
      std::any_of(fiber.copy_groups.begin(), fiber.copy_groups.end(), pending)) {
    const AsyncCopy& copy =
        pending(fiber.open_copies)
            ? fiber.open_copies.front()
            : std::find_if(fiber.copy_groups.begin(), fiber.copy_groups.end(), pending)->front();
    machine->fail(
        {"async_copy",
         format("thread %d returned while its cp.async of {0} has never been waited for", fiber.thread),
         {fiber.thread},
         {copy.site}});
  }
  fiber.state = State::kReturned;
  --machine->live;
  machine->fruitless_yields = 0;
  machine->run_next();
  __builtin_unreachable();
}

inline void Machine::run_block(uint32_t number) {
  const uint32_t* grid = launch->grid;
  const uint32_t* block = launch->block;
  block_number = number + 1;
  block_index[0] = number % grid[0];
  block_index[1] = number / grid[0] % grid[1];
  block_index[2] = number / grid[0] / grid[1];
  memset(shared, 0xff, launch->shared_bytes);  // NaN in every floating-point format
  if (checking) {
    clocks.reset(threads);
    shared_shadow.reset(launch->shared_bytes, threads);
  }
  for (Barrier& barrier : barriers) {
    barrier.syncing.clear();
    barrier.arrived.clear();
    barrier.released.clear();
  }
  for (std::vector<Meeting>& pending : meetings) pending.clear();
  ready.clear();
  live = threads;
  copies_in_flight = 0;
  fruitless_yields = 0;
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = *fibers[t];
    fiber.thread = t;
    fiber.copy_groups.clear();
    fiber.open_copies.clear();
    const uint32_t ut = static_cast<uint32_t>(t);
    const uint32_t index[3] = {ut % block[0], ut / block[0] % block[1], ut / block[0] / block[1]};
    memcpy(fiber.registers + 0, index, sizeof index);
    memcpy(fiber.registers + 3, block_index, sizeof block_index);
    memcpy(fiber.registers + 6, block, sizeof launch->block);
    memcpy(fiber.registers + 9, grid, sizeof launch->grid);
    fiber.registers[12] = ut;
    fiber.registers[13] = static_cast<uint32_t>(launch->shared_bytes);
    prepare_fiber(fiber, run_thread);
    ready.push(&fiber);
  }
  current = nullptr;
  run_next();
  if (counting) bank_conflicts.flush_all();
}

}  // namespace emulator

extern "C" {
uint32_t emulator_special_register(int index) { return emulator::machine->current->registers[index]; }
uint8_t* emulator_shared_memory() { return emulator::machine->shared; }
}
