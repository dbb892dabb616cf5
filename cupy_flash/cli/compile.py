"""compile kernels ahead of time, for any architecture, on a machine with or without a GPU

The cubins go to the disk cache, where the first call on such a GPU finds them.
"""

from __future__ import annotations

import argparse
import time

from cupy_flash import device, plan
from cupy_flash.cache import cache_dir
from cupy_flash.cli import UserError
from cupy_flash.cli.progress import progress
from cupy_flash.cli.units import format_seconds
from cupy_flash.compile import CompiledKernel, compile_all, nvrtc_version


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arch", action="append", required=True, choices=tuple(device.NAMED), metavar="ARCH",
        help=f"{', '.join(device.NAMED)}; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--all", action="store_true",
        help="every kernel that the planner can choose, not only the core ones that are compiled at import",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Compile for each architecture and print what the assembler reported.

    Raises
    ------
    UserError
        If NVRTC is missing or refuses a kernel.
    """
    try:
        print(f"NVRTC {'{}.{}'.format(*nvrtc_version())}, cache {cache_dir()}")
        for arch in dict.fromkeys(args.arch):
            _compile(arch, args.all)
    except RuntimeError as error:
        raise UserError(str(error)) from None


def _compile(arch: str, everything: bool) -> None:
    choose = plan.all_specializations if everything else plan.core_specializations
    kernels = list(dict.fromkeys(choose(device.named(arch))))
    start = time.perf_counter()
    with progress(arch, len(kernels)) as bar:
        compiled = compile_all(kernels, arch, done=lambda *_: bar.update())
    print(f"{arch}: {_summary(compiled)}, {format_seconds(time.perf_counter() - start)}", flush=True)


def _summary(compiled: list[CompiledKernel]) -> str:
    spilled = [kernel.spill_bytes for kernel in compiled if kernel.spill_bytes]
    spills = f"{len(spilled)} spill (at most {max(spilled)} bytes)" if spilled else "no spills"
    registers = max(kernel.registers or 0 for kernel in compiled)
    return f"{len(compiled)} kernels, at most {registers} registers, {spills}"
