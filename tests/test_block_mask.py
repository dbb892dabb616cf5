"""Tables of blocks that are made once: what they hold, that they are used, and what they do not fit."""

import numpy as np
import pytest

from cupy_flash import attention_reference, block_mask, flash_attention, flash_attention_vjp, mods
from cupy_flash._src.components.block_mask import BlockMask

rng = np.random.default_rng(0)
DOCUMENTS = tuple(np.sort(rng.integers(0, 4, (2, n)), axis=1) for n in (150, 200))
BACKENDS = ["cpu", "emulator:sm_75", "emulator:sm_80"]


def of_heads(b, h, i, j):
    return (i + 20 * h >= j) & (j >= 10 * b)


def arrays(dtype=np.float32, heads=4, heads_k=2, sq=150, sk=200, batch=(2,)):
    made = np.random.default_rng(1)
    q, dout = (made.standard_normal((*batch, heads, sq, 32)).astype(dtype) for _ in range(2))
    k, v = (made.standard_normal((*batch, heads_k, sk, 32)).astype(dtype) for _ in range(2))
    return q, k, v, dout


@pytest.mark.parametrize(("mask_mod", "mask_args"), [(mods.documents, DOCUMENTS), (of_heads, ()), (mods.causal, ())])
def test_a_table_says_of_blocks_what_the_mask_shows_of_them(mask_mod, mask_args):
    mask = block_mask(mask_mod, (2, 4, 150, 200), mask_args)
    places = np.ogrid[:2, :4, :150, :200]
    seen = np.broadcast_to(mask_mod(*places, *mask_args), (2, 4, 150, 200))
    table = np.broadcast_to(mask.table, (2, 4, 3, 4))
    for m, n in np.ndindex(3, 4):
        block = seen[..., 64 * m : 64 * (m + 1), 64 * n : 64 * (n + 1)]
        some, every = block.any((-1, -2)), block.all((-1, -2))
        assert not (some & (table[..., m, n] == 0)).any() and not (~every & (table[..., m, n] == 2)).any()
        assert mask_mod is mods.documents or (table[..., m, n] == some.astype(int) + every).all()
    depends = {mods.documents: (2, 1), of_heads: (2, 4), mods.causal: (1, 1)}[mask_mod]
    assert mask.table.shape == (*depends, 3, 4) and mask.table.dtype == np.uint8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("mask_mod", "mask_args"), [(mods.documents, DOCUMENTS), (of_heads, ())])
