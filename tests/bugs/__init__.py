"""Small, plausible bugs, seeded by hand, each with the tests that must notice it: a measure of the tests.

`python tests/seeded_bugs.py` plants them one by one. A file of this package belongs to a part of the sources; each
source file has two or more bugs, or a word in `UNSEEDED` why not. tests/test_bugs.py holds the package to its rules.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """One bug.

    Attributes
    ----------
    file : str
        The source file, from the root of the repository.
    what : str
        What goes wrong, in a few words.
    old, new : str
        Text that stands in the file exactly once, and what the bug makes of it.
    noticed_by : tuple of str
        Ids of tests, as pytest takes them, not of slow ones; all must pass without the bug, one must fail with it.
    equivalent : str
        Why nothing can notice it: then all must pass with it too. "" for a bug that is one.
    """

    file: str
    what: str
    old: str
    new: str
    noticed_by: tuple[str, ...]
    equivalent: str = ""


# Source files without bugs, and why.
UNSEEDED: dict[str, str] = {
    "cuda_src/emulator/engine.cpp": "only includes: without one of them it does not compile or link",
}


def all_bugs() -> list[Bug]:
    """Every bug of this package's modules."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [bug for name in names for bug in importlib.import_module(f"{__name__}.{name}").BUGS]
