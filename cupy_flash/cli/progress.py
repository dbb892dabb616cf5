"""The progress bar of long commands."""

from __future__ import annotations

from typing import Any

from cupy_flash.cli import UserError


def progress(description: str, total: int) -> Any:
    """A tqdm bar that disappears when done, and is not drawn where standard error is no terminal.

    Raises
    ------
    UserError
        If tqdm is not installed.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        raise UserError('progress bars need tqdm: pip install "cupy-flash[demo]"') from None
    layout = "{desc} |{bar:30}| {n_fmt}/{total_fmt} [{elapsed}]"
    return tqdm(desc=description, total=total, leave=False, bar_format=layout, disable=None)
