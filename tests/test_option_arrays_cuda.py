"""Options that are arrays, as far as only the kernels have it: what they clamp, how they read masks and padding."""

import dataclasses

import numpy as np
import pytest
from cases import Case, results, same_bits
from conftest import On
from oracle import attention

from cupy_flash import emulator, flash_attention, flash_attention_backward
from cupy_flash._src.analysis.traffic import array_bytes
from cupy_flash._src.backends.emulator import EmulatorBackend
from cupy_flash._src.device import named
from cupy_flash._src.operands import Cotangents, Operands
from cupy_flash._src.plan import plan_backward, plan_forward
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.tuning import tiles

ON = On("emulator")
TOLERANCE = {"float16": 4e-3, "float32": 1e-5, "float64": 1e-12}
SIZES = {"batch": (2,), "heads_k": 1, "d": 16}
EACH = {dtype: Case(dtype, **SIZES, group=2, sq=70, sk=90) for dtype in ("float16", "float32")}
PACKED = Case("float16", **SIZES, group=4, sq=3, sk=300)


def Bool(*shape, share=0.5, seed=0):
    return np.random.default_rng(seed).random(shape) < share


def close(found, exact, dtype):
    for x, y in zip(found, exact, strict=True):
        np.testing.assert_allclose(x.astype(float), y, atol=TOLERANCE[dtype])


def below_the_api(case, given, **options):
    """Results of arrays that no one has looked at; `options` have the same of numbers that are allowed."""
    q, k, v, dout, dlse = case.arrays()
    problem = AttentionProblem.from_arrays(q, k, v, **options)
    out, lse = np.empty(problem.out_shape, q.dtype), np.empty(problem.lse_shape, problem.accumulator)
    operands = Operands(q, k, v, out, lse, problem.expanded(np, given))
    backend = EmulatorBackend("sm_80")
    backend.forward(problem, operands)
    gradients = backend.backward(problem, operands, Cotangents(dout, dlse))
    return out, lse, gradients.dq, gradients.dk, gradients.dv


# --- numbers ---


