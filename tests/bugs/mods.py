"""Bugs of functions of scores and masks: the ready ones, and what a call makes of those that it is given."""

from bugs import Bug

READY, COMPONENTS = "cupy_flash/mods.py", "cupy_flash/_src/components/"
TESTS = "tests/test_mods.py::"
EACH = f"{TESTS}test_ready_ones"
ALL = f"{TESTS}test_all_of_them_at_once"
CAPTURED = f"{TESTS}test_gradients_of_whatever_is_captured"
LISTS = "tests/test_mods_cuda.py::"


def example(name):
    return f"{READY}::cupy_flash.mods.{name}"


BUGS = [
    Bug(READY, "a query does not see its own key", "return j <= i\n", "return j < i\n", (example("causal"),)),
    Bug(
        READY,
        "a window ends a key too early",
        "(j <= i + right)",
        "(j < i + right)",
        (example("window"),),
    ),
    Bug(READY, "a prefix is all that is seen", "| (j <= i)", "& (j <= i)", (example("prefix"),)),
    Bug(
        READY,
        "neighbours at the borders are fewer",
        "np.clip(i // columns, radius, rows - 1 - radius)",
        "i // columns",
        (example("neighbourhood"), f"{TESTS}test_neighbours_are_the_nearest_of_each_axis[5-7-1]"),
    ),
    Bug(READY, "keys behind gain", "s - slopes[h] * abs(i - j)", "s - slopes[h] * (i - j)", (example("alibi"),)),
    Bug(READY, "distances count the other way", "np.clip(i - j + last", "np.clip(j - i + last", (example("relative"),)),
    Bug(
        READY,
        "a bucket begins one distance too late",
        "while d**more * single**t < furthest",
        "while d**more * single**t <= furthest",
        (f"{TESTS}test_buckets_are_those_of_t5[32-128]",),
    ),
    Bug(
        READY,
        "keys behind and ahead have the same buckets",
        "np.where(j > i, half, 0)",
        "np.where(j > i, 0, half)",
        (example("t5"),),
    ),
    Bug(
        READY,
        "nodes that no path joins are neighbours",
        "np.clip(distances[b, i, j], -1,",
        "np.clip(distances[b, i, j], 0,",
        (example("spatial"),),
    ),
    Bug(
        READY,
        "each mask has the first one's arguments",
        "found, first = shown if found is None else join(found, shown), first + count",
        "found = shown if found is None else join(found, shown)",
        (f"{TESTS}test_masks_of_masks_take_their_arguments_in_turn",),
    ),
    Bug(
        READY,
        "an argument with a default must be given",
        "sum(x.default is x.empty for x in parameters)",
        "len(parameters)",
        (f"{TESTS}test_a_default_is_no_argument_of_a_mask",),
    ),
    # ---- what both kinds have in common
    Bug(
        f"{COMPONENTS}mods.py",
        "strides count bytes",
        "tuple(stride // x.dtype.itemsize if size > 1 else 0",
        "tuple(stride if size > 1 else 0",
        (f"{ALL}[emulator:sm_75-float32]",),
    ),
    Bug(
        f"{COMPONENTS}mods.py",
        "arrays that keys index are not looked through",
        'dependence[index] & {"i", "j"}',
        'dependence[index] & {"i"}',
        (f"{LISTS}test_documents_meet_themselves_alone[float16]",),
    ),
    Bug(
        f"{COMPONENTS}mods.py",
        "an index matters where keys are hidden",
        "(left & seen).any()",
        "left.any()",
        (f"{TESTS}test_an_index_that_leaves_its_array_is_named_where_it_is_seen[4-reference]",),
    ),
    Bug(
        f"{COMPONENTS}mods.py",
        "an array is taken for a tuple of numbers",
        "if not isinstance(value, (tuple, list)):",
        "if not hasattr(value, '__len__'):",
        (f"{TESTS}test_what_is_refused[no tuple-reference]",),
    ),
    Bug(
        f"{COMPONENTS}mods.py",
        "positions are those of keys on both sides",
        '"i": region.queries(xp), "j": region.keys(xp)}',
        '"i": region.keys(xp), "j": region.keys(xp)}',
        (f"{EACH}[causal-reference-float64]",),
    ),
    Bug(
        f"{COMPONENTS}score_mod.py",
        "gradients pass as they are",
        "return ds * factor",
        "return ds",
        (f"{EACH}[softcap-reference-float64]", f"{EACH}[softcap-cpu-numpy-float64]"),
    ),
    Bug(
        f"{COMPONENTS}score_mod.py",
        "elements of one row have one gradient",
        "flat = flat * size + index",
        "flat = flat * size + index * 0",
        (f"{EACH}[relative-reference-float64]",),
    ),
    Bug(
        f"{COMPONENTS}score_mod.py",
        "in kernels gradients pass as they are",
        "slope = next((factor for n, factor in found.items() if n not in elements), builder.constant(0.0))",
        "slope = builder.constant(1.0)",
        (f"{ALL}[emulator:sm_75-float32]",),
    ),
    Bug(
        f"{COMPONENTS}score_mod.py",
        "numbers and ints have gradients",
        "isinstance(x, Described) and type_of(x.dtype) == FLOAT else None",
        "isinstance(x, Described) else None",
        (f"{CAPTURED}[reference-float64]",),
    ),
    Bug(
        f"{COMPONENTS}mask_mod.py",
        "all batch elements have the first one's table",
        'heads * rows * columns if "b" in known else 0,',
        "0,",
        (f"{LISTS}test_lists_of_a_known_table_leave_nothing_out",),
    ),
    Bug(
        f"{COMPONENTS}mask_mod.py",
        "keys that do not exist are looked up",
        "headers.mask(code, ranges, mod.looks_up_keys)",
        "headers.mask(code, ranges, False)",
        (f"{TESTS}test_what_does_not_exist_is_not_looked_up[emulator:sm_80-float16]",),
    ),
]
