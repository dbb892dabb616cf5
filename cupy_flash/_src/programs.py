"""Running another program: the compiler above all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from cupy_flash._src import forks


class Outcome(NamedTuple):
    """How a program ended, and what it wrote to standard output and to standard error."""

    status: int
    out: str
    err: str

    @property
    def signal(self) -> str | None:
        """Name of the signal that ended it, or the program that it ran as a shell does; None if none did."""
        number = -self.status if self.status < 0 else self.status - 128
        with contextlib.suppress(ValueError):
            return signal.Signals(number).name
        return None


def run(command: Sequence[str]) -> Outcome:
    """Run a program to its end, without input, its messages in English.

    Raises
    ------
    OSError
        If it cannot be started.
    """
    environment = os.environ | {"LC_ALL": "C"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = None
        try:
            # A child forked in between would keep the pipes open by which the start is told; the rest goes to files.
            with forks.whole():
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment)
            status = process.wait()
        except BaseException:  # an interrupt
            if process is not None:
                process.kill()
                process.wait()
            raise
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Outcome(status, *texts)
