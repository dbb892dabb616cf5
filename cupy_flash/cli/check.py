"""run the kernels on the GPU against float64, and record what the primitives answer

With --backend emulator the same checks run on any machine with a C++ compiler, on shorter sequences.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    backends,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
    merge_attention,
)
from cupy_flash.analysis.budget import magnitudes, spent
from cupy_flash.cli import Unavailable, UserError
from cupy_flash.cli.ahead import compile_ahead
from cupy_flash.cli.problems import Problem, problems
from cupy_flash.plan import plan_backward, plan_forward
from cupy_flash.problem import DTYPES

NAMES = ("out", "lse", "dq", "dk", "dv")
TESTS = Path(__file__).parents[2] / "tests"  # in a checkout; a wheel has none
GPU_REPEATS, EMULATED_REPEATS = 100, 3


class Failed(Exception):
    """A check that ran and did not hold."""


class Check(NamedTuple):
    """A named check: `run` returns what to print of it, or raises."""

    name: str
    run: Callable[[], str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="cuda", metavar="NAME", help="cuda (default), emulator or emulator:ARCH")
    parser.add_argument("--only", default="", metavar="TEXT", help="only checks whose name contains this")
    parser.add_argument(
        "--golden",
        type=Path,
        metavar="FILE",
        help="where a GPU's answers go, by default into a checkout's tests if these have none",
    )


def run(args: argparse.Namespace) -> None:
    """Print one line a check.

    Raises
    ------
    Unavailable
        If the backend cannot run here.
    UserError
        If a check fails, or none has such a name.
    """
    family = args.backend.partition(":")[0]
    if family not in ("cuda", "emulator"):
        raise UserError(f"--backend is {args.backend!r}: expected cuda, emulator or emulator:ARCH")
    if args.golden and family != "cuda":
        raise UserError("--golden records what a GPU answers: expected --backend cuda")
    if args.golden and not args.golden.absolute().parent.is_dir():
        raise UserError(f"{args.golden.absolute().parent} is not a directory")
    try:
        backend = backends.get(args.backend)
        print(f"{args.backend}: {backend.status()}")
    except ValueError as error:
        raise UserError(str(error)) from None
    except RuntimeError as error:
        raise Unavailable(str(error)) from None
    on_gpu = family == "cuda"
    checks = [check for check in _checks(args.backend, on_gpu) if args.only in check.name]
    record = _recorder(args.golden) if on_gpu else None
    primitives = [name for name in _primitives(record) if args.only in _title(name)] if record else []
    count = len(checks) + len(primitives)
    if not count:
        raise UserError(f"--only is {args.only!r}: no check has that in its name")
    if on_gpu:
        _compile(backend, [p for p in problems() if args.only in str(p)])
    failed = _run_all(checks, on_gpu)
    if primitives:
        failed += _record(record, args.golden, primitives)
    if failed:
        raise UserError(f"{len(failed)} of {count} checks failed: {'; '.join(failed)}")
    print(f"{count} checks passed")


def _checks(backend: str, on_gpu: bool) -> Iterator[Check]:
    for p in problems():
        yield _values(backend, p if on_gpu else p.reduced(), str(p))
    for dtype in DTYPES:
        yield _repeats(backend, dtype, on_gpu)
    yield Check("merge of two parts of the keys", partial(_merge, backend, on_gpu))
    if on_gpu:
        yield Check("stream: launches go to the current one", _stream)
        for deterministic in (False, True):
            yield Check(f"graph: capture, replay, deterministic={deterministic}", partial(_graph, deterministic))


def _run_all(checks: list[Check], on_gpu: bool) -> list[str]:
    """Names of the checks that failed, each told as it ends."""
    failed, lost = [], ""
    for i, check in enumerate(checks, 1):
        try:
            verdict = "-" if lost else "ok"
            detail = lost or check.run()
        except Exception as error:
            verdict = "FAILED"
            detail = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
            lost = _device_error() if on_gpu else ""
        if verdict != "ok":
            failed.append(check.name)
        print(f"[{i:3}/{len(checks)}] {verdict:6} {check.name:<64} {detail}", flush=True)
    return failed


def _device_error() -> str:
    """Why nothing more can run in this process, or nothing."""
    import cupy

    try:
        cupy.cuda.runtime.deviceSynchronize()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"not run: the device is lost to this process, {error}"
    return ""


def _compile(backend: Any, chosen: list[Problem]) -> None:
    kernels = set()
    for p in chosen:
        problem = p.problem()
        if problem.seqlen_q and problem.seqlen_k:
            plans = plan_forward(problem, backend.device), plan_backward(problem, backend.device, p.deterministic)
            kernels |= {launch.kernel for plan in plans for launch in plan.launches}
    compile_ahead(kernels, backend.device.arch)


def _namespace(backend: str) -> Any:
    return backends.get(backend).namespace


def _on_host(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.get()


def _values(backend: str, p: Problem, name: str) -> Check:
    """Forward and backward within the error budget; prints the largest share of it that was used."""

    def run() -> str:
        q, k, v, dout, dlse = p.arrays(_namespace(backend))
        options = p.options | {"backend": backend}
        out, lse = flash_attention(q, k, v, return_lse=True, **options)
        grads = flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, deterministic=p.deterministic, **options)
        results = [_on_host(x) for x in (out, lse, *grads)]
        q, k, v, dout, dlse = p.arrays()
        references = [
            (
                *attention_reference(q, k, v, return_lse=True, compute_dtype=dtype, **p.options),
                *attention_reference_backward(dout, q, k, v, dlse=dlse, compute_dtype=dtype, **p.options),
            )
            for dtype in (None, np.float64)
        ]
        sizes = magnitudes(q, k, v, dout, dlse, **p.options)
        shares = {}
        for n, x, naive, exact in zip(NAMES, results, *references, strict=True):
            error, budget = spent(x, naive, exact, sizes[n])
            if not error <= budget:
                raise Failed(f"{n}: error {error:.3g}, the budget is {budget:.3g}")
            shares[n] = error / budget if budget else 0.0
        worst = max(shares, key=lambda n: shares[n])
        return f"{shares[worst]:.0%} of the error budget ({worst})"

    return Check(name, run)


def _repeats(backend: str, dtype: str, on_gpu: bool) -> Check:
    """The same bits every time."""
    p = Problem(dtype, batch=(), heads_k=2, group=4, sq=777, sk=1000, causal=True, deterministic=True)
    count = GPU_REPEATS if on_gpu else EMULATED_REPEATS

    def run() -> str:
        q, k, v, dout, dlse = (p if on_gpu else p.reduced()).arrays(_namespace(backend))

        def bits() -> list[Any]:
            (out, lse), vjp = flash_attention_vjp(
                q, k, v, causal=True, deterministic=True, return_lse=True, backend=backend
            )
            return [x.view(np.uint8) for x in (out, lse, *vjp(dout, dlse))]

        first = bits()
        for i in range(1, count):
            for name, x, y in zip(NAMES, first, bits(), strict=True):
                if not bool((x == y).all()):
                    raise Failed(f"{name} differs in repeat {i}")
        return f"{count} times the same bits"

    return Check(f"repeats: {dtype}", run)


def _merge(backend: str, on_gpu: bool) -> str:
    p = Problem(d=128, sk=1001)
    p = p if on_gpu else p.reduced()
    q, k, v, *_ = p.arrays(_namespace(backend))
    cut = p.sk // 3
    parts = [
        flash_attention(q, k[..., rows, :], v[..., rows, :], return_lse=True, backend=backend)
        for rows in (slice(cut), slice(cut, None))
    ]
    out = _on_host(merge_attention(*parts[0], *parts[1], backend=backend)[0])
    q, k, v, *_ = p.arrays()
    naive, exact = (attention_reference(q, k, v, compute_dtype=dtype) for dtype in (None, np.float64))
    error, budget = spent(out, naive, exact)
    budget *= 2  # each part is rounded once more
    if not error <= budget:
        raise Failed(f"error {error:.3g}, the budget is {budget:.3g}")
    return f"{error / budget:.0%} of the error budget"


def _stream() -> str:
    """A launch waits for a slow kernel before it on its stream, sees what was copied between, and does not block."""
    import cupy

    from cupy_flash.cli.bench.timing import spin

    q, k, v, *_ = Problem(sq=300, sk=300).arrays(cupy)
    expected = flash_attention(q, k, v)
    source = cupy.zeros_like(q)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        spin(200_000_000)
        source[...] = q
        out = flash_attention(source, k, v)
        returned_early = not stream.done
    stream.synchronize()
    if not returned_early:
        raise Failed("the call waited for the stream")
    if not bool((out == expected).all()):
        raise Failed("the result is not that of the stream's data")
    return "asynchronous, in order"


def _graph(deterministic: bool) -> str:
    """A captured forward and backward replayed on other inputs gives their results."""
    import cupy

    q, k, v, dout, _ = Problem(sq=200, sk=200).arrays(cupy)

    def step() -> tuple[Any, ...]:
        out, lse = flash_attention(q, k, v, causal=True, return_lse=True)
        return out, *flash_attention_backward(dout, q, k, v, out, lse, causal=True, deterministic=deterministic)

    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc), stream:
        step()  # compiles, and fills the memory pool
        stream.begin_capture()
        captured = step()
        graph = stream.end_capture()
        q *= 2
        graph.launch(stream)
        replayed = [x.get().astype(np.float64) for x in captured]  # a copy on this stream, then a wait for it
        direct = [x.get().astype(np.float64) for x in step()]
    error = max(np.abs(x - y).max() for x, y in zip(replayed, direct, strict=True))
    if not error <= (0 if deterministic else 2e-3):
        raise Failed(f"the replay differs by {error:.3g}")
    return f"the replay differs by {error:.3g}"


def _title(primitive: str) -> str:
    return f"primitive: {primitive}"


def _recorder(path: Path | None) -> Any:
    """The module golden.record of a checkout's tests, None in a wheel."""
    if not (TESTS / "golden" / "record.py").exists():
        if path:
            raise UserError("--golden needs a checkout of the sources: the primitives' kernels lie in its tests")
        return None
    sys.path[:0] = [str(TESTS)] if str(TESTS) not in sys.path else []
    return importlib.import_module("golden.record")


def _primitives(record: Any) -> list[str]:
    return [primitive.name for primitive in record.available(record.current_device().compute_capability)]


def _record(record: Any, path: Path | None, names: list[str]) -> list[str]:
    """Names of the primitives that do not answer as the PTX ISA says; the answers go to a file.

    They run in a process of their own, as one that is used wrongly can take the device with it.
    """
    target = path or (None if record.FILE.exists() else record.FILE)  # an earlier record is replaced when asked

    def report(name: str, outcome: Any) -> None:
        verdict = "ok" if outcome.status == "passed" else "FAILED"
        print(f"          {verdict:6} {_title(name):<64} {outcome.message.partition(chr(10))[0]}", flush=True)

    outcomes = record.record(target, names=names, report=report)
    if target:
        print(f"primitives recorded in {target}")
    return [_title(name) for name, outcome in outcomes.items() if outcome.status != "passed"]
