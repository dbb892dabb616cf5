// The engine's C ABI: what emulated kernels call (through platform.cuh and ptx/*.cuh, or from translated
// PTX).
//
// Every CUDA thread is a fiber of one OS thread; blocks run one after another. A call that must wait (a
// barrier, a warp collective) lets other fibers run, and the last lane to arrive does the work for all. A
// call that finds a mistake never returns: the launch ends with an error that names the call's site.
//
// Conventions
//   site       `file` and `line` of the CUDA source, from __builtin_FILE() / __builtin_LINE() default
//   arguments (or .loc);
//              `file` is a string literal. Lanes that meet in one collective must come from the same site.
//   addresses  a global pointer is the host's pointer. A pointer into shared memory is the host's pointer
//   too; its
//              shared address (cvta.to.shared) is the 32-bit offset from emulator_shared_memory().
//   masks      bit l = lane l of the calling thread's warp; lanes that the block does not have are ignored.
#pragma once

using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = __INT64_TYPE__;
using uint64_t = __UINT64_TYPE__;
using size_t = __SIZE_TYPE__;
using uintptr_t = __UINTPTR_TYPE__;

extern "C" {

// ---- who am I: constant during the life of a fiber, so the compiler may hoist these calls
// index: threadIdx.xyz = 0..2, blockIdx = 3..5, blockDim = 6..8, gridDim = 9..11, linear thread index in the
// block = 12 (its lane is index % 32, its warp index / 32), dynamic shared memory in bytes = 13.
uint32_t emulator_special_register(int index) __attribute__((const));
// The block's dynamic shared memory, 1024-byte aligned.
uint8_t* emulator_shared_memory() __attribute__((const));
// Shared address of a host pointer; an error when it does not point into the block's shared memory.
uint32_t emulator_shared_address(const void* pointer, const char* file, int line);

// ---- vector accesses of up to 16 bytes, aligned to their size (ptx/memory.cuh)
// To and from global or shared memory, with the checks and counts of the launch's mode. Values travel in
// registers: a pointer to a local variable would make the compiler instrument every access to it. Scalar
// accesses need no call.
struct EmulatorVector {
  uint64_t words[2];  // the first `bytes` bytes count
};
EmulatorVector emulator_load(const void* memory, uint32_t bytes, const char* file, int line);
void emulator_store(void* memory, EmulatorVector value, uint32_t bytes, const char* file, int line);

// ---- block barriers
// bar.sync / bar.arrive on barrier `id` (0..15). `threads` 0 means all of the block; else a multiple of 32.
// __syncthreads() is emulator_barrier_sync(0, 0, ...).
void emulator_barrier_sync(int id, int threads, const char* file, int line);
void emulator_barrier_arrive(int id, int threads, const char* file, int line);
// bar.red: as barrier_sync, and reduces the predicates of all threads.
enum EmulatorReduce { kReduceOr = 0, kReduceAnd = 1, kReducePopc = 2 };
int emulator_barrier_reduce(int id, int threads, int reduce, int predicate, const char* file, int line);

// ---- warp collectives
void emulator_syncwarp(uint32_t mask, const char* file, int line);
// shfl.sync of a value of `words` 4-byte words (1 or 2; value zero-extended). `argument` is the source lane,
// the lane mask or the delta; width a power of two up to 32. A source outside the lane's segment gives the
// lane's own value, and *in_range (may be null) says which.
enum EmulatorShuffle { kShuffleIndex = 0, kShuffleXor = 1, kShuffleUp = 2, kShuffleDown = 3 };
uint64_t emulator_shuffle(uint32_t mask, uint64_t value, int words, int mode, uint32_t argument, int width,
                          int* in_range, const char* file, int line);
// vote.sync: ballot gives the lane mask, any/all/uni give 0 or 1.
enum EmulatorVote { kVoteBallot = 0, kVoteAny = 1, kVoteAll = 2, kVoteUni = 3 };
uint32_t emulator_vote(uint32_t mask, int predicate, int mode, const char* file, int line);
// D[16,8] = A[16,k] B[k,8] + C with float32 accumulation; d, a, b, c are this lane's fragments (PTX ISA,
// "Matrix fragments for mma"). d may be c.
enum EmulatorHalf { kHalfF16 = 0, kHalfBf16 = 1 };
void emulator_mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, const float* c, int half,
                           const char* file, int line);  // a[4], b[2]
void emulator_mma_m16n8k8(float* d, const uint32_t* a, const uint32_t* b, const float* c, int half,
                          const char* file, int line);  // a[2], b[1]
// ldmatrix.sync.aligned.m8n8.x{matrices}{.trans}.shared.b16; lane i gives the address of row i % 8 of matrix
// i / 8.
void emulator_ldmatrix(uint32_t* r, int matrices, uint32_t shared_address, int transposed, const char* file,
                       int line);
// stmatrix, the other way round.
void emulator_stmatrix(uint32_t shared_address, const uint32_t* r, int matrices, int transposed, const char* file,
                       int line);

// ---- cp.async: the data land at the wait at the latest; until then the destination must not be touched
// bytes is 4, 8 or 16; the first source_bytes are read, the rest is filled with zeros.
void emulator_cp_async(uint32_t shared_address, const void* source, int bytes, int source_bytes,
                       const char* file, int line);
void emulator_cp_async_commit();
void emulator_cp_async_wait(
    int pending_groups);  // -1: wait_all, which also waits for copies not committed yet

// ---- ex2.approx and lg2.approx of float32, subnormals and all; engine/arithmetic.h
float emulator_ex2(float x);
float emulator_lg2(float x);
float emulator_tanh(float x);

// ---- atomics on global or shared memory; each returns the old value
enum EmulatorAtomic {
  kAtomicAdd = 0,
  kAtomicExchange = 1,
  kAtomicMin = 2,
  kAtomicMax = 3,  // min and max: signed for s32/s64
  kAtomicAnd = 4,
  kAtomicOr = 5,
  kAtomicXor = 6,
  kAtomicCas = 7  // integers only
};
float emulator_atomic_f32(int operation, float* p, float value, const char* file, int line);
double emulator_atomic_f64(int operation, double* p, double value, const char* file, int line);
// Adds to two neighbours, as one red of a vector does.
void emulator_add_f32x2(float* p, float x, float y, const char* file, int line);
uint32_t emulator_atomic_u32(int operation, uint32_t* p, uint32_t value, uint32_t compare, const char* file,
                             int line);
int32_t emulator_atomic_s32(int operation, int32_t* p, int32_t value, int32_t compare, const char* file,
                            int line);
uint64_t emulator_atomic_u64(int operation, uint64_t* p, uint64_t value, uint64_t compare, const char* file,
                             int line);
int64_t emulator_atomic_s64(int operation, int64_t* p, int64_t value, int64_t compare, const char* file,
                            int line);

// ---- __trap(), failed assertions: ends the launch with this message
void emulator_trap(const char* message, const char* file, int line) __attribute__((noreturn));
}
