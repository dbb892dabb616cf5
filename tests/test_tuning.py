"""Tiles by hand and from measured tables, and the search that makes the tables."""

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from cases import Case, check
from conftest import On
from hypothesis import given
from hypothesis import strategies as st

from cupy_flash import emulator, flash_attention
from cupy_flash import tuning as public
from cupy_flash.__main__ import main
from cupy_flash._src import tuning
from cupy_flash._src.cli import tune
from cupy_flash._src.cli.tune.search import Group, Searcher, Trial, planned_tile, winner
from cupy_flash._src.cli.tune.space import candidates, specialization
from cupy_flash._src.device import named
from cupy_flash._src.plan import plan_backward, plan_forward
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.tiles import MmaKeyTile, MmaTile, SimtTile, Tiles, parse_tile
from cupy_flash._src.tuning import Entry, tiles

OWN_TABLES = tuning.own_tables  # before conftest.py leaves them aside
HALF = Case(dtype="float16", heads_k=1, group=2, sq=70, sk=150, causal=True, q_offset=40)
FORWARD, KEYS, QUERIES = MmaTile(64, 32, 2, 3, 1), MmaKeyTile(64, 64, 4, 1, 1, 2, 2), MmaTile(64, 32, 4, 1, 1)
TINY = MmaTile(16, 16, 1, 2, 1)
sizes = st.integers(1, 512)


def forward_once(backend="emulator"):
    """The forward's launch."""
    q, k, v, *_ = HALF.arrays()
    flash_attention(q, k, v, **HALF.options, backend=backend)
    return emulator.last_run().launches[0]


def plans(case, arch, deterministic):
    q, k, v, *_ = case.arrays()
    problem = AttentionProblem.from_arrays(q, k, v, **case.options, deterministic=deterministic)
    return plan_forward(problem, named(arch)), plan_backward(problem, named(arch))


@given(
    tile=st.one_of(
        st.builds(MmaTile, sizes, sizes, sizes, sizes, sizes),
        st.builds(MmaKeyTile, sizes, sizes, sizes, sizes, sizes, sizes, sizes),
        st.builds(SimtTile, sizes, sizes, sizes, sizes, sizes, st.booleans(), sizes),
    )
)
def test_a_tile_is_read_as_it_is_written(tile):
    assert parse_tile(str(tile)) == tile and type(parse_tile(str(tile))) is type(tile)


@pytest.mark.parametrize(
    ("text", "tile"),
    [
        ("64x32,num_warps=2", MmaTile(64, 32, 2)),
        ("64x32,min_blocks=2,num_warps=2", MmaTile(64, 32, 2, min_blocks=2)),
        ("64x32,num_warps=2,warps_m=2", MmaKeyTile(64, 32, 2, warps_m=2)),
        ("64x32,num_warps=2,warps_n=2", MmaKeyTile(64, 32, 2, warps_n=2)),
        ("64x32,slice_d=16,num_warps=4,lanes=8", SimtTile(64, 32, 16, 4, 8)),
        ("64x32,slice_d=16,num_warps=4,lanes=8,query_resident=1", SimtTile(64, 32, 16, 4, 8, True)),
    ],
)
def test_what_a_text_leaves_out_is_the_default(text, tile):
    assert parse_tile(text) == tile and type(parse_tile(text)) is type(tile)


@pytest.mark.parametrize("text", ["", "128", "128x64", "128x64,warps=4", "128x64,num_warps=four", "axb,num_warps=4"])
def test_what_is_no_tile_is_refused(text):
    with pytest.raises(ValueError, match="expected one like"):
        parse_tile(text)
    with pytest.raises(ValueError, match="expected one like"), tiles(forward=text):
        pass


def test_the_module_offers_what_it_names():
    offered = {"MmaKeyTile": MmaKeyTile, "MmaTile": MmaTile, "SimtTile": SimtTile, "Tiles": Tiles, "tiles": tiles}
    offered["Tile"] = SimtTile | MmaTile
    assert {name: getattr(public, name) for name in public.__all__} == offered


# By hand.


