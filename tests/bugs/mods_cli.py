"""Bugs of what the command line and the figures make of functions."""

from bugs import Bug

CLI, ANALYSIS, TESTS = "cupy_flash/_src/cli", "cupy_flash/_src/analysis", "tests/test_mods_cli.py::"
WORDS, NO_ARGUMENT = TESTS + "test_what_words_stand_for", TESTS + "test_what_is_no_argument_is_told"
NO_FUNCTION, FORMULA = TESTS + "test_what_is_no_function_is_told", TESTS + "test_explain_prints_formulas"
REFUSES, TILES = TESTS + "test_explain_refuses_with_one_line", TESTS + "test_tiles_are_those_of_a_count"
PICTURE, SMALL = TESTS + "test_a_picture_is_the_table", TESTS + "test_a_picture_of_many_tiles_is_small"
MASK, COUNTS = (
    TESTS + "test_explain_tells_a_mask_and_its_tiles",
    TESTS + "test_explain_counts_what_kernels_with_functions_move",
)
FORMULA = TESTS + "test_explain_prints_formulas_and_derivatives_that_are_right"
READ, FIGURES = (
    TESTS + f"test_{name}"
    for name in (
        "what_is_read_of_captured_arrays_is_at_most_what_is_told",
        "figures_of_a_mask_function_are_those_of_the_built_in_mask",
    )
)
ROUNDINGS, BUDGET = (
    TESTS + f"test_{name}"
    for name in ("roundings_hold_what_arithmetic_does", "a_function_has_the_budget_of_the_option_that_it_is")
)
GRADIENTS, CHECKS = (
    TESTS + f"test_{name}"
    for name in (
        "explain_tells_how_gradients_of_captured_arrays_are_made",
        "checks_name_the_gradients_of_what_functions_capture",
    )
)
STEEP = TESTS + "test_a_steep_function_carries_the_errors_of_scores_on"
WRITTEN = TESTS + "test_gradients_of_captured_arrays_are_written_once"

LISTED = "tests/test_mods_cuda.py::test_documents_meet_themselves_alone"
BEFOREHAND = "tests/test_plan.py::test_all_that_calls_with_functions_launch_is_planned"
PLACES, DEFINITION, PART, AHEAD = (
    f"tests/test_bench_options.py::test_{name}"
    for name in (
        "functions_take_the_place_of_options",
        "the_definition_is_that_of_our_calls",
        "verification_knows_which_part_a_function_is_of",
        "kernels_of_options_are_compiled_ahead",
    )
)


def plan(what: str, old: str, new: str, *tests: str) -> Bug:
    return Bug("cupy_flash/_src/plan.py", what, old, new, tests or (BEFOREHAND,))


def cli(file: str, what: str, old: str, new: str, *tests: str) -> Bug:
    return Bug(f"{CLI}/{file}", what, old, new, tests)


def figures(file: str, what: str, old: str, new: str, *tests: str) -> Bug:
    return Bug(f"{ANALYSIS}/{file}", what, old, new, tests)