@pytest.mark.parametrize("case", [*EACH.values(), PACKED], ids=["float16", "float32", "packed"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_lengths_out_of_range_are_clamped(case, dtype):
    """Before they are narrowed: the lower 32 bits of some are in range."""
    far = 2**33 + 2 if dtype == np.int64 else 2**31 - 1
    for name, most in (("k_lengths", case.sk), ("q_lengths", case.sq), ("k_starts", case.sk)):
        given = np.array([far, -far], dtype)
        q, k, v, dout, dlse = case.arrays()
        allowed = {name: given.clip(0, most), "causal": True}
        exact = attention(q, k, v, dout=dout, dlse=dlse, **allowed)
        close(below_the_api(case, {name: given}, **allowed), exact, case.dtype)


@pytest.mark.parametrize("case", EACH.values(), ids=EACH)
@pytest.mark.parametrize("given", [np.array([2**62, -(2**62)]), np.array([2**33 + 3, 3]), np.int32([-(2**31), 7])])
@pytest.mark.parametrize("window", [(2**40, 2**40), (2**29 + 40, 0), (0, 2**29 + 40), (5, None)], ids=str)
def test_sums_of_far_offsets_and_wide_windows_do_not_overflow(case, given, window):
    arrays = case.arrays()
    q, k, v, dout, dlse = arrays
    exact = attention(q, k, v, dout=dout, dlse=dlse, window=window, q_offset=given.clip(-(2**29), 2**29))
    close(results(ON, arrays, window=window, q_offset=given), exact, case.dtype)


def test_of_two_arrays_for_a_position_the_offset_counts():
    case = EACH["float32"]
    q, k, v, dout, dlse = arrays = case.arrays()
    options = {"causal": True, "q_offset": np.array([4, -9]), "k_lengths": np.int32([50, 80])}
    close(results(ON, arrays, **options), attention(q, k, v, dout=dout, dlse=dlse, **options), case.dtype)


def test_the_last_query_that_exists_stands_at_the_last_such_key():
    case = EACH["float32"]
    q, k, v, dout, dlse = arrays = case.arrays()
    options = {"causal": True, "q_lengths": np.array([50, 9]), "k_lengths": np.int32([40, 80])}
    close(results(ON, arrays, **options), attention(q, k, v, dout=dout, dlse=dlse, **options), case.dtype)


# --- what is not there ---


@pytest.mark.parametrize("case", [*EACH.values(), PACKED], ids=["float16", "float32", "packed"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_padding_does_not_spread(case, value):
    """Keys before the first and behind the last, and queries behind the last, wherever blocks end."""
    options = {"k_lengths": np.array([33, 90]), "k_starts": np.array([7, 66]), "q_lengths": np.array([case.sq, 2])}
    arrays = case.arrays()
    q, k, v, dout, dlse = padded = [x.copy() for x in arrays]
    for batch in range(2):
        begin, end, queries = (options[x][batch] for x in ("k_starts", "k_lengths", "q_lengths"))
        for keys in k, v:
            keys[batch, :, :begin] = keys[batch, :, end:] = value
        for rows in q, dout, dlse:
            rows[batch, :, queries:] = value
    for more in ({}, {"causal": True}):
        same_bits(results(ON, padded, **options, **more), results(ON, arrays, **options, **more))


# --- heads in one tile ---


def test_rows_of_a_packed_tile_have_the_slopes_and_masks_of_their_heads():
    """And a block of keys, for each head of its group, that head's."""
    case = dataclasses.replace(PACKED, heads_k=2, group=2)
    q, k, v, dout, dlse = arrays = case.arrays()
    options = {"alibi_slopes": np.float32([0.5, -0.02, 0.1, 0.0]), "mask": Bool(2, 4, 3, 300, share=0.3)}
    for more in ({}, {"q_offset": np.array([150, 3])}):
        exact = attention(q, k, v, dout=dout, dlse=dlse, **options, **more)
        close(results(ON, arrays, **options, **more), exact, "float16")


# --- masks ---

# Of how many 16-column pieces the quads of a warp read the flags: 1 to 8, by all lanes or some.
TILES = [
    {"forward": "64x16,num_warps=4,stages=2", "dkdv": "32x32,num_warps=4,stages=1,warps_m=2,warps_n=2"},
    {"forward": "64x48,num_warps=4,stages=2", "dkdv": "64x96,num_warps=4,stages=1,warps_m=2,warps_n=1"},
    {"forward": "64x80,num_warps=4,stages=2", "dkdv": "64x128,num_warps=4,stages=1,warps_m=4,warps_n=2"},
    {"forward": "64x128,num_warps=4,stages=2", "dkdv": "64x128,num_warps=8,stages=2,warps_m=2,warps_n=4"},
]


@pytest.mark.parametrize("chosen", TILES, ids=lambda x: x["forward"].partition(",")[0])
@pytest.mark.parametrize("sk", [160, 152, 156, 157])  # rows of 16, 8, 4 bytes, and others
def test_lanes_share_what_they_read_of_a_mask(chosen, sk):
    case = Case("float16", sq=75, sk=sk)
    q, k, v, dout, dlse = arrays = case.arrays()
    mask = Bool(75, sk)
    exact = attention(q, k, v, dout=dout, dlse=dlse, mask=mask)
    with tiles(**chosen):
        close(plain_results(arrays, mask), exact, "float16")


def plain_results(arrays, mask):
    """In one pass, so that the tile of the keys' kernel makes dq too."""
    q, k, v, dout, dlse = arrays
    out, lse = flash_attention(q, k, v, return_lse=True, mask=mask, backend="emulator")
    return out, lse, *flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, mask=mask, backend="emulator")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_any_byte_but_0_is_true(dtype):
    """As in NumPy, where a mask may be a view of other bytes."""
    case = Case(dtype, sq=40, sk=80, d=16)
    bytes_ = np.random.default_rng(1).choice(np.uint8([0, 0, 1, 2, 127, 128, 255]), (40, 80))
    same_bits(results(ON, case.arrays(), mask=bytes_.view(bool)), results(ON, case.arrays(), mask=bytes_ != 0))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("sk", [256, 250])
def test_a_mask_is_read_once_by_each_kernel(dtype, sk):
    case = Case(dtype, sq=200, sk=sk, d=32)
    mask = Bool(200, sk)
    with emulator.settings(mode="counted"):
        q, k, v, dout, _ = case.arrays()
        out, lse = flash_attention(q, k, v, return_lse=True, mask=mask, backend="emulator")
        found = [*emulator.last_run().launches]
        flash_attention_backward(dout, q, k, v, out, lse, mask=mask, deterministic=True, backend="emulator")
        found += emulator.last_run().launches
    read = [x.buffers["mask"].read for x in found if "mask" in x.buffers and x.buffers["mask"].read]
    assert read == [mask.nbytes] * 3


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "options", [{"causal": True}, {"window": (9, None)}, {"window": (9, 0), "q_offset": 60}], ids=str
)
def test_what_is_read_of_a_mask_beside_other_masks_is_what_explain_tells(dtype, options):
    """Of the forward on tensor cores at most: some of its warps see less than their block."""
    case = Case(dtype, batch=(2,), heads_k=1, group=2, sq=200, sk=250, d=32)
    q, k, v, dout, _ = case.arrays()
    options = {**options, "mask": Bool(2, 1, 200, 250)}
    problem = AttentionProblem.from_arrays(q, k, v, **options, deterministic=True)
    plans = [plan(problem, named("sm_80")) for plan in (plan_forward, plan_backward)]
    with emulator.settings(mode="counted"):
        out, lse = flash_attention(q, k, v, return_lse=True, **options, backend="emulator")
        found = [emulator.last_run().launches]
        flash_attention_backward(dout, q, k, v, out, lse, **options, deterministic=True, backend="emulator")
        found.append(emulator.last_run().launches)
    for plan, launches in zip(plans, found, strict=True):
        told = array_bytes(problem, plan, {"mask": options["mask"]})["mask"]
        read = sum(x.buffers["mask"].read for x in launches if "mask" in x.buffers)
        assert read == told or (plan is plans[0] and dtype == "float16" and read <= told)
        assert read > 0.7 * told


def test_tiles_that_show_nothing_are_not_computed():
    """Of four blocks of keys the first and the third."""
    q, k, v, *_ = Case("float16", sq=64, sk=256).arrays()
    mask = Bool(64, 256)
    counts = []
    for empty in ((), (0, 2)):
        for block in empty:
            mask[:, 64 * block : 64 * block + 64] = False
        with emulator.settings(mode="counted"), tiles(forward="64x64,num_warps=4,stages=2"):
            out = flash_attention(q, k, v, mask=mask, backend="emulator")
        counts.append(emulator.last_run().total("mma"))
        close([out], [attention(q, k, v, mask=mask).out], "float16")
    assert counts[1] * 2 == counts[0]


def test_a_tile_with_one_hidden_key_is_not_whole():
    """Wherever it stands among the lanes' columns."""
    q, k, v, dout, dlse = arrays = Case("float16", sq=64, sk=128, d=16).arrays()
    for key in (0, 13, 18, 127):
        mask = np.arange(128) != key
        exact = attention(q, k, v, dout=dout, dlse=dlse, mask=mask)
        close(plain_results(arrays, mask), exact, "float16")
        row = Bool(64, 128, share=1.1)
        row[5, key] = False
        close(plain_results(arrays, row), attention(q, k, v, dout=dout, dlse=dlse, mask=row), "float16")
