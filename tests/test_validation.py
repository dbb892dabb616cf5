"""Bad input is refused, by name and before anything is written: each check on each argument of each call."""

import inspect
import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import attention

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
    merge_attention,
)
from cupy_flash._src import api, backends
from cupy_flash._src.arrays import check_like
from cupy_flash._src.backends.cupy_ import CupyBackend
from cupy_flash._src.components import ARRAYS, KEYWORDS
from cupy_flash._src.problem import DTYPES, MAX_SEQLEN, AttentionProblem

as_strided = np.lib.stride_tricks.as_strided


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def vjp(dout, dlse, dtype=np.float32, backend=None):
    """The function that `flash_attention_vjp` returns for q, k and v of a dtype."""
    return flash_attention_vjp(*(ones(*SHAPES[x], dtype=dtype) for x in "qkv"), backend=backend)[1](dout, dlse)


SHAPES = {"q": (4, 3, 8), "k": (2, 5, 8), "v": (2, 5, 6)}
SHAPES |= dict.fromkeys(("out", "dout", "out_a", "out_b"), (4, 3, 6))
SHAPES |= dict.fromkeys(("lse", "dlse", "lse_a", "lse_b"), (4, 3))
OPTIONS = {*KEYWORDS, "return_lse", "backend", "dtype", "compute_dtype"}
FLASH = (flash_attention, flash_attention_vjp, vjp, flash_attention_backward, merge_attention)
CALLS = (*FLASH, attention_reference, attention_reference_backward)
TABLE = {call: [name for name in inspect.signature(call).parameters if name not in OPTIONS] for call in CALLS}
ARGUMENTS = [pytest.param(call, name, id=f"{call.__name__}-{name}") for call, names in TABLE.items() for name in names]

# Options that are arrays, of a batch of two.
GIVEN = {
    "alibi_slopes": np.linspace(0, 1, 8, dtype=np.float32).reshape(2, 4),
    "bias": np.cos(np.arange(2 * 4 * 3 * 5, dtype=np.float32)).reshape(2, 4, 3, 5),
    "sinks": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4),
    "mask": np.arange(2 * 4 * 3 * 5).reshape(2, 4, 3, 5) % 7 != 3,
    "k_lengths": np.array([5, 4]),
    "q_lengths": np.array([2, 3]),
    "k_starts": np.array([0, 1]),
    "q_offset": np.array([2, -1]),
}
LENGTHS = ("k_lengths", "q_lengths", "k_starts")
OPTION_AXES = ("...", "heads", "queries", "keys")
TAKES_OPTIONS = [call for call in CALLS if "mask" in inspect.signature(call).parameters]
OPTIONAL = [pytest.param(call, name, id=f"{call.__name__}-{name}") for call in TAKES_OPTIONS for name in GIVEN]
assert GIVEN.keys() == ARRAYS.keys()


def arguments(call, dtype="float32"):
    """Arrays that a call takes, each of memory of its own."""
    wide = np.float64 if dtype == "float64" else np.float32
    return {name: ones(*SHAPES[name], dtype=wide if "lse" in name else DTYPES[dtype]) for name in TABLE[call]}


def batched(call):
    """The same of a batch of two, and an option by which positions matter."""
    return {name: np.stack([x, x]) for name, x in arguments(call).items()} | {"causal": True}


def refusal(call, good=None, **change):
    """The error for arguments with a change, of which `out` has to be as before; without it they are taken."""
    good = good or arguments(call)
    call(**good)
    out = good.get("out")
    if out is not None:
        out[...] = 7
    with pytest.raises((TypeError, ValueError)) as error:
        call(**{**good, **change})
    assert out is None or (out == 7).all()
    return f"{error.type.__name__}: {error.value}"


# --- each argument alone ---


