"""`benchmarks/cpu_vs_torch.py` without PyTorch and without figures of this machine."""

import csv
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import cpu_vs_torch
import numpy as np
import pytest
from cpu import machine, measure
from cpu.cases import DTYPES, SECTIONS, Case, cases, make_inputs, square
from cpu.libraries import LIBRARIES, bind_ours, verify
from cpu.measure import measure_all
from cpu.results import LEFT_OUT, Row, Writer, exponent, growth, read

from cupy_flash._src.cli.bench import options

ROOT = Path(__file__).parents[1]
MACHINE = machine.Machine(
    "Fake CPU", "compiled C++ for AVX2, 2 threads", "g++ 1", "9.9, AVX2", "oneMKL 1", 200.0, "2026-01-02"
)
AVX512 = (
    "MKL_VERBOSE oneMKL 2024.0 Update 2 Product build 20240605 for Intel(R) 64 architecture Intel(R) Advanced Vector "
    "Extensions 512 (Intel(R) AVX-512) enabled processors, Lnx 2.60GHz lp64 gnu_thread\n"
    "MKL_VERBOSE SGEMM(N,N,64,64,64)\n"
)


@pytest.fixture(autouse=True)
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def handmade():
    """Times that grow with S squared, memory that grows with S; PyTorch takes 1.5 times as long."""
    rows = []
    for s in (1024, 2048, 4096):
        for what in ("forward", "fwd+bwd"):
            case = square("speed", what, "float32", s, 64)
            ours = case.flops / 150e6
            rows.append(Row(case, "ok", ours, 1.5 * ours, 0.5 * ours, ours, 7, 2.25))
    rows.append(Row(square("speed", "forward", "float32", 8192, 64), f"{LEFT_OUT}: too slow"))
    rows.append(Row(Case("decode", "forward", "bfloat16", 32, 8, 1, 4096, 128), "ok", 0.5, 0.25, 0.5, 0.25, 9))
    rows += [Row(square("memory", "fwd+bwd", "float32", s, 64), "ok", s / 1024, 2.0) for s in (1024, 4096)]
    rows.append(Row(Case("compile", "AVX2"), ours=2.5))
    return rows


def write(path, rows):
    writer = Writer(path, MACHINE)
    for row in rows:
        writer.add(row)
    writer.close()
    return path


# What is measured.


@pytest.mark.parametrize("quick", [False, True])
def test_every_case_comes_once_and_by_section(quick):
    found = list(cases(SECTIONS, DTYPES, (2048, 1024), (1024,), (64, 128), quick))
    assert len(set(found)) == len(found)
    assert list(dict.fromkeys(case.section for case in found)) == [
        "speed", "small", "decode", "window", "bias", "memory", "compile",
    ]  # fmt: skip
    speed = [case for case in found if case.section == "speed"]
    assert len(speed) == (2 + 1 + 1) * 2 * 2 * 2
    assert [case.seqlen_k for case in speed[:16]] == [1024] * 8 + [2048] * 8, "estimates need the shorter first"
    assert max(case.seqlen_k for case in found if case.section == "memory") == (8192 if quick else 16384)
    assert {case.what for case in found if case.section == "compile"} >= {"AVX2", "AVX-512", "portable"}


def test_growth_alone_has_its_lengths():
    found = list(cases(["growth"], DTYPES, (1024, 2048), (), (64,), quick=False))
    assert {case.seqlen_k for case in found if case.section == "speed"} == {1024, 2048}
    assert len({case.seqlen_k for case in found if case.section == "memory"}) > 2


def test_work_is_counted():
    case = Case("speed", "forward", "float32", 8, 8, 128, 128, 64)
    assert case.flops == 4 * 8 * 128 * 128 * 64
    assert Case("speed", "fwd+bwd", "float32", 8, 8, 128, 128, 64, True).flops == 3.5 * case.flops / 2


