"""Allocate, pack parameters, launch: carries out a plan and decides nothing.

The CUDA backend and the emulator share this file; a `Runtime` is what differs between them. Everything but addresses
is worked out once for each problem and layout of its arrays, so that a repeated call only fills them in.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from cupy_flash._src import packing
from cupy_flash._src.components.component import arrays_in, fill
from cupy_flash._src.components.mods import captured_name, is_captured
from cupy_flash._src.device import Device
from cupy_flash._src.guards import check_indices
from cupy_flash._src.operands import BACKWARD, Cotangents, Gradients, Merge, Operands
from cupy_flash._src.params import BATCH_DIMS, layout
from cupy_flash._src.plan import (
    ADD,
    ADD_WHOLE,
    SIZES,
    Launch,
    ListPlan,
    SummaryPlan,
    gathered,
    plan_backward,
    plan_forward,
    plan_merge,
    plan_seal,
    plan_spoil_term,
    plan_summaries,
    plan_term,
)
from cupy_flash._src.problem import DTYPES, AttentionProblem, Term
from cupy_flash._src.tiles import VECTOR_BYTES, Tiles
from cupy_flash._src.tuning import tiles_by_hand

Tensors = dict[str, Any]  # arrays of shape (*batch, heads, rows, cols), or without cols, by their name in params.cuh


@dataclass(frozen=True)
class Scratch:
    """Memory that a part needs for itself."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    zeroed: bool

    @functools.cached_property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Runtime(Protocol):
    """Where arrays are allocated and kernels run."""

    @property
    def namespace(self) -> Any:
        """numpy or cupy."""

    @property
    def device(self) -> Device:
        """What plans are made for."""

    def address(self, array: Any) -> int:
        """Address of the first element."""

    def allocate(self, scratch: Scratch) -> tuple[Any, int]:
        """Memory that is given back with what stands for it, and its address."""

    def run(self, launch: Launch, params: np.ndarray, tensors: Tensors) -> None:
        """Start one kernel; `tensors` are the arrays, and what stands for scratch, that `params` points into.

        `params` is one item without fields: CuPy passes its bytes by value in 1 us. It would list the fields of a
        structure first, 30 us for each kernel of a forward and 50 of a backward.
        """


_VECTOR_SIZES = VECTOR_BYTES, VECTOR_BYTES // 2, VECTOR_BYTES // 4  # of Tensor::vector_bytes


class Layout(NamedTuple):
    """What a kernel has to know of an array apart from its address."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    misalignment: int  # of the address, modulo VECTOR_BYTES


@dataclass(frozen=True, eq=False)
class Part:
    """One part of the batch, ready to launch but for addresses: what repeated calls share.

    Attributes
    ----------
    launches : list of Launch
        In order.
    params : numpy.ndarray
        The parameters without addresses, as one item without fields.
    dtype : numpy.dtype
        Their structure.
    slots : tuple of (str, int, int)
        A tensor, the 64-bit word that takes its address, and the offset of the part within it in bytes.
    scratch : tuple of Scratch
        What to allocate first.
    same : dict of str to str
        Tensors that are another one too.
    """

    launches: list[Launch]
    params: np.ndarray
    dtype: np.dtype
    slots: tuple[tuple[str, int, int], ...]
    scratch: tuple[Scratch, ...]
    same: dict[str, str]

    def run(self, runtime: Runtime, tensors: Tensors, addresses: dict[str, int]) -> None:
        tensors, addresses = tensors.copy(), addresses.copy()
        for scratch in self.scratch:
            tensors[scratch.name], addresses[scratch.name] = runtime.allocate(scratch)
        for name, other in self.same.items():
            tensors[name] = tensors[other]
        params = self.params.copy()
        words = params.view(np.uint64)
        for name, word, offset in self.slots:
            words[word] = addresses[name] + offset
        for launch in self.launches:
            if launch.span:  # spans count up from 0, which the parameters say already
                params.view(self.dtype)["schedule"]["span"] = launch.span
            runtime.run(launch, params, tensors)


def _prepared(runtime: Runtime, problem: AttentionProblem, arrays: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arrays among the options, in which functions look up what there is, and summaries of them."""
    if not problem.mods:
        return arrays
    check_indices(runtime.namespace, problem, arrays)
    return {**arrays, **_summaries(runtime, problem, arrays)}