def shifted(x):
    """The same values one byte past alignment."""
    view = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def uneven(x, axis):
    """The same values, elements of one axis a byte too far apart."""
    strides = [2 * stride for stride in ones(*x.shape, dtype=x.dtype).strides]
    strides[axis] += 1
    return as_strided(np.zeros(4 * x.nbytes + 64, np.uint8)[: x.itemsize].view(x.dtype), x.shape, strides)


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
def test_what_no_argument_may_be(call, name):
    x = arguments(call)[name]
    assert refusal(call, **{name: shifted(x)}) == (
        f"ValueError: {name} is not aligned in memory: expected an address that is a multiple of 4"
    )
    for axis in range(x.ndim):
        bad = uneven(x, axis)
        assert refusal(call, **{name: bad}) == (
            f"ValueError: {name} has strides {bad.strides} bytes: expected multiples of the item size 4"
        )
    for dtype in (np.int32, np.dtype(">f4"), np.complex64):
        told = refusal(call, **{name: x.astype(dtype)})
        assert told.startswith(f"TypeError: {name} has dtype {np.dtype(dtype)}: expected ") and "float32" in told
    assert refusal(call, **{name: x.tolist()}).startswith(f"TypeError: {name} is a list: expected a ")
    assert refusal(call, **{name: x.ravel()}).startswith(f"ValueError: {name} has shape ")


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
@pytest.mark.parametrize(("kind", "message"), [(np.ma.masked_array, "a masked array"), (np.matrix, "a numpy.matrix")])
def test_arrays_that_are_not_plain_are_named(call, name, kind, message):
    x = arguments(call)[name].reshape(-1, SHAPES[name][-1])
    told = refusal(call, **{name: kind(x)})
    assert told.startswith(f"TypeError: {name} is {message}") and "expected a plain array" in told


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize(("call", "name"), OPTIONAL)
def test_what_no_option_may_be(call, name):
    x, good = GIVEN[name], batched(call) | {name: GIVEN[name]}

    def told(value):
        return refusal(call, good, **{name: value})

    size = x.itemsize
    if size > 1:
        assert told(shifted(x)) == (
            f"ValueError: {name} is not aligned in memory: expected an address that is a multiple of {size}"
        )
        for axis in range(x.ndim):
            bad = uneven(x, axis)
            assert told(bad) == (
                f"ValueError: {name} has strides {bad.strides} bytes: expected multiples of the item size {size}"
            )
    numbers = "float16 or bfloat16 or float32 or float64"
    usual = {"alibi_slopes": "float32", "mask": "bool", "bias": numbers, "sinks": numbers}.get(name, "int32 or int64")
    for dtype in (np.int16, np.uint64, np.float16, np.float64, np.complex64, x.dtype.newbyteorder("S"), object):
        if dtype != x.dtype:
            allowed = "float32, as q has" if usual == numbers and dtype in DTYPES.values() else usual
            message = f"TypeError: {name} has dtype {np.dtype(dtype)}: expected {allowed}"
            assert told(x.astype(dtype))[: len(message)] == message
    assert told(np.ma.masked_array(x)).startswith(f"TypeError: {name} is a masked array")
    assert told(np.asmatrix(x.reshape(x.shape[0], -1))).startswith(f"TypeError: {name} is a numpy.matrix")
    assert told(x.tolist()).startswith(f"TypeError: {name} is ")
    full, axes = (x[: 4 - ARRAYS[name].lacks] for x in ((2, 4, 3, 5), OPTION_AXES))
    for axis, n in enumerate(x.shape):
        for wrong in (n + 1, 0):
            shape = (*x.shape[:axis], wrong, *x.shape[axis + 1 :])
            message = f"ValueError: {name} has shape {shape}: expected {full}, ({', '.join(axes)}), or one that "
            assert told(np.ones(shape, x.dtype)) == message + "broadcasts to it"
    assert told(np.stack([x, x])).startswith(f"ValueError: {name} has shape (2, 2")


@pytest.mark.parametrize("call", TAKES_OPTIONS, ids=lambda call: call.__name__)
def test_slopes_are_as_many_as_heads_and_numbers_are_no_biases(call):
    good = batched(call)
    for shape in ((), (1,), (2, 1)):
        told = refusal(call, good, alibi_slopes=ones(*shape))
        assert told.startswith(f"ValueError: alibi_slopes has shape {shape}: expected (2, 4), (..., heads)")
    for dtype in (np.float16, np.float32, DTYPES["bfloat16"]):
        told = refusal(call, good, mask=ones(3, 5, dtype=dtype))
        assert told.startswith(f"TypeError: mask has dtype {np.dtype(dtype)}: expected bool") and " bias" in told
    for offset in (2**29 + 1, -(2**29) - 1):
        told = refusal(call, good, alibi_slopes=ones(4), q_offset=offset)
        assert told == f"ValueError: q_offset is {offset}: with alibi_slopes expected at most 536870912 in size"