def test_it_changes_no_bit(mask_mod, mask_args, backend):
    dtype = np.float16 if backend == "emulator:sm_80" else np.float32
    q, k, v, dout = arrays(dtype)
    found = []
    for options in (
        {"mask_mod": mask_mod, "mask_args": mask_args}, {"mask_mod": block_mask(mask_mod, (2, 4, 150, 200), mask_args)},
    ):  # fmt: skip
        out, vjp = flash_attention_vjp(q, k, v, backend=backend, deterministic=True, **options)
        found.append((out, *vjp(dout)))
    for x, y in zip(*found, strict=True):
        np.testing.assert_array_equal(x, y)
    expected = attention_reference(q, k, v, mask_mod=mask_mod, mask_args=mask_args, compute_dtype=np.float64)
    np.testing.assert_allclose(found[0][0], expected, atol=1e-2 if dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sq", [150, 3])
def test_it_is_what_kernels_go_by(backend, sq):
    """A table that hides what the function shows, two heads, hides it. (They may stand in one block.)"""
    q, k, v, dout = arrays(np.float16 if backend == "emulator:sm_80" else np.float32, sq=sq)
    table = np.full((1, 4, -(-sq // 64), 4), 2, np.uint8)
    table[:, :2] = 0
    mask = BlockMask(lambda b, h, i, j: h >= 0, (), (2, 4, sq, 200), table)
    shown = np.ones((4, sq, 200), bool)
    shown[:2] = False
    out, vjp = flash_attention_vjp(q, k, v, mask_mod=mask, backend=backend)
    expected, of_expected = flash_attention_vjp(q, k, v, mask=shown, backend="cpu")
    rtol = 1e-2 if q.dtype == np.float16 else 1e-5
    for x, y in zip((out, *vjp(dout)), (expected, *of_expected(dout)), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())


def test_the_numpy_tier_goes_by_it_too(monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "numpy")
    q, k, v, _ = arrays()
    mask = BlockMask(mods.not_mask(mods.causal), (), (150, 200), np.zeros((1, 1, 3, 4), np.uint8))
    assert not flash_attention(q, k, v, mask_mod=mask).any()


def test_of_a_function_of_positions_alone_two_sizes_are_enough():
    q, k, v, _ = arrays()
    mask = block_mask(mods.window, (150, 200), (20, 3))
    expected = attention_reference(q, k, v, mask_mod=mods.window, mask_args=(20, 3))
    np.testing.assert_allclose(flash_attention(q, k, v, mask_mod=mask), expected, atol=1e-5)
    np.testing.assert_allclose(attention_reference(q, k, v, mask_mod=mask), expected, atol=1e-6)


def test_it_tells_what_it_is_of():
    assert (
        repr(block_mask(mods.causal, (128, 128))) == "BlockMask(causal, (128, 128): 25% hidden, 50% in part, 25% seen)"
    )
    assert repr(block_mask(mods.causal, (0, 128))) == "BlockMask(causal, (0, 128))"


@pytest.mark.parametrize(("shape", "message"), [
    ((150, 200), r"BlockMask of shape \(150, 200\): expected scores \(2, 4, 150, 200\)"),
    ((2, 3, 150, 200), r"BlockMask of shape \(2, 3, 150, 200\): expected scores"),
    ((1, 4, 150, 200), r"BlockMask of shape \(1, 4, 150, 200\): expected scores"),
    ((2, 4, 151, 200), r"BlockMask of shape \(2, 4, 151, 200\): expected scores"),
])  # fmt: skip
def test_one_of_other_scores_is_refused(shape, message):
    q, k, v, _ = arrays()
    with pytest.raises(ValueError, match=message):
        flash_attention(q, k, v, mask_mod=block_mask(of_heads, shape))


def test_what_is_no_mask_is_refused():
    with pytest.raises(TypeError, match=r"^mask_mod is None: expected a function"):
        block_mask(None, (8, 8))
    with pytest.raises(TypeError, match=r"^mask_mod is BlockMask\(.*: expected a function"):
        block_mask(block_mask(mods.causal, (8, 8)), (8, 8))
    with pytest.raises(TypeError, match=r"^shape is 8: expected ints"):
        block_mask(mods.causal, 8)
    for shape in ((8,), (2, -1)):
        with pytest.raises(ValueError, match=r"^shape is .*: expected sizes"):
            block_mask(mods.causal, shape)
    for captured in ((1,), 3, None, np.ones(2)):
        with pytest.raises(TypeError, match=r"^mask_args are given with a BlockMask, which has its own"):
            flash_attention(*arrays()[:3], mask_mod=block_mask(mods.causal, (150, 200)), mask_args=captured)
    with pytest.raises(IndexError, match=r"of_queries\[b, i\] goes from 0 to 150"):
        block_mask(mods.documents, (2, 4, 151, 200), DOCUMENTS)


def test_an_array_of_many_axes_has_no_summary():
    q, k, v, _ = arrays()
    numbers = np.sort(np.random.default_rng(2).integers(0, 3, (1, 1, 1, 1, 1, 1, 2, 200)))
    options = {"mask_mod": lambda b, h, i, j, x: x[0, 0, 0, 0, 0, 0, b, j] > i // 64, "mask_args": (numbers,)}
    found = flash_attention(q, k, v, backend="emulator", **options)
    np.testing.assert_allclose(found, attention_reference(q, k, v, **options), atol=1e-5)
