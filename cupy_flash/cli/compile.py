"""compile kernels ahead of time, for any architecture, on a machine with or without a GPU

The cubins go to the disk cache, where the first call on such a GPU finds them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable

from cupy_flash import device, plan
from cupy_flash.backends.cupy_ import CupyBackend
from cupy_flash.cache import cache_dir
from cupy_flash.cli import UserError, bench, check, tune
from cupy_flash.cli.progress import progress
from cupy_flash.cli.units import format_seconds
from cupy_flash.compile import CompiledKernel, compile_all, nvrtc_version
from cupy_flash.specialization import Specialization

PURPOSES: dict[str, tuple[str, Callable[[device.Device], Iterable[Specialization]]]] = {
    "core": ("what importing compiles", lambda target: plan.core_specializations(target)),
    "check": ("the checks' kernels", check.kernels),
    "bench": ("the benchmark's", bench.kernels),
    "tune": ("every tile that is tried", tune.kernels),
    "all": ("every kernel that the planner can choose", lambda target: plan.all_specializations(target)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch", action="append", choices=tuple(device.NAMED), metavar="ARCH",
        help=f"{', '.join(device.NAMED)}; may be given several times; by default this machine's GPU",
    )  # fmt: skip
    parser.add_argument(
        "--for", nargs="+", default=["core"], choices=tuple(PURPOSES), metavar="PURPOSE", dest="purposes",
        help="; ".join(f"{name}: {what}" for name, (what, _) in PURPOSES.items()) + " (default: core)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Compile for each architecture and print what the assembler reported, with a line for each kernel that spills.

    Raises
    ------
    UserError
        If NVRTC is missing or refuses a kernel, or no architecture is named and there is no GPU.
    """
    try:
        targets = [device.named(arch) for arch in dict.fromkeys(args.arch or ())] or [CupyBackend().device]
        print(f"NVRTC {'{}.{}'.format(*nvrtc_version())}, cache {cache_dir()}")
        for target in targets:
            _compile(target, args.purposes)
    except RuntimeError as error:
        raise UserError(str(error)) from None


def _compile(target: device.Device, purposes: list[str]) -> None:
    kernels = list(dict.fromkeys(kernel for name in purposes for kernel in PURPOSES[name][1](target)))
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
