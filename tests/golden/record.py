"""Records what a GPU answers to each primitive: `python tests/golden/record.py` writes primitives.npz.

The emulator is compared with the record ever after (tests/emulator/test_golden.py). Each primitive is also compared
with its oracle on the spot. One that faults or hangs costs its process, not the rest of the recording.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

if __name__ in ("__main__", "__mp_main__"):  # as under pytest: the package and the tests are importable
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from emulator.both_paths import cpp_of, run_path
from golden import tensor_map
from golden.hopper import HOPPER
from golden.primitive import Arrays, Primitive, check
from golden.primitives import PRIMITIVES

from cupy_flash._src import source
from cupy_flash._src.cli.worker import Worker, stage
from cupy_flash._src.compile import CompiledKernel, CompileError, nvrtc_version, target_of, text_to_cubin
from cupy_flash._src.emulator.module import load
from cupy_flash.emulator import current

FILE = Path(__file__).with_name("primitives.npz")
ALL = {primitive.name: primitive for primitive in (*PRIMITIVES, *HOPPER)}
SUMMARY = "summary"

Run = Callable[[Primitive], Arrays]


@dataclass(frozen=True)
class Device:
    name: str
    compute_capability: int


@dataclass(frozen=True)
class Outcome:
    """`status` is "passed", "differs" (from the oracle) or "failed" (no outputs); `message` says how."""

    status: str
    message: str = ""


def current_device() -> Device:
    """The device that CuPy uses."""
    import cupy

    device = cupy.cuda.Device()
    name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return Device(name, int(device.compute_capability))


def compiled(primitive: Primitive, compute_capability: int) -> CompiledKernel:
    """A primitive's kernel for a device."""
    text = source.flatten("primitive.cu", virtual={"primitive.cu": primitive.source})
    return text_to_cubin(text, "primitive.cu", "primitive", target_of(compute_capability))


