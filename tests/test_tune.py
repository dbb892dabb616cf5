"""`tune` on a machine whose tiles have made-up times: what is verified, timed, chosen, written and told."""

import re
import sys
import types

import numpy as np
import pytest

from cupy_flash.__main__ import main
from cupy_flash._src import tuning
from cupy_flash._src.cli import tune
from cupy_flash._src.cli.bench import machine, methods
from cupy_flash._src.cli.bench.cases import Case
from cupy_flash._src.cli.bench.timing import Timing
from cupy_flash._src.cli.tune import search
from cupy_flash._src.cli.tune.search import Group, Searcher, planned_tile
from cupy_flash._src.cli.tune.space import candidates, specialization
from cupy_flash._src.device import named
from cupy_flash._src.tiles import MmaKeyTile, MmaTile
from cupy_flash._src.tuning import Entry, read_table, tiles_by_hand, write_table

CASES = sys.modules[Case.__module__]
DEVICE = named("sm_90a")
ROLE = {"forward": "forward", "packed": "forward", "dkdv": "dkdv", "dq": "dq"}
GOOD, WRONG, FULL, SLOW, SPILLS = (MmaTile(64, 32, 4, stages, 1) for stages in range(2, 7))


class Tuner(machine.Emulated):
    """Times calls by the tile in force, `seconds[tile]`, 1 where there is none, and lists what was timed."""

    def __init__(self):
        super().__init__(DEVICE)
        self.timer, self.seconds, self.timed, self.released, self.lost = self, {}, [], 0, False

    def measure(self, call):
        call()
        force = tiles_by_hand()
        tile = getattr(force, self.role)
        assert [t for t in vars(force).values() if t is not None] == [tile]
        self.timed.append(tile)
        median = self.seconds.get(tile, 1.0)
        return Timing(median, median / 2, median * 2, 7)

    def release(self):
        self.released += 1

    def is_lost(self):
        return self.lost


@pytest.fixture
def tuner(monkeypatch):
    """`tune` of "forward" by default, with candidates GOOD, WRONG, FULL and SLOW; no kernel is made."""
    here = Tuner()
    here.role, here.spoil = "forward", {}
    monkeypatch.setattr(CASES, "REDUCED_SEQLEN", 48)
    monkeypatch.setattr(CASES, "POOL", 65537)

    def spoiled(out):
        tile = getattr(tiles_by_hand(), here.role)
        return here.spoil.get(tile, lambda x: x)(out)

    class Flash(methods.Flash):
        def bind(self, case, x):
            bound = methods.standard(np, case, x)
            forward, backward = bound.forward, bound.backward
            bound.forward = lambda: spoiled(forward())
            bound.backward = lambda saved, dout: (spoiled(backward(saved, dout)[0]), *backward(saved, dout)[1:])
            here.asked.append((case, self.backend))
            return bound

    here.asked = []
    monkeypatch.setattr(search, "Flash", Flash)
    monkeypatch.setattr(tune, "machine_of", lambda backend: here)
    monkeypatch.setattr(tune, "candidates", lambda kernel, head_dim, device: [GOOD, WRONG, FULL, SLOW])
    monkeypatch.setattr(tune, "commit_of_sources", lambda: "abc")
    monkeypatch.setattr(tune, "find", lambda kernel, arch: None)
    return here


def wrong(out):
    return out * np.float16(1.5)


def no_memory(out):
    raise MemoryError("Out of memory allocating 9 bytes")


def run(tmp_path, *arguments, kernels=("forward",)):
    """The status, and the table's entries by kernel and mask."""
    path = tmp_path / "table.json"
    chosen = ["--backend", "emulator:sm_90a", "--head-dims", "64", "--kernels", *kernels, "--out", str(path)]
    status = main(["tune", *chosen, *arguments])
    return status, {(e.kernel, e.causal): e for e in read_table(path)}


