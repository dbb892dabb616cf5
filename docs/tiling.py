"""Draws docs/tiling.svg, which README shows: blocks of keys and values pass by a block of queries.

python docs/tiling.py
"""

import argparse
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

ROWS, COLUMNS = 4, 6  # blocks of queries, of keys
ROW, COLUMN = 2, 3  # at work now
QUERY, KEY, RESULT, IDLE, INK = "#2563a8", "#d97706", "#15803d", "#eef1f5", "#1f2933"
SEEN, UNSEEN, DONE = "#dbe7f5", "#ffffff", "#cdebd6"


def box(axes, x, y, width, height, color, **style):
    axes.add_patch(
        Rectangle((x, y), width, height, facecolor=color, **{"edgecolor": "white", "linewidth": 1.5} | style)
    )


def text(axes, x, y, words, size=9.5, **style):
    axes.text(x, y, words, fontsize=size, **{"color": INK, "ha": "center", "va": "center", "linespacing": 1.5} | style)


def arrow(axes, start, end, color):
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=color, linewidth=1.6))


def scores(axes):
    """The score matrix, of which one tile exists at a time; above the diagonal the causal mask hides the keys."""
    for row in range(ROWS):
        for column in range(COLUMNS):
            hidden = (column + 0.5) / COLUMNS > (row + 1) / ROWS
            now, passed = (row, column) == (ROW, COLUMN), row < ROW or (row == ROW and column < COLUMN)
            color = KEY if now else UNSEEN if hidden else SEEN if passed else IDLE
            style = {"hatch": "////", "edgecolor": "#d5dae1", "linewidth": 0.8} if hidden else {}
            box(axes, column, row, 1, 1, color, **style)
    text(axes, COLUMN + 0.5, ROW + 0.5, "$S = QK^T$\n$P = e^{S-m'}$", 9, color="white", weight="bold")
    text(axes, 1.5, ROW + 0.5, "passed:\nnot kept", 9)
    text(axes, COLUMNS / 2, ROW + 1.5, "to come: of the scores one tile exists at a time", 9)
    text(axes, 5, 1, "hidden by the\ncausal mask:\nnot computed", 9, bbox={"facecolor": "white", "edgecolor": "none"})


def inputs(axes):
    for row in range(ROWS):
        box(axes, -1.15, row, 0.8, 1, QUERY if row == ROW else IDLE)
    text(axes, -0.75, ROW + 0.5, "$Q$", 12, color="white")
    text(axes, -0.75, -0.75, "queries", 10, weight="bold", color=QUERY)
    text(axes, -1.3, ROW + 0.5, "a block of\nqueries stays\non the chip", 9, ha="right", color=QUERY)
    for column in range(COLUMNS):
        box(axes, column, -1.15, 1, 0.8, KEY if column == COLUMN else IDLE)
    text(axes, COLUMN + 0.5, -0.75, "$K, V$", 12, color="white")
    text(axes, COLUMNS / 2, -1.9, "keys and values", 10, weight="bold", color=KEY)
    text(axes, COLUMNS / 2, -1.5, "blocks pass by, read once for each block of queries", 9, color=KEY)
    arrow(axes, (COLUMN + 0.5, -0.32), (COLUMN + 0.5, ROW - 0.03), KEY)


def results(axes):
    columns = (6.6, 0.35, "$m$"), (6.98, 0.35, "$l$"), (7.36, 1.6, "$o$")
    for x, width, name in columns:
        for row in range(ROWS):
            box(axes, x, row, width, 1, RESULT if row == ROW else DONE if row < ROW else IDLE)
        text(axes, x + width / 2, ROW + 0.5, name, 12, color="white")
    text(axes, 8.16, 0.5, "finished:\n$out = o / l$", 9)
    text(axes, 8.16, 1.5, "$lse = m + \\log\\,l$", 9)
    text(axes, 7.78, -0.75, "kept for each query", 10, weight="bold", color=RESULT)
    arrow(axes, (COLUMN + 1.03, ROW + 0.5), (6.55, ROW + 0.5), RESULT)
    rules = (
        "$m' = \\max(m, \\mathrm{rowmax}\\,S)$",
        "$l \\leftarrow e^{m-m'} l + \\mathrm{rowsum}\\,P$",
        "$o \\leftarrow e^{m-m'} o + P\\,V$",
    )
    text(axes, COLUMNS / 2, ROWS + 0.5, "        ".join(rules), 10, color=RESULT)


def draw():
    figure = Figure(figsize=(9.2, 5.1), layout="constrained")
    axes = figure.add_subplot(xlim=(-2.75, 9.05), ylim=(ROWS + 0.8, -2.15), aspect="equal")
    axes.set_axis_off()
    for part in (scores, inputs, results):
        part(axes)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".svg"))
    with matplotlib.rc_context({"svg.hashsalt": "tiling", "hatch.linewidth": 0.6}):  # the same file each time
        draw().savefig(parser.parse_args().output, metadata={"Date": None})


if __name__ == "__main__":
    main()
