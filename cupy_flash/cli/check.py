"""run the kernels on the GPU against float64, and record what the primitives answer

With --backend emulator the same checks run on any machine with a C++ compiler, on shorter sequences.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    backends,
    compile,
    emulator,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
    merge_attention,
)
from cupy_flash.analysis.budget import magnitudes, spent
from cupy_flash.backends.cupy_ import _kernel
from cupy_flash.backends.emulator import _text
from cupy_flash.cli import Unavailable, UserError
from cupy_flash.cli.ahead import compile_ahead
from cupy_flash.cli.problems import SMOKE, Problem, problems
from cupy_flash.cli.worker import Failed, Worker, stage
from cupy_flash.device import Device
from cupy_flash.emulator.module import load
from cupy_flash.launch import Tensors
from cupy_flash.plan import Launch, plan_backward, plan_forward, plan_merge
from cupy_flash.problem import DTYPES
from cupy_flash.specialization import Specialization

NAMES = ("out", "lse", "dq", "dk", "dv")
TESTS = Path(__file__).parents[2] / "tests"  # in a checkout; a wheel has none
GPU_REPEATS, EMULATED_REPEATS = 100, 3
GPU_LIMIT, EMULATED_LIMIT = 10.0, 120.0


class Check(NamedTuple):
    """`run`, given the backend's name and the problem, returns what to print of it, or raises."""

    run: Callable[[str, Problem], str]
    problem: Problem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="cuda", metavar="NAME", help="cuda (default), emulator or emulator:ARCH")
    parser.add_argument("--only", default="", metavar="TEXT", help="only checks whose name contains this")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="TEXT", help="no checks whose name contains this; repeatable"
    )
    parser.add_argument(
        "--limit",
        type=float,
        metavar="SECONDS",
        help="for one stage of a check, compilation apart: then it hangs (default: "
        f"{GPU_LIMIT:g}, on the emulator {EMULATED_LIMIT:g})",
    )
    parser.add_argument(
        "--golden",
        type=Path,
        metavar="FILE",
        help="where the primitives' answers go; a GPU's by default into a checkout's tests if these have none",
    )


def run(args: argparse.Namespace) -> None:
    """Print one line a check. Each runs in another process: one that faults, crashes or hangs costs only itself.

    Raises
    ------
    Unavailable
        If the backend cannot run here.
    UserError
        If a check fails, or none has such a name.
    """
    if args.backend.partition(":")[0] not in ("cuda", "emulator"):
        raise UserError(f"--backend is {args.backend!r}: expected cuda, emulator or emulator:ARCH")
    if args.golden and not args.golden.absolute().parent.is_dir():
        raise UserError(f"{args.golden.absolute().parent} is not a directory")
    if args.limit is not None and not args.limit > 0:
        raise UserError(f"--limit is {args.limit:g}: expected seconds, more than 0")
    try:
        runtime: Any = backends.get(args.backend)
        print(f"{args.backend}: {runtime.status()}", flush=True)
    except ValueError as error:
        raise UserError(str(error)) from None
    except RuntimeError as error:
        raise Unavailable(str(error)) from None
    on_gpu = args.backend == "cuda"
    backend = args.backend if on_gpu else f"emulator:{runtime.device.arch}"
    limit = args.limit or (GPU_LIMIT if on_gpu else EMULATED_LIMIT)

    def chosen(name: str) -> bool:
        return args.only in name and not any(text in name for text in args.skip)

    names = [name for name in checks(backend) if chosen(name)]
    record = _recorder(args.golden, on_gpu)
    primitives = _primitives(record, backend, runtime.device.compute_capability) if record else []
    primitives = [name for name in primitives if chosen(_title(name))]
    report = Report(len(names) + len(primitives))
    if not report.count:
        raise UserError(f"no check is left: --only is {args.only!r}, --skip is {args.skip}")
    if names:
        _perform_all(backend, names, limit, report)
    if primitives:
        _record(record, backend, args.golden, primitives, limit, report)
    if report.failed:
        raise UserError(f"{len(report.failed)} of {report.count} checks failed: {'; '.join(report.failed)}")
    print(f"{report.count} checks passed")


