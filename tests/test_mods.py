"""Functions of scores and masks on every backend, above all the ready ones, against attention that is written out."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import ERROR, close, same_bits
from conftest import require_gpu, to_gpu

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    emulator,
    flash_attention,
    flash_attention_vjp,
    mods,
)
from cupy_flash._src.device import named
from cupy_flash._src.expressions import tracing
from cupy_flash._src.plan import plan_forward
from cupy_flash._src.problem import DTYPES, AttentionProblem

SLOW = pytest.mark.slow
STEP = 1e-30  # of complex steps: f(x + ih) has h f'(x) as its imaginary part, without a difference that cancels


class Functions(NamedTuple):
    """What a call is told, and what else hides keys: an array that broadcasts to the scores."""

    score: Any = None
    score_args: tuple = ()
    mask: Any = None
    mask_args: tuple = ()
    seen: Any = True

    @property
    def options(self):
        names = ("score_mod", "score_args", "mask_mod", "mask_args")
        given = dict(zip(names, self, strict=False))
        return {name: x for name, x in given.items() if x is not None and not (isinstance(x, tuple) and x == ())}

    @property
    def learned(self):
        """Numbers of the arrays of floats that the score captures."""
        return [n for n, x in enumerate(self.score_args) if isinstance(x, np.ndarray) and x.dtype.kind == "f"]


def written_out(arrays, of):
    """out, lse, dq, dk, dv and the gradients of what the score captures, over whole arrays in float64."""
    q, k, v, dout, dlse = (x.astype(np.float64) for x in arrays)
    group, scale = q.shape[1] // k.shape[1], 1 / math.sqrt(q.shape[-1])
    k, v = (np.repeat(x, group, 1) for x in (k, v))
    s = scale * q @ k.swapaxes(-1, -2)
    grid = np.ogrid[tuple(slice(n) for n in s.shape)]
    captured = [np.asarray(x, np.float64) if n in of.learned else x for n, x in enumerate(of.score_args)]

    def score(s, captured):
        return np.broadcast_to(s if of.score is None else of.score(s, *grid, *captured), s.shape)

    seen = np.broadcast_to(of.seen & (True if of.mask is None else of.mask(*grid, *of.mask_args)), s.shape)
    x = np.where(seen, score(s, captured), -np.inf)
    most = x.max(-1, keepdims=True, initial=-1e300)
    e = np.exp(x - most)
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total == 0, 1, total)
    out = p @ v
    with np.errstate(divide="ignore"):
        lse = (most + np.log(total))[..., 0]
    dx = p * (dout @ v.swapaxes(-1, -2) - (dout * out).sum(-1, keepdims=True) + dlse[..., None])
    ds = scale * dx * score(s + STEP * 1j, captured).imag / STEP
    of_heads = ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout
    dk, dv = (x.reshape(len(x), -1, group, *x.shape[2:]).sum(2) for x in of_heads)
    gradients = []
    for n in of.learned:
        gradient = np.empty(captured[n].shape)
        for at in np.ndindex(gradient.shape):
            moved = captured[n].astype(complex)
            moved[at] += STEP * 1j
            gradient[at] = (dx * score(s, [*captured[:n], moved, *captured[n + 1 :]]).imag).sum() / STEP
        gradients.append(gradient)
    return out, lse, ds @ k, dk, dv, *gradients


def drawn(shape_q, shape_k, dv=None, seed=0):
    """q, k, v, dout and dlse, whose numbers every dtype has."""
    rng = np.random.default_rng(seed)
    dv = dv or shape_q[-1]
    shapes = shape_q, shape_k, (*shape_k[:-1], dv), (*shape_q[:-1], dv), shape_q[:-1]
    return tuple(np.round(32 * rng.standard_normal(shape)) / 32 for shape in shapes)


def computed(backend, dtype, arrays, of, *, deterministic=False, **options):
    """The same by a backend, or by "reference"."""
    q, k, v, dout = (x.astype(DTYPES[dtype]) for x in arrays[:4])
    dlse = arrays[4].astype(np.float64 if dtype == "float64" else np.float32)
    options |= of.options | {"wrt": ("q", "k", "v", "score_args") if of.score_args else ("q", "k", "v")}
    if backend == "reference":
        forward = {name: x for name, x in options.items() if name != "wrt"}
        out, lse = attention_reference(q, k, v, **forward, return_lse=True, compute_dtype=np.float64)
        gradients = attention_reference_backward(dout, q, k, v, dlse=dlse, **options, compute_dtype=np.float64)
    else:
        on_gpu = backend == "cuda"
        send, fetch = (sent_to_gpu, fetched) if on_gpu else (lambda x: x, lambda x: x)
        q, k, v, dout, dlse, options = map(send, (q, k, v, dout, dlse, options))
        options |= {"deterministic": deterministic, "backend": backend}
        (out, lse), vjp = flash_attention_vjp(q, k, v, **options, return_lse=True)
        out, lse, gradients = fetch((out, lse, vjp(dout, dlse)))
    if of.score_args:
        *gradients, captured = gradients
        for n, (x, gradient) in enumerate(zip(of.score_args, captured, strict=True)):
            assert (gradient is not None) == (n in of.learned)
            assert gradient is None or gradient.dtype == (np.float64 if backend == "reference" else x.dtype)
        gradients = [*gradients, *(x for x in captured if x is not None)]
    return out, lse, *gradients


def sent_to_gpu(x):
    if isinstance(x, dict):
        return {name: sent_to_gpu(value) for name, value in x.items()}
    return tuple(map(sent_to_gpu, x)) if isinstance(x, tuple) else to_gpu(x)


def fetched(x):
    import cupy

    return tuple(map(fetched, x)) if isinstance(x, tuple) else cupy.asnumpy(x) if isinstance(x, cupy.ndarray) else x


@pytest.fixture
def agree(monkeypatch):
    """Assert that a backend finds what is written out; returns what it found."""

    def check(on, dtype, arrays, of, expected=None, **options):
        name, _, tier = on.partition("-")
        if name == "cpu":
            monkeypatch.setenv("CUPY_FLASH_CPU_TIER", tier or "native")
        if name == "cuda":
            require_gpu()
        found = computed(name, dtype, arrays, of, **options)
        for x, y in zip(found, written_out(arrays, of) if expected is None else expected, strict=True):
            close([x], [y], max(ERROR[dtype], ERROR[x.dtype.name]))
        return found

    return check


EXACT = [("reference", "float64"), ("cpu-numpy", "float64")]  # without a compiler
ONE_EACH = [("cpu-numpy", "float64"), ("cpu", "float32"), ("emulator:sm_80", "float16")]
OTHERS = [
    ("emulator:sm_75", "float32"), ("emulator:sm_90a", "float16"), ("emulator:sm_80", "float64"), ("cpu", "float64"),
    ("cpu", "bfloat16"),
]  # fmt: skip
GPU = [pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in ("float16", "float32")]


# --- the ready ones ---

BATCH, HEADS, SQ, SK = 2, 4, 50, 70


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape)


def paths(*shape):
    """Distances in a graph: some beyond the table, and -1 where there is no path."""
    return np.random.default_rng(2).integers(-1, 9, shape).astype(np.int8)


def ids(length, seed=3):
    return np.sort(np.random.default_rng(seed).integers(0, 4, (BATCH, length)), axis=1)


SLOPES = 2.0 ** -np.arange(1, 1 + HEADS)
TEMPERATURES = np.linspace(0.5, 2, HEADS)
READY = {
    "causal": Functions(mask=mods.causal),
    "window": Functions(mask=mods.window, mask_args=(20, 5)),
    "prefix": Functions(mask=mods.prefix, mask_args=(np.array([30, 3]),)),
    "documents": Functions(mask=mods.and_masks(mods.documents, mods.causal), mask_args=(ids(SQ), ids(SK))),
    "natten": Functions(mask=mods.neighbourhood, mask_args=(7, 10, 2)),
    "dilated": Functions(mask=mods.and_masks(mods.window, mods.dilated), mask_args=(20, 20, 4)),
    "blocks": Functions(mask=mods.or_masks(mods.blocks, mods.not_mask(mods.causal)), mask_args=(16,)),
    "alibi": Functions(mods.alibi, (SLOPES,), mods.causal),
    "relative": Functions(mods.relative, (numbers(HEADS, 21),)),
    "t5": Functions(mods.t5(40), (numbers(HEADS, 16),)),
    "spatial": Functions(mods.spatial, (numbers(HEADS, 6), paths(BATCH, SQ, SK))),
    "softcap": Functions(mods.softcap, (2.0,)),
    "temperature": Functions(mods.temperature, (TEMPERATURES,)),
}


@functools.cache
def of_ready(name):
    arrays = drawn((BATCH, HEADS, SQ, 16), (BATCH, 2, SK, 16))
    return arrays, written_out(arrays, READY[name])


@pytest.mark.parametrize(("on", "dtype"), [*EXACT, *(pytest.param(*x, marks=SLOW) for x in ONE_EACH[1:]), *GPU])
@pytest.mark.parametrize("name", READY)
def test_ready_ones(agree, on, dtype, name):
    arrays, expected = of_ready(name)
    agree(on, dtype, arrays, READY[name], expected)


def everything(s, b, h, i, j, cap, temperatures, slopes, table, buckets, biases, distances):
    s = mods.softcap(mods.temperature(s, b, h, i, j, temperatures), b, h, i, j, cap)
    s = mods.relative(mods.alibi(s, b, h, i, j, slopes), b, h, i, j, table)
    return mods.spatial(mods.t5(40)(s, b, h, i, j, buckets), b, h, i, j, biases, distances)


def gaps(b, h, i, j):
    """Rows that see nothing."""
    return (i + h) % 16 != 5


@functools.cache
def all_at_once():
    """All of them in one function of scores and one of masks, which few kernels have to be compiled for.

    Arrays have strides below 0 and of 0, and one of them holds bytes.
    """
    sq, sk = 150, 200  # more than a block, and no whole number of them
    arrays = drawn((BATCH, 2, sq, 16), (BATCH, 1, sk, 16), dv=24)
    table = numbers(9, 2).T[::-1, ::-1]
    score_args = (2.0, np.linspace(0.5, 1.5, 2), np.array([0.1, 0.02]), table, numbers(2, 12), numbers(2, 5, seed=4))
    score_args += (np.broadcast_to(paths(sq, sk), (BATCH, sq, sk)),)
    shown = mods.or_masks(
        mods.and_masks(mods.documents, mods.prefix),
        mods.and_masks(mods.neighbourhood, mods.not_mask(mods.blocks)),
        mods.and_masks(mods.window, mods.dilated),
    )
    mask_args = (ids(sq), ids(sk), np.array([90, 20], np.int32), 10, 20, 3, 40, 30, 10, 4)
    of = Functions(everything, score_args, mods.and_masks(shown, gaps), mask_args)
    expected = written_out(arrays, of)
    assert (expected[1] == -np.inf).any()
    return arrays, of, expected


@pytest.mark.parametrize(
    ("on", "dtype"),
    [*EXACT, *ONE_EACH[1:], OTHERS[0], *(pytest.param(*x, marks=SLOW) for x in OTHERS[1:]), *GPU],
)
def test_all_of_them_at_once(agree, on, dtype):
    arrays, of, expected = all_at_once()
    agree(on, dtype, arrays, of, expected)


@pytest.mark.parametrize(
    ("on", "dtype"), [*ONE_EACH, OTHERS[0], *(pytest.param(*x, marks=SLOW) for x in OTHERS[1:3]), *GPU]
)
def test_in_any_order_the_same_bits(agree, on, dtype):
    arrays, of, expected = all_at_once()
    found = []
    for seed in (1, 2):
        with emulator.settings(seed=seed):
            found.append(agree(on, dtype, arrays, of, expected, deterministic=True))
    same_bits(*found)


def by_key(s, b, h, i, j, of_queries, of_keys):
    return s + of_queries[i] * of_keys[j]


def shown_by_key(b, h, i, j, of_queries, of_keys):
    return of_queries[i] <= of_keys[j]


@pytest.mark.parametrize(("on", "dtype"), [ONE_EACH[2], pytest.param(*OTHERS[0], marks=SLOW)])
def test_what_does_not_exist_is_not_looked_up(on, dtype):
    """Tiles have more queries and keys than there are."""
    arrays = drawn((1, 1, 13, 16), (1, 1, 17, 16))
    of = Functions(by_key, (numbers(13), numbers(17)), shown_by_key, (np.arange(13), np.arange(17)))
    q, k, v = (x.astype(dtype) for x in arrays[:3])
    with emulator.settings(mode="checked"):
        out = flash_attention(q, k, v, **of.options, backend=on)
    close([out], written_out(arrays, of)[:1], ERROR[dtype])


@SLOW
@pytest.mark.parametrize(("on", "dtype"), [ONE_EACH[2], *OTHERS[:2]])
@pytest.mark.parametrize("deterministic", [False, True])
def test_no_races_and_nothing_out_of_bounds(agree, on, dtype, deterministic):
    arrays, of, expected = all_at_once()
    with emulator.settings(mode="checked", seed=5):
        agree(on, dtype, arrays, of, expected, deterministic=deterministic)


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (32, 20000), (64, 256), (320, 800), (16, 8), (2, 9)])
def test_buckets_are_those_of_t5(buckets, furthest):
    """`_relative_position_bucket` of the original, in its float32."""
    distance = np.arange(-2000, 2001)
    half, far = buckets // 2, abs(distance)
    single = half // 2
    if furthest > single > 0:
        log = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(single))
        log = log / np.float32(math.log(furthest / single)) * np.float32(half - single)
        large = np.minimum(single + log.astype(int), half - 1)
    else:
        large = np.full_like(far, half - 1)
    expected = np.where(distance > 0, half, 0) + np.where(far < single, far, large)
    i, j = np.maximum(-distance, 0), np.maximum(distance, 0)
    found = mods.t5(furthest)(0, 0, 0, i, j, np.arange(float(buckets))[None])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("rows", "columns", "radius"), [(5, 7, 1), (7, 5, 2), (4, 9, 3), (1, 6, 1)])
def test_neighbours_are_the_nearest_of_each_axis(rows, columns, radius):
    """A window as wide as fits in the image, whose middle is as near to the pixel as can be."""
    pixels = np.arange(rows * columns)
    shown = mods.neighbourhood(0, 0, pixels[:, None], pixels, rows, columns, radius)

    def window(at, size):
        width = min(2 * radius + 1, size)
        return min(range(size - width + 1), key=lambda first: abs(first + width // 2 - at)), width

    for pixel in pixels:
        expected = np.zeros((rows, columns), bool)
        (y, height), (x, width) = window(pixel // columns, rows), window(pixel % columns, columns)
        expected[y : y + height, x : x + width] = True
        np.testing.assert_array_equal(shown[pixel].reshape(rows, columns), expected)


def test_masks_of_masks_take_their_arguments_in_turn():
    made = mods.and_masks(mods.window, mods.or_masks(mods.not_mask(mods.blocks), mods.causal, mods.dilated))
    i, j = np.ogrid[:30, :40]
    expected = (i - 9 <= j) & (j <= i + 8) & ((i // 5 != j // 5) | (j <= i) | (i % 3 == j % 3))
    np.testing.assert_array_equal(made(0, 0, i, j, 9, 8, 5, 3), expected)
    with pytest.raises(TypeError, match=r"^3 arguments for masks that take 2 \+ 2$"):
        made(0, 0, i, j, 9, 8, 5)
    x = numbers(1, 4, 8)
    with pytest.raises(
        TypeError, match=r"^mask_mod and_masks\(window, or_masks\(not_mask\(blocks\), .*: 3 arguments for"
    ):
        flash_attention(x, x, x, mask_mod=made, mask_args=(9, 8, 5))
    with pytest.raises(TypeError, match=r"^and_masks of nothing"):
        mods.and_masks()
    with pytest.raises(TypeError, match="takes any number of arguments: expected a mask that names them"):
        mods.or_masks(mods.causal, lambda b, h, i, j, *rest: i < j)


def test_a_default_is_no_argument_of_a_mask():
    near = mods.and_masks(lambda b, h, i, j, far=2: abs(i - j) <= far, mods.blocks)
    assert mods.picture(near, 4, 4) == "# # # .\n# # # #\n# # # #\n. # # #"


def test_masks_of_masks_are_traced_once(monkeypatch):
    """Made anew for each call they are still known."""
    traced, of = [], tracing._trace
    monkeypatch.setattr(tracing, "_trace", lambda *given: traced.append(given) or of(*given))
    tracing._known.cache_clear()
    x = numbers(1, 4, 8)
    for _ in range(2):
        mask = mods.and_masks(mods.not_mask(mods.causal), mods.or_masks(mods.blocks, mods.window))
        options = {"mask_mod": mask, "mask_args": (3, 1, 1), "score_mod": mods.t5(20), "score_args": (numbers(1, 8),)}
        attention_reference(x, x, x, **options)
    assert len(traced) == 2
    attention_reference(x, x, x, **options | {"score_mod": mods.t5(30)})
    assert len(traced) == 3


# --- captured arrays ---


def mixed(s, b, h, i, j, weights, bias, few, count, factor, alone, flags):
    """An array used in two places, a bias of every score, half types, ints, bools, numbers, one without axes.

    What it does not choose is NaN or infinite, and adds nothing.
    """
    s = s * weights[h, 0] + weights[h, (i + j) % 3] * np.where(flags[j], 1.0, 0.5)
    s = s + factor * bias[b, h, i, j] + few[count[i] % 4]
    return s + np.where(j >= i, alone, np.log(alone * (i - j)))


@functools.cache
def captures():
    sq, sk = 17, 19
    arrays = drawn((2, 2, sq, 16), (2, 2, sk, 16))
    bias = np.asfortranarray(numbers(2, 2, sq, sk).astype(np.float32))
    few = np.broadcast_to(np.float16([[0.5], [1.5]]), (2, 4))[1]
    rng = np.random.default_rng(6)
    args = (numbers(2, 3), bias, few, rng.integers(-3, 9, sq), 0.25, np.array(1.5, np.float32), rng.random(sk) < 0.5)
    of = Functions(mixed, args)
    with np.errstate(all="ignore"):
        return arrays, of, written_out(arrays, of)


@pytest.mark.parametrize(("on", "dtype"), [*EXACT, *ONE_EACH[1:], *(pytest.param(*x, marks=SLOW) for x in OTHERS)])
def test_gradients_of_whatever_is_captured(agree, on, dtype):
    arrays, of, expected = captures()
    with np.errstate(all="ignore"):
        agree(on, dtype, arrays, of, expected)


# --- shapes, and the other options ---


def scaled(s, b, h, i, j, weights):
    return s + weights[b % 5, (i + j) % 2]


def part(b, h, i, j, starts):
    return j >= starts[b]


@pytest.mark.parametrize(("on", "dtype"), [*EXACT, *ONE_EACH[1:]])
def test_b_counts_through_all_leading_dimensions(agree, on, dtype):
    """Of five that strides do not let be taken together, those of the outermost are launched one by one."""
    lead, lead_k = (2, 3, 2, 2, 2), (1, 3, 1, 2, 1)
    batch = math.prod(lead)
    arrays = drawn((batch, 2, 17, 16), (math.prod(lead_k), 1, 19, 16))
    of = Functions(scaled, (numbers(5, 2),), part, (np.arange(batch) % 23,))  # some see nothing
    leads = lead, lead_k, lead_k, lead, lead
    q, k, v, dout, dlse = (x.reshape(*shape, *x.shape[1:]) for x, shape in zip(arrays, leads, strict=True))
    flat = [np.broadcast_to(x, (*lead, *x.shape[5:])).reshape(batch, *x.shape[5:]) for x in (q, k, v, dout, dlse)]
    expected = [x if x.shape[0] != batch else x.reshape(*lead, *x.shape[1:]) for x in written_out(flat, of)]
    for n in (3, 4):
        expected[n] = expected[n].sum(axis=(0, 2, 4), keepdims=True)
    agree(on, dtype, (q, k, v, dout, dlse), of, expected)


@pytest.mark.parametrize(("on", "dtype"), [*EXACT, *ONE_EACH[1:]])
def test_with_the_other_masks(agree, on, dtype):
    """Positions in functions count from 0, whatever those of `causal` are."""
    sq, sk = 100, 130
    lengths, given = np.array([130, 40]), np.random.default_rng(7).random((2, 1, sq, sk)) < 0.9
    shown = mods.or_masks(mods.dilated, mods.prefix)
    i, j = np.ogrid[:sq, :sk]
    offset = (lengths - sq)[:, None, None, None]  # the last query stands at the last key
    seen = (j <= i + offset) & (j >= i + offset - 60) & (j < lengths[:, None, None, None]) & given
    of = Functions(scaled, (numbers(5, 2),), shown, (3, np.array([70, 10])), seen)
    options = {"causal": True, "window": (60, None), "k_lengths": lengths, "mask": given}
    agree(on, dtype, drawn((2, 2, sq, 16), (2, 2, sk, 16)), of, **options)


def sparse(b, h, i, j, of_keys):
    return (j % 64 < 20) | (of_keys[b, j] > h)


@pytest.mark.parametrize("batch", [pytest.param(1, marks=SLOW), 2])
def test_few_queries_and_many_keys(agree, batch):
    """Blocks of keys that a list has are shared by splits, and rows of a group's heads are one tile."""
    arrays = drawn((batch, 8, 3, 32), (batch, 1, 900, 32))
    score = mods.relative, (numbers(8, 2001),)
    of = Functions(*score, sparse, (np.random.default_rng(8).integers(0, 12, (batch, 900)),))
    q, k, v = (x.astype(np.float16) for x in arrays[:3])
    plan = plan_forward(AttentionProblem.from_arrays(q, k, v, **of.options), named("sm_80"))
    assert plan.num_splits > 1
    assert plan.packed_heads > 1
    with emulator.settings(seed=batch):
        out, lse = flash_attention(q, k, v, **of.options, return_lse=True, backend="emulator:sm_80")
    close((out, lse), written_out(arrays, of)[:2], ERROR["float16"])


