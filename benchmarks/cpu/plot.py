"""The README's plot: GFLOP/s against the sequence length, beside what the CPU can do at most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpu.cases import BOTH, FORWARD
from cpu.machine import Machine
from cpu.results import OK, Row
from cupy_flash._src.cli.bench.plot import LIMIT_COLOR, OUR_COLOR, PEER_COLORS

CURVES = (("ours", "cupy_flash", OUR_COLOR), ("torch", "PyTorch", PEER_COLORS[0]))
PASSES = {FORWARD: "forward", BOTH: "forward + backward"}


def plot(rows: Sequence[Row], machine: Machine, path: Path) -> None:
    """Write panels of forward and forward + backward by head dimension, of the first dtype in the rows.

    Raises
    ------
    ValueError
        If no row of the section "speed" has figures.
    """
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.case.section == "speed" and row.status == OK]
    if not rows:
        raise ValueError("nothing to plot: no row of the section speed")
    dtype = rows[0].case.dtype
    rows = [row for row in rows if row.case.dtype == dtype]
    head_dims = sorted({row.case.head_dim for row in rows})
    figure = Figure(figsize=(4.6 * len(head_dims) + 0.4, 6.6), dpi=160, layout="constrained")
    grid = figure.subplots(len(PASSES), len(head_dims), squeeze=False, sharex=True, sharey=True)
    for axes_of_pass, (what, label) in zip(grid, PASSES.items(), strict=True):
        for axes, head_dim in zip(axes_of_pass, head_dims, strict=True):
            panel = [row for row in rows if (row.case.what, row.case.head_dim) == (what, head_dim)]
            _draw(axes, panel, machine.peak_gflops)
            axes.set_title(f"{label}, d = {head_dim}", loc="left", fontsize=10)
        axes_of_pass[0].set_ylabel("GFLOP/s")
    for axes in grid[-1]:
        axes.set_xlabel("sequence length S")
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(
        f"Attention on the CPU, {dtype}, 8 heads\n{machine.cpu}; {machine.cupy_flash}\n"
        f"torch {machine.torch_version}; MKL: {machine.mkl}; {machine.date}",
        x=0.01, ha="left", fontsize=9,
    )  # fmt: skip
    figure.savefig(path)


def _draw(axes: Any, panel: Sequence[Row], peak: float) -> None:
    for name, label, color in CURVES:
        for causal in (False, True):
            points = sorted((r.case.seqlen_k, r.gflops(name)) for r in panel if r.case.causal == causal)
            if points:
                style = {"linestyle": (0, (1, 1.2)), "markerfacecolor": "white"} if causal else {}
                mask = "causal" if causal else "full"
                axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=5, linewidth=2,
                          label=f"{label}, {mask}", **style)  # fmt: skip
    axes.axhline(peak, color=LIMIT_COLOR, linewidth=1.2, linestyle=(0, (4, 3)), label="measured FMA peak")
    seqlens = sorted({row.case.seqlen_k for row in panel})
    axes.set_xscale("log", base=2)
    axes.set_xticks(seqlens, [f"{s // 1024}k" if s % 1024 == 0 else str(s) for s in seqlens])
    axes.minorticks_off()
    axes.set_ylim(0, 1.08 * peak)
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
