"""What the emulator raises."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """A place in the CUDA source; `line` is 0 where the compiler left no line.

    `callers` are the lines that call the function around it, where it is inlined: from the innermost to the kernel's.
    """

    file: str
    line: int
    callers: tuple[Site, ...] = ()

    def __str__(self) -> str:
        return " from ".join(f"{site.file}:{site.line}" for site in (self, *self.callers))


class EmulatorError(RuntimeError):
    """A kernel did something that a GPU would fail on, hang on, or answer at random.

    Attributes
    ----------
    kind : str
        ``"shared_race"``, ``"global_race"``, ``"uninitialised"``, ``"out_of_bounds"``, ``"misaligned"``,
        ``"read_only"``, ``"barrier"``, ``"barrier_divergence"``, ``"divergence"``, ``"deadlock"``,
        ``"async_copy"``, ``"undefined"``, ``"trap"`` or ``"launch"``.
    kernel : str
        The entry point.
    block : tuple of int
        ``blockIdx``.
    threads : tuple of int
        Linear indices in the block of the threads concerned.
    sites : tuple of Site
        Where they were, as the message names them.
    """

    def __init__(
        self,
        kind: str,
        kernel: str,
        text: str,
        block: tuple[int, int, int] = (0, 0, 0),
        threads: tuple[int, ...] = (),
        sites: tuple[Site, ...] = (),
    ) -> None:
        self.kind, self.kernel, self.block, self.threads, self.sites = kind, kernel, block, threads, sites
        super().__init__(kind, kernel, text, block, threads, sites)  # by which a copy is made, in another process too

    def __str__(self) -> str:
        where = f", block {self.block}" if self.kind != "launch" else ""
        return f"{self.kind} in {self.kernel}{where}: {self.args[2]}"
