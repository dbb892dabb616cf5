"""Bugs of options that are arrays, in Python: of what checks them, and of their components."""

from bugs import Bug

ARRAYS = "cupy_flash/_src/arrays.py"
ALIBI, BOOLEAN, KEY_LENGTHS, KEY_STARTS, LENGTHS, OFFSETS, POSITIONS, QUERY_LENGTHS = (
    f"cupy_flash/_src/components/{name}.py"
    for name in (
        "alibi", "boolean", "key_lengths", "key_starts", "lengths", "offsets", "positions", "query_lengths",
    )
)  # fmt: skip
API, PROBLEM, REFERENCE = (f"cupy_flash/_src/{name}.py" for name in ("api", "problem", "reference"))
VALIDATION = "tests/test_validation.py"
ARGUMENT, OPTION = f"{VALIDATION}::test_what_no_argument_may_be", f"{VALIDATION}::test_what_no_option_may_be"
NO_ROWS = f"{VALIDATION}::test_rows_that_there_are_not"
BOTH_SAY_THE_SAME = "tests/test_options.py::test_ends_of_a_mask_never_fall_and_belong_together"
INTERVALS = "tests/test_options.py::test_intervals_of_a_problem_hold_what_is_seen"
BY_LOOPS = "tests/test_budget.py::test_magnitudes_are_those_of_the_definition"

