// What Python passes to the engine and gets back; a test holds cupy_flash/_src/emulator/engine.py to these structs.
#pragma once
#include "engine.h"

extern "C" {

struct EmulatorBuffer {
  const char* name;
  uint64_t address;
  uint64_t bytes;
  uint64_t writable;
};

// What settings.py calls "exact", "hardware", "hardware-high" and "hardware-low".
enum EmulatorArithmetic { kArithmeticExact = 0, kArithmeticHardware = 1, kArithmeticHigh = 2, kArithmeticLow = 3 };

struct EmulatorLaunch {
  void (*entry)(const void* params);
  const void* params;
  uint64_t params_bytes;
  const EmulatorBuffer* buffers;
  uint64_t buffer_count;
  uint64_t shared_bytes;
  uint64_t seed;
  uint32_t grid[3];
  uint32_t block[3];
  uint32_t random_order;  // 0: threads and blocks run in order; 1: in an order drawn from `seed`
  uint32_t preempt;       // instrumented kernels: on average one memory access in `preempt` yields (0: none)
  uint32_t check;         // instrumented kernels: look for races, uninitialised reads, bounds, alignment
  uint32_t count;         // instrumented kernels: count bytes and bank conflicts
  uint32_t arithmetic;    // EmulatorArithmetic
};

// Where in the source: file and line, where the call names them (else null), and the offset of the instruction in the
// kernel's library, which tells the lines of inlined callers.
struct EmulatorSite {
  const char* file;
  uint64_t line, offset;
};

struct EmulatorConflict {
  EmulatorSite site;
  uint64_t instructions;  // executed by warps
  uint64_t wavefronts;    // beyond the least these instructions need
};

struct EmulatorBytes {
  uint64_t read;
  uint64_t written;
};

struct EmulatorResult {
  // Work, in every mode. mma to barriers: warp instructions (barriers: completed ones); cp_async and atomics:
  // by thread.
  uint64_t switches, mma, ldmatrix, shuffles, votes, syncwarps, barriers, cp_async, atomics;
  // Instrumented kernels only.
  uint64_t bank_conflicts, shared_accesses;
  const EmulatorBytes* bytes;  // one for each buffer
  const EmulatorConflict* conflicts;
  uint64_t conflict_count;
  // The failure, if any: `message` names site i as {i}.
  const char* kind;  // null: the launch succeeded
  const char* message;
  EmulatorSite sites[4];
  uint64_t site_count;
  const int32_t* threads;
  uint64_t thread_count;
  uint32_t block[3];
};

// Runs one launch; everything the result points to lives until this OS thread's next launch.
void emulator_run(const EmulatorLaunch* launch, EmulatorResult* result);
}
