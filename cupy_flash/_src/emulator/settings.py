"""How kernels run in the emulator, for the calls inside a ``with`` statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

MODES = ("fast", "counted", "checked")
PATHS = ("host", "ptx")
ARITHMETICS = ("exact", "hardware", "hardware-high", "hardware-low")  # in the order of EmulatorArithmetic, launch.h


@dataclass(frozen=True)
class Settings:
    """The current settings; see `settings` for their meaning."""

    mode: str = "fast"
    seed: int | None = None
    path: str = "host"
    preempt: int = 0
    arithmetic: str = "exact"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}: expected one of {', '.join(MODES)}")
        if self.path not in PATHS:
            raise ValueError(f"path is {self.path!r}: expected one of {', '.join(PATHS)}")
        if self.arithmetic not in ARITHMETICS:
            raise ValueError(f"arithmetic is {self.arithmetic!r}: expected one of {', '.join(ARITHMETICS)}")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}: expected None or an integer from 0 to 2**64 - 1")
        if not 0 <= self.preempt < 2**32:
            raise ValueError(f"preempt is {self.preempt}: expected 0 (never) or an average number of accesses")


_DEFAULT = Settings()
_current: ContextVar[Settings] = ContextVar("cupy_flash_emulator_settings", default=_DEFAULT)


def current() -> Settings:
    """Settings that a launch uses now.

    Examples
    --------
    >>> current().mode
    'fast'
    """
    return _current.get()


@contextmanager
def settings(**changes: Any) -> Iterator[Settings]:
    """Change how kernels run in the emulator, inside a ``with`` statement.

    Parameters
    ----------
    mode : {"fast", "counted", "checked"}
        ``"fast"``, the default, only runs. ``"counted"`` also counts global bytes and bank conflicts.
        ``"checked"`` counts and looks for races, uninitialised shared memory, out-of-bounds and misaligned
        accesses and undefined behaviour. Barrier divergence, deadlocks and misuse of collectives are found in
        every mode.
    seed : int, optional
        Run blocks, and the threads that could go on, in an order drawn from this seed, and let asynchronous
        copies land at drawn times. By default in order, with copies landing as late as they may.
    path : {"host", "ptx"}
        Compile the kernels with the emulator's host headers, or translate the PTX that NVRTC makes of them.
    preempt : int
        In the counted and checked modes: let another thread run after one in `preempt` memory accesses, on
        average.
    arithmetic : {"exact", "hardware", "hardware-high", "hardware-low"}
        ``"exact"``, the default, rounds correctly wherever C does. The others give what a GPU may: tensor cores
        truncate their sums, and ``ex2.approx`` and ``lg2.approx`` of float32 are as wrong as the PTX ISA allows, by
        errors drawn from their arguments' bits, by the largest upward, or by the largest downward.

    Yields
    ------
    Settings

    Raises
    ------
    TypeError
        For an unknown setting.
    ValueError
        For an unknown mode, path or arithmetic, or a number out of range.

    Examples
    --------
    >>> with settings(mode="checked", seed=3) as now:
    ...     now.seed
    3
    """
    token = _current.set(replace(_current.get(), **changes))
    try:
        yield _current.get()
    finally:
        _current.reset(token)
