"""time the kernels on the GPU against the other libraries installed here

Rows go to a CSV file as they are measured; the same command goes on where an earlier one stopped. With --backend
emulator the run is rehearsed on small cases, on any machine with a C++ compiler: its figures are no measurements.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cupy_flash import __version__
from cupy_flash._src import source
from cupy_flash._src.cli import UserError
from cupy_flash._src.cli.arguments import add_backend, check_measured, check_minutes, check_output
from cupy_flash._src.cli.bench import listing, readme, runner, table
from cupy_flash._src.cli.bench.book import OK, Book, Row, case_of
from cupy_flash._src.cli.bench.cases import Case, cases
from cupy_flash._src.cli.bench.machine import Machine, kind_of, machine_of
from cupy_flash._src.cli.bench.methods import Method, all_methods
from cupy_flash._src.cli.bench.plot import files, plot
from cupy_flash._src.cli.progress import on_terminal, progress
from cupy_flash._src.device import Device
from cupy_flash._src.notice import say
from cupy_flash._src.specialization import Specialization

ROOT = Path(__file__).parents[4]  # of a checkout
QUICK_MINUTES = 4.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_backend(parser)
    parser.add_argument("--quick", action="store_true", help=f"few cases, and {QUICK_MINUTES} minutes at most")
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command later goes on")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16"))
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name, as in --list, contains this")
    parser.add_argument(
        "--methods", default="", metavar="TEXT", help="only methods whose name, as in --list, contains this, and ours"
    )
    parser.add_argument(
        "--out", type=Path, metavar="CSV", help="default: benchmarks/results/<device>-<date>.csv in a checkout"
    )
    parser.add_argument("--list", action="store_true", help="only print cases, methods and minutes; needs no GPU")
    parser.add_argument("--readme", action="store_true", help="only make the README's table, from the newest results")


def run(args: argparse.Namespace) -> None:
    """Measure, then print the table.

    Raises
    ------
    Unavailable
        If the backend cannot run here.
    UserError
        If an argument is wrong, the results cannot be written, or a method broke the device.
    """
    if args.readme:
        return _write_readme()
    if args.minutes is not None:
        check_minutes(args.minutes)
    minutes = args.minutes if args.minutes is not None else QUICK_MINUTES if args.quick else math.inf
    chosen, methods = _chosen(args)
    if args.list:
        return listing.show(chosen, methods, minutes)
    machine = machine_of(args.backend)
    check_measured(args.backend, args.out)
    started = time.monotonic()
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    place = machine.place() | {"cupy_flash": __version__, "commit": commit_of_sources()}
    path = args.out or _default_path(place["device"], today)
    check_output(path)
    check_output(*files(path.with_suffix("")).values())
    book = Book(path, place)
    methods = _loaded(methods)
    _tell_what_is_left_out(chosen, methods)
    measure(machine, book, chosen, methods, today, started + 60 * minutes)
    return None


def _chosen(args: argparse.Namespace) -> tuple[list[Case], list[Method]]:
    """The cases and methods that the arguments name."""
    every = dict.fromkeys(map(kind_of(args.backend).fitted, cases(args.dtype, args.quick)))
    chosen = [case for case in every if args.only in str(case)]
    methods = [m for m in all_methods(args.backend) if args.methods in m.name or m.name == table.OURS]
    if not chosen:
        raise UserError(f"--only is {args.only!r}: no case's name contains it; --list shows them")
    if args.methods and not any(args.methods in m.name for m in methods):
        raise UserError(f"--methods is {args.methods!r}: no method's name contains it; --list shows them")
    return chosen, methods


def measure(
    machine: Machine, book: Book, chosen: list[Case], methods: list[Method], today: str, deadline: float
) -> None:
    """Fill the book, then print its table and plot it."""
    try:
        with machine.stream:
            runner.measure_limits(machine, book, today)
            todo = runner.pending(chosen, methods, book)
            say(f"{book.path}: {len(todo)} measurements to make")
            ours = [case for case, method in todo if method.name == table.OURS]
            machine.prepare({x.kernel for case in ours for x in runner.launches(case, machine.device)})
            with progress("bench", len(todo)) as bar:
                left = runner.measure_all(machine, todo, book, today, _Told(bar, len(todo)), deadline)
    except runner.DeviceLost as error:
        raise UserError(f"the GPU refuses more after {error}. The same command goes on after it") from None
    except UserError:  # the file takes no more
        print(table.render(book.here()))
        raise
    rows = book.here()
    print(table.render(rows))
    for row in rows:
        if row["status"] != OK:
            print(f"failed: {row['method']}, {case_of(row)}: {row['status']}")
    if left:
        print(f"{left} measurements left when time was up: the same command goes on")
    print(book.path)
    try:
        for written in plot(rows, book.path.with_suffix("")):
            print(written)
    except ImportError:
        print('no plots: they need matplotlib, pip install "cupy-flash[demo]"')


def kernels(device: Device) -> set[Specialization]:
    """What our calls of all cases launch."""
    half = (case for dtype in ("float16", "bfloat16") for case in cases(dtype, quick=False))
    return {launch.kernel for case in half for launch in runner.launches(case, device)}


class _Told:
    """Tells each measurement on a terminal, above its bar; elsewhere one a quarter: a log grows, a terminal scrolls."""

    def __init__(self, bar: Any, total: int) -> None:
        self.bar, self.total, self.done = bar, total, 0

    def __call__(self, row: Row) -> None:
        self.done += 1
        line = f"[{self.done}/{self.total}] {_outcome(row)}"
        if on_terminal():
            self.bar.write(line, file=sys.stderr)
        elif 4 * self.done // self.total > 4 * (self.done - 1) // self.total:
            say(line)
        self.bar.update()


def _outcome(row: Row) -> str:
    case, result = case_of(row), row["status"]
    if result == OK:
        unit = table.unit_of(case)
        result = f"{float(row[unit]):.4g} {'GB/s' if unit == 'gbps' else 'TFLOP/s'}"
    return f"{case!s:<62} {row['method']:<16} {result}"


def _loaded(methods: list[Method]) -> list[Method]:
    """Those that can be had; the others are told with the reason."""
    found = []
    for method in methods:
        try:
            method.load()
        except Exception as error:
            print(f"not compared: {method.name}, {type(error).__name__}: {' '.join(str(error).split())[:150]}")
        else:
            found.append(method)
    return found


def _tell_what_is_left_out(chosen: list[Case], methods: list[Method]) -> None:
    for method in methods:
        lacking = dict.fromkeys(case.option for case in chosen if not method.takes(case))
        if lacking:
            print(f"left out: {method.name} is not given {', '.join(lacking)}")


def commit_of_sources() -> str:
    """The checkout's commit, with a mark if the code has changed since; elsewhere a digest of the CUDA sources."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if not (ROOT / ".git").exists():
            raise FileNotFoundError
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "cupy_flash", "cuda_src")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        files = sorted(path for path in source.root().rglob("*.*") if path.is_file())
        return f"sources-{hashlib.sha256(b''.join(path.read_bytes() for path in files)).hexdigest()[:12]}"


def _default_path(device: str, today: str) -> Path:
    folder = ROOT / "benchmarks" / "results"
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return (folder if folder.is_dir() else Path()) / f"{name}-{today}.csv"


def _write_readme() -> None:
    path = ROOT / "README.md"
    if not path.exists():
        raise UserError("--readme needs a checkout of the sources")
    text = path.read_text(encoding="utf-8")
    path.write_text(readme.replace(text, ROOT / "benchmarks" / "results"), encoding="utf-8")
    print(path)