@pytest.mark.parametrize("call", TAKES_OPTIONS, ids=lambda call: call.__name__)
@pytest.mark.parametrize(("name", "size"), [("k_lengths", 5), ("q_lengths", 3), ("k_starts", 5)])
def test_rows_that_there_are_not(call, name, size):
    good = batched(call)
    call(**good, **{name: np.array([0, size])})
    for wrong in (-1, size + 1, -(2**63) + 1, 2**63 - 1):
        for value in (wrong, np.int64(wrong), np.array(wrong), np.array([2, wrong]), np.array([wrong, 2])):
            told = refusal(call, good, **{name: value})
            assert told == f"ValueError: {name} has {wrong}: expected 0 to {size}, the sequence length"
    for wrong in (2**63, -(2**63), 10**30):
        assert refusal(call, good, **{name: wrong}) == f"ValueError: {name} is {wrong}: expected a number of rows"
    for wrong in (True, np.True_, 2.0, np.float32(2), "2", [2, 2], 1j):
        assert refusal(call, good, **{name: wrong}) == f"TypeError: {name} is {wrong!r}: expected an int"


@pytest.mark.parametrize(("call", "name"), OPTIONAL)
def test_an_option_takes_any_view(call, name, tier):
    """Of any strides, read-only, and without what it has in common along an axis: the bits are those of a copy."""
    rng, x = np.random.default_rng(0), GIVEN[name]
    good = {key: rng.standard_normal(np.shape(y), np.float32) for key, y in batched(call).items() if key != "causal"}
    matters = (call, name) != (flash_attention_backward, "sinks")  # which are in lse

    def results(**given):
        found = call(**good, causal=True, **given)
        found = found[0] if call is flash_attention_vjp else found
        return [y.copy() for y in (found if isinstance(found, tuple) else (found,))]

    wide = np.zeros([3 * n + 2 for n in x.shape], x.dtype)
    apart = wide[tuple(slice(1, 3 * n, 3) for n in x.shape)]
    apart[...] = x
    reverse, same = (slice(None, None, -1),) * x.ndim, np.broadcast_to(x[:1], x.shape)
    expected = [results(**{name: copy}) for copy in (x, same.copy())]
    for change in (results(), expected[1]):
        assert all(map(np.array_equal, change, expected[0])) != matters
    for value, of_first in [
        (apart, False), (np.asfortranarray(x), False), (x[reverse].copy()[reverse], False), (same, True),
        (x[:1].copy(), True), (x[0, ...].copy(), True), (as_strided(x[:1], strides=(3, *x.strides[1:])), True),
    ]:  # fmt: skip
        value.flags.writeable = False
        for found, copy in zip(results(**{name: value}), expected[of_first], strict=True):
            np.testing.assert_array_equal(found, copy)


def test_subclasses_that_only_name_their_fields_are_plain():
    assert type(flash_attention(*[ones(4, 8).view(np.recarray)] * 3)) is np.ndarray


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_inputs_may_be_read_only_and_out_may_not(call):
    good = arguments(call)
    for name, x in good.items():
        x.flags.writeable = name == "out"
    call(**good)
    if call is flash_attention:
        assert refusal(call, out=np.broadcast_to(ones(4, 3, 1), (4, 3, 6))) == (
            "ValueError: out is read-only: expected a writable array"
        )


def test_strides_of_an_axis_of_one_do_not_matter():
    x = as_strided(ones(64), (1, 4, 8), (3, 32, 4))
    np.testing.assert_array_equal(flash_attention(x, x, x), ones(1, 4, 8))


# --- arguments that must fit together ---


def accepted(call, dtype):
    """For each argument of a call of a dtype, the dtypes that it may have while the others are as in `arguments`."""
    wide = "float64" if dtype == "float64" else "float32"
    for name in TABLE[call]:
        if call is attention_reference_backward and name in ("dout", "dlse"):
            yield name, set(DTYPES)
        elif "lse" in name:
            yield name, {wide}
        elif call is flash_attention_backward and name == "out":
            yield name, {dtype, wide}
        elif call is merge_attention and dtype == "float32":
            yield name, {"float16", "bfloat16", "float32"}
        elif call is merge_attention:
            yield name, {dtype, wide}
        else:
            yield name, {dtype}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_dtypes_that_fit_together(call, dtype):
    good, function = arguments(call, dtype), partial(vjp, dtype=DTYPES[dtype]) if call is vjp else call
    for name, allowed in accepted(call, dtype):
        for other in DTYPES:
            given = {**good, name: good[name].astype(DTYPES[other])}
            if other in allowed:
                function(**given)
                continue
            with pytest.raises(TypeError) as error:
                function(**given)
            told = str(error.value)
            if name in ("q", "k", "v"):
                seen = ", ".join(f"{x} {other if x == name else dtype}" for x in "qkv")
                assert told == f"dtypes differ ({seen}): q, k and v must have the same dtype"
            elif name == "out_a":  # what it does not go with is named
                assert told.startswith((f"out_b has dtype {dtype}: expected ", "lse_a has dtype float64: expected "))
            else:
                prefix, _, expected = told.partition(": expected ")
                assert prefix == f"{name} has dtype {other}" and set(expected.split(" or ")) == allowed


