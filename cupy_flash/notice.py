"""What the package tells on its own account: on standard error, and never at the price of a call."""

from __future__ import annotations

import contextlib
import sys
import warnings


def say(line: str) -> None:
    """Write a line to standard error, if there is one that takes it: a daemon's may be closed, or its reader gone."""
    stream = sys.stderr
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):  # a broken pipe; a closed file, or one that lacks a character
            print(line, file=stream, flush=True)


def warn(text: str, *, stacklevel: int = 1) -> None:
    """Issue a RuntimeWarning; `stacklevel` counts from the caller, as in `warnings.warn`.

    One that a filter turns into an error is raised.
    """
    with contextlib.suppress(OSError, ValueError):
        warnings.warn(text, RuntimeWarning, stacklevel=stacklevel + 1)
