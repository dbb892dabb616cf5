"""What a GPU says of itself while it is measured: clock of the multiprocessors, power, temperature, by NVML."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

UNITS = ("sm_mhz", "watts", "celsius")


class Telemetry:
    """Reads a GPU's sensors; without the package nvidia-ml-py, or where the driver refuses, there is nothing to read.

    Parameters
    ----------
    bus : callable
        Returns the GPU's PCI address, by which NVML finds what CUDA may number otherwise.
    """

    def __init__(self, bus: Callable[[], str]) -> None:
        self._nvml: Any = None
        with suppress(Exception):  # whatever it is, measuring goes on without
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(bus().encode())
            self._nvml = pynvml

    def read(self, when: str) -> dict[str, object]:
        """Columns of the results: `UNITS` at this moment, "before" or "after"."""
        if self._nvml is None:
            return {}
        nvml, handle = self._nvml, self._handle
        sensors = (
            lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        )
        found: dict[str, object] = {}
        for unit, sensor in zip(UNITS, sensors, strict=True):
            with suppress(nvml.NVMLError):  # some virtual machines tell the clock and not the power
                found[f"{unit}_{when}"] = sensor()
        return found