AXES = "axes are (..., heads, sequence, head_dim): of arrays (..., sequence, heads, head_dim) pass x.swapaxes(-3, -2)"
FIT = {
    ("q", 2): "k has head_dim 8, q has head_dim 9: the last axes of q and k must be equal",
    ("q", 0): "q has 5 heads, k has 2: the heads of q must be a multiple of the heads of k; " + AXES,
    ("k", 2): "k has head_dim 9, q has head_dim 8: the last axes of q and k must be equal",
    ("k", 1): "v has sequence length 5, k has 6: they must be equal",
    ("k", 0): "v has 2 heads, k has 3: they must be equal; " + AXES,
    ("v", 1): "v has sequence length 6, k has 5: they must be equal",
    ("v", 0): "v has 3 heads, k has 2: they must be equal; " + AXES,
}


@pytest.mark.parametrize(("call", "name"), ARGUMENTS)
def test_shapes_that_do_not_fit(call, name):
    """Each axis one longer; what then does not fit is named, with both sizes."""
    rest = [x for x in TABLE[call] if x not in ("q", "k", "v") and "lse" not in x]
    first = {flash_attention_backward: "out", attention_reference_backward: "dout"}.get(call, (rest or [""])[0])
    for axis, n in enumerate(SHAPES[name]):
        shape = (*SHAPES[name][:axis], n + 1, *SHAPES[name][axis + 1 :])
        if (name, axis) in FIT:
            assert refusal(call, **{name: ones(*shape)}) == f"ValueError: {FIT[name, axis]}"
        elif name in ("q", "v"):  # more queries, or columns of v: the output is another
            if first:
                expected = (4, 4, 6) if name == "q" else (4, 3, 7)
                told = f"ValueError: {first} has shape (4, 3, 6): expected {expected}"
                assert refusal(call, **{name: ones(*shape)}) == told
        elif name == "out_a":
            told = f"ValueError: out_b has shape (4, 3, 6): expected {shape}"
            assert refusal(call, **{name: ones(*shape)}) == told
        else:
            told = f"ValueError: {name} has shape {shape}: expected {SHAPES[name]}"
            assert refusal(call, **{name: ones(*shape)}) == told
            assert refusal(call, **{name: ones(1, *SHAPES[name])}).startswith(f"ValueError: {name} has shape (1, 4, 3")


@pytest.mark.parametrize("call", [call for call in CALLS if "q" in TABLE[call]], ids=lambda call: call.__name__)
def test_problems_that_are_none(call):
    def told(**shapes):
        return refusal(call, **{name: ones(*shape) for name, shape in shapes.items()})

    for batches in ((2, 3, 3), (3, 2, 3), (3, 3, 2)):
        q, k, v = ((n,) for n in batches)
        assert told(q=(*q, 4, 3, 8), k=(*k, 2, 5, 8), v=(*v, 2, 5, 6)) == (
            f"ValueError: leading dimensions of q {q}, k {k} and v {v} do not broadcast together"
        )
    for heads in (0, 4):
        assert told(q=(heads, 3, 8), k=(0, 5, 8), v=(0, 5, 6)).startswith(
            f"ValueError: q has {heads} heads, k has 0: the heads of q must be a multiple"
        )
    for d in (0, 513):
        assert told(q=(4, 3, d), k=(2, 5, d)) == f"ValueError: q and k have head_dim {d}: expected 1 to 512"
        assert told(v=(2, 5, d)) == f"ValueError: v have head_dim {d}: expected 1 to 512"


@pytest.mark.parametrize("d", [0, 513])
def test_merges_of_what_is_no_output(d):
    told = refusal(merge_attention, out_a=ones(4, 3, d), out_b=ones(4, 3, d))
    assert told == f"ValueError: out_a has head_dim {d}: expected 1 to 512"


def test_sequences_up_to_2_to_29():
    """Views of one number: the checks look at shapes only."""
    q, k = (np.broadcast_to(np.float16(0), (2, n, 8)) for n in (4, MAX_SEQLEN))
    assert MAX_SEQLEN == 2**29
    assert AttentionProblem.from_arrays(q, k, k).seqlen_k == AttentionProblem.from_arrays(k, q, q).seqlen_q == 2**29
    longer = np.broadcast_to(np.float16(0), (2, MAX_SEQLEN + 1, 8))
    for name, arrays in (("q", (longer, k, k)), ("k", (q, longer, longer))):
        with pytest.raises(ValueError) as error:
            AttentionProblem.from_arrays(*arrays)
        assert str(error.value) == f"{name} has sequence length 536870913: expected at most 536870912"