BUGS = [
    # --- functions.py ---
    cli("functions.py", "whole numbers are floats", "for kind in (int, float):", "for kind in (float, int):", WORDS),
    cli("functions.py", "random ints", 'if dtype.kind in "bui":', 'if dtype.kind == "b":', WORDS),
    cli(
        "functions.py",
        "what makes an array is taken for one",
        "found = _made(text, found) if callable(found) else found",
        "found = found",
        WORDS,
    ),
    cli("functions.py", "names lead one step", "operator.attrgetter(name)(", "(lambda x: getattr(x, name))(", WORDS),
    cli(
        "functions.py",
        "what a module raises ends the command",
        "except Exception as error:",
        "except ImportError as error:",
        NO_ARGUMENT,
    ),
    cli("functions.py", "arrays are functions", "if not callable(found):", "if found is None:", NO_FUNCTION),
    cli(
        "functions.py",
        "arguments without a function pass",
        "| {keyword: values for keyword, values in captured.items() if values}",
        "| {keyword: values for keyword, values in captured.items() if values and found}",
        REFUSES,
    ),
    # --- told.py ---
    cli("told.py", "no derivative of arrays", 'graph.nodes[n].op == "element"', 'graph.nodes[n].op == "size"', FORMULA),
    cli(
        "told.py",
        "derivatives change names",
        "for n in found]",
        "for n in sorted(found, reverse=True)]",
        FORMULA,
    ),
    cli("told.py", "the gradient's code is left out", '"backward", "gather", ', '"backward", ', FORMULA),
    # --- mask_picture.py ---
    cli("mask_picture.py", "the last rows are missing", "range(len(shown) + 1)", "range(len(shown))", PICTURE),
    cli(
        "mask_picture.py",
        "a rectangle begins where it ends",
        "open_runs |= dict.fromkeys(runs - open_runs.keys(), row)",
        "open_runs |= dict.fromkeys(runs, row)",
        PICTURE,
        SMALL,
    ),
    cli("mask_picture.py", "titles are markup", "{escape(title)}", "{title}", PICTURE),
    cli(
        "mask_picture.py", "colours change places", "((ALL, FLASH_COLOR), (SOME", "((SOME, FLASH_COLOR), (ALL", PICTURE
    ),
    # --- explain.py ---
    cli(
        "explain.py",
        "shares of another tile",
        'tile = plan.forward.kernel.constant("kBlockM"), plan.forward.kernel.constant("kBlockN")',
        'tile = plan.forward.kernel.constant("kBlockM"), 2 * plan.forward.kernel.constant("kBlockN")',
        MASK,
    ),
    cli("explain.py", "pictures of any kind", 'args.picture.suffix != ".svg" or', "", REFUSES),
    cli(
        "explain.py",
        "lists of blocks are traffic of their own",
        "if name in arrays or name in LISTS)",
        "if name in arrays)",
        COUNTS,
    ),
    cli(
        "explain.py",
        "gradients of arrays are always atomic",
        "'sums of whole numbers' if problem.deterministic else 'atomic additions'",
        "'atomic additions'",
        GRADIENTS,
    ),
    # --- problems.py ---
    cli(
        "problems.py", "arrays within tuples stay", "return tuple(_moved(xp, x) for x in value)", "return value", CHECKS
    ),
    cli(
        "problems.py",
        "no gradients of captured arrays",
        "in (*LEARNING, *GATHERED) if name",
        "in LEARNING if name",
        CHECKS,
    ),
    # --- tiles.py ---
    figures(
        "tiles.py",
        "what intervals of other masks cut is seen whole",
        "np.where(whole, shares,",
        "np.where(True, shares,",
        TILES,
    ),
    figures(
        "tiles.py",
        "what intervals of other masks hide is met",
        "return np.where(met, ",
        "return np.where(True, ",
        TILES,
    ),
    figures(
        "tiles.py",
        "heads of a tile are those of the first",
        "low, high = shares.min(2), shares.max(2)",
        "low, high = shares[:, :, 0], shares[:, :, 0]",
        TILES,
    ),
    figures("tiles.py", "the last query of a tile is in the next", "slice(i, j + 1)", "slice(i, max(j, i + 1))", TILES),
    figures("tiles.py", "a mask's elements are all true", "whole = np.zeros_like(whole)", "whole = whole", TILES),
    # --- traffic.py ---
    figures(
        "traffic.py",
        "skipped blocks are copied",
        "int((met * np.maximum(widths, 0)).sum())",
        "int((np.maximum(widths, 0) + 0 * met).sum())",
        COUNTS,
    ),
    figures(
        "traffic.py",
        "keys and queries change places",
        "(shares.swapaxes(-1, -2) if of_keys else shares) != NONE",
        "(shares if of_keys else shares.swapaxes(-1, -2)) != NONE",
        COUNTS,
    ),
    figures(
        "traffic.py", "what is not tested is looked up", "(some if tested else whole + some)", "(whole + some)", READ
    ),
    figures("traffic.py", "what a query looks up counts for each score", 'if dependence[n] & {"j", "s"}]', "]", READ),
    # --- roofline.py ---
    figures(
        "roofline.py",
        "gradients of captured arrays are not written",
        "prod(x.shape) * x.dtype.itemsize for x in arrays",
        "0 for x in arrays",
        WRITTEN,
    ),
    # --- rounding.py and budget.py ---
    figures("rounding.py", "operations are exact", "own = own + max(", "own = own + 0 * max(", ROUNDINGS),
    figures(
        "rounding.py", "errors of the score are lost", "by_score = by_score + factor", "by_score = by_score", ROUNDINGS
    ),
    figures("rounding.py", "an approximate tanh is exact", 'tanh * (op == "tanh")', "0", ROUNDINGS),
    figures(
        "rounding.py",
        "derivatives cancel",
        "np.broadcast_to(np.abs(factor), s.shape)",
        "np.broadcast_to(factor, s.shape)",
        ROUNDINGS,
    ),
    figures(
        "budget.py",
        "a steep function does not carry errors on",
        "(made.own + made.by_score * of_given)",
        "(made.own + of_given)",
        STEEP,
    ),
    figures(
        "budget.py",
        "gradients of captured arrays have one term",
        "np.add.at(sizes[n], places, parts)",
        "sizes[n][places] = parts",
        BUDGET,
    ),
    # --- plan.py: what functions launch beside ---
    Bug(
        "cupy_flash/_src/components/mods.py",
        "summaries of floats too",
        " and graph.nodes[n].type != FLOAT",
        "",
        (BEFOREHAND,),
    ),
    plan(
        "summaries along another axis",
        "enumerate(x.shape) if along != axis",
        "enumerate(x.shape) if along == axis",
    ),
    plan("sums in whole numbers without their sizes", "return (SIZES, ADD_WHOLE) if", "return (ADD_WHOLE,) if"),
    plan("gradients of captured arrays nobody asked for", "if score.captured in problem.wrt", "if score.captured"),
    plan(
        "lists of gradients of captured arrays are not compiled ahead",
        "for term in (*self.terms, *self.gathers) for of in term.lists)]",
        "for term in self.terms for of in term.lists)]",
    ),
    plan(
        "kernels of gathers are not compiled ahead",
        "if any(name in wrt and call.get(name) for name in GATHERED)",
        "if False",
    ),
    plan(
        "lists are not compiled ahead",
        'if any(issubclass(part.component, Mod) and part.component.concept == "Mask" for part in kernel.parts):',
        "if False:",
    ),
    plan(
        "summaries are not compiled ahead",
        "for mask in masks for made in _summaries(mask))",
        "for mask in () for made in _summaries(mask))",
    ),
    Bug(
        "cupy_flash/_src/kernels.py",
        "lists of keys for dq",
        'served.entry == "attention_dkdv"',
        'served.entry != "attention_forward"',
        (LISTED,),
    ),
    # --- bench ---
    cli(
        "bench/options.py",
        "causal stays an option",
        'return {"causal": False, "score_mod"',
        'return {"score_mod"',
        PLACES,
    ),
    cli(
        "bench/options.py",
        "documents are longer",
        "// (n // self.size) for n in",
        "// (n // self.size + 1) for n in",
        DEFINITION,
    ),
    cli(
        "bench/verify.py",
        "rows of a function count from 0",
        "begin = case.batch - 1, self.heads.start, rows.start",
        "begin = case.batch - 1, self.heads.start, 0",
        PART,
    ),
    cli("bench/verify.py", "a function's h is moved as b", 'symbols.index("b")', 'symbols.index("h")', PART),
    cli(
        "bench/runner.py",
        "what functions launch is not compiled ahead",
        "    given |= option.functions(case)\n",
        "",
        AHEAD,
    ),
]