def test_tiles_hold_inside_and_only_there():
    before = forward_once()
    with tiles(forward=FORWARD) as outer:
        assert outer == Tiles(forward=FORWARD)
        inside = forward_once()
        assert (inside.block[0], inside.shared_bytes) == (64, FORWARD.forward_shared_bytes(64, 64))
        with tiles(dkdv=str(KEYS)) as inner:
            assert inner == Tiles(forward=FORWARD, dkdv=KEYS)
            assert forward_once().block == inside.block
        with tiles(forward="16x16,num_warps=1"):
            assert forward_once().block[0] == 32
        assert forward_once().block == inside.block
    assert forward_once().block == before.block != inside.block


def test_tiles_of_one_thread_are_not_anothers():
    found = []
    with tiles(forward=FORWARD):
        thread = threading.Thread(target=lambda: found.append(tuning.tiles_by_hand()))
        thread.start()
        thread.join()
    assert found == [Tiles()]


def test_tiles_end_with_an_exception():
    with pytest.raises(KeyError), tiles(forward=FORWARD):
        raise KeyError
    assert tuning.tiles_by_hand() == Tiles()


@pytest.mark.parametrize("deterministic", [False, True])
def test_results_with_tiles_by_hand_are_right(deterministic):
    with tiles(forward=FORWARD, dkdv=KEYS, dq=QUERIES):
        check(HALF, On("emulator:sm_90a"), deterministic=deterministic)
        launches = {x.kernel: x for x in emulator.last_run().launches}
    assert launches["attention_dkdv"].shared_bytes == KEYS.dkdv_shared_bytes(64, 64)
    if deterministic:
        assert launches["attention_dq"].shared_bytes == QUERIES.dq_shared_bytes(64, 64)


def test_a_tile_that_cannot_serve_is_the_calls_error():
    q = np.ones((1, 8, 64), np.float32)
    with tiles(forward=FORWARD), pytest.raises(ValueError, match="needs float16 or bfloat16"):
        flash_attention(q, q, q, backend="emulator")


# Tables.


@pytest.fixture
def own(monkeypatch, tmp_path):
    """The path of the user's own table, the package's being left aside."""
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tuning, "own_tables", lambda arch: [tmp_path / "tiles" / f"{arch}.json"])
    monkeypatch.setattr(tuning, "package_table", lambda arch: tmp_path / "none.json")

    def forget():
        for cached in (tuning._table, plan_forward, plan_backward):
            cached.cache_clear()

    forget()
    yield tmp_path / "tiles" / "sm_90a.json"
    monkeypatch.undo()
    forget()


def entries(causal):
    rows = {"forward": FORWARD, "packed": TINY, "dkdv": KEYS, "dq": QUERIES}
    return [Entry(kernel, 64, causal, tile, 10.0, 12.5) for kernel, tile in rows.items()]


def test_the_planner_takes_what_was_measured(own):
    case = dataclasses.replace(HALF, group=1, sq=64)
    estimated = plans(case, "sm_90a", True), plans(case, "sm_80", True)
    tuning.write_table(own, {"device": "a GPU"}, entries(causal=True))
    plan_forward.cache_clear(), plan_backward.cache_clear()
    forward, one_pass = plans(case, "sm_90a", False)
    decode, _ = plans(dataclasses.replace(case, sq=1, group=8, q_offset=None), "sm_90a", False)
    kernels = {
        "forward": (forward.forward.kernel, FORWARD),
        "packed": (decode.forward.kernel, TINY),
        "dkdv": (one_pass.dkdv.kernel, KEYS),
        "dq": (plans(case, "sm_90a", True)[1].dq.kernel, QUERIES),
    }
    for name, (kernel, tile) in kernels.items():
        assert kernel == specialization(name, 64, True, tile, named("sm_90a"))
    # Another mask, head dimension or architecture keeps the estimate.
    for other in (dataclasses.replace(case, causal=False, q_offset=None), dataclasses.replace(case, d=128)):
        assert plans(other, "sm_90a", False)[0].forward.kernel.constant("kNWarps") == 4
    assert plans(case, "sm_80", True) == estimated[1]
    own.unlink()
    tuning._table.cache_clear(), plan_forward.cache_clear(), plan_backward.cache_clear()
    assert plans(case, "sm_90a", True) == estimated[0]


