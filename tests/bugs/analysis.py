"""Numbers about plans and results: occupancy, traffic, roofline, and the budget of errors."""

from . import Bug

BUDGET, OCCUPANCY, ROOFLINE, TRAFFIC = (
    f"cupy_flash/_src/analysis/{name}.py" for name in ("budget", "occupancy", "roofline", "traffic")
)
BY_BUDGET, ANALYSIS, OPTIONS = "tests/test_budget.py", "tests/test_analysis.py", "tests/test_cli_options.py"
BY_GPU = "tests/emulator/test_arithmetic.py"
BY_LOOPS = f"{BY_BUDGET}::test_magnitudes_are_those_of_the_definition"
SPENT = f"{BY_BUDGET}::test_what_is_spent_and_what_there_is"
NO_NUMBER = f"{BY_BUDGET}::test_what_is_no_number_in_the_wrong_place_is_refused"
BY_NVIDIA = f"{ANALYSIS}::test_occupancy_is_what_nvidia_computes"
BY_ARRAYS = f"{ANALYSIS}::test_a_problems_work_and_bytes_are_those_of_its_arrays"
WALK = f"{ANALYSIS}::test_traffic_is_what_a_walk_over_the_blocks_counts"

BUGS = [
    # --- budget.py ---
    Bug(
        BUDGET,
        "naive attention's error counts four times",
        "float(2 * naive_error",
        "float(4 * naive_error",
        (SPENT,),
    ),
    Bug(
        BUDGET,
        "delta is taken for as exact as sums are",
        "delta = storage_eps / sum_eps *",
        "delta =",
        (BY_LOOPS, f"{BY_BUDGET}::test_delta_of_a_rounded_output_is_in_the_budget"),
    ),
    Bug(
        BUDGET,
        "running sums of values that are alike are exact",
        "in_order: float = 1 / 8",
        "in_order: float = 0",
        (BY_LOOPS,),
    ),
    Bug(
        BUDGET,
        "hidden keys count",
        "s = np.where(seen, s, -np.inf)",
        "s = np.where(True, s, -np.inf)",
        (BY_LOOPS,),
    ),
    Bug(
        BUDGET,
        "arrays among the options are not told",
        "problem.place(problem.expanded(np, arrays))",
        "problem.place({} if problem.masks else problem.expanded(np, arrays))",
        (BY_LOOPS,),
    ),
    Bug(
        BUDGET,
        "dlse has no part in the gradients",
        "(0 if dlse is None else np.abs(dlse)[..., None])",
        "0",
        (BY_LOOPS,),
    ),
    Bug(
        BUDGET,
        "a number passes for the NaN that is exact",
        "if not np.array_equal(x[~finite], exact[~finite], equal_nan=True):",
        "if not np.array_equal(np.isneginf(x), np.isneginf(exact)):",
        (NO_NUMBER,),
    ),
    Bug(
        BUDGET,
        "naive attention's overflow excuses everything",
        "_largest(np.abs(naive - exact)[np.isfinite(naive)])",
        "_largest(np.abs(naive - exact))",
        (NO_NUMBER,),
    ),
    Bug(
        BUDGET,
        "a result that broadcasts has the right shape",
        "if x.shape != exact.shape:",
        "if x.ndim != exact.ndim:",
        (f"{BY_BUDGET}::test_a_wrong_shape_is_refused",),
    ),
    Bug(
        BUDGET,
        "ex2 is as exact as a rounding",
        "Approximations(ex2=2.5, lg2=2.0)",
        "Approximations(ex2=0.5, lg2=2.0)",
        (f"{BY_GPU}::test_the_worst_is_within_the_budget", BY_LOOPS),
    ),
    Bug(
        BUDGET,
        "lg2 is as exact as a rounding",
        "Approximations(ex2=2.5, lg2=2.0)",
        "Approximations(ex2=2.5, lg2=0.5)",
        (f"{BY_GPU}::test_the_worst_is_within_the_budget", BY_LOOPS),
    ),
    Bug(
        BUDGET,
        "the logarithm is of a sum without headroom",
        "np.log(total) - off.headroom +",
        "np.log(total) +",
        (f"{BY_GPU}::test_the_worst_is_within_the_budget", BY_LOOPS),
    ),
    Bug(
        BUDGET,
        "tensor cores round to nearest",
        "sums=5 / 4",
        "sums=0",
        (f"{BY_GPU}::test_what_tensor_cores_cut_is_in_the_budget", BY_LOOPS),
    ),
    Bug(
        BUDGET,
        "rescaling a weight costs nothing",
        "off.ex2 * (1 + _rises(s)) * p",
        "off.ex2 * p",
        (f"{BY_GPU}::test_every_rise_of_the_maximum_is_in_the_budget", BY_LOOPS),
    ),
    Bug(
        BUDGET,
        "keys are taken from the first on only",
        "rises.max(0)",
        "rises[0]",
        (BY_LOOPS,),
    ),
    Bug(
        BUDGET,
        "the sum of the weights is exact",
        "weights += off_sum * p",
        "weights += 0 * p",
        (BY_LOOPS,),
    ),
    Bug(
        BUDGET,
        "the scores of the gradients err as those of the forward do",
        "    again = steps * largest_score\n",
        "    again = 0.0\n",
        (f"{BY_GPU}::test_scores_that_are_made_twice_may_err_to_both_sides", BY_LOOPS),
    ),
    Bug(
        BUDGET,
        "the gradients' lse is exact",
        "in_share = rounded_lse + off.ex2 + off_lse",
        "in_share = rounded_lse + off.ex2",
        (f"{BY_GPU}::test_the_worst_is_within_the_budget", BY_LOOPS),
    ),
    Bug(
        BUDGET,
        "the emulator is always taken for exact",
        'backend.startswith("emulator") and current().arithmetic != "exact"',
        'backend.startswith("emulator") and False',
        (f"{BY_GPU}::test_results_differ_and_repeat",),
    ),
    # --- occupancy.py ---
    Bug(
        OCCUPANCY,
        "registers are allocated one by one",
        "per_warp = ceil(32 * registers / _REGISTER_UNIT) * _REGISTER_UNIT",
        "per_warp = 32 * registers",
        (BY_NVIDIA,),
    ),
    Bug(
        OCCUPANCY,
        "one scheduler has all registers",
        "_REGISTER_UNIT, _SCHEDULERS = 256, 4",
        "_REGISTER_UNIT, _SCHEDULERS = 256, 1",
        (BY_NVIDIA,),
    ),
    Bug(
        OCCUPANCY,
        "what limits most is what limits least",
        "limited_by = min(limits,",
        "limited_by = max(limits,",
        (f"{ANALYSIS}::test_what_limits_occupancy",),
    ),
    # --- roofline.py ---
    Bug(
        ROOFLINE,
        "two products of the backward have the columns of the other size",
        '{"q": d, "k": d, "v": dv}',
        '{"q": dv, "k": d, "v": d}',
        ("tests/test_analysis.py::test_products_that_gradients_take",),
    ),
    Bug(
        ROOFLINE,
        "queries after those that are held at first are not counted",
        "for i in range(0, sq, step)",
        "for i in range(0, min(sq, step), step)",
        (f"{ANALYSIS}::test_pairs_of_more_queries_than_are_held_at_once",),
    ),
    Bug(
        ROOFLINE,
        "the last query is not counted",
        "min(i + step, sq)",
        "min(i + step, sq - 1)",
        (BY_ARRAYS,),
    ),
    Bug(
        ROOFLINE,
        "keys are counted once for each query head",
        "for heads in (problem.num_heads_q, problem.num_heads_k))",
        "for heads in (problem.num_heads_q, problem.num_heads_q))",
        (BY_ARRAYS,),
    ),
    Bug(
        ROOFLINE,
        "tensor cores take float64",
        '        if dtype == "float64":\n            return self.double\n',
        "",
        (f"{ANALYSIS}::test_peaks_are_those_of_the_units_that_compute",),
    ),
    Bug(
        ROOFLINE,
        "an RTX 4090 has its rate with float16 sums",
        'Rates("RTX 4090", 165.2,',
        'Rates("RTX 4090", 330.3,',
        (f"{ANALYSIS}::test_a_datasheets_rates_are_clocks_times_units",),
    ),
    Bug(
        ROOFLINE,
        "keys before all windows are read",
        "int(end_keys - begin_keys)",
        "int(end_keys)",
        (BY_ARRAYS,),
    ),
    Bug(
        ROOFLINE,
        "queries whose windows lie behind all keys are read",
        "int(end - first)",
        "int(problem.seqlen_q - first)",
        (BY_ARRAYS,),
    ),
    # --- traffic.py ---
    Bug(
        TRAFFIC,
        "a mask is read once, whatever kernels compute scores",
        "kernels = {launch.kernel: launch for launch in launches}.values()",
        "kernels = launches[:1]",
        (f"{OPTIONS}::test_explain_tells_what_arrays_add",),
    ),
    Bug(
        TRAFFIC,
        "a mask is read again in each span of keys",
        "kernels = {launch.kernel: launch for launch in launches}.values()",
        "kernels = launches",
        (f"{OPTIONS}::test_a_mask_is_read_where_windows_show_and_once_in_all_spans",),
    ),
    Bug(
        TRAFFIC,
        "blocks that nobody sees are met",
        "np.where(found.begin < found.end, ceil_div(found.end, others[0]), begin)",
        "np.maximum(begin + 1, ceil_div(found.end, others[0]))",
        (f"{OPTIONS}::test_explain_tells_the_share_of_blocks_that_are_met",),
    ),
    Bug(
        TRAFFIC,
        "of a mask the elements of pairs that are seen are read by tensor cores too",
        'if seen and (launch.kernel.family, launch.kernel.entry) == ("simt", "attention_forward"):',
        "if seen:",
        ("tests/test_option_arrays_cuda.py::test_what_is_read_of_a_mask_beside_other_masks_is_what_explain_tells",),
    ),
    Bug(
        TRAFFIC,
        "blocks end with their first row",
        "np.minimum(first + block, size) - 1",
        "first",
        (WALK,),
    ),
    Bug(
        TRAFFIC,
        "a block of packed heads ends with its last row, not with that row's query",
        "(row // packed for row in _blocks(problem.seqlen_q * packed, block))",
        "_blocks(problem.seqlen_q * packed, block)",
        (WALK,),
    ),
    Bug(
        TRAFFIC,
        "dQ is in the type of the inputs",
        "dq = problem.head_dim * problem.out_storage.itemsize",
        "dq = problem.head_dim * problem.storage.itemsize",
        (WALK,),
    ),
    Bug(
        TRAFFIC,
        "atomic additions begin at the first query that sees a key",
        "        begin = begin // block * block\n",
        "",
        (WALK,),
    ),
    Bug(
        TRAFFIC,
        "atomic additions end with the last query that sees a key",
        "np.minimum(-(-end // block) * block, size)",
        "end",
        (WALK,),
    ),
    Bug(
        TRAFFIC,
        "keys that nobody sees have a tile of queries too",
        "np.where(begin < end, np.minimum(-(-end // block) * block, size), 0)",
        "np.minimum(-(-end // block) * block, size)",
        (WALK,),
    ),
    Bug(
        TRAFFIC,
        "keys before all windows are read",
        "seen = _size(problem.keys(0, problem.seqlen_q - 1))",
        "seen = int(problem.keys(0, problem.seqlen_q - 1).end)",
        (WALK,),
    ),
]
