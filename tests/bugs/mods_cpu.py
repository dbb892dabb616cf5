"""Bugs of functions of scores and masks on the backend "cpu"."""

from bugs import Bug

CPU = "cuda_src/cpu"
BACKENDS = "cupy_flash/_src/backends"
TESTS = "tests/test_mods_cpu.py"
OPERATIONS = f"{TESTS}::test_compiled_operations_are_numpys"
FORMS = f"{TESTS}::test_every_form_of_the_kernels"
BESIDE = f"{TESTS}::test_beside_every_other_option"
LEFT_OUT = f"{TESTS}::test_what_is_left_out_of_tiles_and_between_them"

BUGS = [
    # --- expression.h ---
    Bug(
        f"{CPU}/expression.h",
        "the lesser of NaN and a number is the number",
        "where(bitwise_or(less(a, b), not_equal(a, a)), a, b)",
        "where(less(a, b), a, b)",
        (f"{OPERATIONS}[queries-float32]",),
    ),
    Bug(
        f"{CPU}/expression.h",
        "the remainder of a negative int is negative",
        "const T rest = x % y;\n    return rest != 0 &&",
        "const T rest = x % y;\n    return false &&",
        (f"{OPERATIONS}[queries-float32]",),
    ),
    Bug(
        f"{CPU}/expression.h",
        "comparisons of 64 bits change places",
        "__builtin_shuffle(mask(0), mask(1),",
        "__builtin_shuffle(mask(1), mask(0),",
        (f"{OPERATIONS}[queries-float32]",),
    ),
    Bug(
        f"{CPU}/expression.h",
        "an infinite float is the int 0",
        "high ? Int(2147483647) : low ?",
        "low ?",
        (f"{OPERATIONS}[queries-float32]",),
    ),
    # --- mods.h ---
    Bug(
        f"{CPU}/mods.h",
        "all keys of a panel have the score of the first",
        "of_key(Int(clamp(first_key + k, 0, last_key)), x + at,",
        "of_key(Int(clamp(first_key, 0, last_key)), x + at,",
        (f"{FORMS}[native-panels-float32]",),
    ),
    Bug(
        f"{CPU}/mods.h",
        "of a panel a function shows what another mask hides",
        "joins ? words & is_set(load_as<IntLanes>(to)) : words",
        "words",
        (f"{BESIDE}[native-panels-float32]",),
    ),
    Bug(
        f"{CPU}/mods.h",
        "of a row a function shows what another mask hides",
        "seen[t] && !(joins && tile[k + t] == 0)",
        "seen[t] != 0",
        (f"{BESIDE}[native-rows-float32]",),
    ),
    # --- mask.h ---
    Bug(
        f"{CPU}/mask.h",
        "keys that fill no word are not seen",
        "Span words{0, ceil_div(keys, kWord)};",
        "Span words{0, keys / kWord};",
        (f"{FORMS}[native-panels-float32]",),
    ),
    # --- score/score_mod.h ---
    Bug(
        f"{CPU}/score/score_mod.h",
        "all batch elements have the scores of the first",
        "batch_(used_ ? place.head / params.heads : 0)",
        "batch_(0)",
        (f"{FORMS}[native-rows-float32]",),
    ),
    Bug(
        f"{CPU}/score/score_mod.h",
        "a function takes scores in log2 units",
        "natural_(unit * kLn2)",
        "natural_(unit)",
        (f"{FORMS}[native-rows-float32]",),
    ),
    Bug(
        f"{CPU}/score/score_mod.h",
        "the gradient passes a function as it is",
        "return g * kept;",
        "return g;",
        (f"{FORMS}[native-panels-float32]",),
    ),
    # --- mask/mask_mod.h ---
    Bug(
        f"{CPU}/mask/mask_mod.h",
        "the last keys of a tile do not count",
        "n <= last / kBlock",
        "n < last / kBlock",
        (f"{FORMS}[native-panels-float32]",),
    ),
    Bug(
        f"{CPU}/mask/mask_mod.h",
        "keys are left out that the first queries alone do not see",
        "return of_blocks(low, high, key, 1) == kNone;",
        "return of_blocks(low, low, key, 1) == kNone;",
        (f"{LEFT_OUT}[native-gaps-float32]",),
    ),
    Bug(
        f"{CPU}/mask/mask_mod.h",
        "keys are read that nobody sees",
        "if (!blocks_) return among;",
        "return among;",
        (f"{TESTS}::test_keys_that_a_function_hides_from_all_are_not_read",),
    ),
    # --- the kernels ---
    Bug(
        f"{CPU}/forward_panels.h",
        "what is left out of a tile shifts what a mask shows of it",
        "share == kSome ? shown_ : nullptr, looked);",
        "share == kSome ? shown_ : nullptr, first);",
        (f"{LEFT_OUT}[native-ragged ends-float32]",),
    ),
    Bug(
        f"{CPU}/backward_block.h",
        "what is left out of a tile shifts what a mask shows of it",
        "share == kSome ? shown_ : nullptr, looked);",
        "share == kSome ? shown_ : nullptr, j0);",
        (f"{LEFT_OUT}[native-ragged ends-float32]",),
    ),
    # --- reciprocals.py ---
    Bug(
        "cupy_flash/_src/expressions/reciprocals.py",
        "quotients of positions are products",
        'node.op == "divide" and "s" in dependence[n] and',
        'node.op == "divide" and',
        (f"{TESTS}::test_quotients_of_positions_are_not_rounded_twice[native]",),
    ),
    Bug(
        "cupy_flash/_src/expressions/reciprocals.py",
        "a reciprocal is found for each key",
        '& {"s", "j"}',
        '& {"s"}',
        (f"{TESTS}::test_a_score_is_divided_by_what_a_row_has_in_common_once",),
    ),
    # --- the tiers ---
    Bug(
        f"{BACKENDS}/native.py",
        "the smallest calls have a table of blocks",
        "is_known = with_table or mod.has_table",
        "is_known = True",
        (f"{TESTS}::test_small_calls_have_no_table_of_blocks",),
    ),
    Bug(
        f"{BACKENDS}/native.py",
        "without a table of blocks all are hidden",
        "np.full(table_shape(mod), SOME, np.uint8)",
        "np.zeros(table_shape(mod), np.uint8)",
        (f"{TESTS}::test_small_calls_have_no_table_of_blocks",),
    ),
    Bug(
        f"{BACKENDS}/cpu.py",
        "a function that does not compile is tried at every call",
        "            _refused[problem] = str(error)\n",
        "            pass\n",
        (f"{TESTS}::test_a_function_that_does_not_compile_runs_in_numpy",),
    ),
    Bug(
        f"{BACKENDS}/cpu.py",
        "the lack of a compiler is warned of where a function wants it",
        "        if not isinstance(error, NoCompilerError):\n",
        "        if True:\n",
        (f"{TESTS}::test_functions_work_without_a_compiler",),
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "blocks of keys that a function hides are multiplied",
        "if hidden.covers(place, i0, i0 + n, j0, j1):",
        "if False:",
        (f"{TESTS}::test_numpys_tier_leaves_out_blocks_of_its_own_size",),
    ),
]