def _summaries(runtime: Runtime, problem: AttentionProblem, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Of arrays of ints that a traced mask looks up by positions: minima and maxima of neighbours, by their names."""
    made: dict[str, Any] = {}
    for plan in plan_summaries(problem):
        array, key = arrays[plan.name], f"summary of {plan.name}"
        made[key] = runtime.namespace.empty((*plan.rows, plan.chunks, 2), np.float64)
        tensors = {"data": array, "summary": made[key]}
        part = _summary_part(plan, array.shape, array.strides, array.itemsize)
        part.run(runtime, tensors, {n: runtime.address(x) for n, x in tensors.items()})
    return made


@functools.lru_cache(maxsize=1024)
def _summary_part(plan: SummaryPlan, shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> Part:
    layout_ = layout("SummaryParams")
    params = np.zeros((), layout_)
    missing = layout_["sizes"].shape[0] - len(plan.rows)
    elements = [stride // itemsize for stride in strides]
    params["sizes"] = (*[1] * missing, *plan.rows)
    params["strides"] = (*[0] * missing, *elements[: plan.axis], *elements[plan.axis + 1 :])
    params["stride"], params["rows"] = elements[plan.axis], prod(plan.rows)
    params["length"], params["chunks"] = shape[plan.axis], plan.chunks
    slots = tuple((name, layout_.fields[name][1] // 8, 0) for name in ("data", "summary"))  # type: ignore[index]
    return Part([plan.launch], params.reshape(1).view(f"V{layout_.itemsize}"), layout_, slots, (), {})


def forward(runtime: Runtime, problem: AttentionProblem, operands: Operands) -> None:
    """Write attention into `out` and `lse`.

    Where the plan splits the keys this allocates one float32 result, output and two statistics of each row, for each
    split, and one where it takes them in spans.
    """
    if operands.out.size:
        _run(runtime, problem, _forward_parts, {**operands.kept, **_prepared(runtime, problem, operands.arrays)})


def backward(runtime: Runtime, problem: AttentionProblem, operands: Operands, cotangents: Cotangents) -> Gradients:
    """Return new arrays.

    What this allocates beyond them is in the notes of `cupy_flash.flash_attention_backward`.
    """
    xp, accumulator = runtime.namespace, problem.accumulator
    empty = operands.q.size == 0 or operands.k.size == 0
    # Atomics add to dq itself, where it is of their type.
    cleared = {"dq": empty or (not problem.deterministic and problem.out_storage == accumulator)}

    def new(name: str, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return (xp.zeros if cleared.get(name, empty) else xp.empty)(shape, dtype)

    wanted = {
        "dq": (problem.q_shape, problem.out_storage),
        "dk": (problem.k_shape, problem.storage),
        "dv": (problem.v_shape, problem.storage),
    }
    dq, dk, dv = (new(name, *of) if name[1:] in problem.wrt else None for name, of in wanted.items())
    terms = {term.keyword: new("dterm", term.shape, DTYPES[term.dtype]) for term in problem.terms}
    mods = [score for score in problem.scores if score.captured in problem.wrt]
    captured = {mod.captured: mod.new_gradients(xp, accumulator) for mod in mods}
    left = problem
    if operands.k.size == 0:  # of rows without keys sinks are all there is
        of_sinks = tuple(term for term in problem.terms if term.keyword == "sinks")
        left = replace(problem, wrt=("sinks",), terms=of_sinks)
    if not empty or (operands.q.size and left.terms):
        named = zip(BACKWARD, (*operands.kept.values(), *cotangents, dq, dk, dv), strict=True)
        arrays = _prepared(runtime, problem, operands.arrays)
        tensors = {**{name: x for name, x in named if x is not None and x.size}, **arrays}
        if terms or mods:
            tensors["delta"] = xp.empty(problem.lse_shape, accumulator)
        _run(runtime, left.without_terms, _backward_parts, tensors)
        for term in left.terms:
            given = {name: x for name, x in tensors.items() if name in _TERM_TENSORS or name in arrays}
            # A view with an element for each query, and for each key where keys have their own.
            given["dterm"] = xp.broadcast_to(terms[term.keyword], (*problem.lse_shape, term.shape[-1]))
            _run(runtime, replace(problem, terms=(term,)), _term_parts, given)
        for mod in mods if not empty else ():
            given = {name: x for name, x in tensors.items() if name in _TERM_TENSORS or name in arrays}
            captured[mod.captured] = _gathered(runtime, problem, mod.captured, captured[mod.captured], given)
    return Gradients(dq, dk, dv, terms, captured)


_LIMB_BITS, _EXPONENT, _NOT_FINITE = 22, 2000, 5000


def _gathered(
    runtime: Runtime, problem: AttentionProblem, keyword: str, zeros: tuple[Any, ...], tensors: Tensors
) -> tuple[Any, ...]:
    """Gradients of what a function captures; `zeros` are arrays of their shapes, None where there is none."""
    xp, accumulator = runtime.namespace, problem.accumulator
    terms = {term.gather: term for term in gathered(problem) if term.keyword == keyword}

    def run(gather: int, *arrays: tuple[str, list[Any]]) -> None:
        named = {
            f"{what} of {captured_name(keyword, n)}": x
            for what, of_each in arrays
            for n, x in enumerate(of_each)
            if x is not None and x.size
        }
        _run(runtime, replace(problem, terms=(terms[gather],)), _gather_parts, {**tensors, **named})

    def each(make: Callable[[Any], Any]) -> list[Any]:
        return [None if x is None else make(x) for x in zeros]

    if not problem.deterministic:
        run(ADD, ("gradient", list(zeros)))
        return zeros
    limbs = 2 if accumulator.itemsize == 4 else 3
    exponents = each(lambda x: xp.zeros(1, np.int32))
    sums = each(lambda x: xp.zeros((limbs, *x.shape), np.int64))
    run(SIZES, ("gradient", exponents))
    run(ADD_WHOLE, ("gradient", sums), ("exponent", exponents))
    return tuple(
        None if x is None else _from_limbs(xp, x, exponent, accumulator)
        for x, exponent in zip(sums, exponents, strict=True)
    )


def _from_limbs(xp: Any, sums: Any, exponent: Any, dtype: np.dtype) -> Any:
    total = xp.zeros(sums.shape[1:], np.float64)
    for limb in reversed(range(len(sums))):  # the least first
        unit = exponent[0] - (_EXPONENT + _LIMB_BITS - 1 + limb * _LIMB_BITS)
        total += xp.ldexp(sums[limb].astype(np.float64), unit)
    return xp.where(exponent[0] == _NOT_FINITE, np.nan, total).astype(dtype)


def merge(runtime: Runtime, problem: AttentionProblem, parts: Merge) -> None:
    """Write into `out` and `lse` the attention over the keys of both results."""
    if parts.out.size:
        _run(runtime, problem, _merge_parts, parts._asdict())


def seal(runtime: Runtime, problem: AttentionProblem, kept: Operands) -> Tensors:
    """Note what arrays hold: the arrays and, in 32 bits for each of their rows, digests."""
    empty = runtime.namespace.empty
    digests = {
        "query_digests": empty((*problem.lse_shape, 3), np.int32),
        "key_digests": empty((*problem.k_shape[:-1], 2), np.int32),
    }
    return _run_seal(runtime, problem, "attention_seal", kept.kept | digests)


def find_changed(runtime: Runtime, problem: AttentionProblem, sealed: Tensors) -> Any:
    """Which of q, k, v, out and lse no longer hold what `seal` noted: five integers, 0 or 1."""
    changed = runtime.namespace.zeros(5, np.int32)
    _run_seal(runtime, problem, "attention_find_changed", sealed | {"changed": changed})
    return changed


def spoil(runtime: Runtime, problem: AttentionProblem, changed: Any, gradients: Gradients) -> None:
    """Fill the gradients with NaN if anything changed."""
    wanted = {name: x for name, x in zip(("dq", "dk", "dv"), gradients, strict=False) if x is not None}
    _run_seal(runtime, problem.without_terms, "attention_spoil", {"changed": changed} | wanted)
    parts = [(term, gradients.terms[term.keyword]) for term in problem.terms]
    for keyword, found in gradients.captured.items():
        parts += [(Term(keyword, x.shape, x.dtype.name), x) for x in found if x is not None]
    for term, x in parts:
        flat = x.reshape(1, 1, -1)
        if flat.size:
            of_elements = replace(problem, batch=(), terms=(term._replace(shape=flat.shape),))
            _run(runtime, of_elements, _spoil_term_parts, {"changed": changed, "dterm": flat})


def _run_seal(runtime: Runtime, problem: AttentionProblem, entry: str, tensors: Tensors) -> Tensors:
    if 0 not in problem.lse_shape:  # a gradient of no queries needs nothing kept
        _run(runtime, problem, _SEAL_PARTS[entry], {name: x for name, x in tensors.items() if x.size})
    return tensors


_TERM_TENSORS = ("q", "k", "v", "dout", "lse", "delta")
_Fields = tuple[str, tuple[int, ...], tuple[int, ...], int, int]  # of a Layout; a plain tuple is made sooner
Prepare = Callable[[AttentionProblem, Device, tuple[_Fields, ...], Tiles], tuple[Part, ...]]


def _run(runtime: Runtime, problem: AttentionProblem, prepare: Prepare, tensors: Tensors) -> None:
    addresses = {name: runtime.address(x) for name, x in tensors.items()}
    layouts = [(name, x.shape, x.strides, x.itemsize, addresses[name] % VECTOR_BYTES) for name, x in tensors.items()]
    for part in prepare(problem, runtime.device, tuple(layouts), tiles_by_hand()):
        part.run(runtime, tensors, addresses)


@functools.lru_cache(maxsize=1024)
def _forward_parts(
    problem: AttentionProblem, device: Device, layouts: tuple[_Fields, ...], tiles: Tiles
) -> tuple[Part, ...]:
    def part_of(part: AttentionProblem, parts: _Offsets) -> Part:
        plan = plan_forward(part, device, tiles)
        scratch: tuple[Scratch, ...] = ()
        if plan.num_splits > 1 or plan.num_spans > 1:
            splits, accumulator = (plan.num_splits,), problem.accumulator
            scratch = (
                Scratch("partial_out", splits + part.out_shape, accumulator, False),
                Scratch("partial_rows", (*splits, *part.lse_shape, 2), accumulator, False),
            )
        schedule = packing.forward_schedule(part, plan)
        return _part("ForwardParams", part, schedule, plan.launches, parts, scratch, {}, plan.lists)

    return tuple(part_of(*x) for x in _parts(problem, layouts))


@functools.lru_cache(maxsize=1024)
def _backward_parts(
    problem: AttentionProblem, device: Device, layouts: tuple[_Fields, ...], tiles: Tiles
) -> tuple[Part, ...]:
    def part_of(part: AttentionProblem, parts: _Offsets) -> Part:
        plan, accumulator = plan_backward(part, device, tiles), problem.accumulator
        scratch, same = [], {}
        if "delta" not in parts:
            scratch.append(Scratch("delta", part.lse_shape, accumulator, False))
        if "dq" in parts and problem.out_storage == accumulator:
            same["dq_acc"] = "dq"
        elif plan.atomic_dq:
            scratch.append(Scratch("dq_acc", part.q_shape, accumulator, True))
        if plan.num_splits > 1:
            shapes = {"dk": part.k_shape, "dv": part.v_shape}
            scratch += [Scratch(f"{x}_acc", shape, accumulator, True) for x, shape in shapes.items() if x in parts]
        schedule = packing.backward_schedule(part, plan)
        return _part("BackwardParams", part, schedule, plan.launches, parts, tuple(scratch), same, plan.lists)

    return tuple(part_of(*x) for x in _parts(problem, layouts))


@functools.lru_cache(maxsize=1024)
def _term_parts(
    problem: AttentionProblem, device: Device, layouts: tuple[_Fields, ...], tiles: Tiles
) -> tuple[Part, ...]:
    """Of a problem with one term."""
    parts, seen, made = list(_parts(problem, layouts)), set(), []
    for part, offsets in parts:  # of several, a half type's element is rounded once for each
        (term,) = part.terms
        plan = plan_term(part, device, term, None if len(parts) == 1 else 1)
        begin = offsets["dterm"][1]
        schedule = packing.term_schedule(part, plan, is_added=begin in seen)
        seen.add(begin)
        scratch: tuple[Scratch, ...] = ()
        if plan.num_splits > 1:
            scratch = (Scratch("dterm_parts", (plan.num_splits, *term.shape), problem.accumulator, False),)
        made.append(_part("TermParams", part, schedule, plan.launches, offsets, scratch, {}, plan.lists))
    return tuple(made)


@functools.lru_cache(maxsize=1024)
def _gather_parts(
    problem: AttentionProblem, device: Device, layouts: tuple[_Fields, ...], tiles: Tiles
) -> tuple[Part, ...]:
    """Of a problem with one term, of what a function captures."""
    made = []
    for part, offsets in _parts(problem, layouts):
        (term,) = part.terms
        plan = plan_term(part, device, term)
        schedule = packing.term_schedule(part, plan, is_added=False)
        made.append(_part("TermParams", part, schedule, plan.launches, offsets, (), {}, plan.lists))
    return tuple(made)


@functools.lru_cache(maxsize=1024)
def _spoil_term_parts(
    problem: AttentionProblem, device: Device, layouts: tuple[_Fields, ...], tiles: Tiles
) -> tuple[Part, ...]:
    (term,) = problem.terms
    schedule, launches = {"split_stride": prod(term.shape)}, [plan_spoil_term(problem, term)]
    return tuple(_part("TermParams", part, schedule, launches, x, (), {}) for part, x in _parts(problem, layouts))


@functools.lru_cache(maxsize=1024)
def _merge_parts(
    problem: AttentionProblem, device: Device, layouts: tuple[_Fields, ...], tiles: Tiles
) -> tuple[Part, ...]:
    parts = _parts(problem, layouts)
    return tuple(_part("MergeParams", part, {}, [plan_merge(part)], offsets, (), {}) for part, offsets in parts)


@functools.lru_cache(maxsize=1024)
def _seal_parts(
    problem: AttentionProblem, device: Device, layouts: tuple[_Fields, ...], tiles: Tiles, entry: str
) -> tuple[Part, ...]:
    parts = _parts(problem, layouts)
    return tuple(_part("SealParams", part, {}, [plan_seal(part, entry)], offsets, (), {}) for part, offsets in parts)


_SEAL_PARTS = {
    entry: functools.partial(_seal_parts, entry=entry)
    for entry in ("attention_seal", "attention_find_changed", "attention_spoil")
}


_Offsets = dict[str, tuple[Layout, int]]  # a tensor's part of the batch, and where in the tensor it begins


def _parts(problem: AttentionProblem, fields: tuple[_Fields, ...]) -> Iterator[tuple[AttentionProblem, _Offsets]]:
    """Split the batch so that each part has at most BATCH_DIMS dimensions: one part in all but exotic views."""
    batch = problem.batch
    captured = {x[0]: (Layout(*x), 0) for x in fields if is_captured(x[0])}
    layouts = tuple(_whole(Layout(*x), batch) for x in fields if x[0] not in captured)
    groups = _merged_dims(batch, layouts)
    merged = [prod(batch[i] for i in group) for group in groups]
    outer = max(0, len(groups) - BATCH_DIMS)
    terms = tuple(_merged_term(term, groups[outer:]) for term in problem.terms)
    whole = replace(problem, batch=tuple(merged[outer:]), terms=terms)
    for number, index in enumerate(product(*map(range, merged[:outer]))):
        part = replace(whole, first_batch=number * prod(whole.batch)) if number else whole
        views = {}
        for x in layouts:
            strides = [x.strides[group[-1]] for group in groups]  # of a merged dimension: its innermost one's
            offset = sum(i * stride for i, stride in zip(index, strides, strict=False))
            shape, kept = (*merged[outer:], *x.shape[-3:]), (*strides[outer:], *x.strides[-3:])
            views[x.name] = x._replace(shape=shape, strides=kept), offset
        yield part, views | captured


def _merged_term(term: Term, groups: list[list[int]]) -> Term:
    """The term of a part, of whose dimensions each is a group, own or constant as a whole."""
    return term._replace(shape=(*(prod(term.shape[i] for i in group) for group in groups), *term.shape[-3:]))


def _whole(x: Layout, batch: tuple[int, ...]) -> Layout:
    """A row statistic as a tensor of one column, and five flags as a row that the whole batch has in common."""
    if x.name == "changed":
        return x._replace(shape=(*batch, 1, 1, *x.shape), strides=(*(0 for _ in batch), 0, 0, *x.strides))
    if len(x.shape) == len(batch) + 3:
        return x
    return x._replace(shape=(*x.shape, 1), strides=(*x.strides, x.itemsize))


def _merged_dims(batch: tuple[int, ...], layouts: tuple[Layout, ...]) -> list[list[int]]:
    """Neighbouring batch dimensions that every tensor strides through as one; those of size 1 are left out."""
    groups: list[list[int]] = []
    for i in (i for i, n in enumerate(batch) if n != 1):
        if groups and all(x.strides[groups[-1][-1]] == x.strides[i] * batch[i] for x in layouts):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _part(
    struct: str,
    problem: AttentionProblem,
    schedule: dict[str, Any],
    launches: list[Launch],
    views: _Offsets,
    scratch: tuple[Scratch, ...],
    same: dict[str, str],
    lists: tuple[ListPlan, ...] = (),
) -> Part:
    """Parameters of one part. `same` names tensors that take another's place."""
    launches = [*(made.launch for made in lists), *launches]
    # The longest: kernels that are made of fewer parts read what comes before.
    dtype = max((layout(struct, launch.kernel.parts) for launch in launches), key=lambda dtype: dtype.itemsize)
    params = np.zeros((), dtype)
    params["shape"] = packing.shape(problem)
    if "components" in dtype.names:  # type: ignore[operator]
        fill(params["components"], problem.components)
    for made in lists:
        sizes = made.batches, made.heads, made.rows, made.columns, made.packed_heads
        params["components"]["MaskModParams"][made.name] = 0, *sizes
    of_lists = tuple(_of_lists(made) for made in lists)
    for name, value in schedule.items():
        params["schedule"][name] = value
    slots = []
    sources = {name: (name, *view) for name, view in views.items()}
    sources |= {name: (other, *views[other]) for name, other in same.items()}
    sources |= {s.name: (s.name, _whole(_contiguous(problem, s), problem.batch), 0) for s in scratch}
    sources |= {s.name: (s.name, _contiguous(problem, s), 0) for s in of_lists}
    scratch = (*scratch, *of_lists)
    places = _tensors_in(dtype, problem)
    for name, (source, x, offset) in sources.items():
        for path in places.get(name, ()):  # none: of sinks the backward knows by lse
            record, start = params, 0
            for step in path:
                start += record.dtype.fields[step][1]
                record = record[step]
            if record.dtype == layout("Tensor"):  # of others components tell the sizes
                record[()] = _pack(x, offset)
            slots.append((source, start // 8, offset))
    return Part(launches, params.reshape(1).view(f"V{dtype.itemsize}"), dtype, tuple(slots), scratch, same)


def _of_lists(plan: ListPlan) -> Scratch:
    shape = plan.batches, plan.heads, plan.rows, 2 + plan.columns
    return Scratch(plan.name, shape, np.dtype(np.int32), False)


def _tensors_in(dtype: np.dtype, problem: AttentionProblem) -> dict[str, list[tuple[str, ...]]]:
    """Where the parameters have the tensors of each name: those of an option may stand in several components."""
    places: dict[str, list[tuple[str, ...]]] = {name: [(name,)] for name in dtype.names or ()}
    if "components" in places:
        for path, name in arrays_in(dtype["components"], problem.components):
            places.setdefault(name, []).append(("components", *path))
    return places


def _contiguous(problem: AttentionProblem, scratch: Scratch) -> Layout:
    """Layout of a new array; of one result for each split, the first's."""
    first = scratch.shape[1:] if scratch.name in _OF_SPLITS else scratch.shape
    itemsize = scratch.dtype.itemsize
    strides = tuple(itemsize * prod(first[i + 1 :]) if n > 1 else 0 for i, n in enumerate(first))
    return Layout(scratch.name, first, strides, itemsize, 0)


_OF_SPLITS = ("partial_out", "partial_rows", "dterm_parts")


def _pack(x: Layout, offset: int) -> tuple[Any, ...]:
    """The fields of Tensor in params.cuh, without the address."""
    *batch, head, row, col = x.strides
    # A power of two divides all of them exactly if it divides their bits put together.
    together = functools.reduce(operator.or_, (x.misalignment, offset, *batch, head, row, x.shape[-1] * x.itemsize))
    vector_bytes = next((n for n in _VECTOR_SIZES if together % n == 0 and col == x.itemsize), 0)
    batch = [0] * (BATCH_DIMS - len(batch)) + [stride // x.itemsize for stride in batch]
    return 0, batch, head // x.itemsize, row // x.itemsize, col // x.itemsize, vector_bytes
