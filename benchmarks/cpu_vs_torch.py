"""Time the CPU backend against PyTorch's CPU `scaled_dot_product_attention`, in one interleaved run.

    pip install -e . torch matplotlib && python benchmarks/cpu_vs_torch.py

Every configuration is verified against float64 before it is timed. Sections:

    speed    forward and forward + backward against S, full and causal, GFLOP/s beside the measured FMA peak
    small    S = 64 to 256
    decode   one query against 4096 keys
    window   512 keys before each query, at S = 4096 and 16384; PyTorch is given the mask
    bias     of 8 heads of 256 and 512 positions, that 32 rows share, with its gradient
    memory   peak memory beyond inputs and results, forward + backward (Linux)
    growth   exponents of S fitted to time and memory
    compile  time to compile the compiled tier
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cpu import table
from cpu.cases import DTYPES, HEADS, SECTIONS, cases
from cpu.machine import Machine, describe_machine
from cpu.measure import measure_all
from cpu.plot import plot
from cpu.results import Row, Writer, growth, read

FULL = {"seqlens": [1024, 2048, 4096, 8192, 16384], "half_seqlens": [1024, 2048, 4096], "seconds": 5}
QUICK = {"seqlens": [1024, 2048], "half_seqlens": [1024], "seconds": 0.5}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.source:
        machine, rows = read(options.source)
        print(machine)
        print(table.render(rows, machine))
    else:
        machine = describe_machine()
        print(machine)
        rows = measure(options, machine)
    if "growth" in options.sections and (lines := growth(rows)):
        print("\nGrowth, least squares on logarithms", *lines, sep="\n")
    if options.plot:
        plot(rows, machine, options.plot)
    failed = [row.case for row in rows if row.failed]
    if failed:
        raise SystemExit(f"{len(failed)} cases failed: {'; '.join(map(str, failed))}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="default: all")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--seqlens", type=int, nargs="+", metavar="S", help=f"of speed in float32; H = {HEADS}")
    parser.add_argument("--half-seqlens", type=int, nargs="+", metavar="S",
                        help="of speed in the half types, where PyTorch's backward is slow")  # fmt: skip
    parser.add_argument("--head-dims", type=int, nargs="+", metavar="D", default=[64, 128], help="of speed")
    parser.add_argument("--seconds", type=float, help="time to spend on each line; at least 3 pairs of calls")
    parser.add_argument("--cap", type=float, default=100, metavar="SECONDS",
                        help="leave out, and say so, what would take longer for one pair of calls")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="short sequences, few repeats: about two minutes")
    parser.add_argument("--output", type=Path, metavar="CSV", help="also write the rows, each when it is measured")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="plot the section speed")
    parser.add_argument("--from", type=Path, dest="source", metavar="CSV",
                        help="measure nothing: tables and plot of an earlier --output")  # fmt: skip
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.source and options.output:
        parser.error("--output writes what is measured, and --from measures nothing")
    return options


def measure(options: argparse.Namespace, machine: Machine) -> list[Row]:
    """Measure the cases that the options ask for; print and write each row at once."""
    wanted = cases(
        options.sections, options.dtypes, options.seqlens, options.half_seqlens, options.head_dims, options.quick
    )
    writer = Writer(options.output, machine) if options.output else None
    rows: list[Row] = []
    for row in measure_all(wanted, options.seconds, options.cap):
        for text in (*table.heading(row.case, rows[-1].case if rows else None), table.line(row, machine)):
            print(text, flush=True)
        rows.append(row)
        if writer:
            writer.add(row)
    return rows


if __name__ == "__main__":
    main()