class Report:
    """Tells each check as it ends, and keeps the names of those that failed."""

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0
        self.failed: list[str] = []

    def __call__(self, name: str, detail: str | None, failure: str) -> None:
        self.done += 1
        if failure:
            self.failed.append(name)
        verdict, text = ("FAILED", failure) if failure else ("ok", detail or "")
        line = " | ".join(stripped for part in text.splitlines() if (stripped := part.strip()))
        print(f"[{self.done:3}/{self.count}] {verdict:6} {name:<72} {line[:400]}", flush=True)


def checks(backend: str) -> dict[str, Check]:
    """Every check of a backend by its name, the most telling first."""
    on_gpu = backend == "cuda"
    found = {f"smoke: {name}": Check(_values, p) for name, p in SMOKE.items()}
    found |= {f"values: {p}": Check(_values, p) for p in problems()}
    for dtype in DTYPES:
        p = Problem(dtype, batch=(), heads_k=2, group=4, sq=777, sk=1000, causal=True, deterministic=True)
        found[f"repeats: {dtype}"] = Check(_repeats, p)
    found["merge: two parts of the keys"] = Check(_merge, Problem(d=128, sk=1001))
    if not on_gpu:
        return {name: check._replace(problem=check.problem.reduced()) for name, check in found.items()}
    found["stream: launches go to the current one"] = Check(_stream, Problem(sq=300, sk=300))
    for deterministic in (False, True):
        p = Problem(sq=200, sk=200, causal=True, deterministic=deterministic)
        found[f"graph: capture, replay, deterministic={deterministic}"] = Check(_graph, p)
    return found


def perform(backend: str, name: str) -> str:
    """Run one check in this process."""
    run, problem = checks(backend)[name]
    return run(backend, problem)


def compile_for(backend: str, names: list[str]) -> None:
    """Compile the kernels of many checks on all cores."""
    stage("compile")
    device, found = _runtime(backend).device, checks(backend)
    launches = [launch for name in names for launch in _launches(device, found[name].problem)]
    compile_ahead({launch.kernel for launch in launches}, device.arch)


def survives(backend: str) -> bool:
    """Whether this process can go on after a failure: a fault is the last that a CUDA context answers."""
    try:
        _synchronize(backend)
    except RuntimeError:
        return False
    return True


def _perform_all(backend: str, names: list[str], limit: float, report: Report) -> None:
    with Worker(limit, partial(survives, backend)) as worker:
        if backend == "cuda":
            failure = worker.run(compile_for, backend, names).failure
            if failure:
                print(failure, file=sys.stderr, flush=True)
        for name in names:
            report(name, *worker.run(perform, backend, name))


def _runtime(backend: str) -> Any:
    """The instance that calls with this backend use."""
    return backends.select(backend)[0]


def _synchronize(backend: str) -> None:
    if backend == "cuda":
        _runtime(backend).namespace.cuda.runtime.deviceSynchronize()


def kernels(device: Device) -> set[Specialization]:
    """What the checks on such a GPU launch."""
    return {launch.kernel for check in checks("cuda").values() for launch in _launches(device, check.problem)}


def _launches(device: Device, p: Problem) -> list[Launch]:
    problem = p.problem()
    if not (problem.seqlen_q and problem.seqlen_k):
        return []
    return [*plan_forward(problem, device).launches, *plan_backward(problem, device, p.deterministic).launches]


def _ready(backend: str, launches: Iterable[Launch]) -> None:
    """Compile and load the kernels that a check launches."""
    runtime = _runtime(backend)
    for kernel in dict.fromkeys(launch.kernel for launch in launches):
        stage("compile", _named(kernel))
        if backend == "cuda":
            compile.to_cubin(kernel, runtime.device.arch)
            stage("load", _named(kernel))
            _kernel(kernel, runtime.namespace.cuda.runtime.getDevice())
        else:
            load(_text(kernel, runtime.device.arch, emulator.current().path), emulator.current().mode)


def _named(kernel: Specialization) -> str:
    return f"{kernel.entry} of {kernel.source}"


