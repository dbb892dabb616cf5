"""run the kernels on the GPU against float64, and record what the primitives answer

With --backend emulator the same checks run on any machine with a C++ compiler, on shorter sequences.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

from cupy_flash._src.cli import UserError
from cupy_flash._src.cli.arguments import add_backend, backend_of, check_output
from cupy_flash._src.cli.check.staged import runtime_of
from cupy_flash._src.cli.check.suite import checks, compile_for, kernels, perform, survives
from cupy_flash._src.cli.worker import Worker
from cupy_flash._src.emulator.settings import ARITHMETICS
from cupy_flash._src.notice import say

__all__ = ["add_arguments", "kernels", "run"]

TESTS = Path(__file__).parents[4] / "tests"  # in a checkout; a wheel has none
GPU_LIMIT, EMULATED_LIMIT = 10.0, 120.0
MAX_LIMIT = 1e6  # poll counts milliseconds in 32 bits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_backend(parser)
    parser.add_argument("--only", default="", metavar="TEXT", help="only checks whose name contains this")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="TEXT", help="no checks whose name contains this; repeatable"
    )
    parser.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        help="for one stage of a check, compilation apart: then it hangs (default: "
        f"{GPU_LIMIT:g}, on the emulator {EMULATED_LIMIT:g})",
    )
    parser.add_argument(
        "--arithmetic",
        default="exact",
        choices=ARITHMETICS,
        help="of the emulator: exact (default), or with the errors that a GPU may make, any, upward or downward",
    )
    parser.add_argument(
        "--golden",
        type=Path,
        metavar="FILE",
        help="where the primitives' answers go; a GPU's by default into a checkout's tests if these have none",
    )


def run(args: argparse.Namespace) -> None:
    """Print one line a check. Each runs in another process: one that faults, crashes or hangs costs only itself.

    Raises
    ------
    Unavailable
        If the backend cannot run here.
    UserError
        If a check fails, or none has such a name.
    """
    if args.golden is not None:
        if args.golden.suffix != ".npz":  # NumPy would append it
            raise UserError(f"--golden is {args.golden}: expected a name that ends in .npz")
        check_output(args.golden)
    if args.limit is not None and not 0 < args.limit <= MAX_LIMIT:
        raise UserError(f"--limit is {args.limit:g}: expected seconds, more than 0 and at most {MAX_LIMIT:g}")
    if args.backend == "cuda" and args.arithmetic != "exact":
        raise UserError(f"--arithmetic is {args.arithmetic}: expected none, a GPU has its own")
    runtime = backend_of(args.backend)
    print(f"{args.backend}: {runtime.status()}", flush=True)
    on_gpu = args.backend == "cuda"
    backend = args.backend if on_gpu else f"emulator:{runtime.device.arch}"
    limit = args.limit or (GPU_LIMIT if on_gpu else EMULATED_LIMIT)

    def chosen(name: str) -> bool:
        return args.only in name and not any(text in name for text in args.skip)

    names = [name for name in checks(backend) if chosen(name)]
    record = _recorder(args.golden, on_gpu)
    primitives = _primitives(record, backend, runtime.device.compute_capability) if record else []
    primitives = [name for name in primitives if chosen(_title(name))]
    if primitives and (golden := _golden(record, backend, args.golden)):
        check_output(golden)
    report = Report(len(names) + len(primitives))
    if not report.count:
        raise UserError(f"no check is left: --only is {args.only!r}, --skip is {args.skip}")
    if names:
        _perform_all(backend, names, limit, report, args.arithmetic)
    if primitives:
        _record(record, backend, args.golden, primitives, limit, report, args.arithmetic)
    if report.failed:
        raise UserError(f"{len(report.failed)} of {report.count} checks failed: {'; '.join(report.failed)}")
    print(f"{report.count} checks passed")


class Report:
    """Tells each check as it ends, and keeps the names of those that failed."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0
        self.failed: list[str] = []

    def __call__(self, name: str, detail: str | None, failure: str) -> None:
        self.done += 1
        if failure:
            self.failed.append(name)
        verdict, text = ("FAILED", failure) if failure else ("ok", detail or "")
        line = " | ".join(stripped for part in text.splitlines() if (stripped := part.strip()))
        print(f"[{self.done:3}/{self.count}] {verdict:6} {name:<72} {line[:400]}", flush=True)


def _perform_all(backend: str, names: list[str], limit: float, report: Report, arithmetic: str) -> None:
    with Worker(limit, partial(survives, backend)) as worker:
        if backend == "cuda":
            failure = worker.run(compile_for, backend, names).failure
            if failure:
                say(failure)
        for name in names:
            report(name, *worker.run(perform, backend, name, arithmetic))


def _title(primitive: str) -> str:
    return f"primitive: {primitive}"


def _recorder(path: Path | None, on_gpu: bool) -> Any:
    """The module golden.record of a checkout's tests, None in a wheel."""
    if not (TESTS / "golden" / "record.py").exists():
        if path:
            raise UserError("--golden needs a checkout of the sources: the primitives' kernels lie in its tests")
        return None
    sys.path[:0] = [str(TESTS)] if str(TESTS) not in sys.path else []
    record = importlib.import_module("golden.record")
    if path and not on_gpu and path.resolve() == record.FILE:
        raise UserError(f"{path} is for what a GPU answers: expected another --golden for the emulator's answers")
    return record


def _primitives(record: Any, backend: str, compute_capability: int) -> list[str]:
    among = record.ALL.values() if backend == "cuda" else record.PRIMITIVES
    return [primitive.name for primitive in record.available(compute_capability, among)]


def _golden(record: Any, backend: str, asked: Path | None) -> Path | None:
    """Where the answers go: an earlier record of a GPU's is replaced when asked."""
    return record.FILE if backend == "cuda" and not asked and not record.FILE.exists() else asked


def _record(
    record: Any,
    backend: str,
    path: Path | None,
    names: list[str],
    limit: float,
    report: Report,
    arithmetic: str = "exact",
) -> None:
    """Compare the primitives with what the PTX ISA says; the answers go to a file."""
    run, device, path = record.run_on_gpu, None, _golden(record, backend, path)
    if backend != "cuda":
        arch = runtime_of(backend).device.arch
        run = partial(record.run_on_emulator, arch=arch, arithmetic=arithmetic)
        device = record.Device(backend, runtime_of(backend).device.compute_capability)

    def tell(name: str, outcome: Any) -> None:
        report(_title(name), "", "" if outcome.status == "passed" else outcome.message)

    record.record(path, names=names, timeout=limit, report=tell, device=device, run=run)
    if path:
        print(f"primitives recorded in {path}")
