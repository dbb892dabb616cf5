"""What a run of kernels did: exact counts, not times."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from cupy_flash._src.emulator.errors import Site

_WIDTH = 120  # of a printed line
_NOTHING = "no kernel was launched"


@dataclass(frozen=True)
class Conflicts:
    """Shared-memory accesses of one line, in one place that it is inlined in.

    They are counted as warp instructions, and as wavefronts beyond what these need.
    """

    site: Site
    instructions: int
    wavefronts: int


@dataclass(frozen=True)
class Bytes:
    """Bytes that threads asked for; what caches would save is not modelled."""

    read: int
    written: int


@dataclass(frozen=True)
class LaunchReport:
    """One kernel launch.

    The work counts are exact in every mode: `mma`, `ldmatrix`, `shuffles` (one for each 4 bytes), `votes` and
    `syncwarps` count warp instructions, `barriers` completed block barriers, `cp_async` and `atomics` single
    threads' operations, `switches` changes from one CUDA thread to another. `buffers`, `bank_conflicts` and
    `shared_accesses` need the ``"counted"`` or ``"checked"`` mode and are None in ``"fast"``. An atomic
    counts as written bytes; cp.async as read bytes. A scalar that the compiler keeps in a register is not read
    again. Where buffers overlap, bytes go to the first that holds the address.

    The model of bank conflicts: 32 banks of 4 bytes; a warp's access of up to 4 bytes a lane is one
    transaction, of 8 bytes two (half-warps), of 16 bytes four (quarter-warps), an ldmatrix one for each 8x8
    matrix; a transaction takes as many wavefronts as its busiest bank has different words, and all but the
    first are conflicts.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    mode: str
    seconds: float
    switches: int
    mma: int
    ldmatrix: int
    shuffles: int
    votes: int
    syncwarps: int
    barriers: int
    cp_async: int
    atomics: int
    buffers: Mapping[str, Bytes] | None
    bank_conflicts: int | None
    shared_accesses: int | None
    conflicts: tuple[Conflicts, ...]

    @property
    def bytes_read(self) -> int | None:
        """Global bytes read, by all buffers."""
        return None if self.buffers is None else sum(b.read for b in self.buffers.values())

    @property
    def bytes_written(self) -> int | None:
        """Global bytes written, by all buffers."""
        return None if self.buffers is None else sum(b.written for b in self.buffers.values())


Row = tuple[str | int, ...]


class Table(NamedTuple):
    """Rows under names."""

    names: tuple[str, ...]
    rows: list[Row]


def _size(dimensions: tuple[int, int, int]) -> str:
    """Without the trailing ones: "4 x 2"."""
    used = max((i for i, n in enumerate(dimensions) if n > 1), default=0) + 1
    return " x ".join(map(str, dimensions[:used]))


def _as_text(table: Table) -> str:
    """In columns; where a row is too wide its last cell goes on in the lines below."""
    cells = [table.names, *([f"{x:,}" if isinstance(x, int) else x for x in row] for row in table.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(table.names))]
    right = [isinstance(x, int) for x in table.rows[0]]
    lines = (
        "  ".join(f"{x:>{w}}" if r else f"{x:<{w}}" for x, w, r in zip(row, widths, right, strict=True))
        for row in cells
    )
    indent = " " * sum(width + 2 for width in widths[:-1])
    return "\n".join(
        textwrap.fill(line.rstrip(), _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for line in lines
    )


def _as_html(table: Table) -> str:
    def row(cells: Iterable[str | int], tag: str) -> str:
        texts = (f"{x:,}" if isinstance(x, int) else escape(x) for x in cells)
        return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"

    body = "".join(row(cells, "td") for cells in table.rows)
    return f"<table><thead>{row(table.names, 'th')}</thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True)
class RunReport:
    """All kernel launches of one public call, in order; printed, or shown in a notebook, as tables."""

    launches: tuple[LaunchReport, ...]

    def __str__(self) -> str:
        return "\n\n".join(map(_as_text, self._tables())) or _NOTHING

    def _repr_html_(self) -> str:
        return "".join(map(_as_html, self._tables())) or _NOTHING

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # IPython's, where it shows no HTML
        printer.text(str(self))

    def _tables(self) -> list[Table]:
        """What was launched; and, where counted, bytes by buffer, and bank conflicts by the lines that have some."""
        work = (
            "kernel",
            "grid",
            "block",
            "shared bytes",
            "barriers",
            "tensor-core instructions",
            "shuffles",
            "atomics",
        )
        launched: list[Row] = []
        moved: list[Row] = []
        shared: list[Row] = []
        for x in self.launches:
            launched.append(
                (x.kernel, _size(x.grid), _size(x.block), x.shared_bytes, x.barriers, x.mma, x.shuffles, x.atomics)
            )
            for name, count in (x.buffers or {}).items():
                if count.read or count.written:
                    moved.append((x.kernel, name, count.read, count.written))
            if x.shared_accesses and x.bank_conflicts is not None:
                shared.append((x.kernel, x.shared_accesses, x.bank_conflicts, "all"))
            for c in x.conflicts:
                if c.wavefronts:
                    shared.append((x.kernel, c.instructions, c.wavefronts, str(c.site)))
        tables = [
            Table(work, launched),
            Table(("kernel", "buffer", "bytes read", "bytes written"), moved),
            Table(("kernel", "shared accesses", "bank conflicts", "lines"), shared),
        ]
        return [table for table in tables if table.rows]

    def total(self, name: str) -> int:
        """Sum of a count over all launches, such as ``"bytes_read"``, ``"bank_conflicts"`` or ``"mma"``.

        Raises
        ------
        ValueError
            If the mode of a launch did not count it.

        Examples
        --------
        >>> RunReport(launches=()).total("mma")
        0
        """
        counts = [getattr(launch, name) for launch in self.launches]
        if None in counts:
            raise ValueError(f"{name!r} is not counted in mode 'fast': use emulator.settings(mode='counted')")
        return sum(counts)