def test_rows_share_the_bias_of_pairs_and_each_head_has_one_of_its_own():
    found = list(cases(["bias"], DTYPES, (), (), (), False))
    shared, own = ([case for case in found if (case.batch > 1) == many] for many in (True, False))
    assert {(c.what, c.dtype, c.seqlen_k, c.head_dim) for c in shared} == set(
        product(("forward", "fwd+bwd"), ("float32", "bfloat16"), (256, 512), (32, 64))
    )
    assert {c.heads for c in shared} == {"32x8"} and [(c.heads, c.what) for c in own] == [("256", "forward")]
    for case in (shared[0], own[0]):
        x, given = make_inputs(case), options.given(case.bench, np)
        assert x.q.shape[:2] == (case.batch, case.heads_q) and given["bias"].shape == (1, case.heads_q, 256, 256)
        assert case.flops == 4 * 256 * 256 * 256 * case.head_dim


# Verification.


def off(index):
    """Our results, but the output (index 0) or one gradient (1 to 4) is a quarter too large."""

    def wrong(x):
        return x * x.dtype.type(1.25)

    def bind(case, x):
        bound = bind_ours(case, x)
        forward, backward = bound.forward, bound.backward
        if index == 0:
            bound.forward = lambda: wrong(forward())
        else:
            bound.backward = lambda saved, dout: tuple(
                wrong(g) if i == index else g for i, g in enumerate(backward(saved, dout), 1)
            )
        return bound

    return bind


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(5))
def test_a_wrong_result_is_refused(dtype, index):
    case = square("small", "fwd+bwd" if index else "forward", dtype, 96, 32, causal=index < 4)
    if index == 4:
        case = replace(case, option="bias", batch=3)
    x = make_inputs(case)
    verify(case, x, {"ours": bind_ours(case, x)})
    with pytest.raises(ArithmeticError, match=f"torch is wrong: {('out', 'dq', 'dk', 'dv', 'dbias')[index]} is off"):
        verify(case, x, {"ours": bind_ours(case, x), "torch": off(index)(case, x)})


def test_a_wrong_result_is_never_timed(monkeypatch):
    monkeypatch.setitem(LIBRARIES, "torch", off(0))
    monkeypatch.setattr(measure, "interleave", lambda *_: pytest.fail("timed"))
    row = measure.measure(Case("decode", "forward", "float32", 4, 2, 1, 96, 32), seconds=0)
    assert row.failed and "torch is wrong: out" in row.status
    assert (row.ours, row.torch, row.speedup, row.gflops("ours")) == (None,) * 4


# Measuring.


def test_libraries_take_turns(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0)
    monkeypatch.setattr(measure, "TURN", 0)
    order = []
    times = measure.interleave([lambda: order.append("a"), lambda: order.append("b")], seconds=0)
    assert "".join(order) == "ab" * measure.MIN_PAIRS
    assert [len(x) for x in times] == [measure.MIN_PAIRS] * 2


def test_what_would_take_too_long_is_left_out_and_says_so(monkeypatch):
    monkeypatch.setattr(measure, "measure", lambda case, seconds: Row(case, "ok", 1000.0, 4000.0, 1.0, 1.0, 3))
    wanted = [square("speed", "forward", "float16", s, d) for s, d in ((1024, 64), (4096, 64), (8192, 64), (8192, 128))]
    rows = list(measure_all(wanted, seconds=0, cap=50))
    assert [row.status for row in rows] == [
        "ok",
        "left out: a pair would take about 80 s, more than 50",
        "left out: a pair would take about 320 s, more than 50",
        "ok",  # nothing is known of d = 128
    ]
    assert not any(row.failed for row in rows)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_the_call_alone():
    """The score matrix would take 134 MB, the inputs and results take 17 MB."""
    peak = measure._peak_memory_apart("ours", square("memory", "fwd+bwd", "float32", 2048, 64))
    assert -1e6 < peak < 16e6


def test_the_fma_loop_does_what_is_counted(monkeypatch):
    monkeypatch.setattr(machine, "_FMA_STEPS", 1000)
    monkeypatch.setattr(machine, "_FMA_REPEATS", 1)
    assert machine.fma_peak() > 0
    monkeypatch.setattr(machine, "_FMA_STEP", "c{i} = c{i} + x + x;")
    with pytest.raises(ArithmeticError, match="counted wrong"):
        machine.fma_peak()