def parameters(maps: Arrays, pointers: dict[str, int]) -> np.ndarray:
    """The kernel's argument: tensor maps (16 words each), then pointers."""
    names, start = [*maps, *pointers], tensor_map.BYTES * len(maps)
    fields = {
        "names": names,
        "formats": [(np.uint64, 16)] * len(maps) + [np.uint64] * len(pointers),
        "offsets": [tensor_map.BYTES * i for i in range(len(maps))] + [start + 8 * i for i in range(len(pointers))],
    }
    size, unit = start + 8 * len(pointers), tensor_map.ALIGNMENT if maps else 8
    params = np.zeros((), np.dtype(fields | {"itemsize": -(-size // unit) * unit}))
    for name, value in (maps | pointers).items():
        params[name] = value
    return params


def run_on_gpu(primitive: Primitive) -> Arrays:
    """Run one primitive's kernel on the current device; its outputs."""
    import cupy

    cupy.cuda.runtime.deviceSynchronize()  # makes the context, before the clock runs
    stage("compile")
    kernel_file = compiled(primitive, current_device().compute_capability).path
    stage("load")
    kernel = cupy.RawModule(path=str(kernel_file)).get_function("primitive")
    kernel.max_dynamic_shared_size_bytes = primitive.shared_bytes
    stage("launch")
    memory = {name: cupy.asarray(array) for name, array in primitive.arrays.items()}
    maps = {}
    for name, view in primitive.maps.items():
        array = memory[view.array]
        maps[name] = tensor_map.encode(view, array.data.ptr, array.shape, array.dtype)
    params = parameters(maps, {name: array.data.ptr for name, array in memory.items()})
    kernel((1,), (primitive.threads,), (params,), shared_mem=primitive.shared_bytes)
    stage("fault")
    return {name: cupy.asnumpy(memory[name]) for name in primitive.outputs}


def run_on_emulator(primitive: Primitive, arch: str, arithmetic: str = "exact") -> Arrays:
    """The same in the emulator; not for those of `HOPPER`."""
    virtual = {"primitive.cu": primitive.source}
    stage("compile")
    load(cpp_of("host", "primitive.cu", virtual, arch), current().mode)
    stage("fault")
    return run_path(
        "host", "primitive.cu", "primitive", primitive.arrays, list(primitive.outputs), virtual=virtual, arch=arch,
        block=(primitive.threads,), shared_bytes=primitive.shared_bytes, arithmetic=arithmetic,
    )  # fmt: skip


def available(compute_capability: int, among: Iterable[Primitive] = ALL.values()) -> list[Primitive]:
    """The primitives that a device has."""
    return [p for p in among if p.min_arch <= compute_capability <= p.max_arch]


def _answer(run: Run, name: str) -> Arrays:
    """A primitive's outputs, in the worker's process."""
    return run(ALL[name])


def judge(primitive: Primitive, outputs: Arrays | None, message: str) -> Outcome:
    """Compare outputs with the oracle."""
    if outputs is None:
        return Outcome("failed", message)
    try:
        check(primitive, outputs)
    except AssertionError as error:
        return Outcome("differs", str(error).strip())
    return Outcome("passed")


def record(
    file: Path | None = FILE,
    *,
    names: Iterable[str] | None = None,
    timeout: float = 10.0,
    report: Callable[[str, Outcome], None] | None = None,
    device: Device | None = None,
    run: Run = run_on_gpu,
) -> dict[str, Outcome]:
    """Run every primitive that the device has, compare it with its oracle and write inputs and outputs.

    Parameters
    ----------
    file : Path, optional
        The .npz to write: "<primitive>/<output>", "<primitive>/in/<array>" as launched, and "summary", JSON of the
        device, NVRTC's version and the outcomes.
    names : iterable of str, optional
        Only these primitives.
    timeout : float
        Seconds for one stage of a primitive, its compilation apart.
    report : callable, optional
        Called with a primitive's name and its outcome as soon as there is one.
    device : Device, optional
        By default the one that CuPy uses.
    run : callable
        Gives a primitive's outputs; called in another process, where it is found by its name.

    Returns
    -------
    dict of str to Outcome

    Raises
    ------
    ValueError
        If a name is not a primitive's.
    """
    wanted = set(ALL if names is None else names)
    if not wanted <= ALL.keys():
        raise ValueError(f"names: no primitive is called {sorted(wanted - ALL.keys())}; there are {sorted(ALL)}")
    device = device or current_device()
    chosen = [p for p in available(device.compute_capability) if p.name in wanted]
    outcomes: dict[str, Outcome] = {}
    arrays: Arrays = {}
    try:
        with Worker(timeout) as worker:
            if run is run_on_gpu:
                worker.run(_compile_ahead, [primitive.name for primitive in chosen], device.compute_capability)
            for primitive in chosen:
                outputs, message = worker.run(_answer, run, primitive.name)
                outcomes[primitive.name] = judge(primitive, outputs, message)
                arrays |= {f"{primitive.name}/in/{name}": value for name, value in primitive.arrays.items()}
                arrays |= {f"{primitive.name}/{name}": value for name, value in (outputs or {}).items()}
                if report:
                    report(primitive.name, outcomes[primitive.name])
    finally:
        if file:
            summary = {
                "device": asdict(device),
                "nvrtc": ".".join(map(str, nvrtc_version())) if run is run_on_gpu else None,
                "outcomes": {name: asdict(outcome) for name, outcome in outcomes.items()},
            }
            np.savez_compressed(file, **arrays, **{SUMMARY: np.array(json.dumps(summary))})
    return outcomes


def _compile_ahead(names: Iterable[str], compute_capability: int) -> None:
    """Compile on all cores; who fails here will say so when it runs."""
    stage("compile")

    def attempt(name: str) -> None:
        with contextlib.suppress(CompileError):
            compiled(ALL[name], compute_capability)

    with ThreadPoolExecutor() as pool:
        list(pool.map(attempt, names))


def _print(name: str, outcome: Outcome) -> None:
    print(f"{outcome.status:8} {name}", *outcome.message.splitlines()[:6], sep="\n         " if outcome.message else "")


if __name__ == "__main__":
    results = record(report=_print)
    print(f"wrote {FILE}")
    sys.exit(any(outcome.status != "passed" for outcome in results.values()))
