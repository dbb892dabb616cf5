"""Functions on the command line: what `explain`, `compile` and `check` make of them, and figures of functions."""

import ast
import re
import xml.etree.ElementTree
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from cupy_flash import emulator, flash_attention, mods
from cupy_flash.__main__ import main
from cupy_flash._src.analysis.budget import magnitudes, spent
from cupy_flash._src.analysis.roofline import compulsory_bytes
from cupy_flash._src.analysis.rounding import gathered_parts, of_score, of_slope
from cupy_flash._src.analysis.tiles import counts, tile_shares
from cupy_flash._src.analysis.traffic import array_bytes, block_pairs, launch_bytes
from cupy_flash._src.cli import UserError, explain, mask_picture
from cupy_flash._src.cli import compile as compile_command
from cupy_flash._src.cli.functions import argument, function
from cupy_flash._src.cli.problems import Problem
from cupy_flash._src.cli.units import format_bytes
from cupy_flash._src.compile import CompiledKernel
from cupy_flash._src.components import arrays_among
from cupy_flash._src.components.component import Region
from cupy_flash._src.device import named
from cupy_flash._src.expressions.blocks import ALL, NONE, SOME
from cupy_flash._src.plan import plan_backward, plan_forward
from cupy_flash._src.problem import DTYPES, AttentionProblem

