// What the parts of the engine share: sizes, sites, fibers and what they wait for.
#pragma once
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "../launch.h"

namespace emulator {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kBarriers = 16;
constexpr size_t kMaxShared = 256 * 1024;
constexpr size_t kStackBytes = 256 * 1024;

// A place in the source in 32 bits: the offset of an instrumented instruction in the kernel's library, or,
// with the top bit set, an index into the table of places that explicit calls have named.
using SiteId = uint32_t;
constexpr SiteId kNamedSite = 0x80000000u;

struct Site {
  const char* file;
  int line;
  const void* call = nullptr;  // the instruction after the call in the kernel's library: it tells the inlined callers
  // The same line, whichever of its inlined copies.
  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || strcmp(file, other.file) == 0);
  }
};

// In a function that a kernel calls with its place in the source.
#define EMULATOR_HERE \
  ::emulator::Site { file, line, __builtin_return_address(0) }

struct AsyncCopy {
  uint32_t destination;
  const void* source;
  uint8_t bytes, source_bytes;
  bool landed;
  SiteId site;
};

enum class State : uint8_t { kReady, kRunning, kAtBarrier, kInCollective, kReturned };

struct Fiber {
  void* stack_pointer;
  uint8_t* stack;
  int thread;
  State state;
  const char* waiting_in;  // what a waiting fiber waits for, and where
  int waiting_id;          // which barrier, -1: a warp collective
  Site waiting_at;
  uint32_t registers[14];                           // emulator_special_register
  std::vector<std::vector<AsyncCopy>> copy_groups;  // committed, oldest first
  std::vector<AsyncCopy> open_copies;
};

struct Barrier {
  int expected = 0;
  bool reduce_or, reduce_and;
  int reduce_count, result;
  Site first_site;
  std::vector<Fiber*> syncing, arrived;
  std::vector<uint32_t> released;  // what is known of those that only arrived (clocks.h)
  int count() const { return static_cast<int>(syncing.size() + arrived.size()); }
};

// A collective that some lanes have reached and others not yet.
struct Meeting {
  uint32_t mask, arrived;
  const char* operation;
  uint32_t variant;
  Site site;
  void* slots[kWarpSize];  // each lane's arguments and results, on its own stack
};

enum class Access : uint8_t { kRead, kWrite, kAtomic };

// A mistake of the kernel: found by a checker, reported by Machine::fail. `text` names sites[i] as {i}.
struct Finding {
  const char* kind;
  std::string text;
  std::vector<int> threads;
  std::vector<SiteId> sites;
};

__attribute__((format(printf, 1, 2))) inline std::string format(const char* pattern, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, pattern);
  vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

}  // namespace emulator
