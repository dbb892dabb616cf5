"""Tiles that are better known than by the planner's estimate: given by hand, or measured on the architecture."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cupy_flash._src import cache
from cupy_flash._src.notice import warn
from cupy_flash._src.tiles import PLANNED, MmaKeyTile, MmaTile, Tile, Tiles, parse_tile

if TYPE_CHECKING:
    from importlib.abc import Traversable

KERNELS = ("forward", "packed", "dkdv", "dq")

_by_hand: ContextVar[Tiles] = ContextVar("tiles", default=PLANNED)


@contextmanager
def tiles(
    *, forward: Tile | str | None = None, dkdv: Tile | str | None = None, dq: Tile | str | None = None
) -> Iterator[Tiles]:
    """Let the calls inside, of this thread or task, take these tiles, on a GPU or in the emulator.

    Parameters
    ----------
    forward, dkdv, dq : SimtTile, MmaTile, MmaKeyTile or str, optional
        Tiles of the kernels of `cupy_flash.tuning.Tiles`, or their texts. None keeps what an outer `tiles` says, else
        the planner's choice.

    Yields
    ------
    Tiles
        What is in force.

    Raises
    ------
    ValueError
        If a text is no tile. A tile that a call's kernels cannot take is that call's ValueError.

    Examples
    --------
    >>> import numpy as np
    >>> from cupy_flash import flash_attention
    >>> q = np.ones((1, 32, 64), np.float16)
    >>> with tiles(forward="64x32,num_warps=4,stages=2"):
    ...     out = flash_attention(q, q, q, backend="emulator:sm_90a")
    """
    given = {"forward": forward, "dkdv": dkdv, "dq": dq}
    parsed = {name: parse_tile(x) if isinstance(x, str) else x for name, x in given.items() if x is not None}
    chosen = Tiles(**vars(_by_hand.get()) | parsed)
    token = _by_hand.set(chosen)
    try:
        yield chosen
    finally:
        _by_hand.reset(token)


def tiles_by_hand() -> Tiles:
    """What the innermost `tiles` around the caller says."""
    return _by_hand.get()


@dataclass(frozen=True)
class Entry:
    """The fastest tile of one tensor-core kernel.

    Attributes
    ----------
    kernel : str
        One of `KERNELS`; "packed" is the forward whose tile holds all heads of a group.
    head_dim : int
        The larger compiled head dimension.
    causal : bool
        Of the mask.
    tile : Tile
        The fastest.
    microseconds, estimated_microseconds : float
        The time of the call that was measured with it, and with the planner's own choice.
    """

    kernel: str
    head_dim: int
    causal: bool
    tile: Tile
    microseconds: float
    estimated_microseconds: float


def measured(arch: str, kernel: str, head_dim: int, masked: bool) -> list[Any]:
    """The tile that was fastest on this architecture, in a list that is empty where none was measured."""
    return [tile for tile in [_table(arch).get((kernel, head_dim, masked))] if tile is not None]


def write_table(path: Path, place: Mapping[str, str], entries: list[Entry]) -> None:
    """Write what `measured` reads; `place` says where and with what it was measured."""
    head = "".join(f"  {json.dumps(name)}: {json.dumps(value)},\n" for name, value in place.items())
    rows = ",\n".join(f"    {json.dumps(vars(entry) | {'tile': str(entry.tile)})}" for entry in entries)
    cache.write_atomically(path, f'{{\n{head}  "tiles": [\n{rows}\n  ]\n}}\n'.encode())
    _table.cache_clear()


def read_table(path: Path | Traversable) -> list[Entry]:
    """What `write_table` wrote, nothing where there is no such file.

    Raises
    ------
    ValueError
        If the file is no table.
    """
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["tiles"]
        entries = [Entry(**row | {"tile": parse_tile(row["tile"])}) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no table of tiles: {error!r}") from None
    for entry in entries:
        expected = MmaKeyTile if entry.kernel == "dkdv" else MmaTile
        if type(entry.tile) is not expected:
            raise ValueError(f"{path}: {entry.kernel} takes a {expected.__name__}, not {entry.tile}")
    return entries


def own_table(arch: str) -> Path:
    """Where `tune` writes its table."""
    return cache.folder("tiles") / "tiles" / f"{arch}.json"


def own_tables(arch: str) -> list[Path]:
    """Tables of whoever ran `tune`, here before elsewhere; they stand before the package's own."""
    return [folder / "tiles" / f"{arch}.json" for folder in reversed(cache.folders("tiles"))]


def package_table(arch: str) -> Traversable:
    """The table that comes with the package, where the architecture was measured."""
    return resources.files("cupy_flash") / "data" / "tiles" / f"{arch}.json"


@functools.cache
def _table(arch: str) -> dict[tuple[str, int, bool], Tile]:
    for path in (*own_tables(arch), package_table(arch)):
        try:
            entries = read_table(path)
        except (ValueError, OSError) as error:
            warn(f"a table of tiles is left aside; `tune` makes another: {error}")
            continue
        if entries:
            return {(entry.kernel, entry.head_dim, entry.causal): entry.tile for entry in entries}
    return {}