@pytest.mark.parametrize(("on", "dtype"), [*EXACT, *ONE_EACH[1:]])
@pytest.mark.parametrize(("batch", "sq", "sk"), [(0, 5, 9), (2, 0, 9), (2, 5, 0)])
def test_nothing_to_do(on, dtype, monkeypatch, batch, sq, sk):
    if on.startswith("cpu"):
        monkeypatch.setenv("CUPY_FLASH_CPU_TIER", on.partition("-")[2] or "native")
    arrays = drawn((batch, 2, sq, 16), (batch, 1, sk, 16))
    of = Functions(scaled, (numbers(5, 2),), part, (np.arange(batch),))
    out, lse, *gradients = computed(on.partition("-")[0], dtype, arrays, of)
    assert (out == 0).all()
    assert (lse == -np.inf).all()
    assert all((x == 0).all() for x in gradients)
    assert [x.shape for x in (out, *gradients)] == [x.shape for x in (*arrays[3:4], *arrays[:3], *of.score_args)]


def test_one_head_without_an_axis(agree):
    q, k, v, dout, dlse = (x[0, 0] for x in drawn((1, 1, 6, 8), (1, 1, 7, 8)))
    of = Functions(mods.relative, (numbers(1, 5),), mods.causal)
    q, k, v = (x.astype(np.float32) for x in (q, k, v))
    out = attention_reference(q, k, v, **of.options)
    close([out], [written_out([x[None, None] for x in (q, k, v, dout, dlse)], of)[0][0, 0]])
    close([flash_attention(q, k, v, **of.options)], [out])


