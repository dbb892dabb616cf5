"""`check`: what it runs, what its lines say, and that a check costs no more than itself."""

import sys
import types

import numpy as np
import pytest

from cupy_flash.__main__ import main
from cupy_flash.cli import UserError, ahead, check
from cupy_flash.cli.problems import LAYOUTS, problems
from cupy_flash.compile import CompileError
from cupy_flash.problem import DTYPES


@pytest.fixture
def cupy(monkeypatch):
    """What a lost device is told by."""

    class CUDARuntimeError(RuntimeError):
        pass

    def device_synchronize():
        if fake.lost:
            raise CUDARuntimeError("cudaErrorIllegalAddress")

    runtime = types.SimpleNamespace(deviceSynchronize=device_synchronize, CUDARuntimeError=CUDARuntimeError)
    fake = types.ModuleType("cupy")
    fake.lost, fake.cuda = False, types.SimpleNamespace(runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


@pytest.mark.parametrize("name", ["check", "bench"])
def test_without_a_gpu_the_commands_say_so(name, monkeypatch, capsys):
    def none(name):
        raise RuntimeError('backend "cuda" needs a GPU: the driver shows none')

    monkeypatch.setattr("cupy_flash.backends.get", none)
    assert main([name]) == 2
    printed = capsys.readouterr()
    assert (
        printed.out == "" and printed.err == f'cupy_flash {name}: backend "cuda" needs a GPU: the driver shows none\n'
    )


def test_problems_reach_what_the_kernels_differ_in():
    found = list(problems())
    assert len(set(map(str, found))) == len(found)
    assert {p.d for p in found} >= {32, 64, 96, 128, 192, 256, 512}
    assert {p.dtype for p in found} == set(DTYPES) and {p.layout for p in found} == set(LAYOUTS)
    assert {p.group for p in found} >= {1, 2, 7, 8} and any(p.sq == 1 and p.sk > 2000 for p in found)
    for p in found:
        assert (p.problem().dtype == p.dtype and p.reduced().sk > 0) or p.sk == 0
        q, k, v, dout, dlse = p.reduced().arrays()
        assert all(np.isfinite(x.astype(np.float64)).all() for x in (q, k, v, dout, dlse))


@pytest.mark.parametrize("name", ["D 192, H 2, S 200x260", "repeats: float32", "merge"])
def test_check_passes_on_the_emulator(name, capsys):
    assert main(["check", "--backend", "emulator:sm_80", "--only", name]) == 0
    printed = capsys.readouterr().out
    assert printed.count(" ok ") >= 1 and "checks passed" in printed


def test_check_fails_on_a_wrong_kernel(mutate, capsys):
    mutate("attention/online_softmax.cuh", "row_sum[i] *= rescale[i];", "")
    assert main(["check", "--backend", "emulator", "--only", "float32, D 40"]) == 1
    printed = capsys.readouterr()
    assert "FAILED float32, D 40" in printed.out and "the budget is" in printed.out
    assert "1 of 1 checks failed: float32, D 40" in printed.err


def test_check_goes_on_after_an_exception_and_fails(monkeypatch, capsys):
    def broken(*args, **options):
        raise TypeError("no such kernel")

    monkeypatch.setattr(check, "flash_attention", broken)
    assert main(["check", "--backend", "emulator", "--only", "S 1x1"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_kernel_that_does_not_compile_fails_where_it_is_needed(monkeypatch, capsys):
    def fail(kernels, arch):
        raise CompileError("simt/forward.cu -arch=sm_80: no\nlong log")

    monkeypatch.setattr(ahead, "compile_all", fail)
    ahead.compile_ahead([], "sm_80")
    assert capsys.readouterr().err.endswith("simt/forward.cu -arch=sm_80: no\n")


def test_a_lost_device_ends_the_checks(cupy, capsys):
    def lose():
        cupy.lost = True
        raise RuntimeError("an illegal memory access")

    failed = check._run_all([check.Check("a", lose), check.Check("b", lambda: "fine")], on_gpu=True)
    assert failed == ["a", "b"]
    assert "not run: the device is lost" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "cpu"], "--backend is 'cpu'"),
        (["--backend", "emulator:sm_1"], "architecture is 'sm_1'"),
        (["--backend", "emulator", "--only", "nothing like this"], "no check has that in its name"),
        (["--golden", "/missing/file.npz"], "/missing is not a directory"),
        (["--backend", "emulator", "--golden", "file.npz"], "expected --backend cuda"),
    ],
)
def test_malformed_checks_are_named(arguments, message, capsys):
    assert main(["check", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_primitives_are_recorded_and_compared(monkeypatch, tmp_path, capsys):
    """By the checkout's recorder, which tests/emulator/test_golden.py tests."""
    record = check._recorder(None)
    asked = []

    def answer(file, *, names, report):
        asked.append(file)
        outcomes = {name: record.Outcome("differs", "any\nis wrong") for name in names}
        outcomes["widen"] = record.Outcome("passed")
        for name, outcome in outcomes.items():
            report(name, outcome)
        return outcomes

    monkeypatch.setattr(record, "record", answer)
    assert check._record(record, tmp_path / "golden.npz", ["vote", "widen"]) == ["primitive: vote"]
    printed = capsys.readouterr().out
    assert "FAILED primitive: vote" in printed and "ok     primitive: widen" in printed and "is wrong" not in printed
    monkeypatch.setattr(record, "FILE", tmp_path / "earlier.npz")
    check._record(record, None, ["widen"])
    record.FILE.touch()
    check._record(record, None, ["widen"])
    assert asked == [tmp_path / "golden.npz", tmp_path / "earlier.npz", None]
    monkeypatch.setattr(check, "TESTS", tmp_path)
    assert check._recorder(None) is None
    with pytest.raises(UserError, match="checkout"):
        check._recorder(tmp_path / "golden.npz")
