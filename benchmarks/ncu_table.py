"""What Nsight Compute measured, as a Markdown table with one row a kernel.

ncu --set full --page raw --csv python benchmarks/workload.py > ncu.csv
python benchmarks/ncu_table.py ncu.csv
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

MICROSECONDS = {"n": 1e-3, "u": 1.0, "m": 1e3, "s": 1e6}  # "ns" or "nsecond", ..., "s" or "second"
STALLS = (  # either family says how many cycles a warp waits, for each reason, between two instructions
    r"smsp__average_warps_issue_stalled_(?P<reason>\w+)_per_issue_active\.ratio",
    r"smsp__average_warp_latency_issue_stalled_(?P<reason>\w+)\.(ratio|pct)",
    r"smsp__average_warps_issue_stalled_(?P<reason>\w+)\.(ratio|pct)",
)


class Kernel(NamedTuple):
    """One launch: its numbers and their units by metric; what is no number is left out."""

    name: str
    values: dict[str, float]
    units: dict[str, str]


class Column(NamedTuple):
    """Metrics, those of the first pattern that any matches, reduced to one number."""

    title: str
    patterns: tuple[str, ...]
    digits: int = 1
    reduce: Callable[[Iterable[float]], float] = max


COLUMNS = (
    Column(
        "tensor %",
        (
            r"sm__pipe_tensor_cycles_active\.avg\.pct_of_peak_sustained_active",
            r"sm__pipe_tensor_op_\w+_cycles_active\.avg\.pct_of_peak_sustained_active",
            r"sm__inst_executed_pipe_tensor.*pct.*",
        ),
    ),
    Column("issue slots %", (r"sm__inst_issued\.avg\.pct_of_peak.*", r"smsp__issue_active\.avg\.pct_of_peak.*")),
    Column("IPC", (r"sm__inst_executed\.avg\.per_cycle_active",), 2),
    Column("DRAM %", (r"gpu__dram_throughput\.avg\.pct_of_peak.*", r"dram__throughput\.avg\.pct_of_peak.*")),
    Column(
        "bank conflicts",
        (  # the first is the total of the others
            r"l1tex__data_bank_conflicts_pipe_lsu_mem_shared\.sum",
            r"l1tex__data_bank_conflicts_pipe_lsu_mem_shared_\w+\.sum",
        ),
        0,
        sum,
    ),
    Column("registers", (r"launch__registers_per_thread",), 0),
    Column("occupancy %", (r"sm__warps_active\.avg\.pct_of_peak_sustained_active",)),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="what ncu printed with --page raw --csv")
    path = parser.parse_args(argv).csv
    kernels = list(read(path.read_text(encoding="utf-8", errors="replace").splitlines()))
    if not kernels:
        parser.error(f"{path} has no kernels")
    print(table(kernels))


def read(lines: Iterable[str]) -> Iterator[Kernel]:
    """The kernels of one run or several; what stands between the rows is skipped."""
    header: list[str] = []
    units: list[str] | None = None
    for cells in csv.reader(line for line in lines if line.startswith('"')):
        if cells[0] == "ID" and "Kernel Name" in cells:
            header, units = cells, None
        elif len(cells) != len(header):
            continue
        elif units is None and not cells[0]:
            units = cells
        else:
            numbers = {name: _number(cell) for name, cell in zip(header, cells, strict=True)}
            yield Kernel(
                cells[header.index("Kernel Name")].partition("(")[0],
                {name: x for name, x in numbers.items() if x is not None},
                dict(zip(header, units or [], strict=False)),
            )


def table(kernels: Iterable[Kernel]) -> str:
    """Markdown; what a version of ncu does not measure is "-"."""
    titles = ["kernel", "us", *(column.title for column in COLUMNS), "stalls"]
    lines = [titles, ["---"] * len(titles)]
    lines += [[k.name, _microseconds(k), *(_cell(k, c) for c in COLUMNS), _stalls(k)] for k in kernels]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(kernel: Kernel, column: Column) -> str:
    for pattern in column.patterns:
        found = [x for name, x in kernel.values.items() if re.fullmatch(pattern, name)]
        if found:
            return f"{column.reduce(found):.{column.digits}f}"
    return "-"


def _microseconds(kernel: Kernel) -> str:
    name = "gpu__time_duration.sum"
    factor = MICROSECONDS.get(kernel.units.get(name, "")[:1])
    return f"{kernel.values[name] * factor:.1f}" if factor and name in kernel.values else "-"


def _stalls(kernel: Kernel) -> str:
    """The two reasons that warps wait for most, with their share of the cycles between two instructions."""
    for pattern in STALLS:
        matches = {name: re.fullmatch(pattern, name) for name in kernel.values}
        cycles = {match["reason"]: kernel.values[name] for name, match in matches.items() if match}
        # Counted once, with the cycle of the issue itself, which is "selected".
        cycles = {reason: x for reason, x in cycles.items() if not reason.endswith("not_issued")}
        total = sum(cycles.values())
        if total:
            most = sorted(cycles.keys() - {"selected"}, key=lambda reason: -cycles[reason])[:2]
            return ", ".join(f"{reason} {cycles[reason] / total:.0%}" for reason in most)
    return "-"


def _number(cell: str) -> float | None:
    try:
        number = float(cell.replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


if __name__ == "__main__":
    main()
