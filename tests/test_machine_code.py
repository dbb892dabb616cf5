"""`benchmarks/machine_code.py` and the table that it recorded."""

import itertools

import machine_code
import pytest
from machine_code import KERNELS, RECORDED, read, step_of, tile_of

from cupy_flash._src.device import named
from cupy_flash._src.specialization import Variant
from cupy_flash._src.tiles import (
    MMA_HEAD_DIM_BUCKETS,
    mma_dkdv_candidates,
    mma_dq_candidates,
    mma_forward_candidates,
)

DEVICE = named("sm_90a")


def specialization(name, head_dim, head_dim_v=None, device=DEVICE):
    return KERNELS[name](Variant.of("float16", head_dim, head_dim_v, causal=True), device)


def test_a_step_of_the_main_loop():
    """FlashAttention-2's shapes, by hand: 128 x 64 scores of 4 warps; 64 x 128 of 8."""
    forward, dkdv, alone, dq = (specialization(name, 128) for name in ("forward", "dkdv", "dkdv-alone", "dq"))
    assert step_of(forward) == (2 * 128 * 64 * 128 // (16 * 8 * 16) // 4, 2 * 64 * 128 * 2 // 128, 0)
    assert step_of(dkdv) == (5 * 64 * 128 * 128 // (16 * 8 * 16) // 8, 2 * 64 * 128 * 2 // 256, 64 * 128 // 256)
    assert step_of(alone) == (4 * 64 * 128 * 128 // (16 * 8 * 16) // 8, 2 * 64 * 128 * 2 // 256, 0)
    assert step_of(dq) == (3 * 128 * 64 * 128 // (16 * 8 * 16) // 8, 2 * 64 * 128 * 2 // 256, 0)
    turing, mixed = specialization("forward", 64, device=named("sm_75")), specialization("forward", 64, 256)
    assert step_of(turing) == (2 * 128 * 64 * 64 // (16 * 8 * 8) // 4, 2 * 64 * 64 * 2 // 128, 0)
    assert step_of(mixed).products == 128 * 64 * (64 + 256) // (16 * 8 * 16) // 8
    assert step_of(mixed).copied == 64 * (64 + 256) * 2 // 256


def test_tiles_of_kernels():
    for head_dim in MMA_HEAD_DIM_BUCKETS:
        candidates = {
            "forward": mma_forward_candidates(head_dim, packed=False),
            "packed": mma_forward_candidates(head_dim, packed=True),
            "dkdv": mma_dkdv_candidates(head_dim),
            "dq": mma_dq_candidates(head_dim),
        }
        for name, tiles in candidates.items():
            assert tile_of(specialization(name, head_dim)) in tiles


def test_rows_replace_those_of_the_same_kernel_and_nvrtc(tmp_path):
    path = tmp_path / "rows.csv"

    def row(nvrtc, head_dim, loop):
        key = {"nvrtc": nvrtc, "arch": "sm_90a", "kernel": "dq", "dtype": "float16", "mask": "full"}
        return key | {"head_dim": head_dim, "tile": "64x32,num_warps=4", "loop": loop}

    first, second = [row("13.0", "64", "9"), row("13.0", "128", "8")], [row("13.10", "64", "7"), row("13.0", "64", "6")]
    machine_code.record(path, first[::-1])
    assert read(path) == first
    machine_code.record(path, second)
    assert read(path) == [second[1], first[1], second[0]]
    lines = machine_code.table(second).splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines] == ["nvrtc", "13.10", "13.0"]


def test_what_is_asked_for_is_measured_printed_and_recorded(monkeypatch, capsys, tmp_path):
    asked, path = [], tmp_path / "rows.csv"
    row = dict.fromkeys(machine_code.KEY, "1")
    monkeypatch.setattr(machine_code, "measure", lambda *args: asked.append(args) or [row] * (args[0] == ["sm_90a"]))
    machine_code.main(["--head-dims", "64", "--record", str(path)])
    assert asked == [(["sm_90a"], ["forward", "dkdv", "dq"], [64], ["float16", "bfloat16"], ["full", "causal"])]
    assert read(path) == [row] and capsys.readouterr().out.split() == [*row, *row.values()]
    with pytest.raises(SystemExit):
        machine_code.main(["--archs", "sm_70"])
    assert "none of these kernels runs on tensor cores" in capsys.readouterr().err


HEAD_DIMS, NAMES, DTYPES, MASKS = (64, 128, 256), ("forward", "dkdv", "dq"), ("float16", "bfloat16"), ("full", "causal")


def recorded(version):
    """Rows that bind kernels compiled with this NVRTC, and by how much its counts may exceed them.

    The same NVRTC makes the same code of the same sources: 2% let them change a little without a new record. Between
    13.0 and 13.5 counts differ by up to 5%, so another version may as much from the newest recorded.
    """
    rows = read(RECORDED)
    versions = sorted({row["nvrtc"] for row in rows}, key=_numbers)
    chosen = version if version in versions else versions[-1]
    found = {tuple(row[name] for name in machine_code.KEY[1:]): row for row in rows if row["nvrtc"] == chosen}
    return found, 1.02 if chosen == version else 1.05


def _numbers(version):
    return [int(part) for part in version.split(".")]


def faults(row, was, most):
    """What is worse than recorded, or so much better that the record is old."""
    found = [f"{name} is {row[name]}" for name in ("spill", "stack") if row[name] != "0"]
    ratio = int(row["loop"]) / int(was["loop"])
    if not 1 / most <= ratio <= most:
        found.append(f"{row['loop']} instructions in the main loop, recorded were {was['loop']}")
    if most < 1.05 and int(row["registers"]) > int(was["registers"]):
        found.append(f"{row['registers']} registers, recorded were {was['registers']}")
    if int(row["divisions"]) > int(was["divisions"]):
        found.append(f"{row['divisions']} divisions in the main loop, recorded were {was['divisions']}")
    return found


def test_what_is_worse_than_recorded_is_told():
    was = {"spill": "0", "stack": "0", "loop": "1000", "registers": "250", "divisions": "1"}
    for change in ({}, {"loop": "1020"}, {"loop": "981"}, {"registers": "240"}, {"divisions": "0"}):
        assert faults(was | change, was, 1.02) == []
    for change, word in [
        ({"spill": "8"}, "spill is 8"), ({"stack": "16"}, "stack is 16"), ({"loop": "1021"}, "1021 instr"),
        ({"loop": "980"}, "980 instr"), ({"registers": "251"}, "251 reg"), ({"divisions": "2"}, "2 div"),
    ]:  # fmt: skip
        (fault,) = faults(was | change, was, 1.02)
        assert word in fault
    assert faults(was | {"registers": "255", "loop": "1050"}, was, 1.05) == []
    assert len(faults(was | {"spill": "1", "loop": "1051"}, was, 1.05)) == 2


def test_the_record_has_every_kernel_for_two_versions_of_nvrtc():
    expected = set(itertools.product(["sm_90a"], NAMES, DTYPES, map(str, HEAD_DIMS), MASKS))
    versions = {row["nvrtc"] for row in read(RECORDED)}
    assert "13.0" in versions and len(versions) == 2
    for version in versions:
        rows, most = recorded(version)
        assert set(rows) == expected and most == 1.02
        assert all(row["spill"] == row["stack"] == "0" for row in rows.values())
    newest, most = recorded("14.0")
    assert {row["nvrtc"] for row in newest.values()} == versions - {"13.0"} and most == 1.05


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_registers_spills_and_main_loops_are_as_recorded(head_dim):
    """`python benchmarks/machine_code.py --kernels forward dkdv dq --record` records anew."""
    found = {}
    for row in machine_code.measure(["sm_90a"], NAMES, [head_dim], DTYPES, MASKS):
        rows, most = recorded(row["nvrtc"])
        key = tuple(row[name] for name in machine_code.KEY[1:])
        if told := faults(row, rows[key], most):
            found[key] = told
    assert not found
