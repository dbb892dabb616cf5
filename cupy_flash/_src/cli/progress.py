"""The progress bar of long commands: on a terminal alone, a file or a pipe gets none."""

from __future__ import annotations

import os
import sys
from typing import Any


def on_terminal() -> bool:
    """Whether standard error is a terminal that can take a line back."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def progress(description: str, total: int) -> Any:
    """A tqdm bar that disappears when done, or a `NoBar` where there is no terminal or no tqdm."""
    if not on_terminal():
        return NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        return NoBar()
    return tqdm(
        desc=description, total=total, leave=False, bar_format="{desc} |{bar:30}| {n_fmt}/{total_fmt} [{elapsed}]"
    )


class NoBar:
    """The part of a bar that is needed without one: its rows are written all the same."""

    def __enter__(self) -> NoBar:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def set_description(self, description: str) -> None:
        pass

    def update(self) -> None:
        pass

    def write(self, row: str, file: Any = None) -> None:
        print(row, file=file, flush=True)
