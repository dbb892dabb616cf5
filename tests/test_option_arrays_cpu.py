"""Options that are arrays in the CPU backend's compiled tier: tiles, threads, and memory that it must not read."""

import sys

import numpy as np
import pytest
from processes import python

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
)
from cupy_flash._src.backends import native
from cupy_flash._src.problem import DTYPES

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """With numbers of each test's own, and memory that held nan."""
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "native")
    monkeypatch.setattr(sys.modules[__name__], "RNG", np.random.default_rng(0))
    monkeypatch.setattr(native, "_borrow", lambda size: np.full(size, 0xFF, np.uint8))


def draw(batch, heads_q, heads_k, sq, sk, d=24, dv=16, dtype="float32"):
    shapes = (heads_q, sq, d), (heads_k, sk, d), (heads_k, sk, dv), (heads_q, sq, dv)
    return [RNG.standard_normal((*batch, *shape)).astype(DTYPES[dtype]) for shape in shapes]


def attend(q, k, v, dout, **options):
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    return out, lse, *flash_attention_backward(dout, q, k, v, out, lse, **options)


def agree(results, q, k, v, dout, **options):
    """With the reference in float64, each to a part of its largest number."""
    eps = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-5, "float64": 1e-13}[q.dtype.name]
    exact = attention_reference(q, k, v, return_lse=True, compute_dtype=np.float64, **options)
    exact += attention_reference_backward(dout, q, k, v, compute_dtype=np.float64, **options)
    for x, y in zip(results, exact, strict=True):
        size = np.abs(y[np.isfinite(y)]).max(initial=1)
        np.testing.assert_allclose(x.astype(np.float64), y, rtol=8 * eps, atol=8 * eps * size)


SIZES = {  # heads of q and of k, queries, keys
    "panels": (4, 2, 200, 301),
    "packed heads": (6, 2, 7, 290),
    "rows": (2, 1, 2, 290),
    "chunks of keys": (1, 1, 1, 2000),
    "blocks of keys": (2, 1, 210, 1000),
}


