"""How many blocks of a kernel share a multiprocessor."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from cupy_flash._src.device import Device
from cupy_flash._src.plan import Launch

# cuda_occupancy.h of the CUDA toolkit: registers are allocated to warps in these, and each of the schedulers of a
# multiprocessor has its own part of them.
_REGISTER_UNIT, _SCHEDULERS = 256, 4


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that are resident on one multiprocessor, what keeps more out, and rounds that the grid takes."""

    blocks: int
    warps: int
    limited_by: str
    waves: float


def occupancy(launch: Launch, device: Device, registers: int) -> Occupancy:
    """Occupancy of a launch whose threads take so many registers.

    Examples
    --------
    >>> from cupy_flash._src.device import named
    >>> from cupy_flash._src.specialization import Specialization
    >>> launch = Launch(Specialization("simt/forward.cu", "kernel", (), ()), grid=216, block=128, shared_bytes=65536)
    >>> occupancy(launch, named("sm_80"), registers=168)
    Occupancy(blocks=2, warps=8, limited_by='shared memory', waves=1.0)
    """
    warps = launch.block // 32
    per_warp = ceil(32 * registers / _REGISTER_UNIT) * _REGISTER_UNIT
    limits = {
        "blocks": device.blocks_per_sm,
        "threads": device.threads_per_sm // launch.block,
        "registers": device.registers_per_sm // _SCHEDULERS // per_warp * _SCHEDULERS // warps,
        "shared memory": device.shared_per_sm // max(1, device.shared_of_block(launch.shared_bytes)),
    }
    limited_by = min(limits, key=lambda name: limits[name])
    blocks = limits[limited_by]
    return Occupancy(blocks, blocks * warps, limited_by, launch.grid / max(1, blocks * device.num_sms))
