"""Figures as a person reads them."""

from __future__ import annotations


def format_bytes(size: float) -> str:
    """Three digits and a decimal unit.

    >>> [format_bytes(n) for n in (0, 999, 1024, 33.6e6, 4.1e9)]
    ['0 B', '999 B', '1.02 kB', '33.6 MB', '4.1 GB']
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def format_seconds(seconds: float) -> str:
    """Three digits and a unit.

    >>> [format_seconds(t) for t in (0.0000123, 0.00456, 12.3)]
    ['0.0123 ms', '4.56 ms', '12.3 s']
    """
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
