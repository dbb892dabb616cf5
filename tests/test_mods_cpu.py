"""Functions of scores and masks on the backend "cpu": compiled operations, blocks that are left out, and its tiers."""

import ctypes
import functools

import numpy as np
import pytest
from cases import ERROR, Case, close, same_bits
from processes import python

from cupy_flash import attention_reference, attention_reference_backward, flash_attention, flash_attention_vjp, mods
from cupy_flash._src.backends import cpu as cpu_backend
from cupy_flash._src.backends import native, numpy_, threads
from cupy_flash._src.components import score_mod
from cupy_flash._src.components.block_mask import blocks_of
from cupy_flash._src.expressions.graph import evaluate
from cupy_flash._src.expressions.operations import OPERATIONS
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.toolchain import InterruptedCompilerError, ToolchainError


@pytest.fixture(autouse=True)
def tables_of_blocks(monkeypatch):
    """As large calls have them."""
    monkeypatch.setattr(native, "TABLE_WORK", 0)


# --- operations ---

FLOATS = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 0.3, -0.3, 1, 2.5, -2.5, 7, -7, 1e-3, 30, -30, 3e9])
INTS = np.array([0, 1, -1, 2, -2, 3, -3, 5, -7, 64, -64, 1000, 12345, 2**15, -(2**15), 7])
LONGS = np.where(abs(INTS) == 2**15, INTS * 2**16, INTS)


def pairs(x):
    """Each with each, as two rows."""
    return np.stack([np.repeat(x, len(x)), np.tile(x, len(x))])


