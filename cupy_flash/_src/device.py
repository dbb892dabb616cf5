"""GPUs as the planner sees them: by name, so that any GPU's plan can be made and tested on a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """The limits of a GPU that a plan depends on.

    Attributes
    ----------
    arch : str
        Target passed to the compiler, such as ``"sm_80"`` or ``"sm_90a"``.
    num_sms : int
        Streaming multiprocessors.
    shared_per_block : int
        Most dynamic shared memory a block may opt in to, in bytes.
    shared_per_sm : int
        Shared memory of one multiprocessor, in bytes.
    threads_per_sm : int
        Most resident threads of one multiprocessor.
    blocks_per_sm : int
        Most resident blocks of one multiprocessor.
    l2_bytes : int
        Size of the L2 cache.
    registers_per_sm : int
        32-bit registers of one multiprocessor.
    """

    arch: str
    num_sms: int
    shared_per_block: int
    shared_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    l2_bytes: int
    registers_per_sm: int = 65536

    @property
    def compute_capability(self) -> int:
        """Ten times the major plus the minor version: 80 for sm_80, 90 for sm_90a."""
        return int(self.arch.removeprefix("sm_").rstrip("a"))

    def shared_of_block(self, dynamic: int) -> int:
        """Shared memory that a block with this much dynamic shared memory takes: from Ampere on with 1 KiB on top, and
        in whole units (cuda_occupancy.h of the CUDA toolkit).
        """
        reserved, unit = (1024, 128) if self.compute_capability >= 80 else (0, 256)
        return -(-(dynamic + reserved) // unit) * unit


def _kib(n: int) -> int:
    return n * 1024


def _mib(n: int) -> int:
    return n * 1024 * 1024


# CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability"; the number of
# multiprocessors and the L2 cache are those of one common card of the architecture, named behind it.
NAMED = {
    device.arch: device
    for device in (
        Device("sm_70", 80, _kib(96), _kib(96), 2048, 32, _mib(6)),  # V100
        Device("sm_75", 40, _kib(64), _kib(64), 1024, 16, _mib(4)),  # T4
        Device("sm_80", 108, _kib(163), _kib(164), 2048, 32, _mib(40)),  # A100
        Device("sm_86", 84, _kib(99), _kib(100), 1536, 16, _mib(6)),  # RTX A6000
        Device("sm_87", 16, _kib(163), _kib(164), 1536, 16, _mib(4)),  # Jetson AGX Orin
        Device("sm_89", 128, _kib(99), _kib(100), 1536, 24, _mib(72)),  # RTX 4090
        Device("sm_90a", 132, _kib(227), _kib(228), 2048, 32, _mib(50)),  # H100
        Device("sm_100", 148, _kib(227), _kib(228), 2048, 32, _mib(126)),  # B200
        Device("sm_120", 170, _kib(99), _kib(100), 1536, 24, _mib(96)),  # RTX 5090
    )
}


def named(arch: str) -> Device:
    """Return the device called `arch`.

    Parameters
    ----------
    arch : str
        An architecture name; ``"sm_90"`` means ``"sm_90a"``, the same hardware with its extensions.

    Returns
    -------
    Device

    Raises
    ------
    ValueError
        If the name is not known.

    Examples
    --------
    >>> named("sm_75").shared_per_block
    65536
    """
    arch = "sm_90a" if arch == "sm_90" else arch
    if arch not in NAMED:
        raise ValueError(f"architecture is {arch!r}: expected one of {', '.join(NAMED)}")
    return NAMED[arch]


# What `from_attributes` reads of ``cupy.cuda.Device().attributes``.
ATTRIBUTES = (
    "MultiProcessorCount",
    "MaxSharedMemoryPerBlockOptin",
    "MaxSharedMemoryPerMultiprocessor",
    "MaxThreadsPerMultiProcessor",
    "MaxBlocksPerMultiprocessor",
    "L2CacheSize",
    "MaxRegistersPerMultiprocessor",
)


def from_attributes(arch: str, attributes: Mapping[str, int]) -> Device:
    """Describe a GPU that is compiled for as `arch` by its CUDA device attributes, named as in `ATTRIBUTES`."""
    return Device(arch, *(attributes[name] for name in ATTRIBUTES))
