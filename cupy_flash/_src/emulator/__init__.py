"""Executes the CUDA kernels on the CPU, each CUDA thread a fiber, with checks that no GPU gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from cupy_flash._src.emulator.errors import EmulatorError, Site
from cupy_flash._src.emulator.module import MAX_SHARED_BYTES, Buffer, EmulatorModule, load
from cupy_flash._src.emulator.report import Bytes, Conflicts, LaunchReport, RunReport
from cupy_flash._src.emulator.settings import Settings, current, settings
from cupy_flash._src.toolchain import ToolchainError

__all__ = [
    "Buffer",
    "Bytes",
    "Conflicts",
    "EmulatorError",
    "EmulatorModule",
    "LaunchReport",
    "RunReport",
    "Settings",
    "Site",
    "ToolchainError",
    "current",
    "last_run",
    "launch",
    "run",
    "settings",
]

_open: ContextVar[list[LaunchReport] | None] = ContextVar("cupy_flash_emulator_open", default=None)
_last: ContextVar[RunReport | None] = ContextVar("cupy_flash_emulator_last", default=None)


@contextmanager
def run(*, continued: bool = False) -> Iterator[None]:
    """Gather the launches inside the ``with`` statement into one report, which `last_run` then returns.

    If `continued` they join those of the last run. What is launched in a run within a run, as each call of the package
    is one, belongs to both.
    """
    outer, earlier = _open.get(), list(last_run().launches) if continued else []
    launches = earlier.copy()
    token = _open.set(launches)
    try:
        yield
    finally:
        _open.reset(token)
        _last.set(RunReport(tuple(launches)))
        if outer is not None:
            outer += launches[len(earlier) :]


def last_run() -> RunReport:
    """What the kernels of the last emulated call did.

    Returns
    -------
    RunReport

    Raises
    ------
    RuntimeError
        If nothing has run in this thread yet.

    Examples
    --------
    >>> with run():
    ...     pass
    >>> last_run().launches
    ()
    """
    report = _last.get()
    if report is None:
        raise RuntimeError("no kernel has run in the emulator yet: call flash_attention(..., backend='emulator')")
    return report


def launch(
    source: str,
    entry: str,
    grid: Sequence[int],
    block: Sequence[int],
    params: bytes,
    shared_bytes: int,
    buffers: Sequence[Buffer],
    *,
    shared_limit: int = MAX_SHARED_BYTES,
) -> LaunchReport:
    """Compile a source (once) and run one of its kernels under the current `settings`.

    Parameters and errors are those of `EmulatorModule` and `EmulatorModule.launch`. The report also becomes
    part of the current `run`, or a run of its own.
    """
    now = current()
    report = load(source, now.mode).launch(
        entry, grid, block, params, shared_bytes, buffers, settings=now, shared_limit=shared_limit
    )
    launches = _open.get()
    if launches is None:
        _last.set(RunReport((report,)))
    else:
        launches.append(report)
    return report
