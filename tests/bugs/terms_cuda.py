"""Bugs of gradients of options, and of the bias and sinks themselves, in the kernels and what launches them."""

from bugs import Bug

ATTENTION, SRC = "cuda_src/attention/", "cupy_flash/_src/"
TESTS = "tests/test_terms_cuda.py::"
READ = f"{TESTS}test_a_bias_is_read_once_by_each_kernel_and_its_gradient_written_once"
SPLITS = f"{TESTS}test_splits_change_a_gradient_by_rounding_only"
PAIRS = f"{SPLITS}[(False, False, True, True)-float16]"
KEYS = f"{SPLITS}[(False, True)-float32]"
DIMS = f"{TESTS}test_more_leading_dimensions_than_a_launch_takes"
ROWS = f"{TESTS}test_more_rows_than_a_block_of_a_sinks_gradient_has[float32]"
SPOILT = f"{TESTS}test_gradients_of_options_are_spoilt_too"
PACKED = f"{TESTS}test_rows_of_a_packed_tile_have_the_biases_and_sinks_of_their_heads"
OWN = "tests/test_plan.py::test_a_gradient_of_an_option_has_blocks_of_its_own_elements"
WANTED = "tests/test_plan.py::test_kernels_of_gradients_that_are_wanted"
AXES = "tests/test_packing.py::test_of_each_axis_the_tiles_are_its_own_or_add_up"
ANALYSIS = "tests/test_analysis.py::test_work_and_traffic_of_what_is_wanted"
CLI = "tests/test_cli_options.py::"
LAST = "tests/test_tiles.py::test_the_last_legal_tile"


