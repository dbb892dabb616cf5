"""Bugs of traced functions: their graphs, derivatives, intervals and texts."""

from bugs import Bug

HERE = "cupy_flash/_src/expressions"
EXPRESSIONS, RANGES = "tests/test_expressions.py", "tests/test_ranges.py"
SCORES = f"{EXPRESSIONS}::test_a_score_is_what_numpy_has"
MASKS = f"{EXPRESSIONS}::test_a_mask_is_what_numpy_has"
OTHERWISE = f"{EXPRESSIONS}::test_what_numpy_writes_otherwise"
SIMPLE = f"{EXPRESSIONS}::test_constants_are_computed_and_what_is_equal_is_one"
MISTAKES = f"{EXPRESSIONS}::test_a_mistake_names_the_function_and_the_line"
CHANGED = f"{EXPRESSIONS}::test_a_changed_value_is_a_new_trace"
UNSEEN = f"{EXPRESSIONS}::test_what_may_change_unseen_is_traced_anew"
SLOPES = f"{EXPRESSIONS}::test_derivatives_are_central_differences"
RULES = f"{EXPRESSIONS}::test_each_operation_has_its_derivative"
STATEMENTS = f"{EXPRESSIONS}::test_statements_compute_what_they_say"
KERNELS = f"{EXPRESSIONS}::test_kernels_have_the_same_expressions"
STRUCTS = f"{EXPRESSIONS}::test_structs_hold_what_functions_capture"
KEYS = f"{EXPRESSIONS}::test_keys_are_held_where_arrays_are_looked_up_by_them"
VALUES = f"{RANGES}::test_values_lie_in_their_ranges"
EACH = f"{RANGES}::test_each_operation_keeps_its_values_in_range"
NARROW = f"{RANGES}::test_ranges_are_no_wider_than_they_need_to_be"
SAID = f"{RANGES}::test_indices_lie_where_it_is_said"
SHARES = f"{RANGES}::test_blocks_show_what_they_are_to"
USUAL = f"{RANGES}::test_blocks_of_the_usual_masks_are_told_exactly"

