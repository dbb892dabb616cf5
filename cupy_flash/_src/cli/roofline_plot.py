"""The plot of `explain`: a card's roofline, and where a call stands below it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from cupy_flash._src.analysis.roofline import Rates
from cupy_flash._src.cli.plot import FLASH_COLOR, GUIDE_COLOR, STANDARD_COLOR
from cupy_flash._src.cli.units import format_bytes

TITLE_WIDTH = 85  # characters of a line that fit the figure


def plot(
    path: Path, title: str, rates: Rates, dtype: str, tensor_cores: bool, work: int, points: Mapping[str, int | None]
) -> None:
    """Draw the rates that memory and the arithmetic units allow at each arithmetic intensity, and where a call stands.

    Parameters
    ----------
    path : Path
        Its suffix chooses the format.
    title : str
    rates : Rates
        Of the card.
    dtype : str
        Of the call.
    tensor_cores : bool
        Whether they compute it.
    work : int
        Floating-point operations of the call.
    points : mapping of str to int or None
        Bytes moved, by what is counted; None where that is not known.
    """
    from matplotlib.figure import Figure

    intensities = [work / size for size in points.values() if size]
    units = {"CUDA cores": rates.peak(dtype, False)} | (
        {"tensor cores": rates.peak(dtype, True)} if tensor_cores else {}
    )
    peak = max(units.values())
    ridge = peak * 1e3 / rates.bandwidth  # FLOP a byte where the two bounds meet
    low, high = min(*intensities, ridge) / 4, max(*intensities, ridge) * 8

    figure = Figure(figsize=(7.2, 4.6), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlim=(low, high))
    for name, most in units.items():
        corner = max(low, most * 1e3 / rates.bandwidth)
        roof = [min(most, rates.bandwidth * x / 1e3) for x in (low, corner, high)]
        axes.plot([low, corner, high], roof, color=GUIDE_COLOR, linewidth=1.5, zorder=1)
        axes.annotate(
            f"{name}, {most:g} TFLOP/s", (high, most), xytext=(-4, 4), textcoords="offset points",
            ha="right", fontsize=8, color="#666666",
        )  # fmt: skip
    styles = ((FLASH_COLOR, FLASH_COLOR, 5), (FLASH_COLOR, "white", 8), (STANDARD_COLOR, "white", 11))
    for place, ((name, size), (edge, face, radius)) in enumerate(zip(points.items(), styles, strict=True)):
        if not size:
            continue
        at = work / size, min(peak, rates.bandwidth * work / size / 1e3)
        label = f"{name}: {format_bytes(size)}, {at[0]:{'.0f' if at[0] >= 100 else '.3g'}} FLOP/byte"
        axes.plot(
            *at, "o", markersize=radius, markeredgecolor=edge, markerfacecolor=face, zorder=4 - place, label=label
        )
    axes.set_xlabel("arithmetic intensity, FLOP a byte")
    axes.set_ylabel("TFLOP/s at most")
    lines = *textwrap.wrap(title, TITLE_WIDTH), f"{rates.card}, by its datasheet: {rates.bandwidth:g} GB/s"
    axes.set_title("\n".join(lines), loc="left", fontsize=10)
    figure.legend(loc="outside lower right", fontsize=8, frameon=False)
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