@pytest.mark.parametrize("tile", [MmaTile(128, 128, 4, 4, 2), MmaTile(40, 96, 4), MmaTile(64, 96, 0)])
def test_a_measured_tile_that_cannot_run_is_passed_over(own, tile):
    """A table of an H100 read for a smaller GPU of the same architecture, and ones written by hand."""
    tuning.write_table(own, {}, [Entry("forward", 64, True, tile, 1.0, 1.0)])
    small = dataclasses.replace(named("sm_90a"), shared_per_block=64 * 1024, shared_per_sm=64 * 1024)
    q, k, v, *_ = HALF.arrays()
    kernel = plan_forward(AttentionProblem.from_arrays(q, k, v, **HALF.options), small).forward.kernel
    assert kernel.constant("kBlockN") == 64


def test_of_several_tables_the_first_that_holds_any_counts(own, monkeypatch):
    """Here, elsewhere, the package's: entries are of one measurement, and are not mixed; of two like ones the last."""
    paths = [own, own.with_name("image.json"), own.with_name("package.json")]
    monkeypatch.setattr(tuning, "own_tables", lambda arch: paths[:2])
    monkeypatch.setattr(tuning, "package_table", lambda arch: paths[2])
    tiles_of = [FORWARD, TINY, MmaTile(32, 32, 2)]
    for path, tile in zip(paths, tiles_of, strict=True):
        tuning.write_table(path, {}, [Entry("forward", 64, True, tile, 1.0, 1.0)])
    tuning.write_table(paths[1], {}, [Entry("forward", 64, True, x, 1.0, 1.0) for x in (FORWARD, TINY)])

    def found(kernel="forward", head_dim=64, causal=True):
        tuning._table.cache_clear()
        return tuning.measured("sm_90a", kernel, head_dim, causal)

    assert found() == [FORWARD]
    assert found("packed") == found(head_dim=128) == found(causal=False) == []
    own.write_text("{}")
    with pytest.warns(RuntimeWarning, match=f"left aside.*{own.name} is no table"):
        assert found() == [TINY]
    tuning.write_table(own, {}, [])
    assert found() == [TINY]
    own.unlink(), paths[1].unlink()
    assert found() == [tiles_of[2]]
    tuning.write_table(own, {}, [Entry("packed", 64, True, TINY, 1.0, 1.0)])
    assert found() == [] and found("packed") == [TINY]
    monkeypatch.setattr(Path, "read_text", lambda path, **options: own.parent.read_bytes())  # as if not readable
    with pytest.warns(RuntimeWarning, match="left aside"):
        assert found("packed") == []


def test_a_table_that_was_written_counts_at_once(own):
    for tile in (FORWARD, TINY):
        tuning.write_table(own, {}, [Entry("forward", 64, True, tile, 1.0, 1.0)])
        assert tuning.measured("sm_90a", "forward", 64, True) == [tile]


def test_what_was_tuned_here_stands_before_what_an_image_holds(monkeypatch):
    monkeypatch.setattr(tuning.cache, "folders", lambda below: [Path("image"), Path("users")])
    assert OWN_TABLES("sm_90a") == [Path(folder, "tiles", "sm_90a.json") for folder in ("users", "image")]


def test_tables_are_read_as_they_are_written(own):
    both = [*entries(True), *entries(False)]
    tuning.write_table(own, {"device": "a GPU", "date": "2026-01-02"}, both)
    assert tuning.read_table(own) == both
    assert json.loads(own.read_text())["device"] == "a GPU"
    assert tuning.read_table(own.with_name("none.json")) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(str(FORWARD), "128 by 64"),
        lambda text: text.replace(str(FORWARD), str(KEYS)),
        lambda text: text.replace('"causal"', '"casual"'),
        lambda text: "[]",
    ],
)
def test_a_spoiled_table_is_left_aside_with_a_warning(own, spoil):
    expected = plans(HALF, "sm_90a", False)
    tuning.write_table(own, {}, entries(causal=True))
    own.write_text(spoil(own.read_text()))
    tuning._table.cache_clear(), plan_forward.cache_clear(), plan_backward.cache_clear()
    with pytest.warns(RuntimeWarning, match="left aside"):
        assert plans(HALF, "sm_90a", False) == expected


