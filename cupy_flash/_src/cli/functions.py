"""Functions for `score_mod` and `mask_mod`, and what they capture, as words of a command line."""

from __future__ import annotations

import argparse
import importlib
import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cupy_flash._src.arrays import DTYPES
from cupy_flash._src.cli import UserError
from cupy_flash._src.components import CAPTURED
from cupy_flash._src.components.mods import Scalar
from cupy_flash._src.expressions.cxx import STORAGE

_RANDOM = re.compile(r"(\w+)\[((?:\d+(?:,\d+)*)?)\]")


class Word(NamedTuple):
    """A word of the command line, and what it stands for."""

    text: str
    value: Any


def add_functions(parser: argparse._ActionsContainer) -> None:
    """Options for functions, and for their arguments."""
    for captured, component in CAPTURED.items():
        flag = component.keyword.replace("_", "-")
        parser.add_argument(
            f"--{flag}", type=function, metavar="MODULE:FUNCTION",
            help=f"a {component.keyword} in Python, such as one of cupy_flash.mods",
        )  # fmt: skip
        parser.add_argument(
            f"--{captured.replace('_', '-')}", nargs="+", default=(), type=argument, metavar="ARG",
            help=f"what --{flag} takes after its positions: numbers, files .npy, MODULE:NAME of an array or of what "
            "makes one when called, or an array by its dtype and shape, such as float32[8,257], of random numbers; "
            "of ints and bools zeros",
        )  # fmt: skip


def functions(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were given, and their arguments, by the keywords of a call."""
    given = {component.keyword: getattr(args, component.keyword) for component in CAPTURED.values()}
    found = {keyword: word.value for keyword, word in given.items() if word is not None}
    captured = {keyword: tuple(word.value for word in getattr(args, keyword)) for keyword in CAPTURED}
    return found | {keyword: values for keyword, values in captured.items() if values}


def words(args: argparse.Namespace) -> dict[str, str]:
    """How they were given, by the keywords of the functions."""
    given = {
        component.keyword: (getattr(args, component.keyword), *getattr(args, captured))
        for captured, component in CAPTURED.items()
    }
    return {keyword: " ".join(word.text for word in found) for keyword, found in given.items() if found[0] is not None}


def function(text: str) -> Word:
    """A type of argparse: MODULE:FUNCTION.

    Raises
    ------
    UserError
        If there is no such function.
    """
    found = _attribute(text, "MODULE:FUNCTION, such as cupy_flash.mods:causal")
    if not callable(found):
        raise UserError(f"{text} is of type {type(found).__name__}: expected a function")
    return Word(text, found)


def argument(text: str) -> Word:
    """A type of argparse: what a function captures.

    Raises
    ------
    UserError
        If the text names nothing that it could be.
    """
    if (number := _number(text)) is not None:
        return Word(text, number)
    if text.endswith(".npy"):
        return Word(text, _made(text, lambda: np.load(text, allow_pickle=False)))
    if match := _RANDOM.fullmatch(text):
        name, sizes = match[1], tuple(map(int, filter(None, match[2].split(","))))
        if name not in STORAGE:
            raise UserError(f"{text} has the dtype {name}: expected one of {', '.join(STORAGE)}")
        return Word(text, _made(text, lambda: _array(DTYPES.get(name) or np.dtype(name), sizes)))
    found = _attribute(text, "a number, a file .npy, MODULE:NAME, or a dtype and a shape, such as float32[8,257]")
    found = _made(text, found) if callable(found) else found
    if not isinstance(found, (np.ndarray, np.generic, bool, int, float)):
        raise UserError(f"{text} is of type {type(found).__name__}: expected an array of NumPy, or a number")
    return Word(text, found)


def _number(text: str) -> Scalar | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return None


def _array(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.kind in "bui":
        return np.zeros(shape, dtype)
    return np.random.default_rng(0).standard_normal(shape, np.float32).astype(dtype)


def _attribute(text: str, expected: str) -> Any:
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise UserError(f"{text!r} is not {expected}")
    return _made(text, lambda: operator.attrgetter(name)(importlib.import_module(module)))


def _made(text: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # whatever the user's module raises
        raise UserError(f"{text}: {type(error).__name__}: {error}") from None