# --- what is refused ---

X = numbers(2, 2, 6, 8)


def called(on, **options):
    if on == "reference":
        return attention_reference(X, X, X, **options)
    return flash_attention(X, X, X, **options, backend=on)


EVERYWHERE = pytest.mark.parametrize("on", ["reference", "cpu", "emulator"])


def branches(b, h, i, j):
    if i < j:
        return True
    return j > 3


def halves(s, b, h, i, j, table):
    return s + table[i / 2]


def whole(s, b, h, i, j, table):
    return s + table[h]


def takes_all(s, b, h, i, j, *args):
    return s + args[1][h]


REFUSED = {
    "too few": ({"score_mod": lambda s, b, h, i: s}, TypeError, r"takes \(s, b, h, i\): expected \(s, b, h, i, j\)"),
    "too many": (
        {"mask_mod": mods.causal, "mask_args": (3,)},
        TypeError,
        "^mask_mod causal.* takes .* as many more as mask_args has, 1",
    ),
    "a branch": (
        {"mask_mod": branches},
        TypeError,
        r"^mask_mod branches \(.*test_mods.py, line \d+\): .* use np.where",
    ),
    "a chain": ({"mask_mod": lambda b, h, i, j: 0 < i < j}, TypeError, "chained comparisons"),
    "a float index": (
        {"score_mod": halves, "score_args": (numbers(6),)},
        TypeError,
        r"^score_mod halves \(.*test_mods.py, line \d+\): an index of table is a float",
    ),
    "text": (
        {"score_mod": whole, "score_args": (np.array(["a", "b"]),)},
        TypeError,
        "^score_mod whole .*its argument table has dtype <U1",
    ),
    "complex": ({"score_mod": whole, "score_args": (np.ones(2, complex),)}, TypeError, "table has dtype complex128"),
    "an axis too many": (
        {"score_mod": mods.relative, "score_args": (numbers(9),)},
        (IndexError, AttributeError, TypeError),
        "mods.py, line",
    ),
    "an axis too few": (
        {"score_mod": whole, "score_args": (numbers(2, 2),)},
        TypeError,
        r"line \d+\): table is an array: index it",
    ),
    "too short": (
        {"score_mod": mods.alibi, "score_args": (numbers(1),)},
        IndexError,
        r"^score_mod alibi .*: the index h of slopes\[h\] goes from 0 to 1; axis 0 of slopes has 1 elements",
    ),
    "too short, one of many": (
        {"score_mod": takes_all, "score_args": (1.0, numbers(1))},
        IndexError,
        r"args\[1\] has 1 elements",
    ),
    "no function": ({"score_args": (numbers(2),)}, TypeError, "^score_args are given without score_mod"),
    "no mask": ({"mask_args": (3,)}, TypeError, "^mask_args are given without mask_mod"),
    "no tuple": (
        {"score_mod": mods.alibi, "score_args": numbers(2)},
        TypeError,
        "^score_args is a ndarray: expected a tuple",
    ),
    "no tuple of a mask": (
        {"mask_mod": mods.blocks, "mask_args": 3},
        TypeError,
        "^mask_args is a int: expected a tuple",
    ),
    "a list": (
        {"score_mod": mods.alibi, "score_args": ([1.0, 2.0],)},
        TypeError,
        r"^score_args\[0\] is a list: expected a NumPy",
    ),
    "an int of too many bits": (
        {"mask_mod": mods.blocks, "mask_args": (2**63,)},
        ValueError,
        r"^mask_args\[0\] is 9223372036854775808, which is too large: ints have 64 bits",
    ),
    "a number": ({"mask_mod": 3}, TypeError, r"^mask_mod is 3: expected a function of \(b, h, i, j\)"),
    "a mask of numbers": ({"mask_mod": lambda b, h, i, j: i - j}, TypeError, "it returned .* int: expected .*bool"),
    "a score of bools": (
        {"score_mod": lambda s, b, h, i, j: s > 0},
        TypeError,
        "it returned .* bool: expected .*float",
    ),
    "nothing": ({"score_mod": lambda s, b, h, i, j: None}, TypeError, "it returned None: expected .*made of"),
}