def test_no_query_heads_are_no_work(on):
    q, k, v, dout = ones(3, 0, 5, 8), ones(3, 2, 7, 8), ones(3, 2, 7, 6), ones(3, 0, 5, 6)
    out, lse = on(flash_attention, q, k, v, return_lse=True)
    grads = on(flash_attention_backward, dout, q, k, v, out, lse)
    assert [x.shape for x in (out, lse, *grads)] == [dout.shape, (3, 0, 5), q.shape, k.shape, v.shape]
    assert not grads[1].any() and not grads[2].any()


# --- memory of out ---


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("backend", ["cpu", "emulator"])
def test_out_may_not_share_memory_with_an_input(name, backend):
    base = ones(12, 8)
    x = dict.fromkeys(("q", "k", "v"), ones(4, 8))
    for shared in (base[3:7], base[::-1][4:8], base[4:8, ::-1]):
        with pytest.raises(ValueError, match=rf"^out overlaps {name} in memory: expected memory of its own$"):
            flash_attention(**{**x, name: base[5:9]}, out=shared, backend=backend)
    assert (base == 1).all()
    interleaved = ones(4, 2, 8)
    flash_attention(**{**x, name: interleaved[:, 0]}, out=interleaved[:, 1], backend=backend)


@pytest.mark.parametrize("backend", ["cpu", "emulator"])
def test_out_may_not_share_memory_with_an_option(backend):
    memory, good = np.zeros(2 * 4 * 3 * 6, np.float32), batched(flash_attention)
    views = {"alibi_slopes": memory[-4:], "mask": memory[-4:].view(bool)[:15].reshape(3, 5)}
    views |= {"bias": memory[-1:], "sinks": memory[-4:]}
    views |= dict.fromkeys((*LENGTHS, "q_offset"), memory[40:44].view(np.int64))
    for name, view in views.items():
        with pytest.raises(ValueError, match=rf"^out overlaps {name} in memory: expected memory of its own$"):
            flash_attention(**{**good, name: view, "out": memory.reshape(2, 4, 3, 6)}, backend=backend)
    assert not memory.any()


def test_out_may_not_overlap_itself():
    q = ones(4, 8)
    for strides in ((28, 4), (0, 4), (4, 12), (-28, 4), (28, -4), (12, 0)):
        window = as_strided(ones(100)[40:], (4, 8), strides)
        with pytest.raises(ValueError) as error:
            flash_attention(q, q, q, out=window)
        assert str(error.value) == f"out has strides {strides} for shape (4, 8): its elements overlap in memory"


def addresses(x):
    """Of every byte of a view."""
    low = x.__array_interface__["data"][0]
    steps = (range(0, n * stride, stride) if stride else (0,) * n for n, stride in zip(x.shape, x.strides, strict=True))
    return [low + sum(offsets) + i for offsets in itertools.product(*steps) for i in range(x.itemsize)]


def on_a_gpu(x):
    """An array of which only where it lies can be asked, as CuPy tells it."""
    data = SimpleNamespace(ptr=x.__array_interface__["data"][0])
    return SimpleNamespace(shape=x.shape, strides=x.strides, itemsize=x.itemsize, data=data, dtype=x.dtype, size=x.size)


def test_overlap_is_what_a_count_of_bytes_finds():
    """Views of one buffer with any strides; an array's overlap with itself may be claimed where axes interleave."""
    rng = np.random.default_rng(0)
    base, seen = np.zeros(256, np.int16), set()
    for _ in range(800):
        views = [
            as_strided(base[128:], rng.integers(1, 4, 2), 2 * rng.integers(-8, 9, 2), writeable=False)[
                rng.integers(0, 2) :
            ]
            for _ in range(2)
        ]
        a, b = (set(addresses(x)) for x in views)
        for arrays in (views, [on_a_gpu(x) for x in views]):
            assert api._overlap(*arrays) == bool(a & b)
            seen.add(bool(a & b))
        if len(a) < len(addresses(views[0])):
            assert api._may_self_overlap(views[0])
    assert seen == {False, True}
    x = np.zeros((3, 4, 5, 2), np.int16)
    for view in (x, x.transpose(2, 0, 3, 1), x[::-1, 1::2, ::-1], x[:, :1, :, 1], np.zeros((3, 9))[:, ::2]):
        assert not api._may_self_overlap(view)


