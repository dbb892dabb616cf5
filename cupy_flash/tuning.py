"""Tiles given by hand: `tiles` lets the calls inside a ``with`` statement take them instead of the planner's choice."""

from cupy_flash._src.tiles import MmaKeyTile, MmaTile, SimtTile, Tile, Tiles
from cupy_flash._src.tuning import tiles

__all__ = ["MmaKeyTile", "MmaTile", "SimtTile", "Tile", "Tiles", "tiles"]
