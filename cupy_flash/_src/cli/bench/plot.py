"""Plots in the style of the FlashAttention papers: grouped bars by sequence length, one panel a head size and mask."""

from __future__ import annotations

from itertools import chain, cycle
from pathlib import Path
from typing import Any

from cupy_flash._src.cli.bench.book import OK, Row
from cupy_flash._src.cli.bench.cases import Case
from cupy_flash._src.cli.bench.table import OURS, by_case, limit, unit_of

OUR_COLOR, LIMIT_COLOR = "#2563a8", "#9a9a9a"
DIRECTIONS = "forward", "backward", "decode"
PEER_COLORS = ("#c1443c", "#d98a2b", "#5f9e57", "#8268ad", "#4aa3a8", "#b0608f", "#8c6d4f", "#7f7f7f", "#a7b13c")

Panel = dict[Case, dict[str, Row]]


def plot(rows: list[Row], stem: Path) -> list[Path]:
    """Write the `files` of the directions that were measured."""
    from matplotlib.figure import Figure

    written = []
    cases = by_case(rows)
    names = [OURS, *sorted({m for methods in cases.values() for m in methods} - {OURS})]
    colors = dict(zip(names, chain([OUR_COLOR], cycle(PEER_COLORS)), strict=False))
    for direction, path in files(stem).items():
        panels: dict[str, Panel] = {}
        for case, methods in cases.items():
            if case.direction == direction:
                panels.setdefault(_title(case), {})[case] = methods
        if not panels:
            continue
        columns = min(2, len(panels))
        lines = -(-len(panels) // columns)
        figure = Figure(figsize=(8 * columns, 4.2 * lines + 1), dpi=120, layout="constrained")
        axes = list(figure.subplots(lines, columns, squeeze=False).flat)
        most = limit(rows, "copy" if direction == "decode" else "matmul")
        for ax, (title, panel) in zip(axes, panels.items(), strict=False):
            _draw(ax, title, panel, colors, most)
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        handles, labels = [], []
        for ax in figure.axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                if label not in labels:
                    handles.append(handle)
                    labels.append(label)
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=10)
        figure.suptitle(f"Attention {direction} on {_where(rows[-1])}", x=0.01, ha="left", fontsize=12)
        figure.savefig(path)
        written.append(path)
    return written


def _where(row: Row) -> str:
    """Device, date and versions of a row, as far as they are known."""
    names = (
        ("driver", "driver "),
        ("cuda", "CUDA "),
        ("cupy", "CuPy "),
        ("cupy_flash", "cupy_flash "),
        ("commit", "commit "),
    )
    versions = ", ".join(name + row[column] for column, name in names if row[column])
    return f"{row['device']}, {row['date']}\n{versions}; bars are medians, lines the 10th to 90th percentile"


def files(stem: Path) -> dict[str, Path]:
    """``<stem>-forward.png`` and so on."""
    return {direction: stem.with_name(f"{stem.name}-{direction}.png") for direction in DIRECTIONS}


def _title(case: Case) -> str:
    """Of the panel that it stands in; those with options have one."""
    title = f"{case.dtype}, head dimension {case.head_dim}"
    if case.direction == "decode":
        title += f", {case.heads_q} heads, {case.heads_k} of keys"
    elif case.causal and not case.option:
        title += ", causal"
    return title + ", with options" * bool(case.option)


def _draw(ax: Any, title: str, panel: Panel, colors: dict[str, str], most: float | None) -> None:
    names = [name for name in colors if any(name in methods for methods in panel.values())]
    width = 0.86 / max(1, len(names))
    size = max(7, min(9, 60 * width))  # of the figures above the bars, which stand side by side
    unit = unit_of(next(iter(panel)))
    labelled: set[str] = set()
    for s, methods in enumerate(panel.values()):
        for n, name in enumerate(names):
            x = s + (n - (len(names) - 1) / 2) * width
            row = methods.get(name)
            if row is None:
                continue
            if row["status"] != OK:
                text = "OOM" if "out of memory" in row["status"].lower() else "failed"
                ax.annotate(text, (x, 0), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=size,
                            rotation=90, color=colors[name])  # fmt: skip
                continue
            speed = float(row[unit])
            low, high = (speed * float(row["median_us"]) / float(row[p]) for p in ("p90_us", "p10_us"))
            version = row["method_version"]
            label = None if name in labelled else f"{name} {version}" if version else name
            labelled.add(name)
            ax.bar(x, speed, width, color=colors[name], label=label)
            ax.plot([x, x], [low, high], color="#222222", linewidth=1)
            ax.annotate(f"{speed:.0f}", (x, max(speed, high)), (0, 2), textcoords="offset points", ha="center",
                        va="bottom", fontsize=size, rotation=90)  # fmt: skip
    if most:
        ax.axhline(most, color=LIMIT_COLOR, linewidth=1, linestyle=(0, (4, 3)), label="measured matmul or copy")
    ax.set_xticks(range(len(panel)), [_length(case) for case in panel], fontsize=9)
    ax.set_xlabel("sequence length; batch x heads below", fontsize=9)
    ax.set_ylabel("GB/s" if unit == "gbps" else "TFLOP/s")
    ax.set_title(title, loc="left", fontsize=10)
    ax.margins(y=0.15)
    ax.grid(True, axis="y", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _length(case: Case) -> str:
    seqlen = case.seqlen_k
    heads = f"{case.heads_q}" if case.group == 1 else f"{case.heads_q}/{case.heads_k}"
    length = f"{f'{seqlen // 1024}k' if seqlen % 1024 == 0 else seqlen}\n{case.batch} x {heads}"
    words = [case.option, "causal" * case.causal]
    return "\n".join([length, *(word for word in words if word)]) if case.option else length