def test_parts_of_one_packed_array_are_told_apart():
    """As projections pack q, k and v, in every place that an axis of them may have: found out in the time there is."""
    for axis in range(5):
        packed = np.moveaxis(np.zeros(np.insert((7, 999, 12, 33), axis, 4), np.float16), axis, 0)
        for i, j in itertools.product(range(4), repeat=2):
            assert api._overlap(packed[i].swapaxes(1, 2), packed[j].swapaxes(1, 2)) == (i == j)
        assert not api._may_self_overlap(packed[1].swapaxes(1, 2))


def test_an_overlap_that_is_hard_to_find_is_refused():
    """Strides of numpy.shares_memory's documentation: whether they meet is a question of integer programming."""
    a = as_strided(np.zeros(1, np.int8), (1049, 1049, 1049), (36674, 61119, 85569), writeable=False)
    b = SimpleNamespace(
        shape=(1049, 1049, 1), strides=(12223, 12224, 1), itemsize=1,
        data=SimpleNamespace(ptr=a.__array_interface__["data"][0] + 64023025),
    )  # fmt: skip
    with pytest.raises(np.exceptions.TooHardError):
        np.shares_memory(a, api._shadow(b), max_work=100_000)
    assert api._overlap(a, b)


# --- where arrays are ---


def foreign(ndim=1):
    """What the checks take for a CuPy array."""
    told = {"__module__": "cupy", "strides": (4,) * ndim, "ndim": ndim, "__cuda_array_interface__": {}}
    return type("ndarray", (), told)()


@pytest.mark.parametrize("backend", ["cpu", "emulator"])
@pytest.mark.parametrize(
    ("call", "name"), [x for x in ARGUMENTS if x.values[0] in FLASH and x.values != (flash_attention, "out")]
)
def test_an_array_on_the_wrong_backend_is_named(call, name, backend, monkeypatch):
    if call is vjp:
        _, function = flash_attention_vjp(**{x: ones(*SHAPES[x]) for x in "qkv"}, backend=backend)
        good = {"dout": ones(*SHAPES["dout"]), "dlse": ones(*SHAPES["dlse"])}
    else:
        function, good = lambda **given: call(**given, backend=backend), arguments(call)
    with pytest.raises(TypeError) as error:
        function(**{**good, name: foreign()})
    assert str(error.value) == f"{name} is a CuPy array: backend {backend!r} takes NumPy arrays only"
    if call is vjp:
        return
    monkeypatch.setitem(backends._instances, "cuda", SimpleNamespace(namespace=None))
    others = {x: foreign() for x in good if x != name}
    with pytest.raises(TypeError) as error:
        call(**{**others, name: good[name]}, backend="cuda")
    assert str(error.value) == f"{name} is a NumPy array: backend 'cuda' takes CuPy arrays only"


def test_out_and_the_references_arrays_are_of_one_kind():
    assert refusal(flash_attention, out=foreign()) == "TypeError: out is a ndarray: expected a numpy.ndarray"
    for call in (attention_reference, attention_reference_backward):
        for name in TABLE[call]:
            blamed, kind = ("k", "numpy") if name == "q" else (name, "cupy")
            told = f"TypeError: {blamed} is a {kind} array, q is a {'cupy' if name == 'q' else 'numpy'} array"
            assert refusal(call, **{name: foreign()}).startswith(told)


@pytest.mark.parametrize(("call", "name"), [x for x in OPTIONAL if x.values[0] in FLASH])
def test_an_option_on_the_wrong_backend_is_named(call, name, monkeypatch):
    """But numbers, also as NumPy's arrays without axes, are taken anywhere."""
    good = batched(call)
    for ndim in (0, 1):
        told = f"TypeError: {name} is a CuPy array: backend 'cpu' takes NumPy arrays only"
        assert refusal(call, good, **{name: foreign(ndim)}) == told
    monkeypatch.setitem(backends._instances, "cuda", SimpleNamespace(namespace=None))
    given = {x: foreign() for x in TABLE[call]}
    with pytest.raises(TypeError) as error:
        call(**given, **{name: GIVEN[name]}, backend="cuda")
    assert str(error.value) == f"{name} is a NumPy array: backend 'cuda' takes CuPy arrays only"
    if name in LENGTHS:
        for number in (3, np.array(3)):
            with pytest.raises(AttributeError, match="'ndarray' object has no attribute"):  # a later check of q
                call(**given, **{name: number}, backend="cuda")


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("call", [attention_reference, attention_reference_backward], ids=lambda call: call.__name__)
def test_an_option_of_the_reference_is_of_the_kind_of_q(call, name):
    for ndim in (0, 1):
        told = refusal(call, batched(call), **{name: foreign(ndim)})
        assert told == f"TypeError: {name} is a cupy array, q is a numpy array: expected one kind"


