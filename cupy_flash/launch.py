"""Allocate, pack parameters, launch: carries out a plan and decides nothing.

The CUDA backend and the emulator share this file; a `Runtime` is what differs between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any, Protocol

import numpy as np

from cupy_flash.device import Device
from cupy_flash.params import BACKWARD_PARAMS, BATCH_DIMS, FORWARD_PARAMS, MERGE_PARAMS
from cupy_flash.plan import Launch, plan_backward, plan_forward, plan_merge
from cupy_flash.problem import AttentionProblem
from cupy_flash.tiles import VECTOR_BYTES

Tensors = dict[str, Any]  # arrays of shape (*batch, heads, rows, cols) by their name in params.cuh


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

    def run(self, launch: Launch, params: np.ndarray, tensors: Tensors) -> None:
        """Start one kernel; `tensors` are the arrays that `params` points to."""


def forward(runtime: Runtime, problem: AttentionProblem, q: Any, k: Any, v: Any, out: Any, lse: Any) -> None:
    """Write attention into `out` and `lse`.

    Where the plan splits the keys this allocates one float32 result, output and log-sum-exp, for each split.
    """
    if out.size == 0:
        return
    tensors = {"q": q, "k": k, "v": v, "out": out, "lse": lse[..., None]}
    for part, views in _parts(problem, tensors):
        plan = plan_forward(part, runtime.device)
        partial = _partial_results(runtime, part, plan.num_splits)
        params = _pack(runtime, FORWARD_PARAMS, part, views | {name: x[0] for name, x in partial.items()})
        params["schedule"] = (plan.num_splits, plan.packed_heads, plan.section_heads, 0)
        for launch in plan.launches:
            runtime.run(launch, params, views | partial)


def backward(
    runtime: Runtime,
    problem: AttentionProblem,
    dout: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    dlse: Any | None,
    deterministic: bool,
) -> tuple[Any, Any, Any]:
    """Return dq, dk, dv of shapes q_shape, k_shape, v_shape.

    What this allocates beyond the results is in the notes of `cupy_flash.flash_attention_backward`.
    """
    xp = runtime.namespace
    if q.size == 0 or k.size == 0:
        dq, dk, dv = (xp.zeros(s, problem.storage) for s in (problem.q_shape, problem.k_shape, problem.v_shape))
        return dq, dk, dv
    half = problem.storage != problem.accumulator
    dq = (xp.empty if half or deterministic else xp.zeros)(problem.q_shape, problem.storage)
    dk, dv = xp.empty(problem.k_shape, problem.storage), xp.empty(problem.v_shape, problem.storage)
    tensors = {
        "q": q,
        "k": k,
        "v": v,
        "out": out,
        "dout": dout,
        "lse": lse[..., None],
        "delta": xp.empty((*problem.lse_shape, 1), problem.accumulator),
        "dq": dq,
        "dk": dk,
        "dv": dv,
    }
    if dlse is not None:
        tensors["dlse"] = dlse[..., None]
    for part, views in _parts(problem, tensors):
        plan = plan_backward(part, runtime.device, deterministic)
        if plan.atomic_dq:
            views["dq_acc"] = xp.zeros(part.q_shape, part.accumulator) if half else views["dq"]
        if plan.num_splits > 1:
            views["dk_acc"] = xp.zeros(part.k_shape, part.accumulator)
            views["dv_acc"] = xp.zeros(part.v_shape, part.accumulator)
        params = _pack(runtime, BACKWARD_PARAMS, part, views)
        params["schedule"] = (plan.num_splits, 1, 1, 0)
        for launch in plan.launches:
            runtime.run(launch, params, views)
    return dq, dk, dv


def merge(
    runtime: Runtime, problem: AttentionProblem, out_a: Any, lse_a: Any, out_b: Any, lse_b: Any, out: Any, lse: Any
) -> None:
    """Write into `out` and `lse` the attention over the keys of both results."""
    if out.size == 0:
        return
    tensors = {"out_a": out_a, "lse_a": lse_a, "out_b": out_b, "lse_b": lse_b, "out": out, "lse": lse}
    tensors = {name: x[..., None] if name.startswith("lse") else x for name, x in tensors.items()}
    for part, views in _parts(problem, tensors):
        runtime.run(plan_merge(part), _pack(runtime, MERGE_PARAMS, part, views), views)


def _partial_results(runtime: Runtime, problem: AttentionProblem, num_splits: int) -> Tensors:
    """Room for the result of every split, first axis the split; nothing where keys are not split."""
    if num_splits == 1:
        return {}
    empty, accumulator = runtime.namespace.empty, problem.accumulator
    return {
        "partial_out": empty((num_splits, *problem.out_shape), accumulator),
        "partial_lse": empty((num_splits, *problem.lse_shape, 1), accumulator),
    }


def _parts(problem: AttentionProblem, tensors: Tensors) -> Iterator[tuple[AttentionProblem, Tensors]]:
    """Split the batch so that each part has at most BATCH_DIMS dimensions: one part in all but exotic views."""
    batch, tensors = _merge_batch(problem.batch, tensors)
    outer = batch[: max(0, len(batch) - BATCH_DIMS)]
    part = replace(problem, batch=batch[len(outer) :])
    for index in product(*map(range, outer)):
        yield part, {name: x[index] for name, x in tensors.items()}


def _merge_batch(batch: tuple[int, ...], tensors: Tensors) -> tuple[tuple[int, ...], Tensors]:
    """Merge neighbouring batch dimensions that every tensor strides through as one; views, never copies."""
    dims = [i for i, n in enumerate(batch) if n != 1]
    groups: list[list[int]] = []
    for i in dims:
        if groups and all(x.strides[groups[-1][-1]] == x.strides[i] * batch[i] for x in tensors.values()):
            groups[-1].append(i)
        else:
            groups.append([i])
    merged = tuple(int(np.prod([batch[i] for i in group])) for group in groups)
    if merged == batch:
        return batch, tensors
    return merged, {name: _with_batch(x, merged, [g[-1] for g in groups]) for name, x in tensors.items()}


def _with_batch(x: Any, batch: tuple[int, ...], axes: list[int]) -> Any:
    """View of x whose batch dimensions have these sizes and the strides of these axes."""
    shape = (*batch, *x.shape[-3:])
    strides = (*(x.strides[axis] for axis in axes), *x.strides[-3:])
    if isinstance(x, np.ndarray):
        return np.lib.stride_tricks.as_strided(x, shape, strides)
    from cupy.lib.stride_tricks import as_strided

    return as_strided(x, shape, strides)


def _pack(runtime: Runtime, dtype: np.dtype, problem: AttentionProblem, tensors: Tensors) -> np.ndarray:
    params = np.zeros((), dtype)
    batch = (1,) * (BATCH_DIMS - len(problem.batch)) + problem.batch
    params["shape"] = (
        batch,
        problem.num_heads_q,
        problem.num_heads_k,
        problem.seqlen_q,
        problem.seqlen_k,
        problem.head_dim,
        problem.head_dim_v,
        problem.q_offset,
        0,
        problem.scale,
    )
    for name, x in tensors.items():
        params[name] = _pack_tensor(x, runtime.address(x))
    return params


def _pack_tensor(x: Any, address: int) -> tuple[Any, ...]:
    itemsize = x.dtype.itemsize
    *batch, head, row, col = x.strides
    vectorized = (
        col == itemsize
        and x.shape[-1] * itemsize % VECTOR_BYTES == 0
        and address % VECTOR_BYTES == 0
        and all(stride % VECTOR_BYTES == 0 for stride in (*batch, head, row))
    )
    batch = [0] * (BATCH_DIMS - len(batch)) + [stride // itemsize for stride in batch]
    return address, batch, head // itemsize, row // itemsize, col // itemsize, vectorized
