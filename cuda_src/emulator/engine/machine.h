// The emulated multiprocessor: runs the blocks of a launch, one at a time, on this OS thread.
#pragma once
#include "bank_conflicts.h"
#include "clocks.h"
#include "fibers.h"
#include "global_memory.h"
#include "shared_shadow.h"
#include "types.h"

namespace emulator {

// xorshift64 (Marsaglia 2003): the schedule has to repeat on every machine, for the same seed.
class Random {
 public:
  explicit Random(uint64_t seed) : state_((seed + 1) * 0x9e3779b97f4a7c15u) {}
  uint32_t below(uint32_t n) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>((state_ >> 32) * n >> 32);
  }

 private:
  uint64_t state_;
};

class ReadyQueue {
 public:
  void clear() { head_ = count_ = 0; }
  bool empty() const { return count_ == 0; }
  uint32_t size() const { return count_; }
  void push(Fiber* fiber) {
    fiber->state = State::kReady;
    ring_[(head_ + count_++) % kMaxThreads] = fiber;
  }
  Fiber* pop() {
    Fiber* fiber = ring_[head_];
    head_ = (head_ + 1) % kMaxThreads;
    --count_;
    return fiber;
  }
  void bring_to_front(uint32_t i) { std::swap(ring_[head_], ring_[(head_ + i) % kMaxThreads]); }

 private:
  Fiber* ring_[kMaxThreads];
  uint32_t head_ = 0, count_ = 0;
};

struct Machine {
  Machine();
  ~Machine();
  Machine(const Machine&) = delete;

  void run(const EmulatorLaunch& launch, EmulatorResult* result);

  // scheduler.h
  void run_block(uint32_t block);
  void run_next();  // the current fiber waits or has returned: run another
  void yield();
  void spend(uint64_t work, SiteId at);
  void wait(State state, const char* what, int id, Site at);
  void switch_to(Fiber* next);
  uint32_t live_lanes(int warp) const {
    const int lanes = threads - warp * kWarpSize;
    return lanes >= kWarpSize ? 0xffffffffu : (1u << lanes) - 1;
  }

  // failure.h
  [[noreturn]] void fail(Finding finding);
  [[noreturn]] void fail(const char* kind, std::string text, Site at);
  [[noreturn]] void report_deadlock();
  SiteId named_site(const Site& wanted);
  EmulatorSite site(SiteId id) const;

  // memory.h
  void access(const void* p, uint32_t bytes, Access kind, SiteId site, bool aligned = true);
  void shared_access(Fiber& fiber, size_t offset, uint32_t bytes, Access kind, SiteId site);
  bool in_module(uint64_t address, uint32_t bytes) const;
  uint64_t instruction_before(const void* return_address) const;
  void synchronise(const std::vector<Fiber*>& waiting, std::vector<uint32_t>& released);
  void map_module(const EmulatorLaunch& launch);

  // async_copies.h
  void land(Fiber& fiber, AsyncCopy& copy);
  void land_one_early();

  // The launch.
  const EmulatorLaunch* launch = nullptr;
  int threads = 0;
  bool checking = false, counting = false;
  Random random{0};
  uint32_t block_index[3];
  uint32_t block_number = 0;  // 1-based
  uint64_t module_base = 0;
  std::vector<std::pair<uint64_t, uint64_t>>
      module_ranges;  // what a kernel may read beside buffers and shared memory

  // The block.
  uint8_t* shared = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers;
  Fiber* current = nullptr;
  void* main_stack_pointer = nullptr;
  ReadyQueue ready;
  int live = 0;
  int copies_in_flight = 0;
  uint64_t work_since_switch = 0;
  uint32_t fruitless_yields = 0;
  Barrier barriers[kBarriers];
  std::vector<Meeting> meetings[kMaxWarps];

  // What is known and counted.
  Clocks clocks;
  SharedShadow shared_shadow;
  GlobalMemory global;
  BankConflicts bank_conflicts;
  EmulatorResult counters{};
  std::vector<Site> named_sites;
  struct NamedSite {
    Site site;
    SiteId id;
  } site_cache[256];
  std::vector<EmulatorConflict> conflicts;
  bool failed = false;
  Finding failure;
  std::vector<int> waiting_threads;
  std::vector<uint32_t> nothing_released;
};

extern thread_local Machine* machine __attribute__((tls_model("initial-exec")));

}  // namespace emulator