BUGS = [
    # --- arrays.py ---
    Bug(
        ARRAYS,
        "only contiguous axes are checked for odd strides",
        "if any(stride % itemsize for stride, n in zip(array.strides, array.shape, strict=True) if n > 1):",
        "if array.strides[-1] % itemsize:",
        (ARGUMENT, OPTION),
    ),
    Bug(
        ARRAYS,
        "misaligned lse and out are taken",
        "    check_strides(name, array)\n    check_aligned(name, array)\n",
        "    check_strides(name, array)\n",
        (ARGUMENT,),
    ),
    Bug(
        ARRAYS,
        "on a GPU alignment is that of 8-byte elements",
        "array.data.ptr % array.itemsize == 0",
        "array.data.ptr % 8 == 0",
        (f"{VALIDATION}::test_alignment_on_a_gpu_is_of_the_address",),
    ),
    Bug(
        ARRAYS,
        "arrays among the options are taken as they are",
        "    check_description(name, fields, fields[1], dtypes)\n",
        "",
        (OPTION,),
    ),
    Bug(
        ARRAYS,
        "masked arrays are plain",
        "if isinstance(array, np.ma.MaskedArray):",
        "if False:",
        (f"{VALIDATION}::test_arrays_that_are_not_plain_are_named", OPTION),
    ),
    # --- components ---
    Bug(ALIBI, "keys behind the query are raised", "return abs(", "return (", (BY_LOOPS,)),
    Bug(
        ALIBI,
        "an offset takes no part in the distance",
        "region.queries(xp) + region.place.q_offset",
        "region.queries(xp)",
        (BY_LOOPS,),
    ),
    Bug(
        ALIBI,
        "an offset of any size is taken",
        "if abs(offset) > FARTHEST:",
        "if offset > FARTHEST:",
        (f"{VALIDATION}::test_slopes_are_as_many_as_heads_and_numbers_are_no_biases",),
    ),
    Bug(
        BOOLEAN,
        "true hides a key",
        'return region.place.arrays["mask"]',
        'return ~region.place.arrays["mask"]',
        (INTERVALS,),
    ),
    Bug(
        BOOLEAN,
        "numbers of a half type are only said not to be bool",
        'in "fV":',
        'in "f":',
        (f"{VALIDATION}::test_slopes_are_as_many_as_heads_and_numbers_are_no_biases",),
    ),
    Bug(
        BOOLEAN, "a mask hides nothing inside the intervals", "elementwise = True", "elementwise = False", (INTERVALS,)
    ),
    Bug(
        KEY_LENGTHS,
        "the key behind the last exists",
        "Interval(None, length)",
        "Interval(None, length + 1)",
        (INTERVALS,),
    ),
    Bug(
        KEY_LENGTHS,
        "queries see the key behind the last",
        "(key >= length) *",
        "(key > length) *",
        (BOTH_SAY_THE_SAME,),
    ),
    Bug(QUERY_LENGTHS, "as many queries as keys exist", '"seqlen_q"', '"seqlen_k"', (NO_ROWS,)),
    Bug(KEY_STARTS, "the first key is padding", "Interval(start, None)", "Interval(start + 1, None)", (INTERVALS,)),
    Bug(KEY_STARTS, "queries do not see the first key", "(key >= start) *", "(key > start) *", (BOTH_SAY_THE_SAME,)),
    Bug(
        QUERY_LENGTHS,
        "the query behind the last exists",
        "(query >= length) *",
        "(query > length) *",
        (BOTH_SAY_THE_SAME,),
    ),
    Bug(
        QUERY_LENGTHS,
        "keys see queries that do not exist",
        "Interval(None, length)",
        "Interval(None, place.seqlen_q)",
        (BOTH_SAY_THE_SAME,),
    ),
    Bug(LENGTHS, "the last row may not exist", "if not 0 <= value <= most:", "if not 0 <= value < most:", (NO_ROWS,)),
    Bug(
        LENGTHS,
        "only too many rows are refused",
        "for value in values.min(initial=0), values.max(initial=0):",
        "for value in (values.max(initial=0),):",
        (NO_ROWS,),
    ),
    Bug(
        LENGTHS,
        "a number of more than 64 bits is NumPy's to refuse",
        "if abs(number) > np.iinfo(np.int64).max:",
        "if False:",
        (NO_ROWS,),
    ),
    Bug(
        OFFSETS,
        "the last query stands at the last key, whether it exists or not",
        "(place.seqlen_k if keys is None else keys) -",
        "place.seqlen_k -",
        (INTERVALS,),
    ),
    Bug(
        OFFSETS,
        "lengths count more than an offset that is given",
        "    if given is not None:\n",
        "    if given is not None and keys is None:\n",
        (INTERVALS,),
    ),
    Bug(
        OFFSETS,
        "without arrays the first query stands somewhere",
        "    if keys is None and queries is None:\n        return None\n",
        "",
        (INTERVALS,),
    ),
    Bug(
        POSITIONS,
        "positions of lengths are those of the sequences",
        'return options["k_lengths"] is not None or options["q_lengths"] is not None',
        "return False",
        (INTERVALS,),
    ),
    Bug(
        POSITIONS,
        "kernels are told of positions that matter to none of their parts",
        'return bounds(options) != (None, None) or options["alibi_slopes"] is not None',
        "return True",
        ("tests/test_options.py::test_positions_are_told_where_they_matter_alone",),
    ),
    # --- what passes them on ---
    Bug(
        API,
        "out may overlap an option",
        "_check_out(xp, out, shape, problem, q=q, k=k, v=v, **arrays)",
        "_check_out(xp, out, shape, problem, q=q, k=k, v=v)",
        (f"{VALIDATION}::test_out_may_not_share_memory_with_an_option",),
    ),
    Bug(
        PROBLEM,
        "slopes may be fewer than heads",
        "if not fits or (lacks == 2 and shape[-1:] != wanted[-1:]):",
        "if not fits:",
        (f"{VALIDATION}::test_slopes_are_as_many_as_heads_and_numbers_are_no_biases",),
    ),
    Bug(
        PROBLEM,
        "a mask may have axes that scores do not have",
        "fits = np.broadcast_shapes(shape, wanted) == wanted",
        "fits = bool(np.broadcast_shapes(shape, wanted))",
        (OPTION,),
    ),
    Bug(
        PROBLEM,
        "every batch element has the first one's lengths",
        "else x[head][0, 0]",
        "else x[(0,) * len(head)][0, 0]",
        (INTERVALS,),
    ),
    Bug(
        REFERENCE,
        "any array without axes is taken for a number",
        "not (isinstance(x, np.ndarray) and x.ndim == 0)",
        "x.ndim",
        (f"{VALIDATION}::test_an_option_of_the_reference_is_of_the_kind_of_q",),
    ),
]
