"""Time the CPU backend against PyTorch's CPU `scaled_dot_product_attention`, float32, in one interleaved run.

    pip install -e . torch && python benchmarks/cpu_vs_torch.py

Every configuration is verified first: a few rows of the output and of the gradients of both against float64.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import threadpoolctl

from cupy_flash import attention_reference, attention_reference_backward, flash_attention, flash_attention_vjp
from cupy_flash.backends.cpu import CpuBackend

HEADS = 8
TOLERANCE = 2e-5
PAUSE = 0.05  # seconds: PyTorch's OpenMP threads spin for a while after their last work


class Row(NamedTuple):
    """One line of the table; times are medians in milliseconds, `best_ratio` compares the fastest runs."""

    seqlen: int
    head_dim: int
    causal: bool
    direction: str
    ours_ms: float
    torch_ms: float
    ratio: float
    best_ratio: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="S = 2048 alone, few repeats")
    parser.add_argument("--seqlens", type=int, nargs="+", default=[512, 2048, 4096, 8192])
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--seconds", type=float, default=10, help="time to spend on each line")
    parser.add_argument("--memory", action="store_true", help="measure peak memory at S = 16384 instead of time")
    parser.add_argument("--output", type=Path, help="also write the table as CSV")
    options = parser.parse_args()
    if options.memory:
        for name in ("ours", "torch"):
            subprocess.run([sys.executable, "-c", f"import cpu_vs_torch as b; b.print_peak_memory({name!r})"],
                           cwd=Path(__file__).parent, check=True)  # fmt: skip
        return
    seqlens = [2048] if options.quick else options.seqlens
    seconds = 2 if options.quick else options.seconds
    print(describe_machine())
    print(f"{'S':>6} {'d':>4} {'causal':>6} {'pass':>8} {'ours ms':>9} {'torch ms':>9} {'ratio':>6} {'best':>6}")
    rows = []
    for row in measure(seqlens, options.head_dims, seconds):
        rows.append(row)
        print(f"{row.seqlen:6} {row.head_dim:4} {row.causal!s:>6} {row.direction:>8} {row.ours_ms:9.2f} "
              f"{row.torch_ms:9.2f} {row.ratio:6.3f} {row.best_ratio:6.3f}", flush=True)  # fmt: skip
    if options.output:
        with options.output.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["machine", *Row._fields])
            writer.writerows([describe_machine().replace("\n", "; "), *row] for row in rows)


def measure(seqlens: Iterable[int], head_dims: Iterable[int], seconds: float) -> Iterable[Row]:
    """Verify, then time each configuration."""
    for seqlen in seqlens:
        for head_dim in head_dims:
            for causal in (False, True):
                calls = make_calls(seqlen, head_dim, causal)
                verify(seqlen, head_dim, causal, calls)
                for direction in ("forward", "fwd+bwd"):
                    ours, theirs = interleave(calls["ours"][direction], calls["torch"][direction], seconds)
                    medians = statistics.median(ours), statistics.median(theirs)
                    yield Row(seqlen, head_dim, causal, direction, medians[0], medians[1],
                              medians[0] / medians[1], min(ours) / min(theirs))  # fmt: skip


def make_inputs(seqlen: int, head_dim: int) -> list[np.ndarray]:
    """q, k, v and dout of shape (HEADS, S, d)."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((HEADS, seqlen, head_dim), dtype=np.float32) for _ in range(4)]


