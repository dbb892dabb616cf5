"""Arguments that commands for a GPU, real or emulated, share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cupy_flash._src import backends, device
from cupy_flash._src.cli import Unavailable, UserError
from cupy_flash._src.cli.functions import add_functions, functions
from cupy_flash._src.components import ARRAYS, GATHERED, INPUTS, LEARNING
from cupy_flash._src.components.component import filled


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


def positive_int(text: str) -> int:
    """A type of argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def window(text: str) -> tuple[int | None, ...]:
    """A type of argparse: how many keys a query sees on either side."""
    sides = text.split(",")
    if len(sides) != 2 or not all(side.isdecimal() or not side for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not LEFT,RIGHT, two numbers of keys or nothing for all")
    return tuple(int(side) if side else None for side in sides)


def add_options(parser: argparse._ActionsContainer) -> None:
    """What kernels are composed by: options of a call."""
    parser.add_argument("--causal", action="store_true")
    parser.add_argument(
        "--window", type=window, metavar="LEFT,RIGHT",
        help="how many keys before and behind its own position a query sees, such as 512,0; 512, leaves the right open",
    )  # fmt: skip
    parser.add_argument("--softcap", type=float, metavar="CAP", help="a bound that scores approach")
    for keyword in ARRAYS:
        flag = f"--{keyword.replace('_', '-')}"
        parser.add_argument(flag, action="store_true", help=f"calls give {keyword}, an array")
    add_functions(parser)


def add_wrt(parser: argparse._ActionsContainer, default: str) -> None:
    """What gradients are of; `default` tells what None stands for."""
    parser.add_argument(
        "--wrt", nargs="+", choices=(*INPUTS, *LEARNING, *GATHERED), metavar="NAME",
        help=f"gradients of these: {', '.join(INPUTS)}, or {', '.join((*LEARNING, *GATHERED))}, if given "
        f"(default: {default})",
    )  # fmt: skip


def options(args: argparse.Namespace, full: tuple[int, ...] = (1, 1, 1, 1)) -> dict[str, Any]:
    """Those that were given, by their keywords; arrays are `arrays_for` scores of shape `full`."""
    given = {"causal": args.causal or None, "window": args.window, "softcap": args.softcap}
    plain = {name: value for name, value in given.items() if value is not None}
    return plain | arrays_for([name for name in ARRAYS if getattr(args, name)], full) | functions(args)


def arrays_for(keywords: Iterable[str], full: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Examples of options that are arrays, as a call takes them whose scores have the shape `full`.

    With ones for all but the heads they are small, and fit every call that has as many.
    """
    rng = np.random.default_rng(0)
    return filled({name: ARRAYS[name].examples[0] for name in keywords}, rng, full)


def architecture(text: str) -> str:
    """A type of argparse: the name of an architecture, in full."""
    try:
        return device.named(text).arch
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What keeps the file from being written, such as a full disk, becomes a UserError that names it."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def check_output(*paths: Path) -> None:
    """Raise UserError unless files can be written there, before the work that is to be written.

    Only opening a file tells. Opened to append, one that exists stays as it is; one that does not is removed again.
    """
    for path in paths:
        with writing(path):
            file = Path(os.path.realpath(path))  # removing a link would leave its target
            if not file.parent.is_dir():
                raise UserError(f"{path.absolute().parent} is not a directory")
            new = not file.exists()
            if not new and not file.is_file():  # nor are devices and pipes: some are read first, or replaced
                raise UserError(f"{path} is not a regular file")
            with file.open("ab"):
                pass
            if new:
                file.unlink()


def check_measured(backend: str, out: Path | None) -> None:
    """Raise UserError where emulated figures would go to a file of measurements."""
    if backend != "cuda" and not out:
        raise UserError("emulated figures are no measurements and go to no default file: name one with --out")


def check_minutes(minutes: float) -> None:
    """Raise UserError where it is no time; nan would never be over."""
    if not minutes >= 0:
        raise UserError(f"--minutes is {minutes:g}: expected 0 or more")
