"""Bugs of the window in Python: of its component, and of the command that takes one."""

from bugs import Bug

WINDOW = "cupy_flash/_src/components/window.py"
POSITIONS = "cupy_flash/_src/components/positions.py"
TESTS = "tests/test_window.py"
BOTH_SAY_THE_SAME = "tests/test_options.py::test_ends_of_a_mask_never_fall_and_belong_together"
INTERVALS = "tests/test_options.py::test_intervals_of_a_problem_hold_what_is_seen"

BUGS = [
    Bug(
        WINDOW,
        "a right side may be negative",
        "if min(left or 0, right or 0) < 0:",
        "if (left or 0) < 0:",
        (f"{TESTS}::test_sides_are_not_negative",),
    ),
    Bug(
        WINDOW,
        "three numbers are a pair",
        "len(value) != 2:",
        "len(value) < 2:",
        (f"{TESTS}::test_a_window_is_a_pair",),
    ),
    Bug(
        POSITIONS,
        "causal takes the place of a window",
        "return (left, 0) if options",
        "return (None, 0) if options",
        (INTERVALS, f"{TESTS}::test_what_hides_nothing_or_is_causal_is_no_window"),
    ),
    Bug(
        WINDOW,
        "causal and a window of the same are two masks",
        "in ((None, None), (None, 0)):",
        "in ((None, None),):",
        (f"{TESTS}::test_what_hides_nothing_or_is_causal_is_no_window",),
    ),
    Bug(
        WINDOW,
        "a window begins one key too late",
        "position - self.left,",
        "position - self.left + 1,",
        (INTERVALS,),
    ),
    Bug(
        WINDOW,
        "queries of a key end one too soon",
        "position + self.left + 1",
        "position + self.left",
        (BOTH_SAY_THE_SAME,),
    ),
    Bug(
        WINDOW,
        "queries of a key begin one too late",
        "position - self.right,",
        "position - self.right + 1,",
        (BOTH_SAY_THE_SAME,),
    ),
    Bug(
        POSITIONS,
        "ends are clipped at the number of keys on both sides",
        "max(distance, -sizes.seqlen_q)",
        "max(distance, -sizes.seqlen_k)",
        (INTERVALS, "tests/test_validation.py::test_an_offset_is_clipped_where_that_changes_no_mask"),
    ),
    Bug(
        POSITIONS,
        "an offset before the window makes its left side negative",
        "offset = min(max(offset, low), high)",
        "offset = min(offset, high)",
        (f"{TESTS}::test_sides_and_offsets_are_of_at_most_the_sizes_sum",),
    ),
    Bug(
        "cupy_flash/_src/cli/arguments.py",
        "an open side is 0",
        "int(side) if side else None",
        "int(side or 0)",
        ("tests/test_explain.py::test_explain_counts_what_a_window_shows",),
    ),
    Bug(
        "cupy_flash/_src/cli/arguments.py",
        "a window is taken and not passed on",
        '"window": args.window,',
        '"window": None,',
        ("tests/test_explain.py::test_explain_counts_what_a_window_shows",),
    ),
]
