"""Plots in the style of the FlashAttention papers: grouped bars by sequence length, one panel a head size and mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cupy_flash.cli.bench.book import OK, Row
from cupy_flash.cli.bench.cases import Case
from cupy_flash.cli.bench.table import OURS, by_case, limit, unit_of

OUR_COLOR, LIMIT_COLOR = "#2563a8", "#9a9a9a"
DIRECTIONS = "forward", "backward", "decode"
PEER_COLORS = ("#c1443c", "#d98a2b", "#5f9e57", "#8268ad", "#4aa3a8", "#b0608f", "#8c6d4f", "#7f7f7f")

Panel = dict[Case, dict[str, Row]]


def plot(rows: list[Row], stem: Path) -> list[Path]:
    """Write the `files` of the directions that were measured."""
    from matplotlib.figure import Figure

    written = []
    cases = by_case(rows)
    names = [OURS, *sorted({m for methods in cases.values() for m in methods} - {OURS})]
    colors = dict(zip(names, (OUR_COLOR, *PEER_COLORS), strict=False))
    for direction, path in files(stem).items():
        panels: dict[str, Panel] = {}
        for case, methods in cases.items():
            if case.direction == direction:
                panels.setdefault(_title(case), {})[case] = methods
        if not panels:
            continue
        columns = min(2, len(panels))
        lines = -(-len(panels) // columns)
        figure = Figure(figsize=(7.2 * columns, 3.6 * lines + 0.6), dpi=140, layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).flat
        most = limit(rows, "copy" if direction == "decode" else "matmul")
        for ax, (title, panel) in zip(axes, panels.items(), strict=False):
            _draw(ax, title, panel, colors, most)
        for ax in list(axes)[len(panels) :]:
            ax.set_visible(False)
        handles, labels = [], []
        for ax in figure.axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                if label not in labels:
                    handles.append(handle)
                    labels.append(label)
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
        device, date = rows[-1]["device"], rows[-1]["date"]
        figure.suptitle(f"Attention {direction} on {device}, {date}", x=0.01, ha="left", fontsize=11)
        figure.savefig(path)
        written.append(path)
    return written


def files(stem: Path) -> dict[str, Path]:
    """``<stem>-forward.png`` and so on."""
    return {direction: stem.with_name(f"{stem.name}-{direction}.png") for direction in DIRECTIONS}


def _title(case: Case) -> str:
    if case.direction == "decode":
        return f"{case.dtype}, head dimension {case.head_dim}, {case.heads_q} heads, {case.heads_k} of keys"
    return f"{case.dtype}, head dimension {case.head_dim}{', causal' if case.causal else ''}"


def _draw(ax: Any, title: str, panel: Panel, colors: dict[str, str], most: float | None) -> None:
    names = [name for name in colors if any(_ok(methods, name) for methods in panel.values())]
    width = 0.86 / max(1, len(names))
    unit = "TFLOP/s"
    for n, name in enumerate(names):
        for s, (case, methods) in enumerate(panel.items()):
            unit = "GB/s" if unit_of(case) == "gbps" else "TFLOP/s"
            if _ok(methods, name):
                speed, x = float(methods[name][unit_of(case)]), s + (n - (len(names) - 1) / 2) * width
                label = name if s == min(i for i, m in enumerate(panel.values()) if _ok(m, name)) else None
                ax.bar(x, speed, width, color=colors[name], label=label)
                ax.annotate(f"{speed:.0f}", (x, speed), ha="center", va="bottom", fontsize=5.5, rotation=90)
    if most:
        ax.axhline(most, color=LIMIT_COLOR, linewidth=1, linestyle=(0, (4, 3)), label="measured matmul or copy")
    ax.set_xticks(range(len(panel)), [_length(case.seqlen_k) for case in panel])
    ax.set_ylabel(unit)
    ax.set_title(title, loc="left", fontsize=9)
    ax.margins(y=0.12)
    ax.grid(True, axis="y", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _ok(methods: dict[str, Row], name: str) -> bool:
    return name in methods and methods[name]["status"] == OK


def _length(seqlen: int) -> str:
    return f"{seqlen // 1024}k" if seqlen % 1024 == 0 else str(seqlen)