BUGS = [
    # graph.py
    Bug(
        f"{HERE}/graph.py",
        "0 - x is x",
        'if op in ("add", "multiply", "bitwise_and", "bitwise_or") and first is not None:',
        'if op in ("add", "subtract", "multiply", "bitwise_and", "bitwise_or") and first is not None:',
        (SIMPLE,),
    ),
    Bug(
        f"{HERE}/graph.py",
        "a bool or false is false",
        'return x if last == (op == "bitwise_and") else y',
        'return x if last == (op == "bitwise_or") else y',
        (f"{EXPRESSIONS}::test_masks_are_simple",),
    ),
    Bug(
        f"{HERE}/graph.py",
        "0.0 and -0.0 are one constant",
        'return self._add(Node("constant", FLOAT, (), value.hex()))',
        'return self._add(Node("constant", FLOAT, (), (value + 0.0).hex()))',
        (SIMPLE,),
    ),
    Bug(
        f"{HERE}/graph.py",
        "negative indices are clamped to the first element",
        "xp.clip(xp.where(n < 0, n + size, n), 0,",
        "xp.clip(n, 0,",
        (SCORES, f"{EXPRESSIONS}::test_arrays_are_indexed_as_numpy_does"),
    ),
    Bug(
        f"{HERE}/graph.py",
        "an index beyond an array is not held",
        ", n), 0, max(size - 1, 0))",
        ", n), 0, max(size, 0))",
        (f"{EXPRESSIONS}::test_an_index_beyond_an_array_takes_the_nearest_end",),
    ),
    # operations.py
    Bug(
        f"{HERE}/operations.py",
        "differences commute",
        '"subtract": Operation("number", "same", "{0} - {1}", operator.sub)',
        '"subtract": Operation("number", "same", "{0} - {1}", operator.sub, True)',
        (SCORES,),
    ),
    Bug(
        f"{HERE}/operations.py",
        "a float of 32 bits becomes 2^31",
        "return xp.clip(held.astype(np.int64), -LARGEST_INT, LARGEST_INT)",
        "return held.astype(np.int64)",
        (f"{EXPRESSIONS}::test_a_float_becomes_the_nearest_int_of_32_bits",),
    ),
    Bug(
        f"{HERE}/operations.py",
        "NaN becomes the smallest int",
        "xp.where(xp.isnan(x), 0, x)",
        "xp.where(xp.isnan(x), -(2.0**31), x)",
        (f"{EXPRESSIONS}::test_a_float_becomes_the_nearest_int_of_32_bits",),
    ),
    # symbols.py
    Bug(
        f"{HERE}/symbols.py",
        "a power by squaring forgets the odd factors",
        "if left % 2 else product",
        "if left == 1 else product",
        (OTHERWISE,),
    ),
    Bug(
        f"{HERE}/symbols.py",
        "greater is less",
        '"greater": _swapped("less")',
        '"greater": _operation("less")',
        (MASKS, f"{EXPRESSIONS}::test_masks_are_simple"),
    ),
    Bug(
        f"{HERE}/symbols.py",
        "what x += y writes to is refused",
        'options.pop("out", (inputs[0],))[0] is not inputs[0]',
        'options.pop("out", (None,))[0] is not None',
        (OTHERWISE,),
    ),
    Bug(
        f"{HERE}/symbols.py",
        "any out is taken",
        'if options.pop("out", (inputs[0],))[0] is not inputs[0] or options',
        'if (options.pop("out", None) and False) or options',
        (MISTAKES,),
    ),
    Bug(
        f"{HERE}/symbols.py",
        "a bool is an index",
        "if number is None or isinstance(index, bool):",
        "if number is None:",
        (MISTAKES,),
    ),
    Bug(
        f"{HERE}/symbols.py",
        "values of another trace are taken for this one's",
        "if x._builder is not builder:",
        "if x._builder is None:",
        (f"{EXPRESSIONS}::test_values_do_not_outlive_their_trace",),
    ),
    Bug(
        f"{HERE}/symbols.py",
        "the order of bytes is not looked at",
        "is_held = dtype.isnative and dtype.itemsize <= 8",
        "is_held = dtype.itemsize <= 8",
        (MISTAKES,),
    ),
    Bug(
        f"{HERE}/symbols.py",
        "clip has its upper bound below",
        "else np.minimum(x, high)",
        "else np.maximum(x, high)",
        (SCORES, OTHERWISE),
    ),
    # tracing.py
    Bug(
        f"{HERE}/tracing.py",
        "values of a closure are not looked at",
        "parts = [x.__defaults__, *cells,",
        "parts = [x.__defaults__,",
        (CHANGED,),
    ),
    Bug(
        f"{HERE}/tracing.py",
        "defaults are not looked at",
        "parts = [x.__defaults__, *cells,",
        "parts = [*cells,",
        (CHANGED,),
    ),
    Bug(
        f"{HERE}/tracing.py",
        "1 and 1.0 in a closure are one",
        "return type(x), repr(x)",
        "return repr(float(x)) if isinstance(x, int) else repr(x)",
        (CHANGED,),
    ),
    Bug(
        f"{HERE}/tracing.py",
        "modules never change",
        "return home.__name__ in _FIXED_MODULES",
        "return True",
        (UNSEEN,),
    ),
    Bug(
        f"{HERE}/tracing.py",
        "which of its names a module has is forgotten",
        "yield name, names[name]",
        'yield "", names[name]',
        (f"{EXPRESSIONS}::test_functions_that_read_different_names_are_told_apart",),
    ),
    Bug(
        f"{HERE}/tracing.py",
        "a mistake is where the trace began",
        'raise made(f"{called}{_line(error) or begin}: {error}") from error',
        'raise made(f"{called}{begin}: {error}") from error',
        (MISTAKES,),
    ),
    Bug(
        f"{HERE}/tracing.py",
        "a mistake that is no line's has none",
        'raise made(f"{called}{_line(error) or begin}: {error}") from error',
        'raise made(f"{called}{_line(error)}: {error}") from error',
        (MISTAKES,),
    ),
    Bug(
        f"{HERE}/tracing.py",
        "a score may be a bool",
        "if (found == BOOL) != (kind.returns == BOOL):",
        "if found != BOOL and kind.returns == BOOL:",
        (MISTAKES,),
    ),
    Bug(
        f"{HERE}/tracing.py",
        "functions of different files have one name",
        "of = x.__code__, x.__code__.co_filename, x.__qualname__",
        "of = x.__code__, x.__qualname__",
        (f"{EXPRESSIONS}::test_functions_that_are_alike_keep_their_names",),
    ),
    # derivative.py
    Bug(
        f"{HERE}/derivative.py",
        "a quotient's derivative by its divisor has lost its sign",
        'f("negative", f("divide", y, b))',
        'f("divide", y, b)',
        (RULES,),
    ),
    Bug(
        f"{HERE}/derivative.py",
        "tanh has the derivative 1 + y^2",
        '"tanh": lambda c, f, y, a: (f("subtract", c(1.0)',
        '"tanh": lambda c, f, y, a: (f("add", c(1.0)',
        (RULES, f"{EXPRESSIONS}::test_derivatives_are_simple"),
    ),
    Bug(
        f"{HERE}/derivative.py",
        "what is not chosen has a derivative",
        "yield arg, Chosen(chooses, builder.constant(1.0))",
        "yield arg, Chosen(builder.constant(True), _where(builder, chooses, builder.constant(1.0)))",
        (f"{EXPRESSIONS}::test_what_is_not_chosen_has_no_derivative_were_it_infinite",),
    ),
    Bug(
        f"{HERE}/derivative.py",
        "where both choices are made one is lost",
        'return Chosen(either, builder.apply("add", _where(builder, *x), _where(builder, *y)))',
        "return Chosen(either, builder.where(x.condition, x.value, y.value))",
        (RULES, SLOPES),
    ),
    # text.py
    Bug(
        f"{HERE}/text.py",
        "a negative number is raised to a power without brackets",
        'return f"({node.number!r})" if repr(node.number).startswith("-") else repr(node.number)',
        "return repr(node.number)",
        (STATEMENTS, SIMPLE),
    ),
    Bug(
        f"{HERE}/text.py",
        "brackets of parts at the ends are dropped",
        'return text[1:-1] if text.startswith("(") else text',
        'return text.strip("()")',
        (STATEMENTS,),
    ),
    Bug(
        f"{HERE}/text.py",
        "the first root has another's name",
        "zip(results, graph.roots, strict=True)]",
        "zip(results, sorted(graph.roots, reverse=True), strict=True)]",
        (f"{EXPRESSIONS}::test_captured_arrays_have_derivatives_too",),
    ),
    # cxx.py
    Bug(
        f"{HERE}/cxx.py",
        "positions of queries are small",
        '"i": 2**29, "j": 2**29}',
        '"i": 2**12, "j": 2**12}',
        (KERNELS, f"{EXPRESSIONS}::test_ints_are_wide_where_they_may_need_it"),
    ),
    Bug(
        f"{HERE}/cxx.py",
        "what depends on the score is computed for the query",
        'found & {"s", "j"}',
        'found & {"j"}',
        (KERNELS,),
    ),
    Bug(
        f"{HERE}/cxx.py",
        "an index that may leave its array is not held",
        'GUARDED: "np::held({0}, {1})"',
        'GUARDED: "{0}"',
        (f"{EXPRESSIONS}::test_what_is_known_of_an_index_is_printed",),
    ),
    # headers.py
    Bug(
        f"{HERE}/headers.py",
        "whole numbers are passed as 32 bits",
        'types = {BOOL: "int", INT: "int64_t", FLOAT: number}',
        'types = {BOOL: "int", INT: "int", FLOAT: number}',
        (STRUCTS,),
    ),
    Bug(
        f"{HERE}/headers.py",
        "keys beyond the last are looked up",
        'return f"min(columns(column), {shape}.seqlen_k - 1)" if clamps else "columns(column)"',
        'return "columns(column)"',
        (KEYS,),
    ),
    Bug(
        f"{HERE}/headers.py",
        "a row's members are variables of its constructor",
        'bare if bare.partition(" ")[0] in members else line',
        "line",
        (KEYS,),
    ),
    # ranges.py
    Bug(
        f"{HERE}/ranges.py",
        "a difference is that of the same ends",
        '"subtract": lambda xp, type, _, a, b: (a.low - b.high, a.high - b.low)',
        '"subtract": lambda xp, type, _, a, b: (a.low - b.low, a.high - b.high)',
        (VALUES, NARROW),
    ),
    Bug(
        f"{HERE}/ranges.py",
        "floats are not widened",
        "_ERROR, _TINY = 2.0**-20, 1e-37",
        "_ERROR, _TINY = 0.0, 0.0",
        (VALUES, EACH),
    ),
    Bug(
        f"{HERE}/ranges.py",
        "what may be NaN is at most infinite",
        "(a.high <= b.low) & ~_is_lost(a) & ~_is_lost(b), a.low <= b.high",
        "(a.high <= b.low), a.low <= b.high",
        (f"{RANGES}::test_what_is_not_known_is_anything",),
    ),
    Bug(
        f"{HERE}/ranges.py",
        "constants are not rounded",
        'if node.op in ("constant", "scalar"):',
        "if node.op in ():",
        (f"{RANGES}::test_constants_and_scalars_are_as_kernels_round_them",),
    ),
    Bug(
        f"{HERE}/ranges.py",
        "an endless int divided by another is 0",
        "ends = [xp.sign(x) * xp.sign(xp.where(around, 1, y)) * np.inf for x in a for y in b]",
        "ends = [0.0 * x for x in (0.0, 0.0) for y in b]",
        (EACH,),
    ),
    Bug(
        f"{HERE}/ranges.py",
        "ints that overflow are the largest",
        "if node.op in _MAY_OVERFLOW:",
        "if node.op in ():",
        (EACH,),
    ),
    Bug(
        f"{HERE}/ranges.py",
        "a remainder of a span within one period is not known",
        "within = (b.low == b.high) & (b.low > 0) & (first == final)",
        "within = (b.low == b.high) & (b.low > 0) & (a.low == a.high)",
        (NARROW,),
    ),
    Bug(
        f"{HERE}/ranges.py",
        "a remainder begins anew only once",
        "& (first == final)",
        "& (first <= final)",
        (NARROW, VALUES, EACH),
    ),
    # indices.py
    Bug(
        f"{HERE}/indices.py",
        "an index may be as large as its axis",
        "leaves = low < -size or high >= size",
        "leaves = low < -size or high > size",
        (f"{RANGES}::test_an_index_that_surely_leaves_is_refused", SAID),
    ),
    Bug(
        f"{HERE}/indices.py",
        "negative indices are inside",
        "INSIDE if low >= 0 else WRAPS",
        "INSIDE if low >= -size else WRAPS",
        (f"{RANGES}::test_where_an_index_may_lie", SAID),
    ),
    Bug(
        f"{HERE}/indices.py",
        "what is not chosen is outside too",
        "parts = [leaves[condition], builder.where(condition, leaves[x], leaves[y])]",
        "parts = [leaves[condition], leaves[x], leaves[y]]",
        (f"{RANGES}::test_outside_is_where_a_chosen_element_is_missing",),
    ),
    Bug(
        f"{HERE}/indices.py",
        "the sum of two positions takes both of its ends",
        "len(moving) == 1 and moving[0] in exact",
        "set(moving) <= exact",
        (f"{RANGES}::test_where_an_index_may_lie", SAID),
    ),
    # blocks.py
    Bug(
        f"{HERE}/blocks.py",
        "the last keys of a range are not looked at",
        "xp.where(level == k, high - (2**k - 1), 0)",
        "xp.where(level == k, low, 0)",
        (SHARES, USUAL),
    ),
    Bug(
        f"{HERE}/blocks.py",
        "a range around 0 is that of its ends",
        "xp.where(low < 0, size - 1, high)",
        "high",
        (SHARES,),
    ),
    Bug(
        f"{HERE}/blocks.py",
        "the last block is as long as the others",
        "xp.minimum(first + (block - 1), size - 1)",
        "first + (block - 1)",
        (USUAL,),
    ),
    Bug(
        f"{HERE}/blocks.py",
        "windows have one neighbour too few",
        "step, n = 2 ** (level - 1), half.shape[axis]",
        "step, n = 2 ** (level - 1) - 1, half.shape[axis]",
        (SHARES, USUAL),
    ),
]
