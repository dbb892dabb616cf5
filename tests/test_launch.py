"""What carries out plans: memory that is not zeroed, rights to write, and what repeated calls share."""

import ctypes
import dataclasses
import functools
import math
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import Case, check
from conftest import On
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import attention

from cupy_flash import emulator, flash_attention, flash_attention_backward, flash_attention_vjp, merge_attention, mods
from cupy_flash._src import emulator as inner
from cupy_flash._src import launch
from cupy_flash._src.backends.device_seal import DeviceSeal
from cupy_flash._src.backends.emulator import _WRITES, EmulatorBackend
from cupy_flash._src.device import named
from cupy_flash._src.operands import Gradients, Operands
from cupy_flash._src.params import layout
from cupy_flash._src.plan import plan_backward, plan_forward
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.tuning import tiles

ON = On("emulator")
FLOATS = Case(group=2, sq=70, sk=90, causal=True, q_offset=20)
HALVES = dataclasses.replace(FLOATS, dtype="float16", group=1)
DECODE = Case(dtype="float16", batch=(2,), group=4, sq=3, sk=300, causal=True)  # packed; split over keys and heads
IN_SPANS = {"plan_forward": functools.partial(plan_forward, num_spans=3)}


@pytest.fixture
def poisoned(monkeypatch):
    """Whatever is allocated without zeros is NaN, and -1 in integers."""
    empty = np.empty

    def full(*args, **kwargs):
        x = empty(*args, **kwargs)
        if not x.dtype.hasobject:
            ctypes.memset(x.ctypes.data, 0xFF, x.nbytes)
        return x

    monkeypatch.setattr(np, "empty", full)


@pytest.fixture
def launches(monkeypatch):
    """A list of what each launch was given and did: entry, buffers, and the names of those that it changed."""
    found, plain = [], inner.launch

    def recorded(text, entry, grid, block, params, shared_bytes, buffers, **options):
        before = [ctypes.string_at(b.address, b.nbytes) for b in buffers]
        report = plain(text, entry, grid, block, params, shared_bytes, buffers, **options)
        after = [ctypes.string_at(b.address, b.nbytes) for b in buffers]
        found.append((entry, buffers, {b.name for b, x, y in zip(buffers, before, after, strict=True) if x != y}))
        return report

    monkeypatch.setattr(inner, "launch", recorded)
    return found


def test_kernels_write_exactly_what_they_may(poisoned, launches, replan):
    """Scratch memory, results that are added up and results that are stored need no zeros but those they are given."""
    for case, deterministic in ((FLOATS, False), (FLOATS, True), (HALVES, False), (DECODE, False), (DECODE, True)):
        check(case, ON, deterministic=deterministic)
    for case, axes in ((FLOATS, (True,) * 3), (DECODE, (True, True, True)), (DECODE, (False, False, True, True))):
        of_batch = tuple(True for _ in case.batch) if len(axes) == 3 else ()
        check(dataclasses.replace(case, bias=axes, sinks=of_batch, alibi_slopes=of_batch), ON)
    with replan(**IN_SPANS):
        check(FLOATS, ON)
    q, k, v, *_ = HALVES.arrays()
    bias = np.zeros((70, 90), np.float32)
    wrt = ("q", "k", "v", "bias")
    (out, lse), vjp = flash_attention_vjp(q, k, v, bias=bias, wrt=wrt, return_lse=True, backend="emulator")
    merge_attention(out, lse, out[:, ::-1], lse[:, ::-1], backend="emulator")
    seal = DeviceSeal(EmulatorBackend(), vjp._problem, Operands(q, k, v, out, lse))
    out += 1
    seal.spoil(seal.check(), Gradients(*(np.zeros_like(x) for x in (q, k, v)), {"bias": np.zeros_like(bias)}))
    numbers, table = np.sort(np.arange(180).reshape(2, 90) % 5), np.zeros((q.shape[-3], 33), np.float32)
    options = {"mask_mod": mods.documents, "mask_args": (numbers[:, :70], numbers), "score_mod": mods.relative}
    options |= {"score_args": (table,), "wrt": ("q", "k", "v", "score_args"), "backend": "emulator"}
    for deterministic in (False, True):
        _, vjp = flash_attention_vjp(q, k, v, deterministic=deterministic, **options)
        vjp(out)
    assert {entry for entry, *_ in launches} == set(_WRITES)
    may, written = defaultdict(set), defaultdict(set)
    for entry, buffers, changed in launches:
        writable = {b.address for b in buffers if b.writable}
        may[entry] |= {b.name for b in buffers if b.writable}
        assert changed <= {b.name for b in buffers if b.address in writable}, entry  # one array may have two names
        written[entry] |= changed
    for entry, names in may.items():
        assert names <= written[entry], entry


