"""Candidates of every head dimension against what fits: who leaves room unused says why."""

import pytest
import tile_room
from tile_room import rooms

from cupy_flash._src.compile import CompiledKernel
from cupy_flash._src.device import NAMED

ARCHS = [arch for arch in NAMED if any(rooms(arch))]
# Tiles in flight that cover the way from global memory: a copy has the products on the tiles before it to arrive. The
# packed forward has few rows, hence short products. A step of the backward has three to five products by itself.
ENOUGH_STAGES = {"forward": 3, "packed": 4, "dkdv": 2, "dq": 2}
ENOUGH_WARPS = 8  # two for each scheduler: one multiplies while another exponentiates

ALIKE = {"sm_87": "sm_80", "sm_89": "sm_86", "sm_120": "sm_86", "sm_100": "sm_90a"}  # the same shared memory, or so
HALVES = "one block of four warps is what fits: two would have half the keys or queries each"
REASONS = {
    **{("sm_86", name, d): HALVES for name in ("packed", "dq") for d in (192, 256)},
    ("sm_86", "dkdv", 256): HALVES,
    **{("sm_75", name, d): HALVES for name in ("forward", "packed") for d in (192, 256)},
    **{("sm_75", "dkdv", d): HALVES for d in (32, 64, 96)},
    **{("sm_75", "dq", d): HALVES for d in (96, 128)},
}


def unused(room):
    """What more of a multiprocessor the tile could take."""
    asynchronous = room.kernel.constant("kAsyncCopy")  # without such copies more stages are no more in flight
    wanted = min(room.stages_that_fit, ENOUGH_STAGES[room.name] if asynchronous else 1)
    if room.tile.stages < wanted:
        yield f"{room.tile.stages} stages where {wanted} fit"
    if room.warps < ENOUGH_WARPS:
        yield f"{room.warps} warps on a multiprocessor"


@pytest.mark.parametrize("arch", ARCHS)
def test_room_is_used_or_there_is_a_reason(arch):
    found = {(ALIKE.get(arch, arch), room.name, room.head_dim): list(unused(room)) for room in rooms(arch)}
    assert {key: told for key, told in found.items() if told and key not in REASONS} == {}
    assert [key for key in REASONS if key in found and not found[key]] == [], "needs no reason any more"


def test_reasons_are_of_kernels_that_there_are():
    keys = {(arch, room.name, room.head_dim) for arch in ARCHS for room in rooms(arch)}
    assert set(REASONS) <= keys


@pytest.mark.parametrize("arch", ARCHS)
def test_as_many_stages_fit_as_are_told(arch):
    """With one more, the blocks that a tile wants on a multiprocessor do not fit it, or a block its limit."""
    for room in rooms(arch):
        device, blocks = room.device, room.tile.min_blocks
        assert room.shared_bytes(room.tile.stages) == room.kernel.constant("kSharedBytes")
        sizes = [room.shared_bytes(room.stages_that_fit + more) for more in (0, 1)]
        fits = [
            size <= device.shared_per_block and blocks * device.shared_of_block(size) <= device.shared_per_sm
            for size in sizes
        ]
        assert fits == [True, False] and room.stages_that_fit >= room.tile.stages


def test_the_table_has_a_row_for_each_list_of_candidates(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        tile_room, "compile_all", lambda kernels, arch: [CompiledKernel(tmp_path, 255, 0, 0) for _ in kernels]
    )
    tile_room.main(["--archs", "sm_75", "sm_90a"])
    turing, hopper, rest = capsys.readouterr().out.split("\n\n")
    assert not rest and len(turing.splitlines()) == 1 + 20 and len(hopper.splitlines()) == 1 + 24
    head, *rows = (line.split() for line in hopper.splitlines())
    assert head[:4] == ["arch", "kernel", "head_dim", "tile"]
    (forward,) = (row for row in rows if row[1:3] == ["forward", "128"])
    # Two blocks of 4 warps: 255 registers of 128 threads each fill the file.
    assert forward[4:] == ["81920", "116736", "3", "5", "255", "2", "8", "registers"]
