"""time the legal tiles of the tensor-core kernels on the GPU, and write the fastest where the planner finds them

The table goes to the cache folder, where it serves this user's calls on such GPUs ever after, or to --out. With
--backend emulator the search is rehearsed on small problems, and writes to --out alone.
"""

from __future__ import annotations

import argparse
import datetime
import math
import time
from collections.abc import Iterable
from pathlib import Path

from cupy_flash import __version__
from cupy_flash._src import tuning
from cupy_flash._src.cli import UserError
from cupy_flash._src.cli.ahead import compile_ahead
from cupy_flash._src.cli.arguments import add_backend, check_measured, check_minutes, check_output, writing
from cupy_flash._src.cli.bench import commit_of_sources
from cupy_flash._src.cli.bench.machine import Machine, machine_of
from cupy_flash._src.cli.tune.search import Group, Searcher, Trial, planned_tile, winner
from cupy_flash._src.cli.tune.space import candidates, specialization
from cupy_flash._src.compile import find
from cupy_flash._src.device import Device
from cupy_flash._src.notice import say
from cupy_flash._src.specialization import Specialization
from cupy_flash._src.tiles import MmaTile

HEAD_DIMS = (64, 128, 256)
FINALISTS = 4  # of the full mask, which alone are tried with the causal one

Trials = dict[Group, list[Trial]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_backend(parser)
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS, choices=HEAD_DIMS)
    parser.add_argument("--kernels", nargs="+", default=tuning.KERNELS, choices=tuning.KERNELS)
    parser.add_argument("--most", type=int, metavar="N", help="try at most N tiles of a kernel beside the planner's")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many, and write what is known")
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the table here instead")


def run(args: argparse.Namespace) -> None:
    """Try the tiles, print each, write the table and print it.

    Raises
    ------
    Unavailable
        If the backend cannot run here.
    UserError
        If an argument is wrong, or a tile broke the device: then the table holds what was known before.
    """
    if args.most is not None and args.most < 0:
        raise UserError(f"--most is {args.most}: expected 0 or more")
    check_minutes(args.minutes)
    deadline = time.monotonic() + 60 * args.minutes
    machine = machine_of(args.backend)
    check_measured(args.backend, args.out)
    path = args.out or tuning.own_table(machine.device.arch)
    _check_table(path)
    search = _Search(machine, args.backend, path, deadline)
    groups = [Group(kernel, d, False) for d in args.head_dims for kernel in args.kernels]
    full = {group: candidates(group.kernel, group.head_dim, machine.device)[: args.most] for group in groups}
    try:
        with machine.stream:
            search.try_all(full)
            search.try_all({group._replace(causal=True): search.finalists(group) for group in full})
    finally:  # whatever ended the search
        _print_table(search.entries())
    print(path)


def kernels(device: Device) -> set[Specialization]:
    """What the search with the full mask, which comes first, compiles."""
    groups = [Group(kernel, d, False) for d in HEAD_DIMS for kernel in tuning.KERNELS]
    return {
        specialization(*group, tile, device)
        for group in groups
        for tile in (None, *candidates(group.kernel, group.head_dim, device))
    }


def _check_table(path: Path) -> None:
    """Raise UserError where what is found could not be added to a table."""
    check_output(path)
    check_output(path.with_name(f"{path.name}.new"))  # a table appears whole, by a rename
    try:
        tuning.read_table(path)
    except ValueError as error:
        raise UserError(str(error)) from None


class _Search:
    """What was found so far, and the table that it is written to."""

    def __init__(self, machine: Machine, backend: str, path: Path, deadline: float) -> None:
        self.machine, self.backend, self.path, self.deadline = machine, backend, path, deadline
        self.trials: Trials = {}
        self.planned: dict[Group, MmaTile] = {}
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        self.place = machine.place() | {"cupy_flash": __version__, "commit": commit_of_sources(), "date": today}

    def try_all(self, wanted: dict[Group, list[MmaTile]]) -> None:
        """Compile all on all cores, then try one after another; each group's outcome is written when it is known."""
        device = self.machine.device
        self.planned |= {group: planned_tile(group, device) for group in wanted}
        chosen = {g: list(dict.fromkeys([self.planned[g], *tiles])) for g, tiles in wanted.items()}
        if self.backend == "cuda":
            compile_ahead(
                {specialization(*g, tile, device) for g, tiles in chosen.items() for tile in tiles}, device.arch
            )
        for group, tiles in chosen.items():
            if time.monotonic() > self.deadline:
                say(f"time is up before {group}")
                return
            searcher = Searcher(group, self.machine, self.backend)
            self.trials[group] = [self._try(searcher, group, tile) for tile in tiles]
            self.machine.release()
            self._write()

    def finalists(self, group: Group) -> list[MmaTile]:
        ranked = sorted(self.trials.get(group, []), key=lambda trial: trial.seconds)
        return [trial.tile for trial in ranked if not trial.problem][:FINALISTS]

    def entries(self) -> list[tuning.Entry]:
        found = []
        for group, trials in self.trials.items():
            best = winner(trials, self.planned[group])
            own = next(trial for trial in trials if trial.tile == self.planned[group])
            if not best.problem:
                found.append(tuning.Entry(*group, best.tile, _microseconds(best), _microseconds(own)))
        return found

    def _try(self, searcher: Searcher, group: Group, tile: MmaTile) -> Trial:
        compiled = find(specialization(*group, tile, self.machine.device), self.machine.device.arch)
        if compiled is not None and compiled.spill_bytes and tile != self.planned[group]:
            trial = Trial(tile, problem=f"spills {compiled.spill_bytes} bytes")
        else:
            try:
                trial = searcher.trial(tile)
            except Exception as error:
                trial = Trial(tile, problem=f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")
        mark = "planned" if tile == self.planned[group] else ""
        print(f"{group!s:<24}{tile!s:<72}{trial.problem or f'{_microseconds(trial):9.1f} us'}  {mark}", flush=True)
        if trial.problem and self.machine.is_lost():
            raise UserError(f"the GPU refuses more after {group}, {tile}: {trial.problem}")
        return trial

    def _write(self) -> None:
        entries = self.entries()
        known = {(e.kernel, e.head_dim, e.causal) for e in entries}
        earlier = [e for e in tuning.read_table(self.path) if (e.kernel, e.head_dim, e.causal) not in known]
        with writing(self.path):
            tuning.write_table(self.path, self.place, [*earlier, *entries])


def _microseconds(trial: Trial) -> float:
    return round(1e6 * trial.seconds, 1)


def _print_table(entries: Iterable[tuning.Entry]) -> None:
    print("\n| kernel | D | causal | tile | us | planned, us | ratio |\n|---|---|---|---|---|---|---|")
    for e in entries:
        ratio = e.estimated_microseconds / e.microseconds
        cells = e.kernel, e.head_dim, e.causal, e.tile, f"{e.microseconds:.1f}", f"{e.estimated_microseconds:.1f}"
        print(f"| {' | '.join(map(str, cells))} | {ratio:.2f} |")
