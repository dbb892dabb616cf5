"""Bugs of the backend "cpu" in Python: its two tiers, and the threads and forks that other parts share with it."""

from bugs import Bug

SRC = "cupy_flash/_src"
BACKENDS = f"{SRC}/backends"
TESTS = "tests/test_cpu_backend.py"
NATIVE = "tests/test_native.py"
STEPS = "tests/test_cpu_components.py"
THREADS = "tests/test_threads.py"
WINDOWS = ("tests/test_window.py::test_a_window_may_cut_blocks_anywhere[numpy]",)

BUGS = [
    # --- native.py ---
    Bug(
        f"{BACKENDS}/native.py",
        "every call leaves its memory for the next",
        "if not _free and memory.size <= KEPT_BYTES:",
        "if memory.size <= KEPT_BYTES:",
        (f"{TESTS}::test_memory_of_calls_at_the_same_time_is_given_back[native]",),
    ),
    Bug(
        f"{BACKENDS}/native.py",
        "memory of any size is kept",
        "if not _free and memory.size <= KEPT_BYTES:",
        "if not _free:",
        (f"{TESTS}::test_memory_of_large_calls_is_given_back",),
    ),
    Bug(
        f"{BACKENDS}/native.py",
        "rows of dq that see no key hold what was in memory",
        "dq = np.zeros(problem.q_shape,",
        "dq = np.full(problem.q_shape, np.nan,",
        (f"{TESTS}::test_the_causal_mask_may_cut_blocks_anywhere[native]",),
    ),
    Bug(
        f"{BACKENDS}/native.py",
        "hidden keys count as work",
        "float((seen.end - seen.begin).mean())",
        "problem.seqlen_k",
        (f"{NATIVE}::test_threads_share_what_takes_longer_than_to_wake_them",),
    ),
    Bug(
        f"{BACKENDS}/native.py",
        "out is described by the dtype of q, though it may be wider",
        "out_dtype=_DTYPES.index(problem.out_storage.name),",
        "out_dtype=_DTYPES.index(problem.dtype),",
        ("tests/test_merge.py::test_a_wide_dout_is_rounded_and_every_dtype_has_its_plan[cpu]",),
    ),
    Bug(
        f"{BACKENDS}/native.py",
        "a call that wants to be called again is not",
        "    while function(reference):\n        pass\n",
        "    function(reference)\n",
        (f"{NATIVE}::test_every_path_stays_in_the_error_budget[pairs]",),
    ),
    Bug(
        f"{BACKENDS}/native.py",
        "the heads of a call whose description is kept are not counted",
        "if math.prod(problem.batch) * problem.num_heads_q <= CACHED_HEADS else",
        "if math.prod(problem.batch) <= CACHED_HEADS else",
        (f"{NATIVE}::test_descriptions_of_calls_are_kept_but_for_very_many_heads",),
    ),
    # --- numpy_.py ---
    Bug(
        f"{BACKENDS}/numpy_.py",
        "a row without a finite score gives nan to the gradients",
        "minus_lse[minus_lse == np.inf] = -np.inf",
        "minus_lse[minus_lse == np.inf] = np.inf",
        (f"{TESTS}::test_a_row_without_a_finite_score_is_0_and_gives_nothing[numpy-60-130-float32]",),
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "a row without a finite score has a reference of -inf",
        "            m[m == -np.inf] = 0\n",
        "",
        (f"{TESTS}::test_a_row_without_a_finite_score_is_0_and_gives_nothing[numpy-60-130-float32]",),
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "lse forgets the headroom",
        "    tile_total += headroom\n",
        "",
        (f"{TESTS}::test_growing_scores_overflow_without_the_moving_reference_and_are_computed_again",),
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "what is computed again for a nan is of the hidden keys",
        "            seen = self._seen()\n",
        "            seen = ~self._seen()\n",
        (f"{TESTS}::test_a_nan_makes_nan_of_exactly_what_follows_from_it[numpy-200-301-float32]",),
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "the key on the diagonal is hidden",
        "where=keys[cut] >= end)",
        "where=keys[cut] + 1 >= end)",
        (f"{TESTS}::test_the_causal_mask_may_cut_blocks_anywhere[numpy]",),
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "a tile whose last key is hidden from its first query only is not masked",
        "first.end >= cols.stop",
        "first.end + 1 >= cols.stop",
        (f"{TESTS}::test_the_causal_mask_may_cut_blocks_anywhere[numpy]",),
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "the first key of a window is hidden",
        "where=keys[cut] < begin)",
        "where=keys[cut] <= begin)",
        WINDOWS,
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "a tile whose first key is hidden from its last query only is not masked",
        "last.begin <= cols.start and",
        "last.begin <= cols.start + 1 and",
        WINDOWS,
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "gradients of a block's keys begin with its first, not with the first that is seen",
        "slice(low - j0, high - j0)",
        "slice(high - low)",
        WINDOWS,
    ),
    Bug(
        f"{BACKENDS}/host_terms.py",
        "rows whose windows lie behind all keys hold what was in memory",
        "((0, begin), (end, problem.seqlen_q))",
        "((0, begin),)",
        (*WINDOWS, f"{STEPS}::test_a_window_may_cut_blocks_anywhere"),
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "q bears a negative scale alone",
        "if abs(problem.scale) > 1 else 0",
        "if problem.scale > 1 else 0",
        ("tests/test_contract.py::test_a_scale_that_q_alone_could_not_bear[cpu-numpy--1-float32]",),
    ),
    # --- threads.py ---
    Bug(
        f"{BACKENDS}/threads.py",
        "a forked child asks threads for help that only its parent has",
        "    _state.one_blas_thread.restore()\n    _state = _State()\n",
        "    _state.one_blas_thread.restore()\n    _state.one_blas_thread = _OneBlasThread()\n",
        (f"{TESTS}::test_a_forked_child_computes_on_as_many_threads[numpy]",),
    ),
    Bug(
        f"{BACKENDS}/threads.py",
        "BLAS has its threads back while helpers are still at work",
        "with _state.one_blas_thread, job:",
        "with job, _state.one_blas_thread:",
        (f"{TESTS}::test_blas_has_one_thread_until_the_last_item_has_ended",),
    ),
    Bug(
        f"{BACKENDS}/threads.py",
        "NumPy warns of what helpers round",
        '        with np.errstate(all="ignore"):\n            super().work()',
        "        super().work()",
        (f"{TESTS}::test_no_thread_of_a_job_warns_of_numbers",),
    ),
    Bug(
        f"{BACKENDS}/threads.py",
        "as many helpers as threads, beside the caller",
        "helpers = min(num_threads(), len(items)) - 1 if len(items) > 1 else 0",
        "helpers = min(num_threads(), len(items)) if len(items) > 1 else 0",
        (f"{TESTS}::test_as_many_threads_work_as_there_may_be",),
    ),
    # --- cpu.py ---
    Bug(
        f"{BACKENDS}/cpu.py",
        "a variable that is set to nothing names no tier",
        'os.environ.get("CUPY_FLASH_CPU_TIER") or "auto"',
        'os.environ.get("CUPY_FLASH_CPU_TIER", "auto")',
        (f"{NATIVE}::test_a_library_that_cannot_be_loaded_is_warned_of_once",),
    ),
    Bug(
        f"{BACKENDS}/cpu.py",
        "a library that the system does not load ends the call",
        "except (ToolchainError, OSError) as error:\n        failure,",
        "except ToolchainError as error:\n        failure,",
        (f"{NATIVE}::test_a_library_that_cannot_be_loaded_is_warned_of_once",),
    ),
    Bug(
        f"{BACKENDS}/cpu.py",
        "a compiler that failed is asked at every call",
        "    _settled[arithmetic] = failure\n",
        "",
        (f"{NATIVE}::test_a_library_that_cannot_be_loaded_is_warned_of_once",),
    ),
    # --- seal.py ---
    Bug(
        f"{BACKENDS}/seal.py",
        "only what changed in every head is told",
        ".any(axis=0))",
        ".all(axis=0))",
        ("tests/test_vjp.py::test_a_change_is_named[cpu-float32-last_bit]",),
    ),
    Bug(
        f"{BACKENDS}/seal.py",
        "out is told as lse, and lse as out",
        "zip(KEPT, flags.tolist(), strict=True)",
        'zip(("q", "k", "v", "lse", "out"), flags.tolist(), strict=True)',
        (f"{TESTS}::test_each_change_is_told_by_its_name",),
    ),
    # --- workers.py ---
    Bug(
        f"{SRC}/workers.py",
        "the last error is raised, not the first",
        "self._error = self._error or error",
        "self._error = error",
        (f"{THREADS}::test_the_first_error_is_raised",),
    ),
    Bug(
        f"{SRC}/workers.py",
        "more threads help than are wanted",
        "for _ in range(min(wanted, self._threads)):",
        "for _ in range(self._threads):",
        (f"{THREADS}::test_callers_share_the_threads_that_one_of_them_wanted",),
    ),
    Bug(
        f"{SRC}/workers.py",
        "callers at the same time start threads of their own each",
        "            with self._starting:\n",
        "            if True:\n",
        (f"{THREADS}::test_callers_at_the_same_time_start_no_thread_twice",),
    ),
    Bug(
        f"{SRC}/workers.py",
        "a quota larger than the affinity counts",
        "return min(allowed, _quota(_CGROUP) or allowed)",
        "return _quota(_CGROUP) or allowed",
        (f"{THREADS}::test_the_least_of_affinity_and_quota_counts",),
    ),
    # --- forks.py ---
    Bug(
        f"{SRC}/forks.py",
        "a fork does not wait for who is at work",
        "        self._changed.wait_for(lambda: self._inside.keys() <= {me}, PATIENCE)\n",
        "",
        (f"{THREADS}::test_a_fork_waits_for_who_is_at_work_and_who_comes_later_waits_for_it",),
    ),
    Bug(
        f"{SRC}/forks.py",
        "nobody wakes who waited for a fork",
        "            self._forking.remove(threading.get_ident())\n            self._changed.notify_all()\n",
        "            self._forking.remove(threading.get_ident())\n",
        (f"{THREADS}::test_a_fork_waits_no_longer_than_its_patience",),
    ),
    Bug(
        f"{SRC}/forks.py",
        "who is at work and comes again waits for the fork that waits for it",
        "me in self._forking or me in self._inside)",
        "me in self._forking)",
        (f"{THREADS}::test_a_fork_waits_for_who_is_at_work_and_who_comes_later_waits_for_it",),
    ),
]
