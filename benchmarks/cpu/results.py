"""Rows, their CSV file, and the exponents of growth that are fitted to them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cpu.cases import Case
from cpu.machine import Machine
from cupy_flash._src.cli.bench.book import cell_text

UNITS = {"memory": "MB", "compile": "s"}  # others are in ms
OK, LEFT_OUT = "ok", "left out"
GROWTH_FROM = 1024  # below, what a call costs whatever its length would show


@dataclass(frozen=True)
class Row:
    """A case and what was measured: medians and the best of so many pairs, None where there is no figure.

    `status` is "ok", or "left out: ..." on purpose, or what went wrong. `load` is the load average of the last
    minute when the case was done, which counts its own threads; None where the system has none.
    """

    case: Case
    status: str = OK
    ours: float | None = None
    torch: float | None = None
    ours_best: float | None = None
    torch_best: float | None = None
    pairs: int = 0
    load: float | None = None

    @property
    def failed(self) -> bool:
        return self.status.partition(":")[0] not in (OK, LEFT_OUT)

    @property
    def unit(self) -> str:
        return UNITS.get(self.case.section, "ms")

    @property
    def speedup(self) -> float | None:
        """PyTorch's median over ours: above 1 ours is faster, or needs less."""
        return self.torch / self.ours if self.ours and self.torch else None

    @property
    def best_speedup(self) -> float | None:
        """The same of the fastest runs."""
        return self.torch_best / self.ours_best if self.ours_best and self.torch_best else None

    def gflops(self, name: str) -> float | None:
        """GFLOP/s of "ours" or "torch"."""
        milliseconds = getattr(self, name)
        return self.case.flops / milliseconds / 1e6 if milliseconds and self.unit == "ms" else None


_FIGURES = tuple(field.name for field in fields(Row) if field.name != "case")
_DERIVED = ("unit", "speedup", "best_speedup", "ours_gflops", "torch_gflops")  # written for readers, not read
_MACHINE = tuple(field.name for field in fields(Machine))
COLUMNS = (*(field.name for field in fields(Case)), *_FIGURES, *_DERIVED, *_MACHINE)
_LATER = {"option": "", "batch": "1", "load": ""}  # columns that older files lack, some or all


class Writer:
    """A new CSV file that has every row as soon as it is measured."""

    def __init__(self, path: Path, machine: Machine) -> None:
        self._machine = asdict(machine)
        self._file = path.open("w", newline="", encoding="utf-8", buffering=1)
        self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
        self._writer.writeheader()

    def add(self, row: Row) -> None:
        values: dict[str, Any] = {**asdict(row.case), **self._machine}
        values |= {name: getattr(row, name) for name in (*_FIGURES, "unit", "speedup", "best_speedup")}
        values |= {f"{name}_gflops": row.gflops(name) for name in ("ours", "torch")}
        self._writer.writerow({name: cell_text(value) for name, value in values.items()})

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> tuple[Machine, list[Row]]:
    """What a `Writer` wrote; columns that an older file lacks are empty.

    Raises
    ------
    ValueError
        If the file has no rows or other columns.
    """
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    kept = {name for name in COLUMNS if lines and (name in lines[0] or name not in _LATER)}
    if not lines or tuple(lines[0]) != tuple(name for name in COLUMNS if name in kept):
        raise ValueError(f"{path} is not a table of this program")
    lines = [_LATER | line for line in lines]
    return _parsed(Machine, lines[0]), [Row(_parsed(Case, x), **_values(Row, x)) for x in lines]


def growth(rows: Iterable[Row]) -> list[str]:
    """A line for each series of lengths: the exponents of S that fit time and memory."""
    series: dict[tuple[str, str, str, int, bool, str], list[Row]] = {}
    for row in rows:
        case = row.case
        has_both = row.ours is not None and row.torch is not None and min(row.ours, row.torch) > 0
        if has_both and case.section in ("speed", "window", "memory") and case.seqlen_k >= GROWTH_FROM:
            quantity = "time" if row.unit == "ms" else "memory"
            key = quantity, case.dtype, case.what, case.head_dim, case.causal, case.option
            series.setdefault(key, []).append(row)
    lines = []
    for (quantity, dtype, what, head_dim, causal, option), found in series.items():
        seqlens = [row.case.seqlen_k for row in found]
        if len(set(seqlens)) < 2:
            continue
        fits = [f"{name} {quantity} ~ S^{exponent([getattr(r, name) for r in found], seqlens):.2f}"
                for name in ("ours", "torch")]  # fmt: skip
        label = f"{dtype} {what} d {head_dim}{' causal' * causal}{f' {option}' * bool(option)}"
        lines.append(f"{label:40} {fits[0]:24} {fits[1]:24} S = {min(seqlens)} to {max(seqlens)}")
    return lines


def exponent(values: Iterable[float], seqlens: Iterable[int]) -> float:
    """The slope of the straight line through (log S, log value) with the least squared errors.

    >>> round(exponent([3, 12, 48], [10, 20, 40]), 6)
    2.0
    """
    points = [(math.log(s), math.log(value)) for s, value in zip(seqlens, values, strict=True)]
    x_mean, y_mean = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def _parsed(kind: Any, line: Mapping[str, str]) -> Any:
    return kind(**_values(kind, line))


def _values(kind: Any, line: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a dataclass that a line has, by their annotations."""
    readers = {
        "str": str,
        "int": int,
        "bool": "True".__eq__,
        "float": float,
        "float | None": lambda text: float(text) if text else None,
    }
    return {field.name: readers[field.type](line[field.name]) for field in fields(kind) if field.name != "case"}