def all_options(batch, heads, sq, sk):
    return {
        "alibi_slopes": RNG.random((*batch[-1:], heads), dtype=np.float32) / 8,
        "mask": RNG.random((*batch, heads, sq, sk)) < 0.8,
        "k_lengths": RNG.integers(sk // 2, sk + 1, batch),
        "q_lengths": RNG.integers(0, sq + 1, batch[-1:], np.int32),
        "k_starts": RNG.integers(0, sk // 3, batch, np.int32),
        "window": (sk // 2, 30),
        "softcap": 4.0,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_all_at_once_and_each_alone(sizes, dtype):
    heads, _, sq, sk = sizes
    inputs, options = draw((2, 2), *sizes, dtype=dtype), all_options((2, 2), heads, sq, sk)
    agree(attend(*inputs, **options), *inputs, **options)
    for name in ("alibi_slopes", "mask", "k_lengths", "q_lengths", "k_starts"):
        agree(attend(*inputs, **{name: options[name]}), *inputs, **{name: options[name]})


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_bits_do_not_depend_on_the_number_of_threads(sizes, dtype, monkeypatch):
    heads, _, sq, sk = sizes
    inputs, options = draw((2, 2), *sizes, dtype=dtype), all_options((2, 2), heads, sq, sk)
    monkeypatch.setattr(native, "INLINE_WORK", 0)
    results = []
    for number in ("1", "4"):
        monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", number)
        results.append([x.tobytes() for x in attend(*inputs, **options)])
    assert results[0] == results[1]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_bits_do_not_depend_on_other_lengths(sizes, causal):
    """Nor on another batch element's offset."""
    inputs, lengths = draw((2,), *sizes), np.array([3, sizes[3]])
    both = attend(*inputs, k_lengths=lengths, causal=causal)
    for n in range(2):
        alone = attend(*[x[n:][:1] for x in inputs], k_lengths=lengths[n:][:1], causal=causal)
        for x, y in zip(both, alone, strict=True):
            np.testing.assert_allclose(x[n:][:1], y, rtol=1e-4, atol=1e-5)
    other = attend(*inputs, k_lengths=np.array([sizes[3] // 2, sizes[3]]), causal=causal)
    assert all(np.array_equal(x[1], y[1]) for x, y in zip(both, other, strict=True))


@pytest.mark.parametrize("first", [0, 1, 47, 60, 119, 120, 121, 150, 480, 481, 900])
def test_keys_that_begin_behind_the_last_are_none(first):
    """In whichever blocks: rows of dq then have no part from any."""
    inputs, last = draw((2,), 2, 1, 210, 1000), np.array([max(first - 1, 0), first])
    out, lse, *gradients = attend(*inputs, k_starts=np.array([first, first]), k_lengths=last)
    assert not out.any() and np.isneginf(lse).all()
    assert not any(x.any() for x in gradients)


def test_chunks_are_for_any_position():
    """A batch element may see more keys than the others, or none."""
    inputs, options = (
        draw((3,), *SIZES["chunks of keys"]),
        {"window": (50, None), "q_offset": np.array([0, 1999, 2200])},
    )
    agree(attend(*inputs, **options), *inputs, **options)


BLOCKS = {"full": 1.1, "empty": -0.1, "half": 0.5, "nearly full": 0.99, "nearly empty": 0.01}


@pytest.mark.parametrize("memory", ["as it is", "columns apart", "rows backwards", "columns backwards", "transposed"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_masks_with_full_and_empty_tiles(sizes, memory):
    heads, _, sq, sk = sizes
    inputs = draw((), *sizes)
    share = RNG.choice([*BLOCKS.values()], (heads, -(-sq // 48), -(-sk // 120))).repeat(48, 1).repeat(120, 2)
    mask = RNG.random((heads, sq, sk)) < share[:, :sq, :sk]
    if memory == "columns apart":
        mask = np.repeat(mask, 3, -1)[..., ::3]
    elif memory == "rows backwards":
        mask = mask[:, ::-1].copy()[:, ::-1]
    elif memory == "columns backwards":
        mask = mask[..., ::-1].copy()[..., ::-1]
    elif memory == "transposed":
        mask = mask.swapaxes(-1, -2).copy().swapaxes(-1, -2)
    agree(attend(*inputs, mask=mask), *inputs, mask=mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 290), (7, 1), (7, 290), (6, 1, 1), (6, 1, 290), (6, 7, 1)], ids=str)
def test_masks_that_broadcast(shape):
    """Heads that share keys lie side by side only where they have one mask."""
    inputs, mask = draw((), *SIZES["packed heads"]), RNG.random(shape) < 0.6
    agree(attend(*inputs, mask=mask), *inputs, mask=mask)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_one_byte_may_differ(sizes):
    """Of a tile that is full but for it, or empty."""
    _, _, sq, sk = sizes
    inputs = draw((), *sizes)
    for byte in ((0, 0), (-1, -1), (sq // 2, -1), (0, 119), (-1, 120), (sq // 2, 8)):
        for value in (False, True):
            mask = np.full((sq, sk), not value)
            mask[byte] = value
            agree(attend(*inputs, mask=mask), *inputs, mask=mask)


def test_any_byte_but_0_is_true():
    inputs, mask = draw((), *SIZES["panels"]), RNG.random((200, 301)) < 0.8
    expected = attend(*inputs, mask=mask)
    numbers = np.where(mask, RNG.choice(np.array([1, 2, 128, 254], np.uint8), mask.shape), 0).astype(np.uint8)
    for x, y in zip(attend(*inputs, mask=numbers.view(np.bool_)), expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_same_problem_with_arrays_that_lie_otherwise():
    """Its description is another."""
    inputs, wide = draw((), 2, 1, 90, 130), RNG.random((2, 90, 260)) < 0.7
    for mask in (wide[..., ::2], wide[..., 130:], wide[:1, :, :130]):
        agree(attend(*inputs, mask=mask), *inputs, mask=mask)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_hidden_numbers_do_not_matter(sizes, dtype, value):
    """Keys that the mask hides from some queries reach the others, and no more."""
    heads, _, sq, sk = sizes
    q, k, v, dout = draw((), *sizes, dtype=dtype)
    mask = RNG.random((heads, sq, sk)) < 0.5
    bad = [3, 130, sk - 1]
    touched = mask[..., bad].any(axis=-1) & (np.arange(sq) % 2 == 1)
    mask[..., bad] &= touched[..., None]
    expected = attend(q, k, v, dout, mask=mask)
    k[..., bad, :] = v[..., bad, :] = value
    *of_queries, _, _ = [x.astype(np.float64) for x in attend(q, k, v, dout, mask=mask)]
    for x, y in zip(of_queries, expected, strict=False):
        np.testing.assert_allclose(x[~touched], y[~touched].astype(np.float64), rtol=0.02, atol=0.02)
    assert not any(np.isfinite(x[touched]).any() for x in of_queries[:2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_padding_may_be_nan(sizes, dtype):
    _, _, sq, sk = sizes
    q, k, v, dout = draw((3,), *sizes, dtype=dtype)
    lengths = {"k_lengths": np.array([sk, sk - 1, 5]), "q_lengths": np.array([0, sq, sq // 2]), "k_starts": 3}
    expected = attend(q, k, v, dout, **lengths)
    for n, (keys, queries) in enumerate(zip(lengths["k_lengths"], lengths["q_lengths"], strict=True)):
        for x in (k, v):
            x[n, :, :3] = x[n, :, keys:] = np.nan
        q[n, :, queries:] = dout[n, :, queries:] = np.nan
    for x, y in zip(attend(q, k, v, dout, **lengths), expected, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_hidden_numbers_of_queries_do_not_matter(sizes, dtype, value):
    """To the gradients of keys that the mask hides from them."""
    heads, heads_k, sq, sk = sizes
    q, k, v, dout = draw((), *sizes, dtype=dtype)
    mask = RNG.random((heads, sq, sk)) < 0.5
    mask[:, -1, ::3] = False
    expected = attend(q, k, v, dout, mask=mask)
    q[:, -1] = dout[:, -1] = value
    touched = mask[:, -1].reshape(heads_k, -1, sk).any(axis=1)
    for x, y in zip(attend(q, k, v, dout, mask=mask)[3:], expected[3:], strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)
        np.testing.assert_allclose(x[~touched], y[~touched], rtol=0.02, atol=0.02)
        assert not np.isfinite(x[touched]).any()


def test_lengths_may_end_with_a_block():
    """Of keys, which one key more begins."""
    inputs = draw((), 2, 1, 70, 1000, 8, 8)
    for n in range(200, 210):
        for lengths in ({"k_lengths": n}, {"k_starts": n}, {"k_lengths": n, "causal": True}):
            agree(attend(*inputs, **lengths), *inputs, **lengths)


GUARDED = """
import ctypes, mmap
import numpy as np
from cupy_flash import flash_attention, flash_attention_backward

def guarded(size, begin, end):
    memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    for first, last in ((0, begin), (end, size)):
        address, bytes, no_access = memory.ctypes.data + first, last - first, 0
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(bytes), no_access) == 0
    return memory

def attend(q, k, v, **options):
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    return out, *flash_attention_backward(out, q, k, v, out, lse, **options)

rng = np.random.default_rng(0)
page = mmap.PAGESIZE
"""
LENGTHS = """
options = {"k_starts": 1900, "k_lengths": np.array(2000), "q_lengths": np.array(400)}
for sq in (2, 9, 900):
    k, v = (guarded(4096 * 256, 1344 * 256, 2560 * 256).view(np.float32).reshape(4096, 64) for _ in "kv")
    for x in (k, v):
        x[1344:2560] = rng.standard_normal((1216, 64))
    q = rng.standard_normal((sq, 64)).astype(np.float32)
    out, dq, dk, dv = attend(q, k, v, **{**options, "q_lengths": np.array(min(sq, 400))})
    assert out[:400].any(axis=1).all() and not out[400:].any() and not dq[400:].any()
    for x in (dk, dv):
        assert x[1900:2000].any(axis=1).all() and not x[:1900].any() and not x[2000:].any()
print("clean")
"""
MASKS = """
for sq, sk in ((2, 100), (9, 130), (70, 100), (70, 7)):
    mask = guarded(8 * page, 0, 7 * page)[7 * page - sq * sk : 7 * page].view(np.bool_).reshape(sq, sk)
    mask[...] = rng.random((sq, sk)) < 0.5
    for dtype in (np.float32, np.float64):
        inputs = [rng.standard_normal((n, 64)).astype(dtype) for n in (sq, sk, sk)]
        for x, y in zip(attend(*inputs, mask=mask), attend(*inputs, mask=mask.copy())):
            assert np.array_equal(x, y)
print("clean")
"""


@pytest.mark.parametrize("script", [LENGTHS, MASKS], ids=["hidden by lengths", "behind a mask"])
def test_what_is_not_there_is_not_read(script):
    """Blocks of keys away from those that exist, or a byte behind the last: a process that does is ended."""
    out, _ = python(GUARDED + script, CUPY_FLASH_CPU_TIER="native")
    assert out.strip() == "clean"