def test_the_fastest_tile_that_is_right_is_written_and_told(tuner, tmp_path, capsys):
    """The fastest are wrong, out of memory and no number: none of them is timed, let alone chosen."""
    planned = planned_tile(Group("forward", 64, False), DEVICE)
    tuner.seconds = {planned: 250e-6, GOOD: 200e-6, WRONG: 1e-6, FULL: 2e-6, SLOW: 300e-6}
    tuner.spoil = {WRONG: wrong, FULL: no_memory}
    status, found = run(tmp_path)
    assert status == 0 and set(found) == {("forward", False), ("forward", True)}
    for (kernel, causal), entry in found.items():
        assert entry == Entry(kernel, 64, causal, GOOD, 200.0, 250.0)
    assert not {WRONG, FULL} & set(tuner.timed)
    # With the full mask all, with the causal one the planner's and those that were right, the fastest first.
    causal = planned_tile(Group("forward", 64, True), DEVICE)
    assert tuner.timed == [planned, GOOD, SLOW, *dict.fromkeys([causal, GOOD, planned, SLOW])]
    printed = capsys.readouterr().out
    assert f"| forward | 64 | False | {GOOD} | 200.0 | 250.0 | 1.25 |" in printed
    assert re.search(rf"forward D 64 +{GOOD} +200\.0 us", printed)
    assert re.search(rf"forward D 64 +{planned} +250\.0 us  planned", printed)
    assert re.search(rf"forward D 64 +{WRONG} +ArithmeticError: wrong: out is off by", printed)
    assert re.search(rf"forward D 64 +{FULL} +MemoryError: Out of memory", printed)
    assert tuner.released == 2


@pytest.mark.parametrize(("seconds", "chosen"), [(0.98, GOOD), (0.995, None), (1.0, None), (1.1, None)])
def test_the_planners_tile_stays_where_none_is_worth_it(seconds, chosen, tuner, tmp_path):
    tuner.seconds, tuner.spoil = {GOOD: seconds, SLOW: 2.0}, {WRONG: wrong, FULL: no_memory}
    _, found = run(tmp_path)
    for (_, causal), entry in found.items():
        planned = planned_tile(Group("forward", 64, causal), DEVICE)
        assert entry.tile == (chosen or planned)
        assert (entry.microseconds, entry.estimated_microseconds) == (round(1e6 * (seconds if chosen else 1)), 1e6)


def test_where_no_tile_is_right_nothing_is_written(tuner, tmp_path):
    planned = [planned_tile(Group("forward", 64, causal), DEVICE) for causal in (False, True)]
    tuner.spoil = dict.fromkeys([GOOD, WRONG, FULL, SLOW, *planned], wrong)
    status, found = run(tmp_path)
    assert (status, found, tuner.timed) == (0, {}, [])


@pytest.mark.parametrize("kernel", tuning.KERNELS)
def test_a_tile_reaches_its_kernel(kernel):
    names = {"block_m": "kBlockM", "block_n": "kBlockN", "num_warps": "kNWarps", "stages": "kStages"}
    for tile in candidates(kernel, 64, DEVICE):
        made = specialization(kernel, 64, True, tile, DEVICE, "bfloat16")
        assert made.entry == f"attention_{ROLE[kernel]}" and made != specialization(kernel, 64, False, tile, DEVICE)
        found = {field: made.constant(name) for field, name in (names | {"min_blocks": "kMinBlocks"}).items()}
        assert found == {field: getattr(tile, field) for field in found}


@pytest.mark.parametrize("backend", ["emulator", "emulator:sm_90a"])
def test_emulated_figures_need_a_name(backend, tuner, capsys):
    assert main(["tune", "--backend", backend]) == 1
    assert "emulated figures are no measurements" in capsys.readouterr().err and not tuner.timed


