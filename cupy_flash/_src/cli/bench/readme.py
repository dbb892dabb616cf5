"""The README's table of what was measured on a GPU, made from the newest file of results."""

from __future__ import annotations

from pathlib import Path

from cupy_flash._src.cli import UserError
from cupy_flash._src.cli.bench.book import newest, of_last_commit, read
from cupy_flash._src.cli.bench.table import render

BEGIN = "<!-- made by `python -m cupy_flash bench --readme` -->"
END = "<!-- end -->"
NOT_YET = "Not yet measured."


def section(results: Path) -> str:
    """What stands between the marks."""
    path = newest(results)
    rows = of_last_commit(read(path)) if path else []
    if not path or not rows:
        return NOT_YET
    last = rows[-1]
    peers = sorted({f"{row['method']} {row['method_version']}" for row in rows if row["method"] not in ("cupy",)})
    return (
        f"{last['device']}, {last['date']}, driver {last['driver']}, CUDA {last['cuda']}, CuPy {last['cupy']}, commit "
        f"{last['commit']}; medians of CUDA events, L2 cache flushed; {', '.join(peers)}. All rows, with the spread: "
        f"`benchmarks/results/{path.name}`.\n\n{render(rows)}"
    )


def replace(text: str, results: Path) -> str:
    """A README with its section made anew.

    Raises
    ------
    UserError
        If the marks are not there, each once and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise UserError(f"the README does not have {BEGIN} and {END} once each")
    return f"{before}{BEGIN}\n{section(results)}\n{END}{after}"