RNG = np.random.default_rng(0)
IDS = np.sort(RNG.integers(0, 4, (2, 96)))
MODULE = """
import numpy as np

NUMBER, TABLE, TEXT = 3, np.arange(6, dtype=np.float32).reshape(2, 3), "abc"

def ids():
    return np.sort(np.random.default_rng(0).integers(0, 4, (2, 96)))

def fails():
    return 1 / 0

def curved(s, b, h, i, j, weights, cap):
    return np.exp(-abs(weights[h] * s)) + cap * np.tanh(s / cap) - (i - j) / 7

def branching(b, h, i, j):
    return j if i > 3 else i

def near(b, h, i, j, starts):
    return (j >= starts[b, h]) & (abs(i - j) < 20)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's, found as from the directory that a command is run in."""
    (tmp_path / "our_functions.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "our_functions", raising=False)


@pytest.fixture
def plain(monkeypatch, tmp_path):
    """`explain` without what takes a compiler."""
    monkeypatch.setattr(explain, "to_cubin", lambda kernel, arch: CompiledKernel(tmp_path, 168, 0, 0))
    monkeypatch.setattr(explain, "_print_counts", lambda *_: None)


def explained(line, capsys):
    assert main(["explain", *line.split(), "--arch", "sm_80"]) == 0
    return capsys.readouterr().out


def problem_of(shape, dtype=np.float16, **options):
    (*batch, heads, sq, sk, d), zero = shape, np.zeros((), dtype)
    q, k = (np.broadcast_to(zero, (*batch, heads, n, d)) for n in (sq, sk))
    return AttentionProblem.from_arrays(q, k, k, **options)


def shown(problem, arrays):
    """Which keys queries see, (batch, heads, Sq, Sk), without tiles."""
    place = problem.place(problem.expanded(np, arrays))
    seen = problem.seen(np, Region(place, slice(0, problem.seqlen_q), slice(0, problem.seqlen_k)))
    return np.broadcast_to(seen, (*problem.lse_shape, problem.seqlen_k)).reshape(
        -1, *problem.lse_shape[-2:], seen.shape[-1]
    )


# --- words ---


def test_what_words_stand_for(module, tmp_path):
    np.save(tmp_path / "table.npy", IDS)
    assert [argument(text).value for text in ("3", "-2", "20.0", "1e-3")] == [3, -2, 20.0, 0.001]
    assert type(argument("3").value) is int and type(argument("3.0").value) is float
    np.testing.assert_array_equal(argument("table.npy").value, IDS)
    np.testing.assert_array_equal(argument("our_functions:ids").value, IDS)
    assert argument("our_functions:NUMBER").value == 3 and argument("our_functions:TABLE").value.shape == (2, 3)
    assert argument("our_functions:TABLE.T").value.shape == (3, 2)
    for name, shape in (("float32", (8, 257)), ("bfloat16", (40,)), ("float64", ()), ("float16", (2, 0))):
        made = argument(f"{name}[{','.join(map(str, shape))}]").value
        assert made.dtype.name == name and made.shape == shape
    made = argument("float32[100,100]").value
    assert abs(made.mean()) < 0.05 and abs(made.std() - 1) < 0.05
    for name in ("int64", "uint8", "bool"):
        made = argument(f"{name}[2,5]").value
        assert made.dtype.name == name and made.shape == (2, 5) and not made.any()
    assert function("cupy_flash.mods:causal") == ("cupy_flash.mods:causal", mods.causal)


@pytest.mark.parametrize(("text", "told"), [
    ("no_such_module:x", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("cupy_flash.mods:nothing", "AttributeError: module 'cupy_flash.mods' has no attribute 'nothing'"),
    ("causal", "'causal' is not MODULE:FUNCTION"), (":x", "':x' is not"), ("x:", "'x:' is not"),
    ("our_functions:TABLE", "our_functions:TABLE is of type ndarray: expected a function"),
])  # fmt: skip
def test_what_is_no_function_is_told(module, text, told):
    with pytest.raises(UserError) as error:
        function(text)
    assert told in str(error.value) and text in str(error.value)


@pytest.mark.parametrize(("text", "told"), [
    ("missing.npy", "FileNotFoundError"), ("int128[3]", "has the dtype int128: expected one of bool, float16"),
    ("float32[3", "is not a number, a file .npy, MODULE:NAME"), ("float32[-1]", "is not a number"),
    ("our_functions:fails", "ZeroDivisionError: division by zero"),
    ("our_functions:TEXT", "is of type str: expected an array of NumPy, or a number"),
    ("float32[99999999,99999999]", "Error"), ("1,2", "is not a number"),
])  # fmt: skip
def test_what_is_no_argument_is_told(module, text, told):
    with pytest.raises(UserError) as error:
        argument(text)
    assert told in str(error.value) and text in str(error.value)


@pytest.mark.parametrize(("line", "told"), [
    ("--mask-mod our_functions:missing", "our_functions:missing: AttributeError"),
    ("--mask-mod our_functions:branching", "branching"),
    ("--mask-mod cupy_flash.mods:window --mask-args 3", "takes (b"),
    ("--score-args 3", "score_args are given without score_mod"),
    ("--score-mod cupy_flash.mods:relative --score-args float32[1,33]", "axis 0 of table has 1 elements"),
    ("--score-mod cupy_flash.mods:softcap --score-args 3. --picture x.svg", "--picture is x.svg: expected"),
    ("--mask-mod cupy_flash.mods:causal --picture x.png", "--picture is x.png: expected a name that ends in .svg"),
    ("--mask-mod cupy_flash.mods:causal --picture no/x.svg", "is not a directory"),
])  # fmt: skip
def test_explain_refuses_with_one_line(module, line, told, capsys):
    assert main(["explain", "--shape", "2,4,64,64,32", *line.split()]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and told in printed.err and len(printed.err.splitlines()) == 1


# --- what explain tells ---


def computed(lines, names, **values):
    """What lines of Python that explain prints make of values, by the names in `names`."""
    found, values = (
        {},
        values
        | {name: getattr(np, name) for name in ("exp", "tanh", "absolute", "sign", "where", "minimum", "maximum")},
    )
    for line in lines:
        target, _, text = line.partition(" = ")
        found[target] = values[target] = eval(compile(ast.parse(text, mode="eval"), "", "eval"), values)
    return [found[name] for name in names]


def section(printed, title, end="in kernels:"):
    return [x.strip() for x in printed.partition(f"\n{title}")[2].partition(f"\n{end}")[0].splitlines()[1:]]


def test_explain_prints_formulas_and_derivatives_that_are_right(module, plain, capsys):
    """The lines are Python: they are evaluated, and derivatives held to differences."""
    line = "--score-mod our_functions:curved --score-args float32[4] 4.0 --causal"
    printed = explained(f"--shape 2,4,64,64,32 {line}", capsys)
    assert ", causal, score_mod our_functions:curved float32[4] 4.0\n" in printed
    assert "in effect: Scale (0.176777), ScoreMod, Causal" in printed
    lines = section(printed, "score_mod curved")
    names = [x.partition(" = ")[0] for x in lines if x.startswith(("score", "d score"))]
    assert names == ["score", "d score / d s", "d score / d weights[h]"]
    weights, s = RNG.standard_normal(4), RNG.standard_normal(50)
    given = {"b": 0, "h": 1, "i": 9, "j": 4, "weights": weights, "cap": 4.0}
    score, by_s, by_weight = computed(lines, names, s=s, **given)

    def curved(s, weight):
        return np.exp(-abs(weight * s)) + 4 * np.tanh(s / 4) - 5 / 7

    step = 1e-6
    np.testing.assert_allclose(score, curved(s, weights[1]), rtol=1e-12)
    slopes = (curved(s + step, weights[1]) - curved(s - step, weights[1])) / (2 * step)
    np.testing.assert_allclose(by_s, slopes, atol=1e-8)
    slopes = (curved(s, weights[1] + step) - curved(s, weights[1] - step)) / (2 * step)
    np.testing.assert_allclose(by_weight, slopes, atol=1e-8)
    code = printed.partition("in kernels:\n")[2].partition("\nkernel ")[0]
    for of in ("Float forward(", "Float backward(", "void gather("):
        assert code.count(of) == 1
    assert "np::tanh" in code and "const auto" in code and "tiles of the forward" not in printed


def test_explain_tells_a_mask_and_its_tiles(module, plain, tmp_path, capsys):
    line = "--mask-mod cupy_flash.mods:documents --mask-args our_functions:ids our_functions:ids --picture mask.svg"
    printed = explained(f"--shape 2,4,96,96,32 --causal {line} --tile 32x32,num_warps=2", capsys)
    assert section(printed, "mask_mod documents") == ["seen = of_queries[b, i] == of_keys[b, j]"]
    assert "bool shows(" in printed and "Row(const MaskMod& mask" in printed
    arrays = {"mask_args[0]": IDS, "mask_args[1]": IDS}
    problem = problem_of((2, 4, 96, 96, 32), causal=True, mask_mod=mods.documents, mask_args=(IDS, IDS))
    seen = shown(problem, arrays)[:, 0].reshape(2, 3, 32, 3, 32)
    skipped, whole = ~seen.any((2, 4)), seen.all((2, 4))
    expected = [x.mean() for x in (skipped, whole, ~skipped & ~whole)]
    found = re.search(
        r"tiles of the forward, 32 rows and 32 keys: (.*)% skipped, (.*)% seen whole .*, (.*)% tested", printed
    )
    assert [float(x) for x in found.groups()] == pytest.approx([100 * x for x in expected], abs=0.051)
    assert f"  blocks that are met     {1 - expected[0]:.1%} of all, attention_forward\n" in printed
    assert "mask_mod: above it hides whole blocks" in printed
    tested = 4 * 2 * 32 * 32 * 8 * int((~skipped & ~whole).sum()) // 2  # of four heads, and of two batch elements
    assert f"  mask_args[1]            {format_bytes(tested)} read, at most, for scores; it lies in 1.54 kB" in printed
    drawn = table_of((tmp_path / "mask.svg").read_text())
    np.testing.assert_array_equal(drawn, np.where(skipped, NONE, np.where(whole, ALL, SOME))[0])
    assert "Picture of the first batch element and head: mask.svg\n" in printed


def test_explain_counts_what_kernels_with_functions_move(module, capsys):
    """Formulas hold to the byte where blocks are skipped, forward and backward."""
    line = (
        "--shape 2,2,96,160,32 --causal --mask-mod our_functions:near --mask-args int64[2,2] "
        "--score-mod cupy_flash.mods:relative --score-args float32[2,33] --tile 32x32,num_warps=2,stages=2"
    )
    kernels = {"forward": explained(line, capsys)}
    kernels["dkdv"] = explained(f"{line} --backward --wrt k", capsys)
    for kernel, printed in kernels.items():
        told = printed.partition("counted by the emulator with ")[2]
        assert re.search(rf"attention_{kernel} +[\d.]+ kB  as the formula and [\d.]+ k?B of options\n", told)
        assert "  formula" not in told and re.search(r"attention_block_lists +\d+ B  no formula\n", told)
        assert "attention_summaries" not in told  # of arrays that positions do not index


def test_explain_tells_how_gradients_of_captured_arrays_are_made(plain, capsys):
    line = "--shape 1,2,64,64,32 --backward --score-mod cupy_flash.mods:relative --score-args float32[2,33]"
    for options, how in (("", "atomic additions"), ("--deterministic", "sums of whole numbers")):
        printed = explained(f"{line} {options} --wrt q score_args", capsys)
        assert f"\ngradients of score_args by {how}\n" in printed and ", wrt q score_args\n" in printed
    assert "gradients of" not in explained(line, capsys)


# --- tiles ---


def table_of(text):
    """The tiles of a picture, from its paths."""
    root = xml.etree.ElementTree.fromstring(text)
    (inner,) = root.findall("{*}svg")
    cols, rows = map(int, inner.get("viewBox").split()[2:])
    table = np.full((rows, cols), NONE)
    whole, tested = inner.findall("{*}path")
    for path, share in ((whole, ALL), (tested, SOME)):
        for begin, top, end, bottom, back in re.findall(r"M(\d+) (\d+)H(\d+)V(\d+)H(\d+)z", path.get("d")):
            assert begin == back
            part = table[int(top) : int(bottom), int(begin) : int(end)]
            assert part.size and (part == NONE).all()  # no tile twice
            part[:] = share
        assert re.fullmatch(r"(M\d+ \d+H\d+V\d+H\d+z)*", path.get("d"))
    return table


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 25)])
def test_a_picture_is_the_table(shape):
    for _ in range(5):
        shares = RNG.choice([NONE, SOME, ALL], shape, p=[0.3, 0.2, 0.5]).astype(np.uint8)
        np.testing.assert_array_equal(table_of(mask_picture.picture(shares, "a & b < c")), shares)
    assert "a &amp; b &lt; c" in mask_picture.picture(shares, "a & b < c")


