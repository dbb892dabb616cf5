"""compile ahead of time: CUDA kernels for any architecture, with or without a GPU, and the CPU backend

The results go to the cache, where every later process finds them, one that cannot write there or has no compiler too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cupy_flash._src import cache, device, plan
from cupy_flash._src.backends import native
from cupy_flash._src.backends.cupy_ import CupyBackend
from cupy_flash._src.cli import UserError, bench, check, tune
from cupy_flash._src.cli.arguments import add_options, add_wrt, architecture, options
from cupy_flash._src.cli.progress import progress
from cupy_flash._src.cli.units import format_seconds
from cupy_flash._src.compile import CompiledKernel, compile_all, nvrtc_version
from cupy_flash._src.components import GATHERED, INPUTS, LEARNING
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.specialization import Specialization
from cupy_flash._src.toolchain import InterruptedCompilerError, NoCompilerError, ToolchainError

CPU = "cpu"
Calls = Sequence[Mapping[str, Any]]  # options of calls
KERNELS: dict[str, tuple[str, Callable[[device.Device, Calls, Sequence[str]], Iterable[Specialization]]]] = {
    "core": ("what importing compiles", lambda target, calls, wrt: plan.core_specializations(target, calls)),
    "check": ("the checks' kernels", lambda target, calls, wrt: check.kernels(target)),
    "bench": ("the benchmark's", lambda target, calls, wrt: bench.kernels(target)),
    "tune": ("every tile that is tried", lambda target, calls, wrt: tune.kernels(target)),
    "all": (
        "every kernel that the planner can choose",
        lambda target, calls, wrt: plan.all_specializations(target, calls, wrt),
    ),
}
PURPOSES = {name: what for name, (what, _) in KERNELS.items()} | {CPU: "the CPU backend, for every CPU of this kind"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch", action="append", type=architecture, metavar="ARCH",
        help=f"{', '.join(device.NAMED)}; may be given several times; by default this machine's GPU, if it has one",
    )  # fmt: skip
    parser.add_argument(
        "--for", nargs="+", choices=tuple(PURPOSES), metavar="PURPOSE", dest="purposes",
        help="; ".join(f"{name}: {what}" for name, what in PURPOSES.items()) + " (default: core cpu)",
    )  # fmt: skip
    composed = parser.add_argument_group("core and all: for calls with these options, by default without and causal")
    add_options(composed)
    add_wrt(parser.add_argument_group("all: kernels of the backward"), "all that there are")


def run(args: argparse.Namespace) -> None:
    """Compile, and print what the assembler reported for each architecture, with a line for each kernel that spills.

    Raises
    ------
    UserError
        If a compiler is missing or refuses a kernel, there is neither a GPU nor an architecture for kernels that were
        asked for, or no call takes these options.
    """
    calls = _calls(args)  # before the minutes that compiling takes
    purposes = list(dict.fromkeys(args.purposes or ("core", CPU)))
    kernels = [name for name in purposes if name != CPU]
    try:
        if CPU in purposes:
            _compile_cpu()
        if kernels:
            _compile_kernels(args, kernels, calls)
    except RuntimeError as error:
        raise UserError(str(error)) from None


def _compile_cpu() -> None:
    """One library for each instruction set and arithmetic; what a compiler does not know is told and left out."""
    start = time.perf_counter()
    *wide, narrowest = native.isas()
    made = []
    for isa in (*wide, narrowest):
        try:
            for arithmetic in native.ARITHMETIC:
                native.compile_library(isa, arithmetic)
        except (NoCompilerError, InterruptedCompilerError):
            raise
        except ToolchainError as error:
            if isa == narrowest:
                raise
            print(f"CPU backend: not for {isa}, {' '.join(str(error).split())[-150:]}")
        else:
            made.append(isa)
    seconds = format_seconds(time.perf_counter() - start)
    print(f"CPU backend: {', '.join(made)}, {seconds}, in {cache.folder('cpu')}", flush=True)


def _compile_kernels(args: argparse.Namespace, purposes: list[str], calls: Calls) -> None:
    targets = [device.named(arch) for arch in dict.fromkeys(args.arch or ())]
    if not targets:
        try:
            targets = [CupyBackend().device]
        except RuntimeError as error:
            if args.purposes:
                raise
            print(f"CUDA kernels: none without --arch, for {error}")
            return
    print(f"NVRTC {'{}.{}'.format(*nvrtc_version())}, cache {cache.folder(f'cubin/{targets[0].arch}')}")
    for target in targets:
        _compile(target, purposes, calls, args.wrt or (*INPUTS, *LEARNING, *GATHERED))


def _calls(args: argparse.Namespace) -> Calls:
    """The options of the calls that kernels are compiled for, which a call takes together."""
    given = options(args)
    x = np.zeros((1, 1, 1, 1), np.float16)
    try:
        AttentionProblem.from_arrays(x, x, x, **given, wrt=tuple(args.wrt or INPUTS))
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None
    return [given] if given else plan.COMMON


def _compile(target: device.Device, purposes: list[str], calls: Calls, wrt: Sequence[str]) -> None:
    kernels = list(dict.fromkeys(kernel for name in purposes for kernel in KERNELS[name][1](target, calls, wrt)))
    compiled: dict[Specialization, CompiledKernel] = {}
    start = time.perf_counter()
    with progress(target.arch, len(kernels)) as bar:

        def done(kernel: Specialization, result: CompiledKernel) -> None:
            compiled[kernel] = result
            bar.update()

        compile_all(kernels, target.arch, done)
    seconds = format_seconds(time.perf_counter() - start)
    for kernel, result in compiled.items():
        if result.spill_bytes:
            print(f"spills {result.spill_bytes} bytes, {result.registers} registers: {kernel}")
    print(f"{target.arch}: {_summary(list(compiled.values()))}, {seconds}", flush=True)


def _summary(compiled: list[CompiledKernel]) -> str:
    spilled = [kernel.spill_bytes for kernel in compiled if kernel.spill_bytes]
    spills = f"{len(spilled)} spill (at most {max(spilled)} bytes)" if spilled else "no spills"
    registers = max(kernel.registers or 0 for kernel in compiled)
    return f"{len(compiled)} kernels, at most {registers} registers, {spills}"
