"""Allocate, pack parameters, launch: carries out a plan and decides nothing.

The CUDA backend and the emulator share this file; a `Runtime` is what differs between them. Everything but addresses
is worked out once for each problem and layout of its arrays, so that a repeated call only fills them in.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from cupy_flash._src import packing
from cupy_flash._src.components.component import arrays_in, fill
from cupy_flash._src.device import Device
from cupy_flash._src.operands import BACKWARD, Cotangents, Gradients, Merge, Operands
from cupy_flash._src.params import BATCH_DIMS, layout
from cupy_flash._src.plan import Launch, plan_backward, plan_forward, plan_merge, plan_seal
from cupy_flash._src.problem import AttentionProblem
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


def forward(runtime: Runtime, problem: AttentionProblem, operands: Operands) -> None:
    """Write attention into `out` and `lse`.

    Where the plan splits the keys this allocates one float32 result, output and two statistics of each row, for each
    split, and one where it takes them in spans.
    """
    if operands.out.size:
        _run(runtime, problem, _forward_parts, {**operands.kept, **operands.arrays})


def backward(runtime: Runtime, problem: AttentionProblem, operands: Operands, cotangents: Cotangents) -> Gradients:
    """Return new arrays.

    What this allocates beyond them is in the notes of `cupy_flash.flash_attention_backward`.
    """
    xp = runtime.namespace
    empty = operands.q.size == 0 or operands.k.size == 0
    adds = not problem.deterministic and problem.out_storage == problem.accumulator  # atomics add to dq itself
    dq = (xp.zeros if empty or adds else xp.empty)(problem.q_shape, problem.out_storage)
    dk, dv = ((xp.zeros if empty else xp.empty)(s, problem.storage) for s in (problem.k_shape, problem.v_shape))
    gradients = Gradients(dq, dk, dv)
    if not empty:
        arrays = zip(BACKWARD, (*operands.kept.values(), *cotangents, *gradients), strict=True)
        tensors = {name: x for name, x in arrays if x is not None} | dict(operands.arrays)
        _run(runtime, problem, _backward_parts, tensors)
    return gradients


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
    _run_seal(runtime, problem, "attention_spoil", {"changed": changed} | gradients._asdict())


def _run_seal(runtime: Runtime, problem: AttentionProblem, entry: str, tensors: Tensors) -> Tensors:
    if not any(x.size == 0 for x in tensors.values()):  # a gradient of no queries, or of no keys, needs nothing kept
        _run(runtime, problem, _SEAL_PARTS[entry], tensors)
    return tensors


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
        return _part("ForwardParams", part, packing.forward_schedule(part, plan), plan.launches, parts, scratch, {})

    return tuple(part_of(*x) for x in _parts(problem, layouts))


@functools.lru_cache(maxsize=1024)
def _backward_parts(
    problem: AttentionProblem, device: Device, layouts: tuple[_Fields, ...], tiles: Tiles
) -> tuple[Part, ...]:
    def part_of(part: AttentionProblem, parts: _Offsets) -> Part:
        plan, accumulator = plan_backward(part, device, tiles), problem.accumulator
        scratch, same = [Scratch("delta", part.lse_shape, accumulator, False)], {}
        if problem.out_storage == accumulator:
            same["dq_acc"] = "dq"
        elif plan.atomic_dq:
            scratch.append(Scratch("dq_acc", part.q_shape, accumulator, True))
        if plan.num_splits > 1:
            scratch.append(Scratch("dk_acc", part.k_shape, accumulator, True))
            scratch.append(Scratch("dv_acc", part.v_shape, accumulator, True))
        schedule = packing.backward_schedule(part, plan)
        return _part("BackwardParams", part, schedule, plan.launches, parts, tuple(scratch), same)

    return tuple(part_of(*x) for x in _parts(problem, layouts))


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
    layouts = tuple(_whole(Layout(*x), batch) for x in fields)
    groups = _merged_dims(batch, layouts)
    merged = [prod(batch[i] for i in group) for group in groups]
    outer = max(0, len(groups) - BATCH_DIMS)
    part = replace(problem, batch=tuple(merged[outer:]))
    for index in product(*map(range, merged[:outer])):
        views = {}
        for x in layouts:
            strides = [x.strides[group[-1]] for group in groups]  # of a merged dimension: its innermost one's
            offset = sum(i * stride for i, stride in zip(index, strides, strict=False))
            shape, kept = (*merged[outer:], *x.shape[-3:]), (*strides[outer:], *x.strides[-3:])
            views[x.name] = x._replace(shape=shape, strides=kept), offset
        yield part, views


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
) -> Part:
    """Parameters of one part. `same` names tensors that take another's place."""
    # The longest: kernels that are made of fewer parts read what comes before.
    dtype = max((layout(struct, launch.kernel.parts) for launch in launches), key=lambda dtype: dtype.itemsize)
    params = np.zeros((), dtype)
    params["shape"] = packing.shape(problem)
    if "components" in dtype.names:  # type: ignore[operator]
        fill(params["components"], problem.components)
    for name, value in schedule.items():
        params["schedule"][name] = value
    slots = []
    sources = {name: (name, *view) for name, view in views.items()}
    sources |= {name: (other, *views[other]) for name, other in same.items()}
    sources |= {s.name: (s.name, _whole(_contiguous(problem, s), problem.batch), 0) for s in scratch}
    places = _tensors_in(dtype, problem)
    for name, (source, x, offset) in sources.items():
        for path in places[name]:
            record, start = params, 0
            for step in path:
                start += record.dtype.fields[step][1]
                record = record[step]
            record[()] = _pack(x, offset)
            slots.append((source, start // 8, offset))
    return Part(launches, params.reshape(1).view(f"V{dtype.itemsize}"), dtype, tuple(slots), scratch, same)


def _tensors_in(dtype: np.dtype, problem: AttentionProblem) -> dict[str, list[tuple[str, ...]]]:
    """Where the parameters have the tensors of each name: those of an option may stand in several components."""
    places: dict[str, list[tuple[str, ...]]] = {name: [(name,)] for name in dtype.names or ()}
    if "components" in places:
        for struct, name in arrays_in(dtype["components"], problem.components):
            places.setdefault(name, []).append(("components", struct, name))
    return places


def _contiguous(problem: AttentionProblem, scratch: Scratch) -> Layout:
    """Layout of a new array; of one result for each split, the first's."""
    first = scratch.shape[1:] if scratch.name.startswith("partial") else scratch.shape
    itemsize = scratch.dtype.itemsize
    strides = tuple(itemsize * prod(first[i + 1 :]) for i in range(len(first)))
    return Layout(scratch.name, first, strides, itemsize, 0)


def _pack(x: Layout, offset: int) -> tuple[Any, ...]:
    """The fields of Tensor in params.cuh, without the address."""
    *batch, head, row, col = x.strides
    # A power of two divides all of them exactly if it divides their bits put together.
    together = functools.reduce(operator.or_, (x.misalignment, offset, *batch, head, row, x.shape[-1] * x.itemsize))
    vector_bytes = next((n for n in _VECTOR_SIZES if together % n == 0 and col == x.itemsize), 0)
    batch = [0] * (BATCH_DIMS - len(batch)) + [stride // x.itemsize for stride in batch]
    return 0, batch, head // x.itemsize, row // x.itemsize, col // x.itemsize, vector_bytes
