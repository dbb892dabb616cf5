"""The picture of a mask by tiles: SVG, of as few rectangles as rows of tiles have in common."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from cupy_flash._src.cli.plot import FLASH_COLOR, GUIDE_COLOR
from cupy_flash._src.expressions.blocks import ALL, SOME

TESTED_COLOR = "#a9c1de"
SIDE = 640  # pixels of the longer one


def picture(shares: np.ndarray, title: str) -> str:
    """The text of the file.

    Parameters
    ----------
    shares : ndarray
        `NONE`, `SOME` or `ALL` of rows of tiles.
    title : str
        What stands below.
    """
    rows, cols = shares.shape
    width, height = (max(1, round(SIDE * n / max(rows, cols))) for n in (cols, rows))
    paths = "".join(
        f'<path fill="{color}" d="{"".join(_path(shares == share))}"/>\n'
        for share, color in ((ALL, FLASH_COLOR), (SOME, TESTED_COLOR))
    )
    legend = "dark: seen whole, not tested; light: tested; white: skipped"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 44}">\n'
        f'<svg width="{width}" height="{height}" viewBox="0 0 {cols} {rows}" preserveAspectRatio="none" '
        f'shape-rendering="crispEdges">\n{paths}</svg>\n'
        f'<rect width="{width}" height="{height}" fill="none" stroke="{GUIDE_COLOR}"/>\n'
        f'<g font-family="sans-serif" font-size="12"><text x="2" y="{height + 16}">{escape(title)}</text>\n'
        f'<text x="2" y="{height + 34}" fill="#666666">{legend}</text></g>\n</svg>\n'
    )


def _path(shown: np.ndarray) -> Iterator[str]:
    """Rectangles: runs along a row, each as far down as the rows below have the same."""
    open_runs: dict[tuple[int, int], int] = {}  # run to the row that it began in
    for row in range(len(shown) + 1):
        runs = set(_runs(shown[row])) if row < len(shown) else set()
        for run in sorted(open_runs.keys() - runs):
            top, (begin, end) = open_runs.pop(run), run
            yield f"M{begin} {top}H{end}V{row}H{begin}z"
        open_runs |= dict.fromkeys(runs - open_runs.keys(), row)


def _runs(row: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where true elements stand together: begin and end."""
    edges = np.flatnonzero(np.diff(row, prepend=False, append=False)).tolist()
    return zip(edges[::2], edges[1::2], strict=True)
