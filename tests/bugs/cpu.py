"""Bugs of cuda_src/cpu, the compiled tier of the CPU backend."""

from bugs import Bug

CPU = "cuda_src/cpu"
TESTS = "tests/test_cpu_backend.py"
NATIVE = "tests/test_native.py"
PARTS = "tests/test_cpu_parts.py"
POOL = "tests/test_threads.py"

BUGS = [
    # --- attention.cpp ---
    Bug(
        f"{CPU}/attention.cpp",
        "a forked child waits for threads that only its parent has",
        "[] { pool.forget(); }",
        "[] {}",
        (f"{POOL}::test_compiled_helpers_take_part_and_no_signals_in_a_forked_child_too",),
    ),
    Bug(
        f"{CPU}/attention.cpp",
        "a call comes back for interrupts after an hour only",
        "constexpr double kSliceSeconds = 1;",
        "constexpr double kSliceSeconds = 3600;",
        (f"{TESTS}::test_an_interrupt_ends_a_long_call_soon_and_leaves_no_thread_at_work[native-forward]",),
    ),
    Bug(
        f"{CPU}/attention.cpp",
        "the second slice begins the call's counters again",
        "if (call.next == 0) job.begin();",
        "job.begin();",
        (f"{NATIVE}::test_every_path_stays_in_the_error_budget[pairs]",),
    ),
    Bug(
        f"{CPU}/attention.cpp",
        "a call ends though threads took only some of its items",
        "return call.next < job.items();",
        "return call.next == 0;",
        (f"{NATIVE}::test_every_path_stays_in_the_error_budget[pairs]",),
    ),
    # --- backward.h ---
    Bug(
        f"{CPU}/backward.h",
        "dq of half types is not stored where its last block of keys ends with what it sees",
        "j0 + plan_.keys >= end);",
        "j0 + plan_.keys > end);",
        (f"{TESTS}::test_heads_of_many_blocks_share_their_keys[native-bfloat16, 270 x 720]",),
    ),
    Bug(
        f"{CPU}/backward.h",
        "the sums of dq of all heads share their rows",
        "sums_ + (head * shape_.seqlen_q + i0 + i) * sum_pitch_",
        "sums_ + (i0 + i) * sum_pitch_",
        (f"{TESTS}::test_heads_of_many_blocks_share_their_keys[native-bfloat16, 270 x 720]",),
    ),
    Bug(
        f"{CPU}/backward.h",
        "P and dS of keys that a panel does not see are what they were before",
        "for (int64_t j = round_up(seen, kRowUnit); j < whole; ++j) {",
        "for (int64_t j = round_up(seen, kRowUnit); j < seen; ++j) {",
        (f"{TESTS}::test_the_causal_mask_may_cut_blocks_anywhere[native]",),
    ),
    Bug(
        f"{CPU}/backward.h",
        "only the first row of K is asked for nan",
        "all_finite(k, keys * pitch_)",
        "all_finite(k, pitch_)",
        (f"{TESTS}::test_a_nan_makes_nan_of_exactly_what_follows_from_it[native-200-301-float32]",),
    ),
    Bug(
        f"{CPU}/backward.h",
        "a row without a finite score is nan",
        "lse_[i] = lse == -kInfinity<T> ? kInfinity<T> : T(double(lse) * kLog2E);",
        "lse_[i] = T(double(lse) * kLog2E);",
        (f"{TESTS}::test_a_row_without_a_finite_score_is_0_and_gives_nothing[native-60-130-float32]",),
    ),
    Bug(
        f"{CPU}/backward.h",
        "out is read in the type of q, though it may be wider",
        "load_row(shape_.out_dtype, line_",
        "load_row(shape_.dtype, line_",
        ("tests/test_merge.py::test_a_wide_dout_is_rounded_and_every_dtype_has_its_plan[cpu]",),
    ),
    # --- convert.h ---
    Bug(
        f"{CPU}/convert.h",
        "ties of bfloat16 are rounded up",
        "const Words rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;",
        "const Words rounded = (u + 0x8000) >> 16;",
        (f"{PARTS}::test_floats_become_the_nearest_half_and_ties_the_even_one",),
    ),
    Bug(
        f"{CPU}/convert.h",
        "ties of float16 are rounded to odd",
        "(u + 0xc8000fff + ((u >> 13) & 1)) >> 13;",
        "(u + 0xc8001000 - ((u >> 13) & 1)) >> 13;",
        (f"{PARTS}::test_floats_become_the_nearest_half_and_ties_the_even_one",),
    ),
    Bug(
        f"{CPU}/convert.h",
        "a nan with a short payload becomes infinite in bfloat16",
        "(u >> 16) | 0x40 : rounded;",
        "(u >> 16) : rounded;",
        (f"{PARTS}::test_floats_become_the_nearest_half_and_ties_the_even_one",),
    ),
    Bug(
        f"{CPU}/convert.h",
        "infinite float16 become 65536",
        "(magnitude >= splat(65536.0f))",
        "(magnitude > splat(65536.0f))",
        (f"{PARTS}::test_every_half_becomes_its_float_and_back",),
    ),
    Bug(
        f"{CPU}/convert.h",
        "the row of v after an odd number of keys gets into their last pair",
        "if (r + 1 < rows) __builtin_memcpy(&buffer[1]",
        "if (r + 1 <= rows) __builtin_memcpy(&buffer[1]",
        (f"{PARTS}::test_pairs_hold_neighbours_and_0_where_there_is_none",),
    ),
    # --- digest.h ---
    Bug(
        f"{CPU}/digest.h",
        "what does not fill a word does not count",
        "for (; i < bytes; i += 8) {",
        "for (; i + 8 <= bytes; i += 8) {",
        ("tests/test_vjp.py::test_a_change_is_named[cpu-float16-last_bit]",),
    ),
    Bug(
        f"{CPU}/digest.h",
        "only the first key head counts",
        "const bool first = head % s.group() == 0;",
        "const bool first = head == 0;",
        ("tests/test_vjp.py::test_a_change_is_named[cpu-float32-last_bit]",),
    ),
    Bug(
        f"{CPU}/digest.h",
        "upper bits are not brought down, so that signs cancel out",
        "return x ^ x >> 32;",
        "return x;",
        (f"{TESTS}::test_changed_signs_of_a_row_of_float64_are_told[native]",),
    ),
    # --- forward.h ---
    Bug(
        f"{CPU}/forward.h",
        "counters of some blocks begin with what the memory held",
        "plan_.units * plan_.blocks * sizeof *ended_); }",
        "plan_.units * sizeof *ended_); }",
        (f"{TESTS}::test_heads_of_many_blocks_share_their_keys[native-float32, 400 x 720]",),
    ),
    Bug(
        f"{CPU}/forward.h",
        "chunks of a block are merged before the last has ended",
        "__ATOMIC_ACQ_REL) < plan_.chunks) return;",
        "__ATOMIC_ACQ_REL) < plan_.chunks - 1) return;",
        (f"{NATIVE}::test_every_path_stays_in_the_error_budget[chunks of keys]",),
    ),
    # --- forward_panels.h ---
    Bug(
        f"{CPU}/forward_panels.h",
        "m follows late where a score is more than its power of 2, and values near the largest overflow",
        "unit = score_.unit, slack = T(kSlack) / unit;",
        "unit = score_.unit, slack = T(kSlack);",
        (f"{NATIVE}::test_values_near_the_largest_number_are_averaged[0.7-panels-float32]",),
    ),
    Bug(
        f"{CPU}/forward_panels.h",
        "chunks in which all scores are -inf merge into nan",
        "const Vector<T> base = finite_base(top);",
        "const Vector<T> base = top;",
        (f"{TESTS}::test_a_row_without_a_finite_score_is_0_and_gives_nothing[native-9-1000-float32]",),
    ),
    Bug(
        f"{CPU}/forward_panels.h",
        "whether keys end in padding is not asked",
        "const bool cut = !mask_.covers(low, j0, round_up(seen, kRowUnit));",
        "const bool cut = !mask_.covers(low, j0, seen);",
        (f"{TESTS}::test_scores_far_below_0_of_any_number_of_keys[native-float32-0.004]",),
    ),
    Bug(
        f"{CPU}/forward_panels.h",
        "sums of p follow m, those of p v do not",
        "store(x, load(x) * factor);",
        "store(x, load(x));",
        (f"{TESTS}::test_hard_scores_stay_in_the_error_budget[native-growing-False]",),
    ),
    # --- forward_plan.h ---
    Bug(
        f"{CPU}/forward_plan.h",
        "headroom does not grow with the number of keys",
        "s.seqlen_k > int64_t(1) << (headroom - kSlack);) ++headroom;",
        "s.seqlen_k < 0;) ++headroom;",
        (f"{NATIVE}::test_values_near_the_largest_number_are_averaged[0.7-panels-float32]",),
    ),
    Bug(
        f"{CPU}/forward_plan.h",
        "packed heads attend to the keys of another group",
        "return unit * packed / group; }",
        "return unit / group; }",
        (f"{NATIVE}::test_every_path_stays_in_the_error_budget[packed heads]",),
    ),
    Bug(
        f"{CPU}/forward_plan.h",
        "queries that see no key are not skipped",
        "return first_query + (blocks - 1 - block) * rows + column % rows; }",
        "return (blocks - 1 - block) * rows + column % rows; }",
        (f"{TESTS}::test_the_causal_mask_may_cut_blocks_anywhere[native]",),
    ),
    # --- forward_rows.h ---
    Bug(
        f"{CPU}/forward_rows.h",
        "the sum of p does not follow m",
        "m = largest, l *= rescale;",
        "m = largest;",
        (f"{TESTS}::test_hard_scores_stay_in_the_error_budget[native-growing-False]",),
    ),
    Bug(
        f"{CPU}/forward_rows.h",
        "the last key, repeated to fill a vector, counts twice",
        "s = col < Integer<T>(j0 + keys) ?",
        "s = col <= Integer<T>(j0 + keys) ?",
        (f"{NATIVE}::test_every_path_stays_in_the_error_budget[rows]",),
    ),
    Bug(
        f"{CPU}/forward_rows.h",
        "chunks of which one is all -inf merge into nan",
        "T power(T m, T base) const { return m == -kInfinity<T> ? T(0) : exp2",
        "T power(T m, T base) const { return exp2",
        (f"{TESTS}::test_a_row_without_a_finite_score_is_0_and_gives_nothing[native-2-1000-float32]",),
    ),
    # --- mask.h ---
    Bug(
        f"{CPU}/mask.h",
        "padding after the last key is seen",
        "rows >= Integer<T>(col < seqlen_k ? col - q_offset : seqlen_q);",
        "rows >= Integer<T>(col - q_offset);",
        (f"{TESTS}::test_scores_far_below_0_of_any_number_of_keys[native-float32-0.004]",),
    ),
    Bug(
        f"{CPU}/mask.h",
        "the backward begins a query late",
        "return clamp(first_col - q_offset, 0, seqlen_q); }",
        "return clamp(first_col - q_offset + 1, 0, seqlen_q); }",
        (f"{TESTS}::test_the_causal_mask_may_cut_blocks_anywhere[native]",),
    ),
    Bug(
        f"{CPU}/mask.h",
        "a tile whose last key is hidden from its first query counts as seen",
        "col0 + cols - 1 <= row0 + q_offset;",
        "col0 + cols - 2 <= row0 + q_offset;",
        (f"{TESTS}::test_the_causal_mask_may_cut_blocks_anywhere[native]",),
    ),
    # --- pair.h ---
    Bug(
        f"{CPU}/pair.h",
        "the second numbers of pairs keep the bits of the first",
        "(Vector<float>)(y & 0xffff0000);",
        "(Vector<float>)y;",
        (f"{PARTS}::test_products_of_pairs_are_exact",),
    ),
    Bug(
        f"{CPU}/pair.h",
        "the second number of a pair takes the place of the first",
        "sum += (Vector<float>)(xs << 16) * (Vector<float>)(y << 16);",
        "sum += (Vector<float>)(xs << 16) * (Vector<float>)(y & 0xffff0000);",
        (f"{NATIVE}::test_every_path_stays_in_the_error_budget[pairs]",),
    ),
    # --- pool.h ---
    Bug(
        f"{CPU}/pool.h",
        "helpers take signals, the main thread's interrupts among them",
        "sigfillset(&all);",
        "sigemptyset(&all);",
        (f"{POOL}::test_compiled_helpers_take_part_and_no_signals_in_a_forked_child_too",),
    ),
    Bug(
        f"{CPU}/pool.h",
        "the caller's signals stay blocked",
        "pthread_sigmask(SIG_SETMASK, &before, nullptr);",
        "pthread_sigmask(SIG_BLOCK, &before, nullptr);",
        (f"{POOL}::test_compiled_helpers_take_part_and_no_signals_in_a_forked_child_too",),
    ),
    Bug(
        f"{CPU}/pool.h",
        "helpers that wake late begin when the caller has gone",
        "wanted_ = begun_;  // nobody begins from here on",
        "",
        (f"{POOL}::test_a_job_of_the_compiled_pool_is_over_when_its_caller_comes_back",),
    ),
    Bug(
        f"{CPU}/pool.h",
        "the caller sleeps at most once, and does not wait for all",
        "while (!done()) pthread_cond_wait(&done_, &mutex_);",
        "if (!done()) pthread_cond_wait(&done_, &mutex_);",
        (f"{POOL}::test_a_job_of_the_compiled_pool_is_over_when_its_caller_comes_back",),
    ),
    Bug(
        f"{CPU}/pool.h",
        "a call waits for another call's pool, for ever if it is inside it",
        "pthread_mutex_trylock(&caller_) != 0)",
        "pthread_mutex_lock(&caller_) != 0)",
        (f"{POOL}::test_a_job_of_the_compiled_pool_is_over_when_its_caller_comes_back",),
    ),
    # --- product.h ---
    Bug(
        f"{CPU}/product.h",
        "the last numbers are not asked whether they are finite",
        "for (int64_t i = 0; i < count; i += kLanes<T>) sum",
        "for (int64_t i = 0; i + kLanes<T> < count; i += kLanes<T>) sum",
        (f"{TESTS}::test_a_nan_makes_nan_of_exactly_what_follows_from_it[native-200-301-float32]",),
    ),
    Bug(
        f"{CPU}/product.h",
        "columns that fill no pair of vectors are left out",
        "if (n < width) accumulate_wide<T, N - 1>",
        "if (n + kStep < width) accumulate_wide<T, N - 1>",
        (f"{NATIVE}::test_every_path_stays_in_the_error_budget[panels]",),
    ),
    # --- scratch.h ---
    Bug(
        f"{CPU}/scratch.h",
        "memory that does not begin at a cache line is too small",
        "int64_t bytes() const { return next_ + kAlignment; }",
        "int64_t bytes() const { return next_; }",
        (f"{NATIVE}::test_every_path_stays_in_the_error_budget[panels]",),
    ),
    Bug(
        f"{CPU}/scratch.h",
        "pieces are as many bytes as they should have elements",
        "next_ += round_up(count * sizeof(T), kAlignment);",
        "next_ += round_up(count, kAlignment);",
        (f"{NATIVE}::test_every_path_stays_in_the_error_budget[panels]",),
    ),
    # --- score.h ---
    Bug(
        f"{CPU}/score.h",
        "log2(e) is rounded as for float",
        "kLog2E = 1.4426950408889634074;",
        "kLog2E = 1.4426950408;",
        (f"{TESTS}::test_scores_far_below_0_of_any_number_of_keys[native-float64-1e-11]",),
    ),
    Bug(
        f"{CPU}/score.h",
        "a negative scale has a unit of its sign",
        "fraction < 0 ? -2 * fraction :",
        "fraction < 0 ? 2 * fraction :",
        ("tests/test_contract.py::test_scales_above_1[cpu--3.7-float32]",),
    ),
    # --- seen.h ---
    Bug(
        f"{CPU}/seen.h",
        "which keys are seen is asked of the first tile's",
        "if (!mask.sees(rows[i], j0 + j)) continue;",
        "if (!mask.sees(rows[i], j)) continue;",
        (f"{TESTS}::test_a_nan_makes_nan_of_exactly_what_follows_from_it[native-200-301-float32]",),
    ),
    Bug(
        f"{CPU}/seen.h",
        "only the last key that is seen counts",
        "to[c * y.col] += weight * from[c * x.col];",
        "to[c * y.col] = weight * from[c * x.col];",
        (f"{NATIVE}::test_hidden_numbers_do_not_matter[panels-nan]",),
    ),
    # --- shape.h ---
    Bug(
        f"{CPU}/shape.h",
        "what is divided without rest gets one part more",
        "ceil_div(int64_t n, int64_t size) { return (n + size - 1) / size; }",
        "ceil_div(int64_t n, int64_t size) { return n / size + 1; }",
        (f"{TESTS}::test_heads_of_many_blocks_share_their_keys[native-float32, 400 x 720]",),
    ),
    Bug(
        f"{CPU}/shape.h",
        "how far a row lies from the first is counted in 32 bits",
        "return data + layout.heads[head] + row * layout.row;",
        "return data + layout.heads[head] + int32_t(row * layout.row);",
        ("tests/test_layouts.py::test_elements_past_2_to_31[cpu-rows]",),
    ),
    # --- vector.h ---
    Bug(
        f"{CPU}/vector.h",
        "the last lane is not asked",
        "i < int(sizeof(M) / sizeof(mask[0])); ++i) bits |= mask[i];",
        "i < int(sizeof(M) / sizeof(mask[0])) - 1; ++i) bits |= mask[i];",
        (f"{TESTS}::test_each_row_may_meet_the_largest_score_alone[native-float32]",),
    ),
    Bug(
        f"{CPU}/vector.h",
        "a coefficient of 2^f is that of its Taylor series",
        "0.0013390863364671234381f",
        "0.0013333558f",
        (f"{PARTS}::test_powers_of_2_are_accurate",),
    ),
    Bug(
        f"{CPU}/vector.h",
        "2 to the -inf is the least normal number",
        "(less - T(E::kBias)) / unit",
        "(less - T(E::kBias - 1)) / unit",
        (f"{PARTS}::test_powers_of_2_are_accurate",),
    ),
]
