"""The plot of the demo, peak memory against sequence length; and what all plots need."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from cupy_flash._src.cli import UserError
from cupy_flash._src.cli.arguments import check_output
from cupy_flash._src.cli.units import format_bytes

Curve = Mapping[int, int]  # sequence length to bytes

STANDARD_COLOR, FLASH_COLOR, GUIDE_COLOR = "#c1443c", "#2563a8", "#9a9a9a"


def check_path(path: Path) -> None:
    """Raise UserError unless a plot can be drawn and written there; cheap, so it can be asked before measuring."""
    if find_spec("matplotlib") is None:
        raise UserError('plots need matplotlib: pip install "cupy-flash[demo]"')
    from matplotlib.figure import Figure

    trial = Figure()
    trial.text(0, 0, "S")
    try:
        trial.savefig(BytesIO(), format=path.suffix[1:])
    except Exception as error:  # of an unknown format, or what a known one needs: pgf runs LaTeX
        raise UserError(f"{path}: the suffix is {path.suffix!r}: {error}") from None
    check_output(path)


def plot_memory(standard: Curve, flash: Curve, row_bytes: int, title: str, path: Path) -> None:
    """Write a log-log plot of two measured memory curves, with the slopes S and S^2 as guides.

    Parameters
    ----------
    standard, flash : mapping of sequence length to bytes
        The standard attention, which may be shorter or empty, and flash_attention.
    row_bytes : int
        What the output takes for each position, drawn as an area.
    title : str
    path : Path
        Its suffix chooses the format.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(7.2, 4.6), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log")
    curves = [
        (standard, 2, STANDARD_COLOR, "standard attention", "scores, exponentials,\nprobabilities of each head"),
        (flash, 1, FLASH_COLOR, "flash_attention", f"{format_bytes(row_bytes * max(flash))} output, and scratch"),
    ]
    for curve, power, color, name, holds in curves:
        if not curve:
            continue
        seqlens, sizes = list(curve), list(curve.values())
        guide = [sizes[-1] * (s / seqlens[-1]) ** power for s in seqlens]
        axes.plot(seqlens, guide, color=GUIDE_COLOR, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.plot(seqlens, sizes, color=color, linewidth=2, marker="o", markersize=5, zorder=2)
        slope = "S" if power == 1 else "S²"
        axes.annotate(
            f"{name}, O({slope})\n{format_bytes(sizes[-1])} at S = {seqlens[-1]}:\n{holds}",
            (seqlens[-1], sizes[-1]), xytext=(18, 6), textcoords="offset points",
            color=color, va="top", fontsize=9,
        )  # fmt: skip

    ticks = sorted({*standard, *flash})
    ends = ticks[0] * 0.85, ticks[-1]  # of the area, which leaves the labels their place
    output = [row_bytes * s for s in ends]
    floor = output[0] / 2
    axes.fill_between(ends, output, floor, color=FLASH_COLOR, alpha=0.15, linewidth=0)
    middle, height = (ends[0] * ends[1]) ** 0.5, (output[0] * output[1]) ** 0.5
    axes.text(middle, (floor * height) ** 0.5, "output", color=FLASH_COLOR, ha="center", va="center", fontsize=9)

    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda s, _: f"{s:.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda size, _: format_bytes(size)))
    axes.set_ylim(bottom=floor)
    axes.set_xlim(ends[0], ticks[-1] * 1.18)
    axes.set_xlabel("sequence length S")
    axes.set_ylabel("peak memory beyond the inputs")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    dashed = "; dashed lines have slope 1 and 2" if len(ticks) > 1 else ""
    figure.text(0.01, -0.02, f"Points are measured{dashed}.", fontsize=8, color="#666666")
    figure.savefig(path, bbox_inches="tight")