@EVERYWHERE
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(on, name):
    options, error, match = REFUSED[name]
    with pytest.raises(error, match=match):
        called(on, **options)


@pytest.mark.parametrize("name", ["score_args", "mask_args"])
def test_gradients_that_there_are_not(name):
    with pytest.raises(ValueError, match=f"^wrt has '{name}'"):
        flash_attention_vjp(X, X, X, mask_mod=mods.blocks, mask_args=(3,), wrt=("q", name))


def test_arrays_of_another_library_meet():
    class Elsewhere:
        shape, dtype, strides, __module__ = (2,), np.dtype(float), (8,), "cupy"

    for backend in ("cpu", "emulator", None):
        with pytest.raises(TypeError, match=r"score_args\[0\]"):
            flash_attention(X, X, X, score_mod=mods.alibi, score_args=(Elsewhere(),), backend=backend)


def looked_up(s, b, h, i, j, table, numbers):
    return s + np.where(i == 3, table[numbers[j]], 0.0)


@pytest.mark.parametrize("on", ["reference", "cpu", "cpu-numpy"])
@pytest.mark.parametrize("found", [-5, 4])
def test_an_index_that_leaves_its_array_is_named_where_it_is_seen(on, found, monkeypatch):
    """Where keys are hidden, or a function does not choose what it found, an index may be anything."""
    if on.startswith("cpu"):
        monkeypatch.setenv("CUPY_FLASH_CPU_TIER", on.partition("-")[2] or "native")
    on = on.partition("-")[0]
    table, where = numbers(4), np.array([0, 3, -4, 1, 2, 0])
    inside = called(on, score_mod=looked_up, score_args=(table, where))
    where[5] = found
    with pytest.raises(IndexError, match=r"^score_mod looked_up .*: table\[numbers\[j\]\] leaves the array"):
        called(on, score_mod=looked_up, score_args=(table, where))
    hidden = called(on, score_mod=looked_up, score_args=(table, where), causal=True)
    close([hidden], [called(on, score_mod=looked_up, score_args=(table, where % 4), causal=True)], 1e-13)
    assert np.isfinite(inside).all()
    with pytest.raises(IndexError, match=r"^mask_mod .*<lambda> .*: x\[y\[j\]\] leaves the array"):
        called(on, mask_mod=lambda b, h, i, j, x, y: x[y[j]] > 0, mask_args=(np.arange(4), where))
