"""Bugs of the emulator's engine and host headers."""

from bugs import Bug

ENGINE = "tests/emulator/test_engine.py"
DETECTORS = "tests/emulator/test_detectors.py"
INSTRUCTIONS = ("tests/emulator/test_ptx_instructions.py::test_instruction",)
PRIMITIVES = "tests/emulator/test_primitives.py"
SEEDED = ("tests/emulator/test_seeded_bugs.py::test_seeded_bug_is_caught",)
MISTAKES = (f"{DETECTORS}::test_a_mistake_is_found_and_its_legal_twin_is_not",)
COUNTS = (f"{DETECTORS}::test_bytes_and_instructions_are_counted",)
FUNCTIONS = (f"{DETECTORS}::test_functions_have_the_values_of_numpy",)


def engine(name: str, what: str, old: str, new: str, *noticed_by: str, equivalent: str = "") -> Bug:
    return Bug(f"cuda_src/emulator/{name}", what, old, new, noticed_by, equivalent)


BUGS = [
    # ---- interfaces
    engine("engine.h", "a shuffle down goes up", "kShuffleDown = 3", "kShuffleDown = 2", f"{PRIMITIVES}::test_shuffles"),
    engine(
        "engine.h", "bfloat16 is read as float16", "kHalfBf16 = 1", "kHalfBf16 = 0", f"{PRIMITIVES}::test_mma"
    ),
    engine(
        "engine.h", "a vote for uniformity is one for all", "kVoteUni = 3", "kVoteUni = 2",
        "tests/emulator/test_ptx_translate.py::test_votes_and_barrier_reductions",
    ),
    engine(
        "launch.h", "bytes read and written change places", "  uint64_t read;\n  uint64_t written;",
        "  uint64_t written;\n  uint64_t read;", f"{ENGINE}::test_bytes_are_counted_by_buffer",
    ),
    engine(
        "launch.h", "votes and syncwarps change places", "votes, syncwarps", "syncwarps, votes", *COUNTS,
    ),
    engine(
        "launch.h", "conflicts and accesses change places", "bank_conflicts, shared_accesses",
        "shared_accesses, bank_conflicts", f"{ENGINE}::test_bank_conflicts",
    ),
    # ---- half.h
    engine(
        "half.h", "bfloat16 ties round up", "bits + 0x7fffu + (bits >> 16 & 1u)", "bits + 0x8000u",
        f"{PRIMITIVES}::test_conversions_round_to_nearest_even",
    ),
    engine(
        "half.h", "what rounds to infinity becomes NaN or more", "magnitude >= 0x477ff000u", "magnitude > 0x47800000u",
        f"{PRIMITIVES}::test_conversions_round_to_nearest_even",
    ),
    engine(
        "half.h", "the largest float16 subnormals are taken for normal", "magnitude < 0x38800000u",
        "magnitude < 0x38000000u", f"{PRIMITIVES}::test_conversions_round_to_nearest_even",
    ),
    engine(
        "half.h", "NaN keeps no payload and becomes infinity", "if (magnitude > 0x7f800000u) return 0x7fff;\n", "",
        f"{PRIMITIVES}::test_conversions_round_to_nearest_even",
    ),
    # ---- platform.cuh
    engine(
        "platform.cuh", "fmaxf keeps a NaN of the second argument", "fmaxf(float a, float b) { return a > b || b != b ? a : b; }",
        "fmaxf(float a, float b) { return a > b ? a : b; }", *FUNCTIONS,
    ),
    engine("platform.cuh", "clz of zero is 31", "static_cast<unsigned>(x)) : 32;", "static_cast<unsigned>(x)) : 31;", *FUNCTIONS),
    engine(
        "platform.cuh", "atomicMin is atomicMax", "emulator_atomic_s32(kAtomicMin", "emulator_atomic_s32(kAtomicMax",
        *FUNCTIONS,
    ),
    engine(
        "platform.cuh", "unsigned numbers are compared as signed", "EMULATOR_MIN_MAX(unsigned)\n", "__forceinline__ unsigned max(unsigned a, unsigned b) { return max(int(a), int(b)); }\n__forceinline__ unsigned min(unsigned a, unsigned b) { return min(int(a), int(b)); }\n",
        *FUNCTIONS,
    ),
    engine(
        "platform.cuh", "a barrier that counts votes", "kReducePopc, predicate", "kReduceOr, predicate",
        f"{PRIMITIVES}::test_barriers_that_reduce",
    ),
    # ---- ptx_isa.h
    engine("ptx_isa.h", "a long shift to the right loses the sign", "(a < 0 ? -1 : 0)", "0", *INSTRUCTIONS),
    engine("ptx_isa.h", "a long shift to the left is one modulo the width", "return n < kBits<T> ? as<T>(static_cast<uint64_t>(a) << n) : T(0);", "return as<T>(static_cast<uint64_t>(a) << (n & 63));", *INSTRUCTIONS),
    engine("ptx_isa.h", "a bit field of the whole width is shifted by it", "if (end >= kBits<T>) return shifted;", "if (end > kBits<T>) return shifted;", *INSTRUCTIONS,
        equivalent="a field that ends with the word is shifted to the left and back by position: the same",),
    engine("ptx_isa.h", "the high half of a signed product is that of an unsigned one", "if constexpr (kIsSigned<T>) return static_cast<T>(static_cast<Wide>", "if constexpr (false) return static_cast<T>(static_cast<Wide>", *INSTRUCTIONS),
    engine("ptx_isa.h", "the smaller zero is +0", "__builtin_bit_cast(Unsigned<T>, a) | __builtin_bit_cast", "__builtin_bit_cast(Unsigned<T>, a) & __builtin_bit_cast", *INSTRUCTIONS),
    engine("ptx_isa.h", "NaN as a 64-bit integer is 0", "return kWide ? ", "return false ? ", *INSTRUCTIONS),
    engine("ptx_isa.h", "saturation keeps numbers below zero", "if (value < kLowest<To>) return kLowest<To>;\n", "", *INSTRUCTIONS),
    engine("ptx_isa.h", "subnormals are flushed to +0", "inline float ftz(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }", "inline float ftz(float x) { return __builtin_fabsf(x) < 0x1p-126f ? 0.0f : x; }", *INSTRUCTIONS),
    # ---- engine/barriers.h
    engine("engine/barriers.h", "a thread that only arrives is taken to have waited", "m.synchronise(barrier.syncing,", "m.synchronise(all,", *MISTAKES),
    engine("engine/barriers.h", "a thread arrives when all have", "  if (m.checking) m.clocks.release(m.current->thread, barrier.released);\n  if (barrier.count() == threads) emulator::complete_barrier(m, barrier);", "  if (barrier.count() < threads) return;\n  for (emulator::Fiber* fiber : barrier.arrived)\n    if (m.checking) m.clocks.release(fiber->thread, barrier.released);\n  emulator::complete_barrier(m, barrier);", *MISTAKES),
    engine("engine/barriers.h", "bank conflicts are counted across a barrier", "if (fiber->thread % kWarpSize == 0) m.bank_conflicts", "if (fiber->thread == 0) m.bank_conflicts", f"{DETECTORS}::test_stores_conflict_within_one_instruction_only"),
    engine("engine/barriers.h", "threads wait at different __syncthreads", "(id || barrier.first_site == at)", "true", *SEEDED),
    engine("engine/barriers.h", "a reduction keeps the last one's vote", "barrier.reduce_and = true;", "", f"{PRIMITIVES}::test_barriers_that_reduce"),
    # ---- engine/async_copies.h
    engine("engine/async_copies.h", "the rest of a short copy is left", "  memset(shared + copy.destination + copy.source_bytes, 0, copy.bytes - copy.source_bytes);\n", "", f"{PRIMITIVES}::test_cp_async_fills_with_zeros"),
    engine("engine/async_copies.h", "a wait ends one group too many", "std::min(groups.size(), static_cast<size_t>(pending_groups))", "std::min(groups.size(), static_cast<size_t>(pending_groups ? pending_groups - 1 : 0))", *MISTAKES),
    engine("engine/async_copies.h", "bytes of a copy's source are not counted", "if (source_bytes && (m.checking || m.counting))", "if (source_bytes && m.checking && !m.counting)", *COUNTS),
    engine("engine/async_copies.h", "a copy's destination is not an access", "  m.shared_access(*m.current, shared_address, size, emulator::Access::kWrite, site);\n", "", *MISTAKES),
    # ---- engine/machine.h
    engine("engine/machine.h", "seed 0 draws nothing", "state_((seed + 1)", "state_((seed)", f"{ENGINE}::test_a_seed_draws_an_order_and_repeats_it"),
    engine("engine/machine.h", "a last warp of fewer lanes lacks one", "(1u << lanes) - 1;", "(1u << (lanes - 1)) - 1;", f"{ENGINE}::test_a_partial_warp_meets_in_collectives"),
    engine("engine/machine.h", "the ready queue forgets that it is a ring", "std::swap(ring_[head_], ring_[(head_ + i) % kMaxThreads])", "std::swap(ring_[head_], ring_[i])", f"{ENGINE}::test_a_seed_draws_an_order_and_repeats_it"),
    # ---- engine/matrix.h
    engine("engine/matrix.h", "the halves of an mma's rows change places", "d[g + 8 * (i / 2)][2 * t + i % 2] + s.c[i]", "d[g + 8 * (i % 2)][2 * t + i / 2] + s.c[i]", f"{PRIMITIVES}::test_mma"),
    engine("engine/matrix.h", "only the first element of a pair is transposed", "transposed ? elements[2 * t + 1][g]", "transposed ? elements[2 * t][g + 1]", f"{PRIMITIVES}::test_ldmatrix"),
    engine("engine/matrix.h", "rows of a matrix may be misaligned", "if (rows[row] % 16)", "if (rows[row] % 2)", f"{ENGINE}::test_stmatrix_is_a_store"),
    engine("engine/matrix.h", "a matrix is read in the name of its last lane", "m.shared_access(*m.fibers[first + lane], rows[row], 16, kind, site);", "m.shared_access(*m.current, rows[row], 16, kind, site);", *MISTAKES),
    # ---- engine/clocks.h
    engine("engine/clocks.h", "what happens at the time known is taken for later", "+ earlier] >= time;", "+ earlier] > time;", *MISTAKES),
    engine("engine/clocks.h", "after an arrival time stands still", "    join(thread, to);\n    tick(thread);", "    join(thread, to);", *MISTAKES),
    engine("engine/clocks.h", "threads that wait learn nothing of those that arrived", "std::copy(released.begin(), released.end(), row(t));", "row(t)[t] = released[t];", *MISTAKES),
    # ---- engine/bank_conflicts.h
    engine("engine/bank_conflicts.h", "lanes that want one word conflict", "        if (std::find(words[bank], known_end, word) != known_end) continue;\n", "", f"{ENGINE}::test_bank_conflicts"),
    engine("engine/bank_conflicts.h", "a warp's accesses of 8 bytes are one transaction", "instruction.bytes <= 4 ? 32", "instruction.bytes <= 8 ? 32", f"{ENGINE}::test_bank_conflicts"),
    engine("engine/bank_conflicts.h", "accesses after a collective go on with those before it", "      memset(stream.seen, 0, sizeof stream.seen);\n", "", f"{DETECTORS}::test_stores_conflict_within_one_instruction_only"),
    engine("engine/bank_conflicts.h", "a matrix is read in two transactions", "wavefronts(rows, 0xffu, 0, 8, 16) - 1", "wavefronts(rows, 0xffu, 0, 8, 16)", f"{ENGINE}::test_bank_conflicts_of_matrices"),
    # ---- engine/collectives.h
    engine("engine/collectives.h", "lanes of different places meet", " ||\n        !(other.site == at)) {", ") {", f"{ENGINE}::test_lanes_in_different_collectives"),
    engine("engine/collectives.h", "a shuffle up ends at the warp, not at the segment", "mode == kShuffleUp ? source >= segment", "mode == kShuffleUp ? source >= 0", f"{PRIMITIVES}::test_shuffles"),
    engine("engine/collectives.h", "a vote of all asks the whole warp", "all = ballot == meeting.mask;", "all = ballot == 0xffffffffu;", f"{ENGINE}::test_a_partial_warp_meets_in_collectives"),
    engine("engine/collectives.h", "a lane that takes no part is read", "if (!(meeting.mask >> source & 1))", "if (false)", *MISTAKES),
    engine("engine/collectives.h", "__syncwarp orders nothing", "    m.synchronise(fibers, m.nothing_released);\n", "", *MISTAKES),
    # ---- engine/failure.h
    engine("engine/failure.h", "the last of a range of threads is left out", "format(\"%d-%d\", sorted[i], sorted[j])", "format(\"%d-%d\", sorted[i], sorted[j] - 1)", *MISTAKES),
    engine("engine/failure.h", "threads that have returned are said to wait", "if (waits) finding.threads.push_back(t);", "finding.threads.push_back(t);", *MISTAKES),
    engine("engine/failure.h", "a divergent barrier is called a deadlock", "divergent |= waits && f.waiting_id == 0;", "divergent |= waits && f.waiting_id == 1;", *MISTAKES),
    # ---- engine/fibers.h
    engine("engine/fibers.h", "stacks of later threads begin ever lower", " * 832 % 24576;", " * 832 / 4;", f"{ENGINE}::test_the_last_thread_of_a_block_has_a_stack_as_well"),
    engine("engine/fibers.h", "pages about a stack stay mapped", "munmap(memory - kGuardBytes, bytes + 2 * kGuardBytes);", "munmap(memory, bytes);", f"{ENGINE}::test_a_python_thread_takes_its_machine_along"),
    # ---- engine/hooks.h
    engine("engine/hooks.h", "a range loses its odd end", "at < end;) {", "at + 1 < end;) {", f"{ENGINE}::test_a_structure_is_copied_by_parts"),
    engine("engine/hooks.h", "threads are never preempted", "m.random.below(preempt) == 0", "m.random.below(preempt) == preempt", f"{ENGINE}::test_preemption_changes_what_unordered_threads_see"),
    engine("engine/hooks.h", "a shift is called an overflow", "EMULATOR_UBSAN(shift_out_of_bounds, \"shift out of range\")", "EMULATOR_UBSAN(shift_out_of_bounds, \"signed addition overflows\")", f"{ENGINE}::test_undefined_behaviour"),
    # ---- engine/run.h
    engine("engine/run.h", "the first block never moves", "for (size_t i = blocks.size(); i > 1; --i)", "for (size_t i = blocks.size(); i > blocks.size(); --i)", f"{ENGINE}::test_a_seed_draws_an_order_and_repeats_it"),
    engine("engine/run.h", "places of the last launch's kernel are found again", "  memset(site_cache, 0, sizeof site_cache);\n", "", f"{ENGINE}::test_places_of_one_launch_are_not_those_of_the_next"),
    engine("engine/run.h", "conflicts of matrices are no shared accesses", "result->shared_accesses += c.instructions;", "result->shared_accesses += c.wavefronts;", *COUNTS),
    engine("engine/run.h", "the block of a failure is the first", "memcpy(result->block, block_index, sizeof block_index);", "", f"{ENGINE}::test_a_block_reads_what_another_writes"),
    # ---- engine/scheduler.h
    engine("engine/scheduler.h", "blockIdx.z is blockIdx.y", "number / grid[0] / grid[1];", "number / grid[1] / grid[0] % grid[2] % grid[1];", f"{ENGINE}::test_threads_and_blocks_know_who_they_are"),
    engine("engine/scheduler.h", "copies that are committed may be left", "std::any_of(fiber.copy_groups.begin(), fiber.copy_groups.end(), pending)) {", "false) {", *MISTAKES),
    engine("engine/scheduler.h", "shared memory keeps what the last block left", "  memset(shared, 0xff, launch->shared_bytes);  // NaN in every floating-point format\n", "", f"{ENGINE}::test_shared_memory_starts_as_nan_in_every_block"),
    engine("engine/scheduler.h", "a spinning thread never yields", "if (work_since_switch < kYieldAfter) return;", "if (work_since_switch < kYieldAfter * 4096) return;", f"{ENGINE}::test_spinning_for_another_thread_ends"),
    # ---- engine/memory.h
    engine("engine/memory.h", "any read is taken for one of the kernel's constants", "address >= begin && address + bytes <= end", "address >= begin || address + bytes <= end", *MISTAKES),
    engine("engine/memory.h", "a shared access beyond the end is checked in checked mode only", "} else if (offset + bytes > launch->shared_bytes) {", "} else if (offset > launch->shared_bytes) {", f"{ENGINE}::test_matrices_end_with_shared_memory"),
    engine("engine/memory.h", "a compare-and-swap swaps when different", "return old == compare ? value : old;", "return old != compare ? value : old;", "tests/emulator/test_ptx_translate.py::test_atomics_return_the_old_value_and_exchange"),
    engine("engine/memory.h", "the second of two neighbours gets the first's addend", "[y](float old) { return old + y; }", "[x](float old) { return old + x; }", "tests/emulator/test_ptx_translate.py::test_addition_to_two_neighbours"),
    engine("engine/memory.h", "vectors may be misaligned", "if (aligned && address % bytes)", "if (aligned && address % std::min(bytes, 4u))", *MISTAKES),
    # ---- engine/types.h
    engine("engine/types.h", "lines of one number are one place", "return line == other.line && (file == other.file || strcmp(file, other.file) == 0);", "return line == other.line;", f"{ENGINE}::test_lanes_in_different_files"),
    engine("engine/types.h", "threads that arrive are not counted", "static_cast<int>(syncing.size() + arrived.size())", "static_cast<int>(syncing.size())", f"{PRIMITIVES}::test_named_barriers_pass_a_buffer_to_and_fro"),
    engine("engine/types.h", "there are eight named barriers", "constexpr int kBarriers = 16;", "constexpr int kBarriers = 8;", f"{ENGINE}::test_there_are_sixteen_barriers"),
    # ---- engine/shared_shadow.h
    engine("engine/shared_shadow.h", "only the last reader of a warp is remembered", "} else if (latest.thread != thread) {\n      reads.latest[1] = latest;", "} else if (latest.thread != thread) {", *MISTAKES),
    engine("engine/shared_shadow.h", "a word with one byte written is initialised", "cell.initialised |= mask;", "cell.initialised = kWholeCell;", *MISTAKES),
    engine("engine/shared_shadow.h", "readers of the first warp only", "for (uint32_t warps = cell.reader_warps; warps;", "for (uint32_t warps = cell.reader_warps & 1; warps;", *MISTAKES),
    engine("engine/shared_shadow.h", "atomics race with atomics", "const bool both_atomic = kind == Access::kAtomic && cell.atomic;", "const bool both_atomic = false;", *MISTAKES),
    engine("engine/shared_shadow.h", "the last word of an access goes unchecked", "index <= last; ++index", "index < std::max(last, first + 1); ++index", *MISTAKES),
    engine("engine/shared_shadow.h", "a copy under way may be overwritten", "if (cell.in_flight) {", "if (cell.in_flight && kind == Access::kRead) {", *MISTAKES),
    engine("engine/shared_shadow.h", "a copy counts as written when it was issued", "      cell.write_time = clocks.now(thread);\n    });", "    });", *MISTAKES),
    engine("engine/shared_shadow.h", "a write of one byte forgets who read the others", "if (mask == kWholeCell) cell.reader_warps = 0;", "cell.reader_warps = 0;", *MISTAKES),
    # ---- engine/global_memory.h
    engine("engine/global_memory.h", "only the last reader is remembered", "if (past.block == block)\n        return", "if (past.block == block)\n        return past.kind == kind ||", *MISTAKES),
    engine("engine/global_memory.h", "a later block forgets the reads of an earlier one", "const bool again = !(past.mask & ~known);", "const bool again = past.kind == Access::kRead;", *MISTAKES),
    engine("engine/global_memory.h", "a byte stands for its neighbour", "!(past.mask & ~mask) &&", "", *MISTAKES),
    engine("engine/global_memory.h", "a plain access may meet an atomic", "past.kind == kind && kind != Access::kWrite;", "past.kind == kind ? kind != Access::kWrite : past.kind == Access::kAtomic;", *MISTAKES),
    engine("engine/global_memory.h", "the end of an access may lie beyond the buffer", "address = segment->end;", "address = end;", *MISTAKES),
    engine("engine/global_memory.h", "atomics may change what is only read", "if (kind != Access::kRead && segment->writer < 0) {", "if (kind == Access::kWrite && segment->writer < 0) {", *MISTAKES),
    engine("engine/global_memory.h", "an access has the rights of where it begins", "const Segment* segment = find(begin);", "const Segment* segment = find(address);", f"{ENGINE}::test_a_vector_across_two_buffers"),
    engine("engine/global_memory.h", "atomics are counted as reads", "if (kind == Access::kRead)\n      bytes", "if (kind != Access::kWrite)\n      bytes", *COUNTS),
    # ---- host headers of ptx/
    engine("ptx/barrier.cuh", "arriving waits", "emulator_barrier_arrive(id,", "emulator_barrier_sync(id,", f"{PRIMITIVES}::test_named_barriers_pass_a_buffer_to_and_fro"),
    engine("ptx/barrier.cuh", "every named barrier is number 1", "emulator_barrier_sync(id, threads", "emulator_barrier_sync(1, threads", f"{PRIMITIVES}::test_named_barriers_pass_a_buffer_to_and_fro"),
    engine("ptx/convert.cuh", "a pair of float16 is the other way round", "return f16_from_f32(lo) | static_cast<uint32_t>(f16_from_f32(hi))", "return f16_from_f32(hi) | static_cast<uint32_t>(f16_from_f32(lo))", f"{PRIMITIVES}::test_conversions_round_to_nearest_even"),
    engine("ptx/convert.cuh", "the second bfloat16 of a pair is a float16", "static_cast<uint32_t>(bf16_from_f32(hi))", "static_cast<uint32_t>(f16_from_f32(hi))", f"{PRIMITIVES}::test_conversions_round_to_nearest_even"),
    engine("ptx/cp_async.cuh", "a copy of 8 bytes has 16", "emulator_cp_async(dst, src, 8,", "emulator_cp_async(dst, src, 16,", f"{PRIMITIVES}::test_cp_async_fills_with_zeros"),
    engine("ptx/cp_async.cuh", "a wait leaves one group more", "emulator_cp_async_wait(kPending);", "emulator_cp_async_wait(kPending + 1);", *SEEDED),
    engine("ptx/cp_async.cuh", "waiting for all leaves what is not committed", "emulator_cp_async_wait(-1)", "emulator_cp_async_wait(0)", f"{PRIMITIVES}::test_cp_async_fills_with_zeros"),
    engine("ptx/ldmatrix.cuh", "two matrices are not transposed", "emulator_ldmatrix(r, 2, shared_addr, 1,", "emulator_ldmatrix(r, 2, shared_addr, 0,", f"{PRIMITIVES}::test_ldmatrix"),
    engine("ptx/ldmatrix.cuh", "of four matrices two are loaded", "emulator_ldmatrix(r, 4, shared_addr, 0,", "emulator_ldmatrix(r, 2, shared_addr, 0,", f"{PRIMITIVES}::test_ldmatrix"),
    engine("ptx/math.cuh", "negative subnormals keep no sign", "__builtin_copysignf(0.0f, x)", "0.0f", f"{PRIMITIVES}::test_ex2_and_lg2_flush_subnormals"),
    engine("ptx/math.cuh", "the result of ex2 may be subnormal", "return detail::flush(exp2f(detail::flush(x)));", "return exp2f(detail::flush(x));", f"{PRIMITIVES}::test_ex2_and_lg2_flush_subnormals"),
    engine("ptx/math.cuh", "a NaN loses against a number", "float min_nan(float x, float y) { return y < x ? y : x; }", "float min_nan(float x, float y) { return x < y ? x : y; }", *FUNCTIONS),
    engine("ptx/memory.cuh", "a checked load brings the first word only", "__builtin_memcpy(&value, &loaded, sizeof(value));", "__builtin_memcpy(&value, &loaded, sizeof(value) < 8 ? sizeof(value) : 8);", f"{ENGINE}::test_bank_conflicts", *MISTAKES),
    engine("ptx/memory.cuh", "a checked store is one element", "emulator_store(dst, stored, sizeof(value), file, line);", "emulator_store(dst, stored, sizeof(T), file, line);", *MISTAKES),
    engine("ptx/mma.cuh", "bfloat16 is multiplied as float16", "emulator_mma_m16n8k16(d, a, b, c, kHalfBf16", "emulator_mma_m16n8k16(d, a, b, c, kHalfF16", f"{PRIMITIVES}::test_mma"),
    engine("ptx/mma.cuh", "a product is added to the result", "emulator_mma_m16n8k8(d, a, b, c,", "emulator_mma_m16n8k8(d, a, b, d,", f"{PRIMITIVES}::test_mma"),
    engine("ptx/opaque.cuh", "the top bit is lost", "return value;", "return value & 0x7fffffffu;", *FUNCTIONS),
    engine("ptx/opaque.cuh", "16 bits pass", "opaque(uint32_t value)", "opaque(uint16_t value)", *FUNCTIONS),
    engine("ptx/reduce.cuh", "what is not wanted is added", "if (wanted) emulator_atomic_f32", "emulator_atomic_f32", "tests/emulator/test_ptx_conformance.py::test_paths_agree_with_the_oracle_and_each_other"),
    engine("ptx/reduce.cuh", "both neighbours get the first addend", "emulator_add_f32x2(dst, x, y,", "emulator_add_f32x2(dst, x, x,", "tests/emulator/test_ptx_conformance.py::test_paths_agree_with_the_oracle_and_each_other"),
    engine("ptx/shared.cuh", "an address has 16 bits", "return emulator_shared_address(pointer, file, line);", "return static_cast<uint16_t>(emulator_shared_address(pointer, file, line));", f"{DETECTORS}::test_shared_memory_ends_at_its_last_byte"),
    engine("ptx/shared.cuh", "a mistake is said to be in the header", "emulator_shared_address(pointer, file, line)", "emulator_shared_address(pointer, __FILE__, __LINE__)", *MISTAKES),
    engine("ptx/stmatrix.cuh", "two matrices are stored transposed", "emulator_stmatrix(shared_addr, r, 2, 0,", "emulator_stmatrix(shared_addr, r, 2, 1,", "tests/emulator/test_ptx_conformance.py::test_paths_agree_with_the_oracle_and_each_other"),
    engine("ptx/stmatrix.cuh", "of four matrices two are stored", "emulator_stmatrix(shared_addr, r, 4, 1,", "emulator_stmatrix(shared_addr, r, 2, 1,", "tests/emulator/test_ptx_conformance.py::test_paths_agree_with_the_oracle_and_each_other"),
    engine("ptx/warp.cuh", "a shuffle up forgets its width", "__shfl_up_sync(kFullWarp, value, delta, width,", "__shfl_up_sync(kFullWarp, value, delta, kWarpSize,", f"{PRIMITIVES}::test_shuffles"),
    engine("ptx/warp.cuh", "any asks all", "return __any_sync(", "return __all_sync(", f"{PRIMITIVES}::test_votes"),
]  # fmt: skip