def test_an_array_on_another_gpu_is_named():
    def array(index):
        return SimpleNamespace(data=SimpleNamespace(device_id=index))

    backend = CupyBackend.__new__(CupyBackend)
    backend.namespace = SimpleNamespace(cuda=SimpleNamespace(Device=lambda index: f"GPU {index}"))
    assert backend.placed(q=array(3), k=array(3), out=array(3)) == "GPU 3"
    for odd in ("k", "v", "out"):
        with pytest.raises(ValueError) as error:
            backend.placed(**{name: array(1 if name == odd else 0) for name in ("q", "k", "v", "out")})
        assert str(error.value) == f"{odd} is on GPU 1, q on GPU 0: expected one GPU"


def test_alignment_on_a_gpu_is_of_the_address():
    x = ones(4, 8)
    check_like("dout", on_a_gpu(ones(33)[1:].reshape(4, 8)), (4, 8), x.dtype)
    for nothing in (shifted(x)[:0], on_a_gpu(shifted(x)[:0])):
        check_like("dout", nothing, (0, 8), x.dtype)
    for array in (shifted(x), on_a_gpu(shifted(x))):
        with pytest.raises(ValueError, match=r"^dout is not aligned in memory: expected .* multiple of 4$"):
            check_like("dout", array, (4, 8), x.dtype)


# --- options ---

TAKEN = {"causal": True, "window": (1, 0), "scale": 0.5, "q_offset": 1, "k_lengths": 4, "q_lengths": 1, "k_starts": 1}
UNMASKED = {"causal": False, "window": None}


