"""Rows as Markdown tables, one a section, line by line as they are measured."""

from __future__ import annotations

from collections.abc import Sequence

from cpu.cases import Case
from cpu.machine import Machine
from cpu.results import OK, Row
from cupy_flash._src.problem import DTYPES

TITLES = {
    "speed": "Speed, H = 8; GFLOP/s and their part of the FMA peak. Bar: ours at least 70% from S = 2048",
    "small": "Small problems, H = 8, many calls in a row. Bar: speedup at least 1",
    "decode": "Decoding, one query, many calls in a row. Bar: speedup at least 1",
    "window": "A window of 512 keys before, H = 8, PyTorch's a mask. Bars at S = 16384: speedup at least 4, and ours "
    "at most 4.8 times as long as at 4096",
    "bias": "A bias of pairs that 32 rows share, with its gradient; PyTorch's a mask. H = 256: a bias for each head of "
    "each row. Bar: forward + backward, speedup at least 2",
    "memory": "Peak memory beyond inputs and results. Bar: ours at most 150 MB at S = 16384",
    "compile": "Compiling the compiled tier, nothing cached",
}
_TIMED = (
    ("S", 7), ("H", 4), ("d", 3), ("mask", 9), ("dtype", 8), ("pass", 7), ("ours ms", 8), ("torch ms", 8),
    ("speedup", 7), ("of best", 7), ("ours GFLOP/s", 12), ("torch GFLOP/s", 13), ("pairs", 5),
)  # fmt: skip
_MEMORY = (("S", 7), ("H", 4), ("d", 3), ("dtype", 8), ("pass", 7), ("results MB", 10), ("ours MB", 7), ("torch MB", 8))
_COMPILE = (("ISA", 8), ("seconds", 7))
_COLUMNS = {"memory": _MEMORY, "compile": _COMPILE}


def header(section: str) -> str:
    """Title and head of a section's table."""
    columns = _COLUMNS.get(section, _TIMED)
    head = [name.rjust(width) for name, width in columns]
    return f"\n{TITLES[section]}\n\n{_joined(head)}\n{_joined(['-' * (w - 1) + ':' for _, w in columns])}"


def line(row: Row, machine: Machine) -> str:
    """One row; without figures its status stands after the table's cells."""
    case = row.case
    seqlen = f"{case.seqlen_k}" if case.seqlen_q == case.seqlen_k else f"{case.seqlen_q}x{case.seqlen_k}"
    if case.section == "compile":
        cells = [case.what, _number(row.ours, ".1f")]
    elif case.section == "memory":
        results = 4 * case.heads_q * case.seqlen_q * case.head_dim * DTYPES[case.dtype].itemsize / 1e6
        cells = [seqlen, case.heads, str(case.head_dim), case.dtype, case.what, f"{results:.1f}"]
        cells += [_number(row.ours, ".1f"), _number(row.torch, ".1f")]
    else:
        cells = [seqlen, case.heads, str(case.head_dim), _mask(case), case.dtype, case.what]
        cells += [_number(row.ours, ".4g"), _number(row.torch, ".4g")]
        cells += [_number(row.speedup, ".2f"), _number(row.best_speedup, ".2f")]
        cells += [_speed(row.gflops(name), machine) for name in ("ours", "torch")]
        cells += [str(row.pairs)]
    columns = _COLUMNS.get(case.section, _TIMED)
    text = _joined([cell.rjust(width) for cell, (_, width) in zip(cells, columns, strict=True)])
    return text if row.status == OK else f"{text} {row.status}"


def _mask(case: Case) -> str:
    return case.option or ("causal" if case.causal else "full")


def render(rows: Sequence[Row], machine: Machine) -> str:
    """All tables of the rows, which lie section by section."""
    lines: list[str] = []
    before: Case | None = None
    for row in rows:
        lines += heading(row.case, before)
        lines.append(line(row, machine))
        before = row.case
    return "\n".join(lines)


def heading(case: Case, before: Case | None) -> list[str]:
    """The header where a section begins, else nothing."""
    return [header(case.section)] if before is None or before.section != case.section else []


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _speed(gflops: float | None, machine: Machine) -> str:
    """GFLOP/s and what part of the peak that is."""
    return "-" if gflops is None else f"{gflops:.1f}, {gflops / machine.peak_gflops:3.0%}"


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