@pytest.mark.parametrize("arch", [path.stem for path in tuning.package_table("").parent.glob("sm_*.json")])
def test_tables_of_the_package_hold_tiles_that_can_run(arch):
    found = tuning.read_table(tuning.package_table(arch))
    assert found
    for e in found:
        specialization(e.kernel, e.head_dim, e.causal, e.tile, named(arch))
        assert 0 < e.microseconds <= e.estimated_microseconds


# The search.


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_90a"])
@pytest.mark.parametrize("kernel", tuning.KERNELS)
@pytest.mark.parametrize("head_dim", tune.HEAD_DIMS)
def test_candidates_can_run(arch, kernel, head_dim):
    device = named(arch)
    found = candidates(kernel, head_dim, device)
    assert len(set(found)) == len(found)
    for tile in found:
        launched = specialization(kernel, head_dim, False, tile, device)
        threads, shared = 32 * tile.num_warps, device.shared_of_block(launched.constant("kSharedBytes"))
        assert tile.min_blocks * shared <= device.shared_per_sm
        assert 1 <= tile.min_blocks * threads <= device.threads_per_sm
    if arch == "sm_90a":
        assert len(found) >= 5


def test_the_planned_tile_is_told():
    for kernel, head_dim in (("forward", 128), ("packed", 64), ("dkdv", 256), ("dq", 64)):
        group, device = Group(kernel, head_dim, True), named("sm_90a")
        tile = planned_tile(group, device)
        assert specialization(kernel, head_dim, True, tile, device) == specialization(*group, None, device)


def test_the_winner_must_be_worth_it():
    planned, other = Trial(FORWARD, 1.0), Trial(TINY, 0.995)
    assert winner([planned, other], FORWARD) is planned
    assert winner([planned, faster := Trial(TINY, 0.98)], FORWARD) is faster
    assert winner([Trial(FORWARD, problem="spills"), other], FORWARD) is other


@pytest.mark.slow
def test_tune_searches_and_writes(own, tmp_path, capsys):
    out = tmp_path / "table.json"
    tuning.write_table(out, {}, [Entry("forward", 256, False, FORWARD, 1.0, 2.0)])
    arguments = ["--backend", "emulator:sm_90a", "--head-dims", "64", "--most", "1", "--out", str(out)]
    assert main(["tune", *arguments, "--kernels", "forward", "packed", "dq"]) == 0
    found = {(e.kernel, e.head_dim, e.causal): e for e in tuning.read_table(out)}
    assert set(found) == {("forward", 256, False)} | {
        (kernel, 64, causal) for kernel in ("forward", "packed", "dq") for causal in (False, True)
    }
    assert json.loads(out.read_text())["device"] == "emulator:sm_90a"
    printed = capsys.readouterr().out
    assert printed.count("planned") >= 6 and "| forward | 64 | False |" in printed and str(out) in printed


@pytest.mark.slow
def test_a_wrong_tile_does_not_win(own, monkeypatch, tmp_path, capsys):
    """Each tile is verified: the fastest one computes something else."""
    trial = Searcher.trial

    def broken(self, tile):
        if tile == TINY:
            raise ArithmeticError("wrong: out is off by 3")
        return dataclasses.replace(trial(self, tile), seconds=1.0)

    monkeypatch.setattr(Searcher, "trial", broken)
    monkeypatch.setattr(tune, "candidates", lambda *args: [TINY])
    out = tmp_path / "table.json"
    arguments = ["--backend", "emulator:sm_90a", "--head-dims", "64", "--kernels", "forward"]
    assert main(["tune", *arguments, "--out", str(out)]) == 0
    assert "ArithmeticError: wrong: out is off by 3" in capsys.readouterr().out
    assert TINY not in {e.tile for e in tuning.read_table(out)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "emulator"], "emulated figures are no measurements"),
        (["--backend", "cpu"], "--backend is 'cpu'"),
        (["--backend", "emulator", "--out", "/missing/table.json"], "/missing is not a directory"),
        (["--most", "-1"], "--most is -1: expected 0 or more"),
        (["--minutes", "nan"], "--minutes is nan: expected 0 or more"),
    ],
)
def test_malformed_searches_are_named(arguments, message, capsys):
    assert main(["tune", *arguments]) == 1
    assert message in capsys.readouterr().err