@pytest.mark.parametrize("call", [call for call in CALLS if "q" in TABLE[call]], ids=lambda call: call.__name__)
def test_an_option_is_checked_each_time(call):
    """Equal values of other types, after a call that was right: what is remembered must not answer for them."""
    good = arguments(call)
    call(**good, **TAKEN)
    for change, message in (
        ({"causal": 1}, "TypeError: causal is 1: expected True or False"),
        ({"causal": 1.0}, "TypeError: causal is 1.0: expected True or False"),
        ({"q_offset": True}, "TypeError: q_offset is True: expected an int"),
        ({"q_offset": 1.0}, "TypeError: q_offset is 1.0: expected an int"),
        ({"scale": "0.5"}, "TypeError: scale is '0.5': expected a real number"),
        ({"scale": np.nan}, "ValueError: scale is nan: expected a finite number"),
        ({"scale": -np.inf}, "ValueError: scale is -inf: expected a finite number"),
        ({"scale": -3e38}, "ValueError: scale is -3e+38: expected at most 2.36e+38 in size for float32"),
        ({"window": (True, 0)}, "TypeError: window is True: expected an int"),
        ({"window": (1, 0.0)}, "TypeError: window is 0.0: expected an int"),
        *(({name: 1.0}, f"TypeError: {name} is 1.0: expected an int") for name in LENGTHS),
        *(({name: True}, f"TypeError: {name} is True: expected an int") for name in LENGTHS),
        *(({name: -1}, f"ValueError: {name} has -1: expected 0 to ") for name in LENGTHS),
        (UNMASKED, "ValueError: q_offset is 1: expected none without alibi_slopes or causal or window"),
        ({**UNMASKED, "q_offset": 0}, "ValueError: q_offset is 0: expected none without alibi_slopes or causal or win"),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            call(**good, **{**TAKEN, **change})
        assert f"{error.type.__name__}: {error.value}".startswith(message)
    call(**good, **{**TAKEN, "scale": 1.0})
    with pytest.raises(TypeError, match="scale is True: expected a real number"):
        call(**good, **{**TAKEN, "scale": True})


@pytest.mark.parametrize("call", [x for x in FLASH if x is not vjp], ids=lambda call: call.__name__)
@pytest.mark.parametrize(("backend", "message"), [
    ("numpy", "ValueError: backend is 'numpy': expected None, 'cpu', whose tier CUPY_FLASH_CPU_TIER=numpy chooses, "),
    ("tpu", "ValueError: backend is 'tpu': expected None, 'cpu', 'cuda', 'emulator' or 'emulator:<arch>'"),
    (3, "TypeError: backend is 3: expected a string or None"),
    ("emulator:sm_42", "ValueError: architecture is 'sm_42': expected one of sm_70, "),
])  # fmt: skip
def test_a_backend_that_does_not_exist(call, backend, message):
    assert refusal(call, backend=backend).startswith(message)


# --- what a problem is ---


@pytest.mark.parametrize("shapes", [
    ((2, 1, 4, 3, 8), (5, 2, 5, 8), (2, 1, 2, 5, 6)), ((2, 1, 4, 3, 8), (2, 5, 8), (5, 2, 5, 6)),
    ((3, 8), (2, 5, 1, 5, 8), (5, 8)), ((1, 3, 8), (5, 8), (7, 1, 5, 6)), ((3, 8), (1, 5, 8), (5, 6)),
    ((1, 3, 8), (5, 8), (5, 6)),
])  # fmt: skip
def test_leading_dimensions_broadcast_whichever_array_has_them(tier, shapes):
    """And only where q has two axes and nothing has more does the output have two."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape) for shape in shapes)
    exact = attention(q, k, v, causal=True)
    for out, lse in (
        flash_attention(q, k, v, causal=True, return_lse=True),
        attention_reference(q, k, v, causal=True, return_lse=True),
    ):
        np.testing.assert_allclose(out, exact.out, atol=1e-12, strict=True)
        np.testing.assert_allclose(lse, exact.lse, atol=1e-12, strict=True)
    into = np.empty_like(exact.out)
    assert flash_attention(q, k, v, causal=True, out=into) is into
    dout, dlse = rng.standard_normal(out.shape), rng.standard_normal(lse.shape)
    exact = attention(q, k, v, dout=dout, dlse=dlse, causal=True)
    for grads in (
        flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, causal=True),
        attention_reference_backward(dout, q, k, v, dlse=dlse, causal=True),
        flash_attention_vjp(q, k, v, causal=True)[1](dout, dlse),
    ):
        for grad, expected in zip(grads, (exact.dq, exact.dk, exact.dv), strict=True):
            np.testing.assert_allclose(grad, expected, atol=1e-12, strict=True)


def test_an_offset_is_clipped_where_that_changes_no_mask():
    for sq, sk in itertools.product((0, 1, 3, 6), repeat=2):
        q, k = np.zeros((1, sq, 4)), np.zeros((1, sk, 4))
        for offset in (*range(-9, 10), 10**30, -(10**30), None):
            found = AttentionProblem.from_arrays(q, k, k, causal=True, q_offset=offset).q_offset
            exact = sk - sq if offset is None else offset
            i, j = np.arange(sq)[:, None], np.arange(sk)
            np.testing.assert_array_equal(j <= i + found, j - i <= max(min(exact, 99), -99))
            assert -sq <= found <= sk
        assert AttentionProblem.from_arrays(q, k, k).q_offset == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_facts_of_a_problem(dtype):
    """Types and shapes that everything else asks for, of arrays and of outputs that are merged."""
    x = arguments(flash_attention, dtype)
    out = x.pop("out")
    wide = np.dtype(np.float64 if dtype == "float64" else np.float32)
    problem = AttentionProblem.from_arrays(**{name: np.broadcast_to(a, (3, *a.shape)) for name, a in x.items()})
    assert (problem.storage, problem.out_storage, problem.accumulator) == (DTYPES[dtype], DTYPES[dtype], wide)
    assert (problem.dtype, problem.arithmetic) == (dtype, wide.name)
    assert (problem.group_size, problem.scale) == (2, 1 / np.sqrt(8))
    assert (problem.q_shape, problem.k_shape, problem.v_shape) == ((3, 4, 3, 8), (3, 2, 5, 8), (3, 2, 5, 6))
    assert (problem.out_shape, problem.lse_shape, problem.with_wide_out.out_storage) == ((3, 4, 3, 6), (3, 4, 3), wide)
    assert problem.with_wide_out.storage == DTYPES[dtype] and problem.with_wide_out != problem
    for a, b in ((out, out), (out, out.astype(wide)), (out.astype(wide), out)):
        merged = AttentionProblem.of_outputs(a, b)
        assert (merged.storage, merged.out_storage) == (DTYPES[dtype], wide if a.dtype != b.dtype else DTYPES[dtype])
        assert (merged.out_shape, merged.lse_shape, merged.accumulator) == ((4, 3, 6), (4, 3), wide)
