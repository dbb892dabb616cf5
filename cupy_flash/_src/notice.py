"""What the package tells on its own account: on standard error, and never at the price of a call."""

from __future__ import annotations

import contextlib
import sys
import warnings
from types import FrameType

_PACKAGE = __name__.partition(".")[0]


def say(line: str) -> None:
    """Write a line to standard error, if there is one that takes it: a daemon's may be closed, or its reader gone."""
    stream = sys.stderr
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):  # a broken pipe; a closed file, or one that lacks a character
            print(line, file=stream, flush=True)


def warn(text: str) -> None:
    """Issue a RuntimeWarning at the line that called the package.

    One that a filter turns into an error is raised.
    """
    frame: FrameType | None = sys._getframe(1)
    depth = outermost = 2  # as warnings count: 1 is this function
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
            outermost = depth
        frame, depth = frame.f_back, depth + 1
    with contextlib.suppress(OSError, ValueError):
        warnings.warn(text, RuntimeWarning, stacklevel=outermost + 1)
