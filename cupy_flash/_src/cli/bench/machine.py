"""Where the cases run: on the GPU, or in the emulator, where a run is rehearsed and nothing is measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from cupy_flash._src.cli.ahead import compile_ahead
from cupy_flash._src.cli.arguments import backend_of
from cupy_flash._src.cli.bench.book import Row
from cupy_flash._src.cli.bench.cases import Case, Numbers
from cupy_flash._src.cli.bench.telemetry import Telemetry
from cupy_flash._src.cli.bench.timing import EventTimer, OnceTimer, Timer
from cupy_flash._src.device import Device
from cupy_flash._src.specialization import Specialization


class Machine:
    """What the runner needs of either.

    Attributes
    ----------
    xp : module
        cupy or numpy.
    device : Device
        What our launches are planned for.
    stream : context manager
        In which all is launched, unless a library has streams of its own.
    matmul_size, copy_bytes : int
        Of the two things that all else is compared with.
    """

    matmul_size: int
    copy_bytes: int

    def __init__(self, xp: Any, device: Device, timer: Timer, stream: Any) -> None:
        self.xp, self.device, self.timer, self.stream = xp, device, timer, stream
        self.numbers = Numbers(xp)

    def place(self) -> Row:
        """The columns of the results that say where they are from."""
        raise NotImplementedError

    @staticmethod
    def fitted(case: Case) -> Case:
        """The case as it is run here."""
        return case

    def prepare(self, kernels: Collection[Specialization]) -> None:
        """Compile what is about to be needed."""

    def is_lost(self) -> bool:
        return False

    def matmul(self) -> Callable[[], Any]:
        n = self.matmul_size
        inputs = self.numbers.inputs(Case("forward", "float16", 1, 1, 1, n, n, n, False))
        x, y = inputs.q[0, 0], inputs.k[0, 0]
        return lambda: self.xp.matmul(x, y)

    def copy(self) -> Callable[[], Any]:
        raise NotImplementedError

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        """Memory that a call takes beyond its inputs, its results included; None where that cannot be asked."""
        return None

    def sensors(self, when: str) -> dict[str, object]:
        """Columns that say how the device is, "before" or "after" a measurement."""
        return {}

    def release(self) -> None:
        """Give cached memory back."""


class Gpu(Machine):
    """The current one."""

    matmul_size, copy_bytes = 8192, 2**30

    def __init__(self, device: Device) -> None:
        import cupy

        timer = EventTimer()
        super().__init__(cupy, device, timer, timer.stream)
        self._telemetry = Telemetry(lambda: cupy.cuda.Device().pci_bus_id)

    def place(self) -> Row:
        runtime = self.xp.cuda.runtime
        properties = runtime.getDeviceProperties(runtime.getDevice())
        return {
            "device": properties["name"].decode(),
            "arch": f"sm_{properties['major']}{properties['minor']}",
            "driver": _driver() or f"for CUDA {_dotted(runtime.driverGetVersion())}",
            "cuda": _dotted(runtime.runtimeGetVersion()),
            "cupy": self.xp.__version__,
        }

    def prepare(self, kernels: Collection[Specialization]) -> None:
        compile_ahead(kernels, self.device.arch)

    def is_lost(self) -> bool:
        """Whether it refuses everything more from this process."""
        try:
            self.xp.cuda.runtime.deviceSynchronize()
        except self.xp.cuda.runtime.CUDARuntimeError:
            return True
        return False

    def copy(self) -> Callable[[], Any]:
        source, target = (self.xp.cuda.alloc(self.copy_bytes) for _ in range(2))
        return lambda: target.copy_from_device_async(source, self.copy_bytes, self.stream)

    def peak_bytes(self, call: Callable[[], Any]) -> int | None:
        """Of what CuPy allocates."""
        pool = self.xp.cuda.MemoryPool()
        with self.xp.cuda.using_allocator(pool.malloc):
            result = call()
            self.xp.cuda.get_current_stream().synchronize()
            peak = pool.total_bytes()
            del result
        return peak

    def sensors(self, when: str) -> dict[str, object]:
        return self._telemetry.read(when)

    def release(self) -> None:
        self.xp.get_default_memory_pool().free_all_blocks()


class Emulated(Machine):
    """The kernels for a GPU on this CPU; beside them NumPy."""

    matmul_size, copy_bytes = 64, 2**20

    def __init__(self, device: Device) -> None:
        super().__init__(np, device, OnceTimer(), nullcontext())

    def place(self) -> Row:
        name = f"emulator:{self.device.arch}"
        return {"device": name, "arch": self.device.arch, "driver": "", "cuda": "", "cupy": ""}

    @staticmethod
    def fitted(case: Case) -> Case:
        return case.reduced()

    def copy(self) -> Callable[[], Any]:
        source, target = np.zeros((2, self.copy_bytes), np.uint8)
        return lambda: np.copyto(target, source)


def kind_of(backend: str) -> type[Gpu] | type[Emulated]:
    """The kind of machine that a --backend names."""
    return Gpu if backend == "cuda" else Emulated


def machine_of(backend: str) -> Machine:
    """The machine that a --backend names; errors as `backend_of`."""
    return kind_of(backend)(backend_of(backend).device)


def _driver() -> str | None:
    """The driver's own version where the system tells it."""
    path = Path("/proc/driver/nvidia/version")
    found = path.exists() and re.search(r"\b\d+\.\d+(\.\d+)?\b", path.read_text().partition("Module")[2])
    return found[0] if found else None


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
