"""Arguments that commands for a GPU, real or emulated, share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cupy_flash import backends
from cupy_flash.cli import Unavailable, UserError


def add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="cuda", metavar="NAME", help="cuda (default), emulator or emulator:ARCH")


def backend_of(name: str) -> Any:
    """The backend that a --backend names, which can run here.

    Raises
    ------
    Unavailable
        If it cannot.
    UserError
        If it is neither a GPU nor an emulated one.
    """
    if name != "cuda" and name.partition(":")[0] != "emulator":
        raise UserError(f"--backend is {name!r}: expected cuda, emulator or emulator:ARCH")
    try:
        found: Any = backends.get(name)
        found.status()
    except ValueError as error:
        raise UserError(str(error)) from None
    except RuntimeError as error:
        raise Unavailable(str(error)) from None
    return found


def check_folder(path: Path) -> None:
    """Raise UserError where a file could not lie."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path.absolute().parent} is not a directory")


def check_measured(backend: str, out: Path | None) -> None:
    """Raise UserError where emulated figures would go to a file of measurements."""
    if backend != "cuda" and not out:
        raise UserError("emulated figures are no measurements and go to no default file: name one with --out")


def check_minutes(minutes: float) -> None:
    """Raise UserError where it is no time; nan would never be over."""
    if not minutes >= 0:
        raise UserError(f"--minutes is {minutes:g}: expected 0 or more")