def test_what_mkl_says_of_the_cpu():
    stated = "Intel(R) Advanced Vector Extensions 512 (Intel(R) AVX-512) enabled processors"
    assert machine.parse_mkl(AVX512) == f"oneMKL 2024.0 Update 2, {stated}"
    assert machine.parse_mkl("tensor([1.])\n") == "not MKL"


def test_rows_have_the_load(monkeypatch):
    monkeypatch.setattr(measure, "measure", lambda case, seconds: Row(case))
    case = square("small", "forward", "float16", 64, 64)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (3.5, 2.0, 1.0), raising=False)
    assert [row.load for row in measure_all([case], seconds=0, cap=50)] == [3.5]
    monkeypatch.delattr(machine.os, "getloadavg")  # as on Windows
    assert [row.load for row in measure_all([case], seconds=0, cap=50)] == [None]


# What is made of the figures.


@pytest.mark.parametrize("power", [0, 1, 1.5, 2])
def test_the_fit_finds_the_exponent_of_exact_data(power):
    seqlens = np.array([1024, 2048, 4096, 16384])
    assert exponent(3.7 * seqlens**power, seqlens) == pytest.approx(power)


def test_growth_of_time_and_memory():
    lines = growth(handmade())
    assert len(lines) == 3
    assert all("ours time ~ S^2.00" in x and "torch time ~ S^2.00" in x and "1024 to 4096" in x for x in lines[:2])
    assert "ours memory ~ S^1.00" in lines[2] and "torch memory ~ S^0.00" in lines[2]


def test_rows_survive_the_file(tmp_path):
    rows = [Row(row.case, row.status, *(x and float(f"{x:.6g}") for x in (row.ours, row.torch, row.ours_best,
            row.torch_best)), row.pairs, row.load) for row in handmade()]  # fmt: skip
    assert read(write(tmp_path / "x.csv", rows)) == (MACHINE, rows)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a table"):
        read(tmp_path / "other.csv")


def test_older_files_without_the_load_are_read(tmp_path):
    file = write(tmp_path / "x.csv", handmade())
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        del row["load"], row["batch"]
    with file.open("w", newline="") as lines:
        older = csv.DictWriter(lines, rows[0])
        older.writeheader()
        older.writerows(rows)
    assert {(row.load, row.case.batch) for row in read(file)[1]} == {(None, 1)}
    for kept in (ROOT / "benchmarks" / "results").glob("cpu_vs_torch*.csv"):
        assert any(row.speedup for row in read(kept)[1])


def test_tables_and_plot_from_a_file(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file, image = write(tmp_path / "x.csv", handmade()), tmp_path / "x.png"
    cpu_vs_torch.main(["--from", str(file), "--plot", str(image)])
    assert image.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert str(MACHINE) in printed
    lines = [[cell.strip() for cell in x.split("|")[1:]] for x in printed.splitlines() if x.startswith("|")]
    speed = next(x for x in lines if x[0] == "4096" and x[5] == "fwd+bwd")
    assert speed[8:13] == ["1.50", "2.00", "150.0, 75%", "100.0, 50%", "7"]
    decode = next(x for x in lines if x[0] == "1x4096")
    assert decode[1] == "32/8" and decode[8] == "0.50"
    assert next(x for x in lines if x[0] == "8192")[-1] == "left out: too slow"
    assert ["AVX2", "2.5", ""] in lines
    assert "ours time ~ S^2.00" in printed


def test_a_failed_case_fails_the_run(tmp_path):
    file = write(tmp_path / "x.csv", [*handmade(), Row(square("small", "forward", "float16", 64, 64), "wrong: out")])
    with pytest.raises(SystemExit, match="1 cases failed: float16 forward S 64"):
        cpu_vs_torch.main(["--from", str(file)])


def test_a_plot_needs_speed():
    with pytest.raises(ValueError, match="nothing to plot"):
        cpu_vs_torch.plot(handmade()[-1:], MACHINE, None)


def test_options():
    parsed = cpu_vs_torch.parse(["--quick", "--seconds", "2"])
    assert parsed.seconds == 2 and parsed.seqlens == cpu_vs_torch.QUICK["seqlens"]
    assert max(cpu_vs_torch.parse([]).seqlens) == 16384
    with pytest.raises(SystemExit):
        cpu_vs_torch.parse(["--from", "a.csv", "--output", "b.csv"])