def of_ints(n, m):
    return [
        *(n + m, n - m, n * m, n // m, n % m, -n, abs(n), np.sign(n), np.minimum(n, m), np.maximum(n, m)),
        *(n & m, n | m, n ^ m, ~n, n < m, n <= m, n == m, n != m, np.where(n < m, n, m) + 1, n / m),
    ]


def of_floats(f, g):
    return [
        *(f + g, f - g, f * g, f / g, f // g, f % g, np.power(abs(f), g), -f, abs(f), np.sign(f), np.floor(f)),
        *(np.minimum(f, g), np.maximum(f, g), np.exp(f), np.exp2(f), np.log(f), np.log2(f), np.log1p(f)),
        *(np.tanh(f), np.sqrt(f), np.sin(f), np.cos(f), np.isfinite(f), f.astype(int)),
        *((f < g) & (f == f), (f <= g) | (g != g), (f < g) ^ (f < 1), ~(f < g)),
    ]


COUNT = 28 + 2 * 20 + 3


def every_operation(along, s, i, j, floats, ints, longs):
    """Of numbers along the queries one after another along the keys, or the other way round."""
    at, number = (i, j) if along == "queries" else (j, i)
    values = [
        *of_floats(floats[0, at], floats[1, at]),
        *of_ints(ints[0, at], ints[1, at]),
        *of_ints(longs[0, at], longs[1, at]),
        *(s * 0.5, np.tanh(s) / (s * s + 1), s / floats[0, 8]),
    ]
    made = s
    for n, value in enumerate(values):
        made = np.where(number == n, value, made)
    return made


ALONG = {
    "queries": lambda s, b, h, i, j, *captured: every_operation("queries", s, i, j, *captured),
    "keys": lambda s, b, h, i, j, *captured: every_operation("keys", s, i, j, *captured),
}


class Compiled:
    """The functions of a score_mod, called as cuda_src/cpu calls them."""

    def __init__(self, problem, captured):
        self.dtype = np.dtype(problem.dtype)
        self.call = native._call_type()()
        names = [f"score_args[{n}]" for n in range(len(captured))]
        self.kept = native._tell_of_mods(self.call, problem, dict(zip(names, captured, strict=True)), with_table=False)

    def function(self, name, *arguments):
        kinds = [ctypes.c_double if isinstance(x, float) else ctypes.c_int64 for x in arguments]
        given = (x.ctypes.data if isinstance(x, np.ndarray) else x for x in arguments)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, *kinds)(getattr(self.call, name))(self.call.score_params, *given)

    def by_panels(self, s):
        """Scores and the derivative, of queries in lanes."""
        lanes = 64 // self.dtype.itemsize
        queries, keys = s.shape
        numbers = np.pad(np.arange(queries, dtype=f"i{self.dtype.itemsize}"), (0, -queries % lanes), mode="edge")
        x = np.ascontiguousarray(s[numbers].T)
        slope = np.empty_like(x)
        self.function("score_panel", 0, 0, numbers, len(numbers), keys, len(numbers), 0, keys - 1, 1.0, x, slope)
        return x[:, :queries].T, slope[:, :queries].T

    def by_rows(self, s):
        lanes = 64 // self.dtype.itemsize
        rows = []
        for query, row in enumerate(s):
            x = np.pad(row, (0, -len(row) % lanes))
            self.function("score_row", 0, 0, query, len(row), 0, len(row) - 1, 1.0, x)
            rows.append(x[: len(row)])
        return np.stack(rows)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("along", ["queries", "keys"])
def test_compiled_operations_are_numpys(along, dtype):
    """Of vectors and of single numbers: panels have queries in the lanes, rows keys."""
    captured = pairs(FLOATS).astype(dtype), pairs(INTS).astype(np.int32), pairs(LONGS)
    many = captured[0].shape[1]
    sq, sk = (many, COUNT) if along == "queries" else (COUNT, many)
    q, k = (np.zeros((1, n, 8), dtype) for n in (sq, sk))
    problem = AttentionProblem.from_arrays(q, k, k, score_mod=ALONG[along], score_args=captured)
    (mod,) = problem.mods
    assert {node.op for node in mod.graph.nodes} >= set(OPERATIONS)
    s = np.random.default_rng(0).uniform(-3, 3, (sq, sk)).astype(dtype)
    symbols = {"s": s, "b": 0, "h": 0, "i": np.arange(sq)[:, None], "j": np.arange(sk)}
    with np.errstate(all="ignore"):
        graphs = mod.graph, score_mod.slope(mod.graph)
        expected, slope = (evaluate(graph, np, s.dtype, symbols, captured)[0] for graph in graphs)
    functions = Compiled(problem, captured)

    def exact(found, expected, atol=1e-37):
        np.testing.assert_allclose(found, expected, rtol=64 * np.finfo(dtype).eps, atol=atol)

    panels, found_slope = functions.by_panels(s)
    exact(panels, expected)
    exact(found_slope, np.broadcast_to(slope, s.shape), atol=64 * np.finfo(dtype).eps)
    exact(functions.by_rows(s), expected)


def text_of(function, *captured):
    """As C++: what is computed once a row, and what for each key."""
    q = np.zeros((1, 5, 8), np.float32)
    (mod,) = AttentionProblem.from_arrays(q, q, q, score_mod=function, score_args=captured).mods
    row, _, keys = mod.cpu_text().partition("return [=]")
    return row, keys


def test_a_score_is_divided_by_what_a_row_has_in_common_once():
    each = np.ones(5, np.float32)
    for function, captured in (
        (mods.softcap, (3.0,)),
        (mods.temperature, (np.ones(1, np.float32),)),
        (lambda s, b, h, i, j, x: (s + j) / x[i], (each,)),
    ):
        row, keys = text_of(function, *captured)
        assert row.count("np::divide") == 1 and "np::divide" not in keys
    row, keys = text_of(lambda s, b, h, i, j, x: s / x[j], each)
    assert "np::divide" not in row and keys.count("np::divide(s") == 1


def test_quotients_of_positions_are_not_rounded_twice(tier):
    sizes = np.float32([41, 47, 55])
    assert (sizes * (1 / sizes) < 1).any()
    x = np.random.default_rng(0).standard_normal((3, 120, 8), np.float32)
    options = {"score_mod": lambda s, b, h, i, j, sizes: s + np.floor(j / sizes[h]), "score_args": (sizes,)}
    close([flash_attention(x, x, x, **options)], [attention_reference(x, x, x, compute_dtype=np.float64, **options)])


# --- attention ---


def scores(s, b, h, i, j, weights, table):
    """By the head and the batch element, and along queries and keys."""
    return s * weights[h] + np.tanh(s / 3) * table[b, np.clip(i - j, -20, 20) + 20]


def shown(b, h, i, j, of_queries, of_keys):
    return ((i - j) % (h + 3) != b) & ((of_queries[b, i] == of_keys[b, j]) | (j % 32 < i % 7))


def call(dtype, sq, sk, group, **others):
    """q, k, v, dout, dlse and options of a call in which functions depend on all that they may."""
    case = Case(dtype, (2,), heads_k=2, group=group, sq=sq, sk=sk, d=40, dv=24, **others)
    rng = np.random.default_rng(1)
    wide = "float64" if dtype == "float64" else "float32"
    documents = [np.sort(rng.integers(0, 3, (2, n))) for n in (sq, sk)]
    functions = {
        "score_mod": scores,
        "score_args": (rng.uniform(0.5, 1.5, 2 * group).astype(wide), rng.standard_normal((2, 41)).astype(wide)),
        "mask_mod": shown,
        "mask_args": tuple(documents),
    }
    return case.arrays(), case.options | functions


def attend(arrays, options):
    """out, lse, dq, dk, dv and the gradients of what the score captures."""
    q, k, v, dout, dlse = arrays
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, wrt=("q", "k", "v", "score_args"), **options)
    *gradients, captured = vjp(dout, dlse)
    return out, lse, *gradients, *captured