def make_calls(seqlen: int, head_dim: int, causal: bool) -> dict[str, dict[str, Callable]]:
    """For each library, functions that return out and (out, dq, dk, dv)."""
    import torch

    q, k, v, dout = make_inputs(seqlen, head_dim)
    tq, tk, tv, tdout = (torch.from_numpy(x)[None] for x in (q, k, v, dout))
    leaves = [x.requires_grad_() for x in (tq.clone(), tk.clone(), tv.clone())]
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def ours_both() -> tuple:
        out, vjp = flash_attention_vjp(q, k, v, causal=causal)
        return out, *vjp(dout)

    def torch_both() -> tuple:
        out = sdpa(*leaves, is_causal=causal)
        return tuple(x.detach()[0].numpy() for x in (out, *torch.autograd.grad(out, leaves, tdout)))

    def torch_forward() -> np.ndarray:
        with torch.no_grad():
            return sdpa(tq, tk, tv, is_causal=causal)[0].numpy()

    return {
        "ours": {"forward": lambda: flash_attention(q, k, v, causal=causal), "fwd+bwd": ours_both},
        "torch": {"forward": torch_forward, "fwd+bwd": torch_both},
    }


def verify(seqlen: int, head_dim: int, causal: bool, calls: dict[str, dict[str, Callable]]) -> None:
    """Compare the outputs and dq of the last 32 queries of one head with float64."""
    q, k, v, dout = (x[:1] for x in make_inputs(seqlen, head_dim))
    rows = slice(-32, None)
    exact = attention_reference(q[:, rows], k, v, causal=causal, compute_dtype=np.float64)
    exact_dq, *_ = attention_reference_backward(
        dout[:, rows], q[:, rows], k, v, causal=causal, compute_dtype=np.float64
    )
    for name, functions in calls.items():
        forward = functions["forward"]()
        out, dq, *_ = functions["fwd+bwd"]()
        errors = [np.abs(x[:1, rows] - y).max() for x, y in ((forward, exact), (out, exact), (dq, exact_dq))]
        if not max(errors) < TOLERANCE:
            raise SystemExit(f"{name} is wrong at S={seqlen}, d={head_dim}, causal={causal}: errors {errors}")


def interleave(ours: Callable, theirs: Callable, seconds: float) -> tuple[list[float], list[float]]:
    """Milliseconds of alternating calls, at least 5 pairs."""
    times: tuple[list[float], list[float]] = [], []
    stop = time.perf_counter() + seconds
    while len(times[0]) < 5 or time.perf_counter() < stop:
        for function, list_ in zip((ours, theirs), times, strict=True):
            time.sleep(PAUSE)
            start = time.perf_counter()
            function()
            list_.append(1e3 * (time.perf_counter() - start))
    return times


def print_peak_memory(name: str, seqlen: int = 16384, head_dim: int = 64) -> None:
    """Print how far forward + backward raises this process' peak memory beyond inputs and outputs."""
    make_calls(256, head_dim, False)[name]["fwd+bwd"]()  # libraries, threads and their buffers
    both = make_calls(seqlen, head_dim, False)[name]["fwd+bwd"]
    before = _status("VmRSS")
    results = both()
    beyond = _status("VmHWM") - before - sum(x.nbytes for x in results)
    print(f"{name:>6}: {beyond / 1e6:.0f} MB beyond inputs and outputs, S={seqlen}, H={HEADS}, d={head_dim}")


def _status(field: str) -> int:
    """Bytes that Linux reports for this process."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def describe_machine() -> str:
    """CPU, instruction sets, libraries: a ratio means nothing without them."""
    import torch

    try:
        cpuinfo = dict(
            (part.strip() for part in line.split(":", 1))
            for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        )
    except OSError:
        cpuinfo = {}
    model = cpuinfo.get("model name", platform.processor())
    family = f"family {cpuinfo.get('cpu family')} model {cpuinfo.get('model')}" if cpuinfo else ""
    blas = next(x for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas" and "numpy" in x["filepath"])
    mkl = next((x.strip() for x in torch.__config__.show().splitlines() if "Math Kernel Library" in x), "no MKL")
    return (
        f"{model} {family}\n"
        f"cupy_flash: {CpuBackend().status()}\n"
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {mkl}\n"
        f"NumPy {np.__version__}, {blas['internal_api']} {blas['version']} as {blas['architecture']}; "
        f"float32, B = 1, H = {HEADS}"
    )


if __name__ == "__main__":
    main()