def test_a_picture_of_many_tiles_is_small():
    rows, cols = np.indices((1000, 1000))
    causal = np.where(rows < cols, NONE, np.where(rows == cols, SOME, ALL)).astype(np.uint8)
    documents = np.where(rows // 8 == cols // 8, ALL, NONE).astype(np.uint8)
    for shares, most in ((causal, 80_000), (documents, 5_000), (np.full((1000, 1000), ALL, np.uint8), 1_000)):
        text = mask_picture.picture(shares, "")
        assert len(text) < most
        np.testing.assert_array_equal(table_of(text), shares)


STARTS = np.array([[0, 30, 64, 90], [10, 0, 5, 70]])
MASKS = {
    "causal": (mods.causal, (), {}), "a window": (mods.window, (9, 3), {}), "blocks": (mods.blocks, (24,), {}),
    "documents": (mods.documents, (IDS, IDS), {}), "documents, causal": (mods.documents, (IDS, IDS), {"causal": True}),
    "of heads": (lambda b, h, i, j, starts: j >= starts[b, h], (STARTS,), {"window": (30, None)}),
    "and a mask": (mods.causal, (), {"mask": np.ones((96, 96), bool)}),
}  # fmt: skip


@pytest.mark.parametrize(("packed", "tile"), [(1, (32, 16)), (2, (32, 16)), (4, (24, 40)), (4, (17, 96))])
@pytest.mark.parametrize("name", MASKS)
def test_tiles_are_those_of_a_count(name, packed, tile):
    """Masks that intervals decide exactly, alone and beside others; of heads whose rows stand in one tile."""
    mask, captured, options = MASKS[name]
    problem = problem_of((2, 4, 96, 96, 32), mask_mod=mask, mask_args=captured, **options)
    arrays = arrays_among({"mask_mod": mask, "mask_args": captured, **options})
    seen = shown(problem, arrays)
    found = tile_shares(problem, tile, arrays, packed)
    table = np.broadcast_to(found, (2, 4 // packed, *found.shape[2:]))
    rows = seen.reshape(2, 4 // packed, packed, 96, 96).swapaxes(2, 3).reshape(2, 4 // packed, packed * 96, 96)
    expected = np.empty_like(table)
    for (b, h, i, j), _ in np.ndenumerate(table):
        part = rows[b, h, i * tile[0] : (i + 1) * tile[0], j * tile[1] : (j + 1) * tile[1]]
        expected[b, h, i, j] = ALL if part.all() else SOME if part.any() else NONE
    if "mask" in options:  # another mask that is looked up is not known to be true anywhere
        expected[expected == ALL] = SOME
    np.testing.assert_array_equal(table, expected)
    assert counts(found) == tuple(int((found == share).sum()) for share in (NONE, ALL, SOME))


@pytest.mark.parametrize("direction", [plan_forward, plan_backward])
@pytest.mark.parametrize(("mask", "captured", "options"), [
    (mods.causal, (), {"causal": True}), (mods.window, (70, 9), {"window": (70, 9)}),
])  # fmt: skip
def test_figures_of_a_mask_function_are_those_of_the_built_in_mask(mask, captured, options, direction):
    """Bytes and blocks; of a function whole blocks are copied, of a window no row that none of a block's rows sees."""
    given = {"mask_mod": mask, "mask_args": captured}
    problems = [problem_of((40, 2, 700, 700, 64), **x, deterministic=True) for x in (given, options)]
    plans, compared = [direction(problem, named("sm_80")) for problem in problems], 0
    for ours, theirs in zip(*(plan.launches for plan in plans), strict=True):
        assert ours.kernel.constants == theirs.kernel.constants and ours.grid == theirs.grid
        found, expected = (launch_bytes(*x) for x in zip(problems, plans, (ours, theirs), strict=True))
        assert found == expected or (mask is mods.window and ours.kernel.parts and expected < found < 1.4 * expected)
        if ours.kernel.parts:
            met, every = block_pairs(problems[1], plans[1], theirs)
            assert block_pairs(problems[0], plans[0], ours) == (met, every) and 0 < met < every
            compared += 1
    assert compared == (1 if direction is plan_forward else 2)


def test_what_is_read_of_captured_arrays_is_at_most_what_is_told():
    """An element for each score of the tiles that are met, of a mask of those that are tested."""
    table = RNG.standard_normal((2, 33)).astype(np.float32)
    q, k = (RNG.standard_normal((2, 2, n, 32)).astype(np.float32) for n in (96, 96))
    options = {"score_mod": mods.relative, "score_args": (table,)}
    options |= {"mask_mod": mods.documents, "mask_args": (IDS, IDS.copy())}
    problem = AttentionProblem.from_arrays(q, k, k, **options)
    with emulator.settings(mode="counted"):
        flash_attention(q, k, k, **options, backend="emulator:sm_80")
    read = next(x.buffers for x in emulator.last_run().launches if x.kernel == "attention_forward")
    plan = plan_forward(problem, named("sm_80"))
    arrays = arrays_among(options)
    told = array_bytes(problem, plan, arrays)
    tile = plan.forward.kernel.constant("kBlockM"), plan.forward.kernel.constant("kBlockN")
    shares = tile_shares(problem, tile, arrays)
    met, tested = (2 * tile[0] * tile[1] * int(found.sum()) for found in (shares != NONE, shares == SOME))  # 2 heads
    assert told == {"score_args[0]": 4 * met, "mask_args[0]": 0, "mask_args[1]": 8 * tested}
    for name in ("score_args[0]", "mask_args[1]"):
        assert 0 < read[name].read <= told[name]
    assert read["score_args[0]"].read >= 4 * int(shown(problem, arrays).sum())


def test_gradients_of_captured_arrays_are_written_once():
    table = np.zeros((2, 33), np.float32)
    given = {"score_mod": mods.relative, "score_args": (table,)}
    without, with_them = (
        compulsory_bytes(problem_of((1, 2, 40, 40, 32), **given, wrt=wrt), backward=True)
        for wrt in (("q", "k", "v"), ("q", "k", "v", "score_args"))
    )
    assert with_them - without == table.nbytes


# --- errors ---


def wavy(s, b, h, i, j, weights, cap):
    return cap * np.tanh(s / cap) + 8 * np.sin(3 * s + weights[j % 16]) / np.exp(0.1 * weights[h]) - np.log1p(s * s)


def test_roundings_hold_what_arithmetic_does():
    """Score, slope and the derivatives of an array in float32, of a score that is off by some eps, against float64."""
    weights, eps = RNG.standard_normal(16), 2.0**-23
    given = {"score_mod": wavy, "score_args": (weights, 3.0)}
    problem = problem_of((1, 2, 40, 50, 32), **given)
    region = Region(problem.place({"score_args[0]": weights}), slice(0, 40), slice(0, 50))
    step, s = problem.scores[-1], 4 * RNG.standard_normal((1, 2, 40, 50))
    off = s * (1 + 8 * eps * RNG.uniform(-1, 1, s.shape))
    errors = np.abs(off - s) / eps
    ones = np.ones_like(s)
    for bounds, of in (
        (of_score(step, s, region), lambda x: step.forward(np, x, region)),
        (of_slope(step, s, region), lambda x: step.backward(np, ones.astype(x.dtype), x, region)),
    ):
        found = np.abs(of(off.astype(np.float32)).astype(np.float64) - of(s)) / eps
        bound = bounds.own + bounds.by_score * (errors + np.abs(s) / 2)
        assert (found <= 1.01 * bound + 1e-3).all() and found.max() > 0.02 * bound.max()
    slope = of_score(step, s, region).by_score
    np.testing.assert_allclose(slope, np.abs(step.backward(np, ones, s, region)), rtol=1e-12)
    assert (of_score(step, s, region, tanh=4096.0).own > 10 * of_score(step, s, region).own).any()
    parts = list(gathered_parts(step, s, region))
    assert [number for number, *_ in parts] == [0, 0]
    found = np.zeros(16)
    for _, factor, _, places in parts:
        assert factor.shape == s.shape
        np.add.at(found, places, factor)
    assert (found >= np.abs(gathered(step, s, region))).all()


def gathered(step, s, region):
    (gradient, _) = gradients = step.new_gradients(np, np.dtype(np.float64))
    step.gather(np, np.ones_like(s), s, region, gradients)
    return gradient


def added(s, b, h, i, j, x):
    return s + x[h, i, j]


def added_to_heads(s, b, h, i, j, x):
    return s + x[h, 0, 0]


def test_a_function_has_the_budget_of_the_option_that_it_is():
    """Nearly: those of a softcap and of a bias are bounds of other makes."""
    q, k, v, dout = (RNG.standard_normal((2, 3, 40, 16)).astype(np.float32) for _ in range(4))
    wrt, captured = ("q", "k", "v", "bias"), ("q", "k", "v", "score_args")
    pairs = [({"softcap": 2.0}, {"score_mod": mods.softcap, "score_args": (2.0,)})]
    for mod, shape in ((added, (3, 40, 40)), (added_to_heads, (3, 1, 1))):
        table = RNG.standard_normal(shape).astype(np.float32)
        pairs.append(({"bias": table, "wrt": wrt}, {"score_mod": mod, "score_args": (table,), "wrt": captured}))
    for option, same in pairs:
        theirs, ours = (magnitudes(q, k, v, dout, None, **given) for given in (option, same))
        names = dict(zip(theirs, ours, strict=True))
        assert names.get("dbias", "dscore_args[0]") == "dscore_args[0]"
        for name, other in names.items():
            assert 0.7 * theirs[name] <= ours[other] <= 4 * theirs[name], name


def test_a_steep_function_carries_the_errors_of_scores_on():
    """Of scores that are 0, and of large terms."""
    a, b, v = (RNG.standard_normal((1, 3, 40, 8)).astype(np.float32) for _ in range(3))
    q, k = np.concatenate([a, a], axis=-1), np.concatenate([b, -b], axis=-1)
    flat, steep = (
        magnitudes(q, k, v, v, None, score_mod=mods.temperature, score_args=(np.full(3, x, np.float32),))
        for x in (1.0, 0.05)
    )
    largest = (np.abs(q) @ np.abs(k).swapaxes(-1, -2)).max() / 4
    assert steep["lse"] - flat["lse"] >= 19 * largest
    assert steep["dq"] > 19 * flat["dq"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_function_is_over_budget(dtype):
    """One that a thousandth of its table is missing from, while the right one is within."""
    q, k, v = (RNG.standard_normal((1, 2, 30, 16)).astype(DTYPES[dtype]) for _ in range(3))
    table = RNG.standard_normal((2, 33)).astype(np.float32)
    sizes = magnitudes(q, k, v, v, None, score_mod=mods.relative, score_args=(table,))

    def lse(table, kind):
        s = q.astype(kind) @ k.astype(kind).swapaxes(-1, -2) / kind(4)
        i, j = np.indices(s.shape[-2:])
        s = s + table[np.arange(2)[:, None, None], np.clip(i - j + 16, 0, 32)].astype(kind)
        return np.log(np.exp(s).sum(-1))

    exact, naive = lse(table, np.float64), lse(table, np.float64 if dtype == "float64" else np.float32)
    for scale, is_right in ((1, True), (0.999, False)):
        error, budget = spent(lse(scale * table, np.float64).astype(naive.dtype), naive, exact, sizes["lse"])
        assert (error <= budget) == is_right


# --- compile and check ---


@pytest.mark.parametrize("line", [
    "--causal --mask-mod cupy_flash.mods:documents --mask-args int64[2,640] int64[2,640]",
    "--score-mod cupy_flash.mods:relative --score-args float32[2,257] --mask-mod cupy_flash.mods:causal",
])  # fmt: skip
def test_compile_makes_the_kernels_of_calls_with_functions(line, monkeypatch, tmp_path):
    made = set()
    monkeypatch.setattr(compile_command, "compile_all", lambda kernels, arch, done: made.update(kernels) or [
        done(kernel, CompiledKernel(tmp_path, 100, 0, 0)) for kernel in kernels
    ])  # fmt: skip
    monkeypatch.setattr(compile_command, "nvrtc_version", lambda: (13, 0))
    assert main(["compile", "--arch", "sm_80", "--for", "all", *line.split()]) == 0
    options = {"mask_mod": mods.documents, "mask_args": (np.zeros((2, 640), int),) * 2, "causal": True}
    if "relative" in line:
        table = np.zeros((2, 257), np.float32)
        options = {"score_mod": mods.relative, "score_args": (table,), "mask_mod": mods.causal}
    for dtype in DTYPES.values():
        problem = problem_of((2, 2, 640, 640, 64), dtype, **options)
        launches = plan_forward(problem, named("sm_80")).launches + plan_backward(problem, named("sm_80")).launches
        assert {launch.kernel for launch in launches} <= made


def test_checks_name_the_gradients_of_what_functions_capture():
    def weighted(rng, full):
        numbers = rng.standard_normal(full[-3]).astype(ml_dtypes.bfloat16)
        return {"score_mod": wavy, "score_args": (numbers, 3.0)}

    p = Problem(options={"score_mod": weighted, "causal": True})
    assert p.wrt == ("q", "k", "v", "score_args") and "score_mod weighted" in str(p)
    assert p.results == ("out", "lse", "dq", "dk", "dv", "dscore_args[0]")
    elsewhere = SimpleNamespace(asarray=lambda x: (x, "there"))
    (numbers, place), cap = p.given(elsewhere)["score_args"]
    assert (numbers.dtype, place, cap) == (ml_dtypes.bfloat16, "there", 3.0)
    assert Problem(options={"causal": True}).results == ("out", "lse", "dq", "dk", "dv")