def exactly(arrays, options):
    q, k, v, dout, dlse = arrays
    out, lse = attention_reference(q, k, v, return_lse=True, compute_dtype=np.float64, **options)
    wrt = "q", "k", "v", "score_args"
    *gradients, captured = attention_reference_backward(
        dout, q, k, v, dlse=dlse, wrt=wrt, compute_dtype=np.float64, **options
    )
    return out, lse, *gradients, *captured


FORMS = {  # numbers of queries, keys, and query heads of a key head
    "panels": (110, 230, 2),
    "narrow panels": (9, 230, 1),
    "rows": (3, 200, 1),
    "a block of many heads": (20, 150, 3),
    "chunks": (2, 2100, 1),
    "one query": (1, 60, 1),
}
ALL_ELSE = {
    "causal": True,
    "window": (150, 3),
    "softcap": 4.0,
    "alibi_slopes": (True,),
    "bias": (True, True, True, True),
    "sinks": (True,),
    "mask": (True, True, True, True),
    "k_lengths": "each",
    "q_lengths": "each",
    "k_starts": "each",
    "q_offset": "each",
}


def check(form, dtype, **others):
    arrays, options = call(dtype, *FORMS[form], **others)
    expected = exactly(arrays, options)
    assert others or (expected[0] != 0).any(axis=-1).mean() > 0.5
    close(attend(arrays, options), expected, ERROR[dtype])


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_kernels(form, dtype, tier):
    check(form, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["panels", "rows"])
def test_beside_every_other_option(form, dtype, tier):
    check(form, dtype, **ALL_ELSE)


# --- blocks that are left out ---


def documents(*lengths):
    numbers = np.repeat(np.arange(len(lengths)), lengths)[None]
    return {"mask_mod": mods.documents, "mask_args": (numbers, numbers)}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_hidden_numbers_do_not_matter(dtype, tier):
    """Those of a document reach no other, whether blocks are left out whole or cut by elements."""
    lengths = 100, 411, 64, 5, 120
    arrays = [x[:1] for x in call(dtype, 700, 700, 1)[0]]
    expected = attend_plainly(arrays, documents(*lengths))
    for n, length in list(enumerate(lengths))[1::2]:
        rows = slice(sum(lengths[:n]), sum(lengths[:n]) + length)
        others = np.delete(np.arange(700), rows)
        spoiled = [x.copy() for x in arrays]
        for x in spoiled:
            x[:, :, rows] = np.nan
        found = attend_plainly(spoiled, documents(*lengths))
        close([x[:, :, others] for x in found], [x[:, :, others] for x in expected], ERROR[dtype])


def attend_plainly(arrays, options):
    q, k, v, dout, dlse = arrays
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, **options)
    return out, lse, *vjp(dout, dlse)


FAR = 500, 1500  # queries and keys: several blocks of the backward's