@contextmanager
def _one_by_one(backend: str) -> Iterator[None]:
    """Every launch is waited for, so that a failure has the name of its kernel."""
    runtime = _runtime(backend)
    launch = runtime.run

    def run(step: Launch, params: np.ndarray, tensors: Tensors) -> None:
        stage("launch", _named(step.kernel))
        try:
            launch(step, params, tensors)
        except emulator.EmulatorError as error:
            if error.kind != "launch":
                stage("fault", _named(step.kernel))
            raise
        stage("fault", _named(step.kernel))
        _synchronize(backend)

    stage("launch")
    runtime.run = run
    try:
        yield
    finally:
        del runtime.run


def _arrays(backend: str, p: Problem) -> list[Any]:
    return p.arrays(_runtime(backend).namespace)


def _on_host(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.get()


def _values(backend: str, p: Problem) -> str:
    """Forward and backward within the error budget; tells the largest share of it that was used."""
    q, k, v, dout, dlse = _arrays(backend, p)
    options = p.options | {"backend": backend}
    _ready(backend, _launches(_runtime(backend).device, p))
    with _one_by_one(backend):
        out, lse = flash_attention(q, k, v, return_lse=True, **options)
        grads = flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, deterministic=p.deterministic, **options)
        results = [_on_host(x) for x in (out, lse, *grads)]
    stage("values")
    q, k, v, dout, dlse = p.arrays()
    references = [
        (
            *attention_reference(q, k, v, return_lse=True, compute_dtype=dtype, **p.options),
            *attention_reference_backward(dout, q, k, v, dlse=dlse, compute_dtype=dtype, **p.options),
        )
        for dtype in (None, np.float64)
    ]
    sizes = magnitudes(q, k, v, dout, dlse, **p.options)
    shares, wrong = {}, []
    for n, x, naive, exact in zip(NAMES, results, *references, strict=True):
        error, budget = spent(x, naive, exact, sizes[n])
        if not error <= budget:
            wrong.append(f"{n}: error {error:.3g}, the budget is {budget:.3g}")
        shares[n] = error / budget if budget else 0.0
    if wrong:
        raise Failed("; ".join(wrong))
    worst = max(shares, key=lambda n: shares[n])
    return f"{shares[worst]:.0%} of the error budget ({worst})"


def _repeats(backend: str, p: Problem) -> str:
    """The same bits every time."""
    q, k, v, dout, dlse = _arrays(backend, p)
    options = p.options | {"backend": backend, "deterministic": p.deterministic, "return_lse": True}
    count = GPU_REPEATS if backend == "cuda" else EMULATED_REPEATS

    def bits() -> list[Any]:
        (out, lse), vjp = flash_attention_vjp(q, k, v, **options)
        return [x.view(np.uint8) for x in (out, lse, *vjp(dout, dlse))]

    _ready(backend, _launches(_runtime(backend).device, p))
    with _one_by_one(backend):
        first = bits()
    for i in range(1, count):
        stage("fault", f"repeat {i}")
        same = [bool((x == y).all()) for x, y in zip(first, bits(), strict=True)]
        if not all(same):
            stage("values")
            raise Failed(f"{', '.join(n for n, s in zip(NAMES, same, strict=True) if not s)} differs in repeat {i}")
    return f"{count} times the same bits"


def _merge(backend: str, p: Problem) -> str:
    q, k, v, *_ = _arrays(backend, p)
    cut = p.sk // 3
    parts = [launch for sk in (cut, p.sk - cut) for launch in _launches(_runtime(backend).device, replace(p, sk=sk))]
    _ready(backend, [*parts, plan_merge(p.problem())])
    with _one_by_one(backend):
        (out_a, lse_a), (out_b, lse_b) = (
            flash_attention(q, k[..., rows, :], v[..., rows, :], return_lse=True, backend=backend)
            for rows in (slice(cut), slice(cut, None))
        )
        out = _on_host(merge_attention(out_a, lse_a, out_b, lse_b, backend=backend)[0])
    stage("values")
    q, k, v, *_ = p.arrays()
    naive, exact = (attention_reference(q, k, v, compute_dtype=dtype) for dtype in (None, np.float64))
    error, budget = spent(out, naive, exact)
    budget *= 2  # each part is rounded once more
    if not error <= budget:
        raise Failed(f"out: error {error:.3g}, the budget is {budget:.3g}")
    return f"{error / budget:.0%} of the error budget"


