"""Every check: public calls on the GPU or in the emulator against float64, repeats, streams and graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
    merge_attention,
)
from cupy_flash._src import emulator
from cupy_flash._src.analysis.budget import approximate_on, magnitudes, spent
from cupy_flash._src.cli.ahead import compile_ahead
from cupy_flash._src.cli.check.staged import launches_of, one_by_one, ready, runtime_of, synchronize
from cupy_flash._src.cli.problems import CAUSAL, SMOKE, Problem, problems
from cupy_flash._src.cli.worker import Failed, stage
from cupy_flash._src.components import COMPONENTS, GATHERED
from cupy_flash._src.device import Device
from cupy_flash._src.plan import Launch, plan_backward, plan_forward, plan_merge
from cupy_flash._src.problem import DTYPES
from cupy_flash._src.specialization import Specialization

GPU_REPEATS, EMULATED_REPEATS = 100, 3
LEARNED = {x.keyword: x.examples[0] for x in COMPONENTS if x.learns}
FUNCTION = {x.keyword: x.examples[0] for x in COMPONENTS if x.captured in GATHERED}


class Check(NamedTuple):
    """`run`, given the backend's name and the problem, returns what to print of it, or raises."""

    run: Callable[[str, Problem], str]
    problem: Problem


def checks(backend: str) -> dict[str, Check]:
    """Every check of a backend by its name, the most telling first."""
    on_gpu = backend == "cuda"
    found = {f"smoke: {name}": Check(_values, p) for name, p in SMOKE.items()}
    found |= {f"values: {p}": Check(_values, p) for p in problems()}
    for dtype in DTYPES:
        p = Problem(dtype, batch=(), heads_k=2, group=4, sq=777, sk=1000, options=CAUSAL, deterministic=True)
        found[f"repeats: {dtype}"] = Check(_repeats, p)
    for dtype in ("float16", "float32"):
        p = Problem(dtype, sq=333, sk=500, options=CAUSAL | LEARNED | FUNCTION, deterministic=True)
        found[f"repeats: {dtype}, gradients of options"] = Check(_repeats, p)
    for deterministic in (False, True):
        p = Problem(d=128, sk=1001, deterministic=deterministic)
        found[f"merge: two parts of the keys, deterministic={deterministic}"] = Check(_merge, p)
    if not on_gpu:
        return {name: check._replace(problem=check.problem.reduced()) for name, check in found.items()}
    found["stream: launches go to the current one"] = Check(_stream, Problem(sq=300, sk=300))
    for deterministic in (False, True):
        p = Problem(sq=200, sk=200, options=CAUSAL, deterministic=deterministic)
        found[f"graph: capture, replay, deterministic={deterministic}"] = Check(_graph, p)
    found["changed: an output between the calls of a vjp"] = Check(_changed, Problem(sq=300, sk=300, options=LEARNED))
    return found


def perform(backend: str, name: str, arithmetic: str = "exact") -> str:
    """Run one check in this process."""
    run, problem = checks(backend)[name]
    with emulator.settings(arithmetic=arithmetic):
        return run(backend, problem)


def compile_for(backend: str, names: list[str]) -> None:
    """Compile the kernels of many checks on all cores."""
    stage("compile")
    device, found = runtime_of(backend).device, checks(backend)
    launches = [launch for name in names for launch in _launches(device, found[name])]
    compile_ahead({launch.kernel for launch in launches}, device.arch)


def _launches(device: Device, check: Check) -> list[Launch]:
    return launches_of(device, check.problem, sealed=check.run in (_repeats, _changed))


def survives(backend: str) -> bool:
    """Whether this process can go on after a failure: a fault is the last that a CUDA context answers."""
    try:
        synchronize(backend)
    except RuntimeError:
        return False
    return True


def kernels(device: Device) -> set[Specialization]:
    """What the checks on such a GPU launch."""
    return {launch.kernel for check in checks("cuda").values() for launch in _launches(device, check)}


def _arrays(backend: str, p: Problem) -> list[Any]:
    return p.arrays(runtime_of(backend).namespace)


def _options(backend: str, p: Problem) -> dict[str, Any]:
    return p.given(runtime_of(backend).namespace)