BUGS = [
    Bug(
        f"{ATTENTION}numbers.cuh",
        "the second of two halves is read as the first",
        "static_cast<uint16_t>(halves >> 16 * i)",
        "static_cast<uint16_t>(halves)",
        (PAIRS,),
    ),
    Bug(
        f"{ATTENTION}numbers.cuh",
        "numbers beyond the last are read",
        "if (step < left) words_",
        "if (step <= left) words_",
        (f"{READ}[98-q-float32]",),
    ),
    Bug(
        f"{ATTENTION}numbers.cuh",
        "numbers that lie apart are read as neighbours",
        "from[step * row.col_stride]",
        "from[step]",
        (f"{PACKED}[float32]",),
    ),
    Bug(
        f"{ATTENTION}sink.cuh",
        "a sink takes no share of the row",
        "share = sum == 0 ? Accumulator(0) : of_keys / sum;",
        "share = 1;",
        (f"{PACKED}[float16]",),
    ),
    Bug(
        f"{ATTENTION}sink.cuh",
        "a row that has neither keys nor a sink is NaN",
        "base = larger == -infinity<Accumulator>() ? Accumulator(0) : larger;",
        "base = larger;",
        (f"{TESTS}test_a_row_without_keys_has_its_sink_or_nothing[float32]",),
    ),
    Bug(
        f"{ATTENTION}sink/sinks.cuh",
        "all heads of a packed tile have the first's sink",
        "first.data[head * head_stride]",
        "first.data[0]",
        (f"{PACKED}[float16]",),
    ),
    Bug(
        f"{ATTENTION}sink/sinks.cuh",
        "rows that do not exist have a sink",
        "return query < queries ? sink",
        "return query <= queries ? sink",
        (ROWS,),
    ),
    Bug(
        f"{ATTENTION}term.cuh",
        "the last split leaves out what is no whole share",
        "ceil_div(parts, schedule.num_splits)",
        "parts / schedule.num_splits",
        (PAIRS,),
    ),
    Bug(
        f"{ATTENTION}term.cuh",
        "heads that add up are the first alone",
        "own_head + rest % schedule.summed_heads;",
        "own_head;",
        (PAIRS,),
    ),
    Bug(
        f"{ATTENTION}term.cuh",
        "what adds up of a batch begins at its first element",
        "found += (own % schedule.own_batch[dim] + summed % schedule.summed_batch[dim]) * stride;",
        "found += summed % schedule.summed_batch[dim] * stride;",
        (READ + "[98-q-float16]", f"{TESTS}test_every_batch_element_has_its_own_gradient[float16]"),
    ),
    Bug(
        f"{ATTENTION}term.cuh",
        "what launches add up takes the place of what is there",
        "schedule.is_added ? to_accumulator(*to) + sum : sum",
        "sum",
        (f"{DIMS}[(False, True, False, True, False)-float32]",),
    ),
    Bug(
        f"{ATTENTION}term_sums.cuh",
        "rows add up to the first but one",
        "for (int row = 0; row < kBlockM; ++row) sum",
        "for (int row = 1; row < kBlockM; ++row) sum",
        (KEYS, f"{SPLITS}[(False, True)-float16]"),
    ),
    Bug(
        f"{ATTENTION}term_sums.cuh",
        "threads add up columns before all rows are",
        "      *sums.at(0, col) = sum;\n    }\n    __syncthreads();",
        "      *sums.at(0, col) = sum;\n    }",
        (f"{TESTS}test_slopes_have_a_gradient_without_races[float16]",),
    ),
    Bug(
        f"{ATTENTION}score/bias.cuh",
        "a bias is read in log2 units",
        "numbers.at(j) * static_cast<Accumulator>(kLog2E)",
        "numbers.at(j)",
        (f"{PACKED}[float32]",),
    ),
    Bug(
        f"{ATTENTION}score/bias.cuh",
        "all heads of a packed tile have the first's bias",
        " + head * bias.head_stride;",
        ";",
        (f"{PACKED}[float16]",),
    ),
    Bug(
        f"{ATTENTION}score/bias.cuh",
        "rows that do not exist are read",
        "first.has_row(query) ? first.cols : 0",
        "first.cols",
        (f"{READ}[98-q-float16]",),
    ),
    Bug(
        f"{ATTENTION}score/alibi.cuh",
        "a slope's gradient has the wrong sign",
        "return -dy * distance(j);",
        "return dy * distance(j);",
        (f"{TESTS}test_slopes_have_a_gradient_without_races[float32]",),
    ),
    Bug(
        f"{ATTENTION}backward_terms.cu",
        "a lane's rows of a sink's gradient are the first 32",
        "row < end; row += 32)",
        "row < end; row += 64)",
        (ROWS,),
    ),
    Bug(
        f"{ATTENTION}backward_terms.cu",
        "rows that do not exist count in a sink's gradient",
        "if (lse != -infinity<Accumulator>()) of_block",
        "of_block",
        (ROWS,),
    ),
    Bug(
        f"{ATTENTION}backward_terms.cu",
        "the last split is not added",
        "split < schedule.num_splits; ++split) sum",
        "split < schedule.num_splits - 1; ++split) sum",
        (KEYS,),
    ),
    Bug(
        f"{ATTENTION}backward_terms.cu",
        "of the arrays that may have changed the last is not looked at",
        "array < 5;",
        "array < 4;",
        (f"{SPOILT}[4-float32]",),
    ),
    Bug(
        "cuda_src/mma/backward_term.cu",
        "tiles are overwritten while they are read",
        "    __syncthreads();  // the tiles' last readers are done\n",
        "",
        (f"{TESTS}test_slopes_have_a_gradient_without_races[float16]",),
    ),
    Bug(
        "cuda_src/mma/backward_term.cu",
        "rows that do not see a tile are read",
        "batch, head, end, shape.head_dim_v, begin), m0);",
        "batch, head, shape.seqlen_q, shape.head_dim_v, 0), m0);",
        (f"{TESTS}test_traffic_of_gradients_is_what_the_emulator_counts[of keys]",),
    ),
    Bug(
        "cuda_src/mma/backward_term.cu",
        "a group's heads have the first key head",
        "head_k = head / shape.group_size;",
        "head_k = head % shape.group_size;",
        (f"{TESTS}test_groups_share_keys[float16]",),
    ),
    Bug(
        "cuda_src/simt/backward_term.cu",
        "only the last tile counts",
        "sums[i][j] += ds[i][j];",
        "sums[i][j] = ds[i][j];",
        (KEYS,),
    ),
    Bug(
        "cuda_src/simt/backward_term.cu",
        "the gradient is that of q . k",
        "recompute<kTerm, kGather != 0>(p, ds",
        "recompute<-1, kGather != 0>(p, ds",
        (KEYS,),
    ),
    Bug(
        "cuda_src/simt/forward.cu",
        "the output keeps a sink's share",
        "        inverse *= joined.share;\n",
        "",
        (f"{PACKED}[float32]",),
    ),
    Bug(
        "cuda_src/mma/forward.cu",
        "rows of splits have a sink each",
        "if (partial || row >= packing.rows(shape)) continue;",
        "if (row >= packing.rows(shape)) continue;",
        (f"{TESTS}test_splits_of_keys_have_one_sink",),
    ),
    Bug(
        f"{ATTENTION}combine.cu",
        "splits have no sink",
        "if (Sink::kExists) inverse *= joined().share;",
        "",
        (f"{TESTS}test_splits_of_keys_have_one_sink",),
    ),
    # ---- plans
    Bug(
        f"{SRC}plan.py",
        "a gradient's kernel is that of the first step",
        "steps.index(term.keyword) if",
        "len(steps) - 1 if",
        (f"{TESTS}test_slopes_have_a_gradient_without_races[float16]",),
    ),
    Bug(
        f"{SRC}plan.py",
        "an axis that a gradient has adds up, and the other way round",
        "return [(1, n) if own == 1 else (n, 1)",
        "return [(n, 1) if own == 1 else (1, n)",
        (f"{OWN}[sm_80-float16-bias]", AXES),
    ),
    Bug(
        f"{SRC}plan.py",
        "parts are not added up",
        '        sum_splits = _by_elements("attention_sum_splits", problem, term)\n',
        "        pass\n",
        (f"{OWN}[sm_80-float16-of keys]",),
    ),
    Bug(
        f"{SRC}plan.py",
        "blocks of elements leave out a rest",
        "ceil_div(prod(term.shape), 32 * kernel",
        "max(1, prod(term.shape) // 32) + 0 * (kernel",
        (f"{OWN}[sm_80-float16-of keys]",),
    ),
    Bug(
        f"{SRC}plan.py",
        "dK and dV are computed where dQ alone is wanted",
        "if wants_dk or wants_dv:",
        "if True:",
        (f"{WANTED}",),
    ),
    Bug(
        f"{SRC}plan.py",
        "sums of dQ are converted that no kernel made",
        "if atomic_dq and problem.out_storage",
        "if wants_dq and problem.out_storage",
        (f"{WANTED}",),
    ),
    # ---- what kernels are told
    Bug(
        f"{SRC}packing.py",
        "a gradient of one query has rows of its own",
        "int(plan.term.shape[-2] > 1)",
        "int(plan.term.shape[-2] > 0)",
        (AXES,),
    ),
    Bug(
        f"{SRC}packing.py",
        "batch dimensions that a launch has more come last",
        "batch = [(1, 1)] * (BATCH_DIMS - len(batch)) + batch",
        "batch = batch + [(1, 1)] * (BATCH_DIMS - len(batch))",
        (AXES,),
    ),
    Bug(
        f"{SRC}packing.py",
        "parts of splits lie on one another",
        '"split_stride": math.prod(plan.term.shape),',
        '"split_stride": 1,',
        (AXES, KEYS),
    ),
    Bug(
        f"{SRC}launch.py",
        "the first of several launches joins what is in memory",
        "is_added=begin in seen)",
        "is_added=bool(offsets))",
        (f"{DIMS}[(False, True, False, True, False)-float32]",),
    ),
    Bug(
        f"{SRC}launch.py",
        "every launch writes elements anew",
        "        seen.add(begin)\n",
        "",
        (f"{DIMS}[(False, True, False, True, False)-float32]",),
    ),
    Bug(
        f"{SRC}launch.py",
        "a gradient of an option that is nothing is not cleared",
        'new("dterm", term.shape, DTYPES[term.dtype])',
        "xp.empty(term.shape, DTYPES[term.dtype])",
        (f"{TESTS}test_a_gradient_of_nothing_is_0",),
    ),
    Bug(
        f"{SRC}launch.py",
        "gradients of options are not spoilt",
        "        if flat.size:\n",
        "        if not flat.size:\n",
        (f"{SPOILT}[0-float16]",),
    ),
    Bug(
        f"{SRC}kernels.py",
        "a kernel of dV makes dK",
        '("kWantsDk", int(wants_dk))',
        '("kWantsDk", 1)',
        (WANTED,),
    ),
    Bug(
        f"{SRC}kernels.py",
        "gradients have the dtype of q",
        'return _composed("mma/backward_term.cu", "attention_dterm", variant, constants, out)',
        'return _composed("mma/backward_term.cu", "attention_dterm", variant, constants, variant.dtype)',
        (f"{READ}[100-float32-float16]",),
    ),
    Bug(
        f"{SRC}tiles.py",
        "tiles of the kernel of an option's gradient leave out the sums' padding",
        "_FLOAT_BYTES * self.block_m * (self.block_n + 8)",
        "_FLOAT_BYTES * self.block_m * self.block_n",
        ("tests/test_tiles.py::test_around_legal_tiles_those_that_compile_are_legal[mma-term]",),
    ),
    Bug(
        f"{SRC}tiles.py",
        "a thread has two tiles of scores",
        "problem or _sums_fault(self, 3 * self.block_m * self.block_n, itemsize)",
        "problem or _sums_fault(self, 2 * self.block_m * self.block_n, itemsize)",
        (LAST,),
    ),
    # ---- what commands tell
    Bug(
        f"{SRC}analysis/traffic.py",
        "of splits one writes its part",
        "return plan.num_splits * prod(plan.term.shape) * itemsize",
        "return prod(plan.term.shape) * itemsize",
        (ANALYSIS,),
    ),
    Bug(
        f"{SRC}analysis/traffic.py",
        "gradients of keys that nobody wants are written",
        'problem.head_dim * ("k" in problem.wrt)',
        "problem.head_dim",
        (ANALYSIS,),
    ),
    Bug(
        f"{SRC}analysis/traffic.py",
        "sinks are read by the blocks of a forward that another kernel merges",
        "plan.forward.grid * plan.packed_heads if plan.combine is None else plan.combine.grid",
        "plan.forward.grid * plan.packed_heads",
        (f"{CLI}test_explain_tells_what_sinks_add",),
    ),
    Bug(
        f"{SRC}analysis/traffic.py",
        "launches that are equal belong to the same option",
        "any(launch is step for step in term.launches)",
        "launch in term.launches",
        (f"{TESTS}test_equal_launches_of_two_options_are_told_apart",),
    ),
    Bug(
        f"{SRC}analysis/roofline.py",
        "the gradient of v alone takes dO V^T",
        'bool(wanted - {"v"})',
        "bool(wanted)",
        ("tests/test_analysis.py::test_products_that_gradients_take",),
    ),
    Bug(
        f"{SRC}plan.py",
        "kernels of gradients of other options are compiled",
        "score.learns and score.keyword in wrt]",
        "score.learns]",
        (f"{CLI}test_compile_makes_the_kernels_of_gradients_that_are_asked_for[sm_75-q v bias]",),
    ),
    Bug(
        f"{SRC}cli/explain.py",
        "gradients of q, k and v are counted, whatever is asked for",
        '"wrt": _wrt(args)}',
        '"wrt": INPUTS}',
        ("tests/test_explain.py::test_explain_counts_gradients_of_options",),
    ),
]
