"""Bugs of traced functions in CUDA: their text, operations, intervals, lists of blocks and sums of gradients."""

from bugs import Bug

ATTENTION, EXPRESSIONS = "cuda_src/attention/", "cupy_flash/_src/expressions/"
TESTS = "tests/test_mods_cuda.py::"
NUMBERS = f"{TESTS}test_operations_in_cuda_are_numpy_s"
PYTHON_S = f"{TESTS}test_intervals_in_cuda_are_those_of_python"
INSIDE = f"{TESTS}test_values_lie_in_their_intervals_in_cuda"
SKIPPED = f"{TESTS}test_tiles_are_skipped_as_by_the_built_in_masks"
DOCUMENTS = f"{TESTS}test_documents_meet_themselves_alone[float16]"
PACKED = f"{TESTS}test_rows_of_packed_heads_have_a_list_together"
SUMS = f"{TESTS}test_sums_in_whole_numbers_are_the_same_in_every_order"
ALL = "tests/test_mods.py::test_all_of_them_at_once[emulator:sm_75-float32]"

BUGS = [
    Bug(
        "cuda_src/mma/scores.cuh",
        "rows that do not exist have gradients",
        "|| row < mask.seqlen_q;",
        "|| row >= 0;",
        ("tests/test_mods_cuda.py::test_rows_that_do_not_exist_add_nothing",),
    ),
    Bug(
        "cupy_flash/_src/problem.py",
        "batch elements are numbered where nobody asks",
        "        elif arrays is not None:\n            batch",
        "        else:\n            batch",
        ("tests/test_terminal.py::test_a_mistake_is_told_in_a_line",),
    ),
    Bug(
        f"{ATTENTION}block_lists.cu",
        "a row of blocks is its first query",
        "min((row * kBlockM + kBlockM - 1) / packed, shape.seqlen_q - 1)",
        "min(row * kBlockM / packed, shape.seqlen_q - 1)",
        (f"{SKIPPED}[causal]",),
    ),
    Bug(
        f"{ATTENTION}block_lists.cu",
        "blocks of which something is seen count as whole",
        "2 * begin + (share == 2)",
        "2 * begin + (share != 0)",
        (f"{SKIPPED}[causal]",),
    ),
    Bug(
        f"{ATTENTION}block_lists.cu",
        "the first place of a list stays empty",
        "(1u << lane) - 1",
        "(2u << lane) - 1",
        (f"{SKIPPED}[window]",),
    ),
    Bug(
        f"{ATTENTION}block_lists.cu",
        "of packed heads the first alone counts",
        "last_head = head0 + packed - 1;",
        "last_head = head0;",
        (PACKED,),
    ),
    Bug(
        f"{ATTENTION}block_lists.cuh",
        "all heads have the first one's list",
        "lists.heads > 1 ? head : 0",
        "0",
        (PACKED,),
    ),
    Bug(
        f"{ATTENTION}block_lists.cuh",
        "lists overlap",
        "number * (2 + lists.columns) + 1",
        "number * (1 + lists.columns) + 1",
        (f"{SKIPPED}[causal]",),
    ),
    Bug(
        f"{ATTENTION}block_lists.cuh",
        "a walk begins at a block that is not seen",
        "found.first < found.last && row<kSize>(found.first) + kSize <= begin) ++found.first;",
        "found.first < found.last && row<kSize>(found.first) <= begin) ++found.first;",
        ("tests/test_mods.py::test_with_the_other_masks[emulator:sm_80-float16]", ALL),
    ),
    Bug(
        f"{ATTENTION}block_lists.cuh",
        "of a table's cells the last of a block are not looked at",
        "n <= last_key / kCell; ++n",
        "n < last_key / kCell; ++n",
        (f"{TESTS}test_lists_of_a_known_table_leave_nothing_out",),
    ),
    Bug(
        f"{ATTENTION}expression.cuh",
        "quotients are cut towards 0",
        "return quotient - T(x % y != T(0) && (x < T(0)) != (y < T(0)));",
        "return quotient;",
        (f"{NUMBERS}[float32]",),
    ),
    Bug(
        f"{ATTENTION}expression.cuh",
        "a quotient of floats is rounded up",
        "const float rest = fmodf(x, y), whole = rintf((x - rest) / y);",
        "const float rest = fmodf(x, y), whole = rintf(x / y);",
        (f"{NUMBERS}[float32]",),
    ),
    Bug(
        f"{ATTENTION}expression.cuh",
        "a minimum leaves out NaN",
        "return x < y || x != x ? x : y;",
        "return x < y ? x : y;",
        (f"{NUMBERS}[float64]",),
    ),
    Bug(
        f"{ATTENTION}expression.cuh",
        "large floats become any int",
        "x >= Float(2147483647) ? 2147483647 : x",
        "x",
        (f"{NUMBERS}[float64]",),
    ),
    Bug(
        f"{ATTENTION}range.cuh",
        "a remainder rises over whole periods",
        "if (first == floor_quotient(x.high, y.low)) return",
        "return",
        (INSIDE, PYTHON_S),
    ),
    Bug(
        f"{ATTENTION}range.cuh",
        "kernels do not round",
        "if (fabs(low) > exact) low -= 0x1p-20 * fabs(low) + 1e-37;",
        "",
        (PYTHON_S, INSIDE),
    ),
    Bug(
        f"{ATTENTION}range.cuh",
        "NaN is a number",
        "if (x != x) low = -np::infinite(), high = np::infinite();",
        "",
        (INSIDE,),
    ),
    Bug(
        f"{ATTENTION}range.cuh",
        "of an array's chunks the first is the last",
        "last = static_cast<int>(indices[axis].high) / kSummarized;",
        "last = low / kSummarized;",
        (DOCUMENTS,),
    ),
    Bug(
        f"{ATTENTION}gather.cuh",
        "limbs overlap",
        "rest = ldexp(rest - whole, kLimbBits);",
        "rest = ldexp(rest, kLimbBits);",
        (f"{SUMS}[0-float32]",),
    ),
    Bug(
        f"{ATTENTION}gather.cuh",
        "each lane of a warp adds the warp's sum",
        "if (threadIdx.x % 32 != 0) sums_[kSite] = 0;",
        "",
        (f"{SUMS}[0-float64]",),
    ),
    Bug(
        f"{ATTENTION}gather.cuh",
        "what is infinite has an exponent",
        "finite ? ilogb(part) + 2000 : kNotFinite",
        "ilogb(part) + 2000",
        (f"{TESTS}test_a_sum_with_a_part_that_is_not_finite_is_nan[inf]",),
    ),
    Bug(
        f"{ATTENTION}summaries.cu",
        "the last neighbour counts as the largest",
        "found.high = max(found.high, x);",
        "found.high = x;",
        (f"{TESTS}test_lists_leave_nothing_out",),
    ),
    Bug(
        f"{ATTENTION}summaries.cu",
        "rows lie side by side",
        "rest % params.sizes[axis] * params.strides[axis];",
        "rest % params.sizes[axis];",
        (DOCUMENTS,),
    ),
    # ---- the text
    Bug(
        f"{EXPRESSIONS}cxx.py",
        "negative indices of gradients are taken as they are",
        'calls.get(state, "np::wrapped({0}, {1})")',
        'calls.get(state, "{0}")',
        (ALL,),
    ),
    Bug(
        f"{EXPRESSIONS}cxx.py",
        "ints of 64 bits are computed in 32",
        '_TYPES.get(node.type) or ("Int" if fit else "Wide")',
        '_TYPES.get(node.type) or "Int"',
        (f"{NUMBERS}[float32]",),
    ),
    Bug(
        f"{EXPRESSIONS}cxx.py",
        "what is infinite is above 0",
        '"np::infinite()" if number > 0 else "-np::infinite()"',
        '"np::infinite()"',
        (f"{NUMBERS}[float32]",),
    ),
    Bug(
        f"{EXPRESSIONS}headers.py",
        "the derivative takes scores in log2 units",
        "      const Float s = x * natural;\n      const Int j = {key};\n{_lines(slope)}",
        "      const Float s = x;\n      const Int j = {key};\n{_lines(slope)}",
        (ALL,),
    ),
    Bug(
        f"{EXPRESSIONS}headers.py",
        "b counts a launch's batch elements",
        "Accumulator unit)\n      : params(params), shape(place.shape), batch(place.shape.first_batch + place.batch)",
        "Accumulator unit)\n      : params(params), shape(place.shape), batch(place.batch)",
        ("tests/test_mods.py::test_b_counts_through_all_leading_dimensions[emulator:sm_80-float16]",),
    ),
    Bug(
        f"{EXPRESSIONS}headers.py",
        "floats are told as ints",
        'types = {BOOL: "int", INT: "int64_t", FLOAT: number}',
        'types = {BOOL: "int", INT: "int64_t", FLOAT: "int"}',
        ("tests/test_mods.py::test_gradients_of_whatever_is_captured[emulator:sm_80-float16]",),
    ),
]