def _on_host(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.get()


def _flat(results: Iterable[Any]) -> list[Any]:
    """Arrays of `Problem.results`: those of a function's arguments that have none are left out."""
    each = (x if isinstance(x, tuple) else (x,) for x in results)
    return [x for part in each for x in part if x is not None]


def _values(backend: str, p: Problem) -> str:
    """Forward and backward within the error budget."""
    q, k, v, dout, dlse = _arrays(backend, p)
    options = _options(backend, p) | {"backend": backend}
    ready(backend, launches_of(runtime_of(backend).device, p))
    with one_by_one(backend):
        out, lse = flash_attention(q, k, v, return_lse=True, **options)
        options |= {"dlse": dlse, "deterministic": p.deterministic, "wrt": p.wrt}
        grads = flash_attention_backward(dout, q, k, v, out, lse, **options)
        results = [_on_host(x) for x in _flat((out, lse, *grads))]
    return _within_budget(backend, p, results)


def _within_budget(backend: str, p: Problem, results: list[np.ndarray]) -> str:
    """Hold out, lse and gradients to the error budget; tells the largest share of it that was used."""
    stage("values")
    q, k, v, dout, dlse = p.arrays()
    references = [
        [
            *attention_reference(q, k, v, return_lse=True, compute_dtype=dtype, **p.given()),
            *_flat(attention_reference_backward(dout, q, k, v, dlse=dlse, compute_dtype=dtype, **p.given(), wrt=p.wrt)),
        ]
        for dtype in (None, np.float64)
    ]
    sizes = magnitudes(q, k, v, dout, dlse, **p.given(), wrt=p.wrt, approximate=approximate_on(backend))
    shares, wrong = {}, []
    for n, x, naive, exact in zip(p.results, results, *references, strict=True):
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
    options = _options(backend, p) | {"backend": backend, "return_lse": True}
    options |= {"deterministic": p.deterministic, "wrt": p.wrt}
    count = GPU_REPEATS if backend == "cuda" else EMULATED_REPEATS

    def bits() -> list[Any]:
        (out, lse), vjp = flash_attention_vjp(q, k, v, **options)
        return [x.view(np.uint8) for x in _flat((out, lse, *vjp(dout, dlse)))]

    ready(backend, launches_of(runtime_of(backend).device, p, sealed=True))
    with one_by_one(backend):
        first = bits()
    for i in range(1, count):
        stage("fault", f"repeat {i}")
        same = [bool((x == y).all()) for x, y in zip(first, bits(), strict=True)]
        if not all(same):
            stage("values")
            raise Failed(f"{', '.join(n for n, s in zip(p.results, same, strict=True) if not s)} differs in repeat {i}")
    return f"{count} times the same bits"


def _merge(backend: str, p: Problem) -> str:
    """Attention over two parts of the keys, merged, and the gradients of each part from the merged output."""
    q, k, v, dout, dlse = _arrays(backend, p)
    device, cut = runtime_of(backend).device, p.sk // 3
    launches = [plan_merge(p.problem())]
    for part in (replace(p, sk=sk).problem() for sk in (cut, p.sk - cut)):
        launches += plan_forward(part, device).launches
        launches += plan_backward(part.with_wide_out, device).launches
    ready(backend, launches)
    with one_by_one(backend):
        parts = [(k[..., rows, :], v[..., rows, :]) for rows in (slice(cut), slice(cut, None))]
        first, second = (flash_attention(q, *part, return_lse=True, backend=backend) for part in parts)
        out, lse = merge_attention(*first, *second, backend=backend)
        options = {"dlse": dlse, "deterministic": p.deterministic, "backend": backend}
        grads = [flash_attention_backward(dout, q, *part, out, lse, **options) for part in parts]
        out, lse, dq_a, dk_a, dv_a, dq_b, dk_b, dv_b = (_on_host(x) for x in (out, lse, *grads[0], *grads[1]))
    dk, dv = np.concatenate((dk_a, dk_b), axis=-2), np.concatenate((dv_a, dv_b), axis=-2)
    return _within_budget(backend, p, [out.astype(dk.dtype), lse, (dq_a + dq_b).astype(dk.dtype), dk, dv])


def _changed(backend: str, p: Problem) -> str:
    """Where an array is not what the forward made of it every gradient is NaN: nothing is waited for to raise."""
    q, k, v, dout, dlse = _arrays(backend, p)
    options = _options(backend, p) | {"backend": backend, "return_lse": True, "wrt": p.wrt}
    ready(backend, launches_of(runtime_of(backend).device, p, sealed=True))
    with one_by_one(backend):
        (out, _), vjp = flash_attention_vjp(q, k, v, **options)
        out += 1
        grads = [_on_host(x) for x in _flat(vjp(dout, dlse))]
    stage("values")
    numbers = [n for n, x in zip(p.results[2:], grads, strict=True) if not np.isnan(x.astype(np.float64)).all()]
    if numbers:
        raise Failed(f"{', '.join(numbers)} has numbers")
    return "no gradient has a number"


def _stream(backend: str, p: Problem) -> str:
    """A launch waits for a slow kernel before it on its stream, sees what was copied between, and does not block."""
    import cupy

    from cupy_flash._src.cli.bench.timing import spin

    q, k, v, *_ = _arrays(backend, p)
    ready(backend, launches_of(runtime_of(backend).device, p))
    with one_by_one(backend):
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
    ready(backend, launches_of(runtime_of(backend).device, p))

    options = _options(backend, p)

    def step() -> tuple[Any, ...]:
        out, lse = flash_attention(q, k, v, return_lse=True, **options)
        return out, *flash_attention_backward(dout, q, k, v, out, lse, deterministic=p.deterministic, **options)

    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc), stream:
        with one_by_one(backend):
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
    error = np.max([np.abs(x - y).max() for x, y in zip(replayed, direct, strict=True)])  # nan if any is
    if not error <= (0 if p.deterministic else 2e-3):
        raise Failed(f"the replay differs by {error:.3g}")
    return f"the replay differs by {error:.3g}"