def test_only_what_is_added_up_is_zeroed(launches, monkeypatch):
    """By dtype and schedule: dQ itself, or what is converted to it; dK and dV where blocks share them."""
    zeroed, zeros = [], np.zeros

    def noted(*args, **kwargs):
        zeroed.append(zeros(*args, **kwargs))
        return zeroed[-1]

    expected = {
        (FLOATS, False): {"dq"}, (HALVES, False): {"dq_acc"}, (DECODE, False): {"dq_acc", "dk_acc", "dv_acc"},
        (FLOATS, True): set(), (HALVES, True): set(), (DECODE, True): set(),
    }  # fmt: skip
    for (case, deterministic), names in expected.items():
        q, k, v, dout, lse = case.arrays()
        launches.clear(), zeroed.clear()
        with monkeypatch.context() as patch:
            patch.setattr(np, "zeros", noted)
            options = {"deterministic": deterministic, "backend": "emulator"} | case.options
            flash_attention_backward(dout, q, k, v, dout, lse, **options)
        addresses = {x.ctypes.data for x in zeroed if x.size}
        found = {b.name for _, buffers, _ in launches for b in buffers if b.address in addresses}
        assert found - ({"dq_acc"} if case is FLOATS else set()) == names, (case.dtype, deterministic)


def test_sections_of_key_heads_may_leave_a_rest(poisoned, replan):
    """The cache holds the keys of 1 to all of 4 heads in a batch; tiles hold a head or a group; blocks share keys."""
    for case, packed in ((Case(sq=120), 1), (Case(sq=130, sk=150), 2)):
        case = dataclasses.replace(case, dtype="float16", batch=(2,), heads_k=2, group=2, causal=True)
        q, k, v, *_ = case.arrays()
        exact = attention(q, k, v, **case.options)
        for sections, splits in ((1, 1), (2, 2), (3, 1), (3, 2), (5, 1)):

            def small(problem, device, tiles, sections=sections, splits=splits, packed=packed):
                key_bytes = problem.seqlen_k * 2 * 64 * 2
                device = dataclasses.replace(device, l2_bytes=2 * sections * key_bytes)
                plan = plan_forward(problem, device, tiles, num_splits=splits)
                found = plan.section_heads, plan.num_splits, plan.packed_heads
                assert found == (min(4, sections), splits, packed)
                return plan

            with replan(plan_forward=small):
                out, lse = flash_attention(q, k, v, return_lse=True, backend="emulator", **case.options)
            np.testing.assert_allclose(out.astype(float), exact.out, atol=2e-3)
            np.testing.assert_allclose(lse, exact.lse, atol=1e-5)


# ---- what kernels are told of arrays


class Recorder:
    """A runtime that keeps the parameters of each launch."""

    namespace, device = np, named("sm_80")

    def __init__(self):
        self.params = []

    def address(self, array):
        return array.ctypes.data

    def allocate(self, scratch):
        return None, 0

    def run(self, launch, params, tensors):
        if launch.kernel.entry == "attention_forward":
            self.params.append(np.frombuffer(params.tobytes(), layout("ForwardParams", launch.kernel.parts))[0])


