"""attention over a text: three ways that agree, then time and memory against the standard attention

The text comes with the package. The peak memory, O(S) against O(S^2), is plotted into a file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cupy_flash._src import backends
from cupy_flash._src.cli import Unavailable, UserError
from cupy_flash._src.cli.agreement import WAYS, Agreement, Result, largest_difference
from cupy_flash._src.cli.arguments import positive_int, writing
from cupy_flash._src.cli.measure import ORACLE_ROWS, Case, Cost, available_bytes, measure_apart, standard_bytes
from cupy_flash._src.cli.plot import check_path, plot_memory
from cupy_flash._src.cli.progress import progress
from cupy_flash._src.cli.text import read_text
from cupy_flash._src.cli.units import format_bytes, format_seconds
from cupy_flash._src.problem import DTYPES, MAX_SEQLEN

SEQLENS = (512, 1024, 2048, 4096)
EMULATOR_SEQLENS = (64, 128, 256)  # no place for long sequences: one CPU plays a GPU
AGREEMENT_SEQLEN = 256
# So many heads that few threads need no keys to be split, each part of which takes memory for its sums.
HEADS, HEAD_DIM = 8, 64

AGREEMENT_ROW = "  {:26} {:>9} {:>9} {:>10}"
COST_ROW = "{:>7}  {:>8} {:>8}   {:>8} {:>8} {:>8}   {:>8} {:>8}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("cupy_flash_memory.png"), metavar="PATH",
        help="where to write the plot; the suffix chooses the format (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", metavar="NAME",
        help="cuda, cpu, emulator or emulator:<arch>; by default cuda where there is a GPU, else cpu",
    )  # fmt: skip
    parser.add_argument(
        "--seqlens", type=positive_int, nargs="+", metavar="S",
        help=f"sequence lengths to measure (default: {' '.join(map(str, SEQLENS))})",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Run the demo.

    Raises
    ------
    Unavailable
        If the backend cannot run here.
    UserError
        If an argument is wrong, or the plot cannot be drawn or written.
    """
    check_path(args.output)
    backend, reason = _choose_backend(args.backend)
    seqlens = sorted(set(args.seqlens or (EMULATOR_SEQLENS if backend.startswith("emulator") else SEQLENS)))
    if seqlens[-1] > MAX_SEQLEN:
        raise UserError(f"--seqlens has {seqlens[-1]}: expected at most {MAX_SEQLEN}")
    size = len(read_text())
    print(f"Causal self-attention over a text of {size} bytes, {HEADS} heads of {HEAD_DIM}, {args.dtype}.")
    print(f"Backend: {backend} {reason}.\n")
    _show_agreement(args.dtype, min(AGREEMENT_SEQLEN, seqlens[-1]))
    standard, flash = _show_costs(backend, args.dtype, seqlens)
    title = f"Causal attention, {HEADS} heads of {HEAD_DIM}, {args.dtype}, {backend} backend"
    if not flash:
        raise UserError("nothing to plot: no length fits in the memory of this machine")
    with writing(args.output):
        row_bytes = flash[max(flash)].output_bytes // max(flash)
        plot_memory(_peak_bytes(standard), _peak_bytes(flash), row_bytes, title, args.output)
    print(f"Plot: {args.output}")


def _choose_backend(name: str | None) -> tuple[str, str]:
    """The backend to measure, with what it is and why it was chosen."""
    try:
        status = _status("cuda" if name is None else name)
    except RuntimeError as error:
        if name is not None:
            raise Unavailable(f"backend {name!r} is not available: {error}") from None
        return "cpu", f"({_status('cpu')}), because {error}"
    return name or "cuda", f"({status}), {'as asked' if name else 'because it is there'}"


def _status(backend: str) -> str:
    """Of a backend; a RuntimeError where it cannot run, a UserError where it or what it reads is misspelt."""
    try:
        return backends.get(backend).status()
    except ValueError as error:
        raise UserError(str(error)) from None


def _show_agreement(dtype: str, seqlen: int) -> None:
    print(f"Attention computed three ways, S = {seqlen}; largest errors against float64:")
    print(AGREEMENT_ROW.format("", "out", "dq dk dv", "fwd + bwd"), flush=True)
    agreement = Agreement(dtype, seqlen, HEADS, HEAD_DIM)
    results = []
    with progress("", len(WAYS)) as bar:
        for name, label in WAYS.items():
            bar.set_description(label)
            try:
                _status(name)
            except RuntimeError as error:
                bar.write(f"  {label:26} not run: {error}")
            else:
                results.append(agreement.flash(name))
                bar.write(_agreement_row(results[-1]))
            bar.update()
    print(_agreement_row(agreement.standard()))
    print(f"  The {len(results)} that ran differ by at most {largest_difference(results):.1e}.\n")


def _agreement_row(result: Result) -> str:
    errors = f"{result.out_error:.1e}", f"{result.grad_error:.1e}"
    return AGREEMENT_ROW.format(result.name, *errors, format_seconds(result.seconds))


def _show_costs(backend: str, dtype: str, seqlens: list[int]) -> tuple[dict[int, Cost], dict[int, Cost]]:
    """Measure and print both methods at each length; return the costs of the standard attention and ours."""
    print("The standard attention (std) against flash_attention (ours), forward:")
    print(COST_ROW.format("S", "time std", "ours", "mem. std", "ours", "output", "err. std", "ours"), flush=True)
    standard: dict[int, Cost] = {}
    flash: dict[int, Cost] = {}
    with progress("", 2 * len(seqlens)) as bar:
        for seqlen in seqlens:
            for method, costs in (("standard", standard), ("flash", flash)):
                bar.set_description(f"S = {seqlen}, {method}")
                case = Case(method, backend, dtype, seqlen, HEADS, HEAD_DIM)
                cost = _measure_if_it_fits(case)
                if cost:
                    costs[seqlen] = cost
                bar.update()
            bar.write(_cost_row(seqlen, standard.get(seqlen), flash.get(seqlen)))
    print("Memory: peak beyond the inputs. std holds scores, exponentials and probabilities, S x S for each head;")
    print("ours holds the output, a number for each row, scratch memory, and sums of the parts where keys are split.")
    print(f"Error: largest of the last {ORACLE_ROWS} rows, against float64.")
    if len(standard) < len(seqlens):
        print("A dash: the memory of this machine does not suffice.")
    return standard, flash


def _measure_if_it_fits(case: Case) -> Cost | None:
    available = available_bytes(case.backend)
    if case.method == "standard" and available is not None and standard_bytes(case) > available:
        return None
    return measure_apart(case)


def _cost_row(seqlen: int, standard: Cost | None, flash: Cost | None) -> str:
    costs = standard, flash
    columns = [
        [format_seconds(c.seconds) if c else "-" for c in costs],
        [format_bytes(c.peak_bytes) if c else "-" for c in costs],
        [format_bytes(flash.output_bytes) if flash else "-"],
        [f"{c.error:.1e}" if c else "-" for c in costs],
    ]
    return COST_ROW.format(seqlen, *(cell for column in columns for cell in column))


def _peak_bytes(costs: dict[int, Cost]) -> dict[int, int]:
    return {seqlen: cost.peak_bytes for seqlen, cost in costs.items()}