@pytest.mark.parametrize("kernel", tuning.KERNELS)
def test_a_kernels_tile_is_in_force_alone_and_verified_by_its_own_results(kernel, tuner, monkeypatch):
    """Each of the backward's kernels by the gradients that it makes, dQ's own pass where bits must repeat."""
    tuner.role, passes = ROLE[kernel], []
    tile = MmaKeyTile(64, 64, 4, 1, 1, 2, 2) if kernel == "dkdv" else GOOD
    group = Group(kernel, 64, True)
    case = tuner.fitted(group.case())
    bound = methods.standard(np, case, tuner.numbers.inputs(case))

    def backward(dout, q, k, v, *saved, **options):
        passes.append(options)
        grads = bound.backward(bound.saved(), dout)
        return tuple(tuner.spoil.get(getattr(tiles_by_hand(), tuner.role), lambda x: x)(g) for g in grads)

    monkeypatch.setattr(search, "flash_attention_backward", backward)
    searcher = Searcher(group, tuner, "emulator:sm_90a")
    ((asked, backend),) = tuner.asked
    assert backend == "emulator:sm_90a" and (asked.head_dim, asked.causal) == (64, True)
    assert asked.direction == {"forward": "forward", "packed": "decode"}.get(kernel, "backward")
    assert (asked.group > 1, asked.seqlen_q == 1) == ((True, True) if kernel == "packed" else (False, False))
    tuner.seconds = {tile: 3.0}
    assert searcher.trial(tile) == search.Trial(tile, 3.0) and tuner.timed == [tile]
    expected = {"causal": True, "deterministic": True, "backend": "emulator:sm_90a"}
    assert passes == [expected] * (2 if kernel == "dq" else 0)
    tuner.spoil = {tile: wrong}
    with pytest.raises(ArithmeticError, match=r"^wrong: "):
        searcher.trial(tile)
    assert tuner.timed == [tile]


def test_tiles_that_spill_are_not_tried_save_the_planners(tuner, monkeypatch, tmp_path, capsys):
    planned = [planned_tile(Group("forward", 64, causal), DEVICE) for causal in (False, True)]
    spilling = {specialization("forward", 64, causal, t, DEVICE) for causal in (False, True) for t in (GOOD, *planned)}

    def find(kernel, arch):
        assert arch == "sm_90a"
        return types.SimpleNamespace(spill_bytes=96 if kernel in spilling else 0)

    monkeypatch.setattr(tune, "find", find)
    tuner.seconds = {GOOD: 1e-6, SLOW: 0.5, **dict.fromkeys(planned, 0.75)}
    _, found = run(tmp_path)
    assert {entry.tile for entry in found.values()} == {SLOW} and GOOD not in tuner.timed
    assert set(planned) <= set(tuner.timed)
    assert re.search(rf"{GOOD} +spills 96 bytes", capsys.readouterr().out)


def test_a_lost_device_ends_the_search_with_what_was_known(tuner, tmp_path, capsys):
    def break_it(out):
        tuner.lost = True
        raise RuntimeError("cudaErrorIllegalAddress")

    earlier = Entry("dq", 128, False, GOOD, 1.0, 2.0)
    write_table(tmp_path / "table.json", {}, [earlier])
    tuner.seconds, tuner.spoil = {GOOD: 0.5}, {SLOW: break_it}
    status, found = run(tmp_path)
    assert status == 1 and found == {("dq", False): earlier}
    told = capsys.readouterr().err
    assert f"the GPU refuses more after forward D 64, {SLOW}: RuntimeError: cudaErrorIllegalAddress" in told


def test_only_entries_that_were_tried_again_are_replaced(tuner, tmp_path):
    kept = [Entry("forward", 128, False, SLOW, 5.0, 6.0), Entry("dq", 64, False, SLOW, 5.0, 6.0)]
    write_table(tmp_path / "table.json", {}, [*kept, Entry("forward", 64, False, WRONG, 9.0, 9.0)])
    tuner.seconds, tuner.spoil = {GOOD: 0.5}, {WRONG: wrong, FULL: wrong}
    run(tmp_path)
    found = read_table(tmp_path / "table.json")
    assert found[:2] == kept and [(e.kernel, e.head_dim, e.tile) for e in found[2:]] == [("forward", 64, GOOD)] * 2


def test_time_is_up_between_groups(tuner, monkeypatch, tmp_path, capsys):
    now = iter([1000.0, 1059.0, 1061.0, 1061.0])
    monkeypatch.setattr(tune.time, "monotonic", lambda: next(now))
    _, found = run(tmp_path, "--minutes", "1", "--most", "1", kernels=("forward", "packed"))
    assert set(found) == {("forward", False)}
    assert capsys.readouterr().err.count("time is up before packed D 64\n") == 1
    assert tuner.timed == [planned_tile(Group("forward", 64, False), DEVICE), GOOD]