@st.composite
def views(draw, shape, dtype, broadcast=0):
    """A view of this shape: axes but the last in any order and direction, gaps, an offset.

    Of the first `broadcast` axes some have stride 0, and the first may be that of a sliding window.
    """
    lead = len(shape) - 1
    order = draw(st.permutations(range(lead)))
    to_vectors = -shape[-1] % (16 // dtype.itemsize)
    pads, shift = [0] * lead + [to_vectors], 0
    if draw(st.booleans()):
        pads = [draw(st.sampled_from([0, 0, 1])) for _ in range(lead)] + [draw(st.sampled_from([0, 3]))]
        shift = draw(st.sampled_from([0, dtype.itemsize, 16]))
    dense = [1 if i < broadcast and draw(st.booleans()) else n for i, n in enumerate(shape)]
    sizes = [dense[i] + pads[i] for i in order] + [shape[-1] + pads[-1]]
    nbytes = math.prod(sizes) * dtype.itemsize
    memory = np.zeros(nbytes + 160, np.uint8)
    start = -memory.ctypes.data % 64 + shift
    whole = memory[start : start + nbytes].view(dtype).reshape(sizes)
    view = whole.transpose([*np.argsort(order), lead])[tuple(slice(0, n) for n in dense)]
    view = view[tuple(slice(None, None, draw(st.sampled_from([1, 1, -1]))) for _ in range(lead))]
    view = np.broadcast_to(view, shape)
    if broadcast and draw(st.booleans()):
        view = np.lib.stride_tricks.as_strided(view, shape, (dtype.itemsize, *view.strides[1:]))
    return view


def addresses(begin, strides, shape):
    """Of the elements of an array, or of the beginnings of its rows."""
    return np.int64(begin) + np.tensordot(np.asarray(strides, np.int64), np.indices(shape), 1)


@settings(max_examples=50)
@given(data=st.data(), dtype=st.sampled_from(["float16", "float32", "float64"]))
def test_parameters_lead_to_every_element(data, dtype):
    """Arrays that belong together are found together in each part of the batch; vectors are whole and aligned."""
    dtype = np.dtype(dtype)
    many = st.sampled_from([(2,) * 5, (2,) * 6, (3, 1, 2, 2, 2, 2)])  # the kernels stride through four
    batch = tuple(data.draw(many | st.lists(st.integers(1, 3), max_size=4)))
    sq, sk = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    d, dv = (data.draw(st.sampled_from([3, 5, 8, 12, 16])) for _ in range(2))
    shapes = {"q": (4, sq, d), "k": (2, sk, d), "v": (2, sk, dv), "out": (4, sq, dv)}
    arrays = {
        name: data.draw(views((*batch, *shape), dtype, 0 if name == "out" else len(batch)))
        for name, shape in shapes.items()
    }
    arrays["lse"] = np.zeros((*batch, 4, sq), np.float64 if dtype.itemsize == 8 else np.float32)
    options = {
        "mask": data.draw(views((*batch, 4, sq, sk), np.dtype(bool), len(batch))),
        "alibi_slopes": data.draw(views((*batch, 4), np.dtype(np.float32), len(batch))),
        "k_lengths": data.draw(views((*batch, 1), np.dtype(np.int64), len(batch)))[..., 0],
    }
    problem = AttentionProblem.from_arrays(arrays["q"], arrays["k"], arrays["v"], causal=True, **options)
    options, recorder = problem.expanded(np, options), Recorder()
    launch.forward(recorder, problem, Operands(**arrays, arrays=options))

    places = {(name,): x for name, x in arrays.items()}
    for struct, name in (
        ("Boolean", "mask"), ("Alibi", "alibi_slopes"), ("KeyLengths", "k_lengths"), ("Offsets", "k_lengths"),
    ):  # fmt: skip
        places["components", f"{struct}Params", name] = options[name]
    expected = [addresses(x.ctypes.data, x.strides[: len(batch)], batch).ravel() for x in places.values()]
    found = [[] for _ in places]
    for params in recorder.params:
        part = tuple(params["shape"]["batch"]["value"].tolist())
        for (place, x), begins in zip(places.items(), found, strict=True):
            name, tensor = place[-1], functools.reduce(lambda record, field: record[field], place, params)
            *_, rows, cols = x.shape if name != "lse" else (*x.shape, 1)
            strides = x.itemsize * np.concatenate([tensor["batch_strides"], [tensor["head_stride"]]])
            row, col = x.itemsize * tensor["row_stride"], x.itemsize * tensor["col_stride"]
            inner = x.strides[len(batch) :] if name != "lse" else (*x.strides[len(batch) :], x.itemsize)
            assert (*strides[4:], row, col) == inner
            begins.append(addresses(tensor["data"], strides[:4], part).ravel())
            all_rows = addresses(tensor["data"], (*strides, row), (*part, x.shape[len(batch)], rows))
            sizes = [n for n in (16, 8, 4) if col == x.itemsize and cols * x.itemsize % n == 0]
            vectors = [n for n in sizes if (all_rows % n == 0).all()]
            assert tensor["vector_bytes"] in (0, *vectors)
            if x.flags.c_contiguous and vectors:
                assert tensor["vector_bytes"] == max(n for n in vectors if x.ctypes.data % n == 0)
    found = [np.concatenate(begins) for begins in found]
    assert sorted(zip(*found, strict=True)) == sorted(zip(*expected, strict=True))


# ---- what repeated calls share


def results(case, deterministic=False, **changes):
    q, k, v, dout, dlse = case.arrays()
    options = case.options | changes
    dlse = options.pop("dlse", True) and dlse
    out, lse = flash_attention(q, k, v, return_lse=True, backend="emulator", **options)
    options |= {"deterministic": deterministic, "backend": "emulator"}
    return out, lse, *flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, **options)