SEEN = {
    "gaps": lambda b, h, i, j: (i // 240 + 1) * (j // 240) % 5 == 1,
    "ragged ends": lambda b, h, i, j: (j >= 37 + i // 64 * 5) & (j < 1400 - i // 50) & (i * j % 5 != 2),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("seen", SEEN)
def test_what_is_left_out_of_tiles_and_between_them(seen, dtype, tier):
    """In the backward each part of dQ waits for the one before it, however far that is."""
    arrays, options = [x[:1] for x in call(dtype, *FAR, 1)[0]], {"mask_mod": SEEN[seen]}
    found = attend_plainly(arrays, options)
    q, k, v, dout, dlse = arrays
    out, lse = attention_reference(q, k, v, return_lse=True, compute_dtype=np.float64, **options)
    gradients = attention_reference_backward(dout, q, k, v, dlse=dlse, compute_dtype=np.float64, **options)
    close(found, (out, lse, *gradients), ERROR[dtype])


def test_scores_of_minus_infinity_give_nothing_to_what_is_captured(tier):
    """As hidden ones do."""
    arrays, _ = call("float32", 20, 30, 1)
    weights = np.random.default_rng(0).uniform(0.5, 1.5, 2).astype(np.float32)
    options = {"score_mod": lambda s, b, h, i, j, weights: s * weights[h], "score_args": (weights,)}
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    bias = np.where(mask, 0, -np.inf).astype(np.float32)
    for function in (attend, exactly):
        close(function(arrays, options | {"bias": bias}), function(arrays, options | {"mask": mask}), 1e-6)


@pytest.mark.parametrize("n", [2, 3])
def test_bits_do_not_depend_on_the_number_of_threads(n, tier, monkeypatch):
    """Those of what the score captures neither."""
    arrays, options = call("bfloat16", 300, 700, 1, **ALL_ELSE)
    monkeypatch.setattr(native, "INLINE_WORK", 0)
    found = []
    for number in (1, n, n):
        monkeypatch.setattr(threads, "num_threads", lambda number=number: number)
        found.append(attend(arrays, options))
    same_bits(found[0], found[1])
    same_bits(found[1], found[2])


def test_numpys_tier_leaves_out_blocks_of_its_own_size(monkeypatch):
    """Of 4 documents 2 x 1 blocks each, and no others."""
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "numpy")
    tiles, scores = [], numpy_._Tile.scores

    def count(tile, *arguments):
        tiles.append(tile.region[1:])
        return scores(tile, *arguments)

    monkeypatch.setattr(numpy_._Tile, "scores", count)
    x = np.random.default_rng(0).standard_normal((2048, 8), np.float32)
    _, vjp = flash_attention_vjp(x, x, x, **documents(512, 512, 512, 512))
    rows, keys = numpy_.QUERY_BLOCK, numpy_.KEY_BLOCK
    expected = [(slice(i, i + rows), slice(i // keys * keys, i // keys * keys + keys)) for i in range(0, 2048, rows)]
    assert sorted(tiles, key=str) == sorted(expected, key=str)
    vjp(x)
    assert sorted(tiles, key=str) == sorted(2 * expected, key=str)


HIDDEN = """
import ctypes, mmap
import numpy as np
from cupy_flash import flash_attention, flash_attention_backward
from cupy_flash._src.backends import native
native.TABLE_WORK = 0

def guarded(dtype, rows, begin, end):
    pitch = 64 * np.dtype(dtype).itemsize
    x = np.frombuffer(mmap.mmap(-1, rows * pitch), dtype).reshape(rows, -1)
    x[:] = np.random.default_rng(0).standard_normal(x.shape)
    address, size, no_access = x.ctypes.data + begin * pitch, (end - begin) * pitch, 0
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), no_access) == 0
    return x

# Nobody sees keys 1024 to 3072; those from 1536 to 2560 lie blocks away from what is seen, and have pages of their own.
for dtype, sq in ((np.float32, 2), (np.float16, 2), (np.float32, 9), (np.float32, 900), (np.float16, 900)):
    q = np.random.default_rng(1).standard_normal((sq, 64)).astype(dtype)
    k, v = (guarded(dtype, 4096, 1536, 2560) for _ in "kv")
    options = {"mask_mod": lambda b, h, i, j: (j < 1024) | (j >= 3072)}
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    _, dk, dv = flash_attention_backward(out, q, k, v, out, lse, **options)
    for x in (dk, dv):
        assert x[:1024].any(axis=1).all() and not x[1024:3072].any() and x[3072:].any(axis=1).all()
print("clean")
"""


def test_keys_that_a_function_hides_from_all_are_not_read():
    out, _ = python(HIDDEN, CUPY_FLASH_CPU_TIER="native")
    assert out.strip() == "clean"


def test_small_calls_have_no_table_of_blocks(monkeypatch):
    """To make it would take longer than all else."""
    arrays, options = call("float32", 40, 60, 1)
    made = []
    monkeypatch.setattr(native, "blocks_of", lambda mod, arrays: made.append(mod) or blocks_of(mod, arrays))
    for most, tables in ((np.inf, 0), (0, 2)):
        monkeypatch.setattr(native, "TABLE_WORK", most)
        close(attend(arrays, options)[:1], exactly(arrays, options)[:1])
        assert len(made) == tables


# --- tiers ---


def capped(s, b, h, i, j):
    return np.tanh(s) + (i - j) / 8


OURS = {"score_mod": capped, "mask_mod": mods.causal}


@pytest.fixture
def refused(monkeypatch):
    """A function that makes every compilation of a function of ours fail; it returns those that were tried."""

    def refuse(error):
        tried = []

        def fail(text, *_):
            tried.append(text)
            raise error

        monkeypatch.setattr(native, "_compiled_mod", fail)
        monkeypatch.setattr(native, "compile_mods", functools.lru_cache(native.compile_mods.__wrapped__))
        monkeypatch.setattr(cpu_backend, "_refused", {})
        return tried

    return refuse


def test_a_function_that_does_not_compile_runs_in_numpy(refused, monkeypatch):
    """It is tried and warned of once; a call without it stays compiled."""
    tried = refused(ToolchainError("seeded: refused"))
    x = np.random.default_rng(0).standard_normal((2, 50, 8), np.float32)
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "auto")
    with pytest.warns(match="runs in NumPy, a function does not compile: seeded: refused"):
        found = flash_attention(x, x, x, **OURS)
    close([found, flash_attention(x, x, x, **OURS)], 2 * [attention_reference(x, x, x, **OURS)])
    assert len(tried) == 1
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "native")
    with pytest.raises(RuntimeError, match="'native', but a function does not compile: seeded: refused"):
        flash_attention(x, x, x, **OURS)
    close([flash_attention(x, x, x)], [attention_reference(x, x, x)])


def test_a_compiler_that_was_kept_from_its_end_is_asked_again(refused, monkeypatch):
    tried = refused(InterruptedCompilerError("seeded: killed"))
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "auto")
    x = np.ones((1, 50, 8), np.float32)
    for times in (1, 2):
        with pytest.warns(match="seeded: killed"):
            flash_attention(x, x, x, **OURS)
        assert len(tried) == times


WITHOUT_COMPILER = """
import numpy as np
from cupy_flash import attention_reference, flash_attention, mods
from cupy_flash._src.backends import get

x = np.random.default_rng(0).standard_normal((2, 50, 8), np.float32)
options = {"mask_mod": mods.causal, "score_mod": lambda s, b, h, i, j: np.tanh(s / 2) + (i - j) / 32}
assert abs(flash_attention(x, x, x, **options) - attention_reference(x, x, x, **options)).max() < 1e-5
print(get("cpu").status().split(" ")[0])
"""


def test_functions_work_without_a_compiler(tmp_path):
    """Even where the rest was compiled before; the lack is no news."""
    assert python(WITHOUT_COMPILER, CXX="no-such-compiler", CUPY_FLASH_CACHE_DIR=tmp_path) == ("NumPy\n", "")
    flash_attention(*[np.ones((1, 4, 8), np.float32)] * 3)
    assert python(WITHOUT_COMPILER, CXX="no-such-compiler") == ("compiled\n", "")
