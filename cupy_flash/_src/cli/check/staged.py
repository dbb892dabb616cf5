"""The steps of a check, told as it goes: compile, load, launch, fault."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cupy_flash._src import backends, compile, emulator
from cupy_flash._src.backends.cupy_ import _kernel
from cupy_flash._src.backends.emulator import _text
from cupy_flash._src.cli.problems import Problem
from cupy_flash._src.cli.worker import stage
from cupy_flash._src.device import Device
from cupy_flash._src.emulator.module import load
from cupy_flash._src.launch import Tensors
from cupy_flash._src.plan import Launch, plan_backward, plan_forward, plan_seal, plan_spoil_term
from cupy_flash._src.specialization import Specialization


def runtime_of(backend: str) -> Any:
    """The instance that calls with this backend use."""
    return backends.select(backend)[0]


def synchronize(backend: str) -> None:
    if backend == "cuda":
        runtime_of(backend).namespace.cuda.runtime.deviceSynchronize()


def launches_of(device: Device, p: Problem, *, sealed: bool = False) -> list[Launch]:
    """Of a forward and a backward; `sealed` ones are those of a vjp, which notices arrays that have changed."""
    problem = p.problem()
    if not (problem.seqlen_q and problem.seqlen_k):
        return []
    found = [*plan_forward(problem, device).all_launches, *plan_backward(problem, device).all_launches]
    if sealed:
        entries = ("attention_seal", "attention_find_changed", "attention_spoil")
        found += [plan_seal(problem.without_terms, entry) for entry in entries]
        found += [plan_spoil_term(problem, term) for term in problem.terms]
    return found


def ready(backend: str, launches: Iterable[Launch]) -> None:
    """Compile and load the kernels that a check launches."""
    runtime = runtime_of(backend)
    for kernel in dict.fromkeys(launch.kernel for launch in launches):
        stage("compile", _named(kernel))
        if backend == "cuda":
            compile.to_cubin(kernel, runtime.device.arch)
            stage("load", _named(kernel))
            _kernel(kernel, runtime.namespace.cuda.runtime.getDevice())
        else:
            load(_text(kernel, runtime.device.arch, emulator.current().path), emulator.current().mode)


def _named(kernel: Specialization) -> str:
    return f"{kernel.entry} of {kernel.source}"


@contextmanager
def one_by_one(backend: str) -> Iterator[None]:
    """Every launch is waited for, so that a failure has the name of its kernel."""
    runtime = runtime_of(backend)
    launch = runtime.run

    def run(step: Launch, params: np.ndarray, tensors: Tensors) -> None:
        stage("launch", _named(step.kernel))
        try:
            launch(step, params, tensors)
        except emulator.EmulatorError as error:
            if error.kind != "launch":
                stage("fault", _named(step.kernel))
            raise
        stage("fault", _named(step.kernel))
        synchronize(backend)

    stage("launch")
    runtime.run = run
    try:
        yield
    finally:
        del runtime.run