def forget():
    for prepared in (launch._forward_parts, launch._backward_parts, plan_forward, plan_backward):
        prepared.cache_clear()


def bits(arrays):
    return [x.tobytes() for x in arrays]


def test_a_call_is_not_taken_for_another_that_is_like_it():
    """Calls that differ in one thing each, by turns, give what they give alone."""
    some = np.random.default_rng(0).random((40, 100)) < 0.6
    changes = [
        {}, {"causal": False, "q_offset": None}, {"q_offset": None}, {"q_offset": 19}, {"scale": 0.25}, {"scale": 0.0},
        {"dlse": None}, {"deterministic": True}, {"k_lengths": 45}, {"k_lengths": 30}, {"q_lengths": 30},
        {"k_lengths": np.array(30, np.int32)}, {"mask": some[:, ::2]}, {"mask": some[:, 1::2]}, {"mask": some[:1, ::2]},
    ]  # fmt: skip
    cases = [dataclasses.replace(FLOATS, group=1, seed=3, sq=n, sk=50) for n in (40, 41)]
    calls = [functools.partial(results, cases[0], **x) for x in changes]
    calls += [functools.partial(results, case.all_in(x)) for case in cases for x in ("bshd", "offset", "reversed")]
    alone = []
    for call in calls:
        forget()
        alone.append(bits(call()))
    forget()
    for _ in range(2):
        assert [bits(call()) for call in calls] == alone


def test_spans_begin_anew_in_each_call(replan):
    """Parameters are kept for the next call, in which the first span is the first again."""
    q, k, v, *_ = FLOATS.arrays()
    with replan(**IN_SPANS):
        first, *others = [
            bits(flash_attention(q, k, v, return_lse=True, backend="emulator", **FLOATS.options)) for _ in range(3)
        ]
    assert others == [first, first]


def test_threads_share_what_is_prepared_and_nothing_else(replan):
    def call(seed):
        with tiles() if seed % 2 else emulator.settings(seed=seed):
            return bits(results(dataclasses.replace(FLOATS, seed=seed % 3), deterministic=True))

    with replan(**IN_SPANS):
        expected = {seed: call(seed) for seed in range(3)}
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(call, range(12)))
    assert found == [expected[i % 3] for i in range(12)]