def _stream(backend: str, p: Problem) -> str:
    """A launch waits for a slow kernel before it on its stream, sees what was copied between, and does not block."""
    import cupy

    from cupy_flash.cli.bench.timing import spin

    q, k, v, *_ = _arrays(backend, p)
    _ready(backend, _launches(_runtime(backend).device, p))
    with _one_by_one(backend):
        expected = flash_attention(q, k, v)
    source = cupy.zeros_like(q)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    stage("launch", "on a stream")
    with stream:
        spin(200_000_000)
        source[...] = q
        out = flash_attention(source, k, v)
        returned_early = not stream.done
    stage("fault", "on a stream")
    stream.synchronize()
    stage("values")
    if not returned_early:
        raise Failed("the call waited for the stream")
    if not bool((out == expected).all()):
        raise Failed("the result is not that of the stream's data")
    return "asynchronous, in order"


def _graph(backend: str, p: Problem) -> str:
    """A captured forward and backward replayed on other inputs gives their results."""
    import cupy

    q, k, v, dout, _ = _arrays(backend, p)
    _ready(backend, _launches(_runtime(backend).device, p))

    def step() -> tuple[Any, ...]:
        out, lse = flash_attention(q, k, v, causal=True, return_lse=True)
        return out, *flash_attention_backward(dout, q, k, v, out, lse, causal=True, deterministic=p.deterministic)

    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc), stream:
        with _one_by_one(backend):
            step()  # fills the memory pool
        stage("launch", "captured")
        stream.begin_capture()
        captured = step()
        graph = stream.end_capture()
        q *= 2
        graph.launch(stream)
        stage("fault", "replayed")
        replayed = [x.get().astype(np.float64) for x in captured]  # a copy on this stream, then a wait for it
        direct = [x.get().astype(np.float64) for x in step()]
    stage("values")
    error = max(np.abs(x - y).max() for x, y in zip(replayed, direct, strict=True))
    if not error <= (0 if p.deterministic else 2e-3):
        raise Failed(f"the replay differs by {error:.3g}")
    return f"the replay differs by {error:.3g}"


def _title(primitive: str) -> str:
    return f"primitive: {primitive}"


def _recorder(path: Path | None, on_gpu: bool) -> Any:
    """The module golden.record of a checkout's tests, None in a wheel."""
    if not (TESTS / "golden" / "record.py").exists():
        if path:
            raise UserError("--golden needs a checkout of the sources: the primitives' kernels lie in its tests")
        return None
    sys.path[:0] = [str(TESTS)] if str(TESTS) not in sys.path else []
    record = importlib.import_module("golden.record")
    if path and not on_gpu and path.resolve() == record.FILE:
        raise UserError(f"{path} is for what a GPU answers: expected another --golden for the emulator's answers")
    return record


def _primitives(record: Any, backend: str, compute_capability: int) -> list[str]:
    among = record.ALL.values() if backend == "cuda" else record.PRIMITIVES
    return [primitive.name for primitive in record.available(compute_capability, among)]


def _record(record: Any, backend: str, path: Path | None, names: list[str], limit: float, report: Report) -> None:
    """Compare the primitives with what the PTX ISA says; the answers go to a file."""
    run, device = record.run_on_gpu, None
    if backend != "cuda":
        arch = _runtime(backend).device.arch
        run = partial(record.run_on_emulator, arch=arch)
        device = record.Device(backend, _runtime(backend).device.compute_capability)
    elif not path and not record.FILE.exists():  # an earlier record is replaced when asked
        path = record.FILE

    def tell(name: str, outcome: Any) -> None:
        report(_title(name), "", "" if outcome.status == "passed" else outcome.message)

    record.record(path, names=names, timeout=limit, report=tell, device=device, run=run)
    if path:
        print(f"primitives recorded in {path}")
