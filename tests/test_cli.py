"""The commands of `python -m cupy_flash`, and the code that the README shows."""

import dataclasses
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import require_gpu

from cupy_flash.__main__ import COMMANDS, main
from cupy_flash._src import backends
from cupy_flash._src.backends import native
from cupy_flash._src.cli import agreement, bench, check, demo, info, measure, plot, tune
from cupy_flash._src.cli import compile as compile_command
from cupy_flash._src.cli.agreement import Agreement, largest_difference
from cupy_flash._src.cli.measure import Case, measure_apart
from cupy_flash._src.cli.text import embed, read_text
from cupy_flash._src.cli.units import format_bytes, format_seconds
from cupy_flash._src.compile import CompiledKernel
from cupy_flash._src.device import named
from cupy_flash._src.plan import core_specializations, plan_backward, plan_forward
from cupy_flash._src.problem import DTYPES, AttentionProblem
from cupy_flash._src.toolchain import NoCompilerError, ToolchainError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADS, HEAD_DIM = demo.HEADS, demo.HEAD_DIM


def figures(text):
    return [float(x) for x in re.findall(r"\d\.\de[+-]\d\d", text)]


def test_demo_compares_and_plots(monkeypatch, tmp_path, capsys):
    plot = tmp_path / "memory.png"
    monkeypatch.setattr(demo, "measure_apart", measure.measure)  # here, without the time that a process takes to start
    monkeypatch.setattr(measure, "TIMING_SECONDS", 0)
    assert main(["demo", "--backend", "cpu", "--seqlens", "64", "32", "--output", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^Backend: cpu \(.+\), as asked", printed, flags=re.MULTILINE)
    for way in ("CPU backend", "CUDA kernels, emulated", "CUDA kernels, on the GPU", "standard attention"):
        (line,) = [line for line in printed.splitlines() if line.startswith(f"  {way}")]
        errors = figures(line)
        assert (len(errors) == 2 and max(errors) < 1e-4) or "not run: " in line
    assert figures(re.search(r"differ by at most (.*)\.\n", printed)[1])[0] < 1e-4
    rows = [line.split() for line in printed.splitlines() if re.match(r" +\d+ ", line)]
    assert [int(row[0]) for row in rows] == [32, 64]
    assert all(max(figures(" ".join(row))) < 1e-4 for row in rows)
    assert [row[9:11] for row in rows] == [["65.5", "kB"], ["131", "kB"]]  # the outputs
    assert "std holds scores, exponentials and probabilities" in printed
    assert plot.read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_is_as_exact_as_the_standard_attention(dtype):
    agreement = Agreement(dtype, 48, 4, HEAD_DIM)
    standard = agreement.standard()
    out_eps, *grad_eps = (ml_dtypes.finfo(DTYPES[dtype]).eps * np.abs(x).max() for x in agreement.exact)
    assert standard.out_error < 8 * out_eps and standard.grad_error < 16 * max(grad_eps)
    results = [agreement.flash(backend) for backend in ("cpu", "emulator")]
    for result in results:
        assert result.out_error <= 2 * standard.out_error + 8 * out_eps
        assert result.grad_error <= 2 * standard.grad_error + 16 * max(grad_eps)
    assert 0 < largest_difference([standard, *results]) <= 3 * standard.grad_error + 16 * max(grad_eps)


def test_figures_have_three_digits():
    """Of the unit that they reach when rounded."""
    sizes = {999.4: "999 B", 999.6: "1 kB", 1.004e6: "1 MB", 999_499: "999 kB", 999_501: "1 MB", 2.5e12: "2.5 TB"}
    assert {size: format_bytes(size) for size in sizes} == sizes
    times = {1.0: "1 s", 0.9994: "999 ms", 61.25: "61.2 s", 0.0123: "12.3 ms", 1.5e-6: "0.0015 ms"}
    assert {seconds: format_seconds(seconds) for seconds in times} == times


@pytest.mark.parametrize("spoiled", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("by", [2.0**-4, np.nan])
def test_agreement_tells_the_error_of_any_result(spoiled, by, monkeypatch):
    """Of the output, and the largest of the gradients; what is no number is told as such, by the differences too."""
    clock, calls = iter([10.0, 40.0, 50.0, 50.25]), []
    problem = Agreement("float64", 12, 2, 8)
    results = [x.copy() for x in problem.exact]
    if spoiled is not None:
        results[spoiled][-1, -1, -1] += by

    def flash_attention_vjp(q, k, v, *, causal, backend):
        calls.append((causal, backend, *map(id, (q, k, v))))
        return results[0], lambda dout: tuple(results[1:])

    monkeypatch.setattr(agreement, "flash_attention_vjp", flash_attention_vjp)
    monkeypatch.setattr(agreement.time, "perf_counter", lambda: next(clock))
    result = problem.flash("cpu")
    assert calls == [(True, "cpu", *map(id, problem.inputs))] * 2 and result.seconds == 0.25
    expected = [by if spoiled == 0 else 0, by if spoiled in (1, 2, 3) else 0]
    np.testing.assert_allclose([result.out_error, result.grad_error], expected, atol=1e-12)
    exact = agreement.Result("exact", problem.exact, 0, 0, 1)
    np.testing.assert_allclose(largest_difference([exact, result, exact]), sum(expected), atol=1e-12)


def test_demo_prints_and_plots_what_was_measured(monkeypatch, tmp_path, capsys):
    """The standard attention's figures left of ours, the shorter length first; the curves and areas are the figures."""
    figure = pytest.importorskip("matplotlib.figure")
    costs = {
        ("standard", 64): measure.Cost(2.0, 3_000_000, 1_000_000, 1e-3),
        ("flash", 64): measure.Cost(0.5, 1_500_000, 131_072, 2e-4),
        ("standard", 128): measure.Cost(9.0, 12_000_000, 1_000_000, 3e-3),
        ("flash", 128): measure.Cost(1.25, 2_500_000, 262_144, 4e-4),
    }
    asked, saved = [], []
    monkeypatch.setattr(demo, "measure_apart", lambda case: asked.append(case) or costs[case.method, case.seqlen])
    monkeypatch.setattr(demo, "_show_agreement", lambda dtype, seqlen: None)
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path, **_: saved.append(self))
    arguments = ["--backend", "cpu", "--dtype", "float16", "--seqlens", "128", "64", "64"]
    assert main(["demo", *arguments, "--output", str(tmp_path / "x.svg")]) == 0
    assert asked == [
        measure.Case(m, "cpu", "float16", s, HEADS, HEAD_DIM) for s in (64, 128) for m in ("standard", "flash")
    ]
    rows = re.findall(r"^ +(\d+ .*)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert [" ".join(row.split()) for row in rows] == [
        "64 2 s 500 ms 3 MB 1.5 MB 131 kB 1.0e-03 2.0e-04", "128 9 s 1.25 s 12 MB 2.5 MB 262 kB 3.0e-03 4.0e-04",
    ]  # fmt: skip
    (axes,) = saved[-1].axes
    curves = [(line.get_color(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    measured = [c for c in curves if c[0] != plot.GUIDE_COLOR]
    assert measured == [
        (plot.STANDARD_COLOR, [64, 128], [3e6, 12e6]), (plot.FLASH_COLOR, [64, 128], [1.5e6, 2.5e6]),
    ]  # fmt: skip
    # Guides of slopes 2 and 1 end in the last point; the area is the output's bytes a position.
    assert [c[2] for c in curves if c[0] == plot.GUIDE_COLOR] == [[3e6, 12e6], [1.25e6, 2.5e6]]
    (area,) = (c.get_paths()[0].vertices for c in axes.collections)
    assert {round(y / x) for x, y in area if y > area[:, 1].min()} == {2048} and area[:, 0].max() == 128


def test_the_best_time_and_the_error_of_the_last_rows_are_told(monkeypatch):
    """The clock is the test's: calls of 3, 1 and 2 s; the result is off by a quarter in one row."""
    row, durations, now = -1, iter(()), [0.0]

    def attention(q, k, v, *, causal, backend):
        if q.shape[1] > 1:
            now[0] += next(durations)
        out = reference(q, k, v, causal=causal)
        out[:, row % q.shape[1]] += 0.25
        return out

    reference = measure.attention_reference
    monkeypatch.setattr(measure, "flash_attention", attention)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measure, "ORACLE_ROWS", 8)
    monkeypatch.setattr(measure, "TIMING_SECONDS", 5.5)
    for last, error in ((1, 0.25), (8, 0.25), (9, 0.0)):
        row, durations = -last, iter([3.0, 1.0, 2.0, 9.0])
        cost = measure.measure(Case("flash", "cpu", "float64", 20, 2, 8))
        assert cost.seconds == 1.0 and next(durations) == 9.0
        assert cost.error == pytest.approx(error, abs=1e-12) and cost.output_bytes == 2 * 20 * 8 * 8


def test_memory_that_is_there_is_the_systems_word(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  900 kB\nMemFree:    10 kB\nMemAvailable:    321 kB\nCached:  5 kB\n")
    monkeypatch.setattr(measure, "Path", lambda name: tmp_path / name.removeprefix("/proc/"))
    assert measure.available_bytes("cpu") == 321 * 1024
    (tmp_path / "meminfo").unlink()
    assert measure.available_bytes("cpu") is None
    for dtype, size in (("float16", 4), ("float32", 4), ("float64", 8)):  # half types are computed in float32
        assert measure.standard_bytes(Case("standard", "cpu", dtype, 100, 4, 8)) == 3 * 4 * 100 * 100 * size


def test_a_gpus_memory_and_clock_are_its_own(monkeypatch):
    """Memory is what an emptied pool grew by; the clock is read after the stream has finished."""
    done, pool = [], types.SimpleNamespace(held=[700, 300])  # cached and in use
    pool.free_all_blocks = lambda: done.append("freed") or pool.held.__setitem__(0, 0)
    pool.total_bytes = lambda: sum(pool.held)
    stream = types.SimpleNamespace(synchronize=lambda: done.append("finished"))
    runtime = types.SimpleNamespace(memGetInfo=lambda: (123, 456))
    cuda = types.SimpleNamespace(get_current_stream=lambda: stream, runtime=runtime)
    cupy = types.SimpleNamespace(get_default_memory_pool=lambda: pool, cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: done.append("read"))
    assert measure._gpu_peak(lambda: pool.held.append(55)) == (55, None) and done == ["freed"]
    measure._clock(on_gpu=True)
    measure._clock(on_gpu=False)
    assert done[1:] == ["finished", "read", "read"] and measure.available_bytes("cuda") == 123


def test_measured_memory_is_that_of_the_method(monkeypatch):
    """The standard attention holds three matrices of S x S; of ours only the output and the log-sum-exp grow."""
    monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", "2")  # each has its scratch memory

    def beyond_output(method, seqlen):
        cost = measure_apart(Case(method, "cpu", "float32", seqlen, HEADS, HEAD_DIM))
        assert cost.seconds > 0
        assert cost.error < 1e-4
        assert cost.output_bytes == HEADS * seqlen * HEAD_DIM * 4
        return cost.peak_bytes - cost.output_bytes

    scores = HEADS * 512**2 * 4
    assert 3 * scores < beyond_output("standard", 512) < 3.5 * scores
    ours = {seqlen: beyond_output("flash", seqlen) for seqlen in (512, 1024)}
    assert all(HEADS * seqlen * 4 < size < 2**21 for seqlen, size in ours.items())
    assert max(ours.values()) - min(ours.values()) < 2**20


def test_the_output_is_an_area_of_the_memory_plot(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "memory.svg"
    plot.plot_memory({512: 28_400_000}, {512: 1_400_000, 1024: 2_500_000}, 2048, "title", path)
    drawn = path.read_text(encoding="utf-8")
    assert "PolyCollection" in drawn and "<!-- output -->" in drawn
    assert "2.1 MB output, and scratch" in drawn and "probabilities of each head" in drawn


@pytest.mark.gpu
def test_demo_on_a_gpu(tmp_path, capsys):
    require_gpu()
    assert main(["demo", "--seqlens", "256", "1024", "--output", str(tmp_path / "memory.png")]) == 0
    printed = capsys.readouterr().out
    assert "Backend: cuda" in printed
    assert "The 3 that ran differ by at most" in printed


def test_a_measurement_that_does_not_fit_is_skipped(monkeypatch, capsys):
    monkeypatch.setattr(demo, "available_bytes", lambda backend: 3 * HEADS * 64**2 * 4)
    monkeypatch.setattr(demo, "measure_apart", lambda case: measure.Cost(1.0, 2, 1, 0.0))
    standard, flash = demo._show_costs("cpu", "float32", [64, 128])
    assert (list(standard), list(flash)) == ([64], [64, 128])
    assert "does not suffice" in capsys.readouterr().out


def test_the_text_is_long_enough_and_its_embedding_repeatable():
    text = read_text()
    assert len(text) >= max(demo.SEQLENS)
    assert text.isascii()
    q, k, v = embed(text, 300, HEADS, HEAD_DIM)
    assert q.shape == k.shape == v.shape == (HEADS, 300, HEAD_DIM)
    assert 0.97 < q.std() < 1.03 and 0.97 < v.std() < 1.03
    assert np.array_equal(q, k) and not np.allclose(q, v, atol=0.5)
    # By the definition, for a text of two letters: a row of the table and waves, each of unit variance.
    rng, width, s = np.random.default_rng(0), 8, np.arange(5)[:, None]
    table, (project_qk, project_v) = rng.standard_normal((256, width)), rng.standard_normal((2, width, width))
    waves = np.hstack([f(s / 10000 ** (np.arange(0, width, 2) / width)) for f in (np.sin, np.cos)])
    x = table[list(b"abaab")] / 2**0.5 + waves
    for found, project in zip(embed(b"abaab", 5, 2, 4), (project_qk, project_qk, project_v), strict=True):
        np.testing.assert_allclose(np.hstack(found), x @ project / width**0.5, rtol=1e-5, atol=1e-6)
    for found, repeated in zip(embed(b"abc", 7, 2, 4), embed(b"abcabca", 7, 2, 4), strict=True):
        assert np.array_equal(found, repeated)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--backend", "tpu"], "backend is 'tpu'"),
        (["demo", "--output", "missing/plot.png"], "missing is not a directory"),
        (["demo", "--output", "plot.doc"], "suffix is '.doc'"),
    ],
)
def test_user_errors_take_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", ["", "fly", "demo --dtype int8", "demo --seqlens 0", "compile --arch sm_1", "compile --for fun"]
)
def test_malformed_command_lines_show_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments.split())
    assert exit_.value.code == 2
    assert "usage: cupy_flash" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["demo"], ["explain", "--shape", "1,1,8,8,8", "--plot", "x.png"]])
def test_a_plot_without_its_package_says_what_to_install(command, monkeypatch, capsys):
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    assert main(command) == 1
    assert 'pip install "cupy-flash[demo]"' in capsys.readouterr().err


def test_info_tells_each_gpu(monkeypatch, capsys):
    cards = [("A", 9, 0, 132, 150_000_000_000), ("B", 12, 0, 170, 33_600_000_000)]
    keys = "name", "major", "minor", "multiProcessorCount", "totalGlobalMem"
    runtime = types.SimpleNamespace(
        driverGetVersion=lambda: 12080, getDeviceCount=lambda: len(cards),
        getDeviceProperties=lambda i: dict(zip(keys, (cards[i][0].encode(), *cards[i][1:]), strict=True)),
    )  # fmt: skip
    cuda = types.SimpleNamespace(runtime=runtime, nvrtc=types.SimpleNamespace(getVersion=lambda: (13, 1)))
    for name, module in {"cupy": types.SimpleNamespace(__version__="14.5", cuda=cuda), "cupy.cuda": cuda}.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert list(info._cuda()) == [
        ("CuPy", "14.5"), ("NVRTC", "13.1"), ("driver", "CUDA 12.8"),
        ("device", "0: A, sm_90, 132 multiprocessors, 150 GB"),
        ("device", "1: B, sm_120, 170 multiprocessors, 33.6 GB"),
    ]  # fmt: skip
    runtime.getDeviceCount = raises(RuntimeError("no driver"))
    runtime.driverGetVersion, cuda.nvrtc.getVersion = (lambda: 0), raises(RuntimeError("no libnvrtc"))
    assert list(info._cuda())[1:] == [("NVRTC", "not found: no libnvrtc"), ("driver", "none"), ("device", "none")]


@pytest.mark.parametrize(("limit", "told"), [("1000", "at most 1 kB"), ("", "at most 2 GB"), ("0", None)])
def test_info_tells_what_the_cache_holds(limit, told, monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(info.room, "limit", lambda: {"1000": 1000, "": 2 * 10**9, "0": None}[limit])
    monkeypatch.setattr(info.room, "entries", lambda place: [types.SimpleNamespace(size=n) for n in (1500, 500)])
    (line,) = [value for name, value in info._compiled_code() if name == "cache"]
    assert line == f"{tmp_path}, 2 kB in 2 entries, {told or 'without limit'}"


def test_info_tells_what_is_here(capsys):
    assert main(["info"]) == 0
    facts = dict(re.findall(r"^  (\S+) +(.+)$", capsys.readouterr().out, flags=re.MULTILINE))
    assert facts["numpy"] == np.__version__
    assert set(backends.NAMES) | {"Python", "BLAS", "CuPy", "compiler", "cache"} <= set(facts)


@pytest.mark.parametrize(("threads", "advised"), [(1, False), (2, True)])
def test_info_names_the_variable_that_keeps_blas_threads_away(threads, advised, monkeypatch, capsys):
    library = {"user_api": "blas", "internal_api": "openblas", "version": "0.3", "num_threads": threads}
    monkeypatch.setattr("threadpoolctl.threadpool_info", lambda: [library])
    assert main(["info"]) == 0
    assert ("OPENBLAS_NUM_THREADS=1" in capsys.readouterr().out) == advised


def test_info_without_cupy_or_compiler_says_what_to_install(tmp_path):
    blocked = "import sys; sys.modules.update(dict.fromkeys(['cupy', 'ziglang'])); "
    command = "from cupy_flash.__main__ import main; sys.exit(main(['info']))"
    environment = os.environ | {
        "PATH": str(tmp_path),
        "CXX": "",
        "CUPY_FLASH_CACHE_DIR": str(tmp_path / "none"),
    }
    done = subprocess.run(
        [sys.executable, "-c", blocked + command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    facts = dict(re.findall(r"^  (\S+) +(.+)$", done.stdout, flags=re.MULTILINE))
    for name, extra in {
        "CuPy": "cuda13",
        "cuda": "cuda13",
        "compiler": "emulator",
        "emulator": "emulator",
    }.items():
        assert f'pip install "cupy-flash[{extra}]"' in facts[name]
    assert "0 B in 0 entries, at most 2 GB" in facts["cache"]


def test_compile_reports_registers_and_spills(monkeypatch, tmp_path, capsys):
    pytest.importorskip("cupy", reason="NVRTC comes with the extra cuda13")
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        "cupy_flash._src.plan.core_specializations", lambda *args: list(core_specializations(*args))[:1]
    )
    assert main(["compile", "--arch", "sm_75", "--arch", "sm_90a", "--for", "core"]) == 0
    printed = capsys.readouterr().out
    for arch in ("sm_75", "sm_90a"):
        assert re.search(rf"^{arch}: 1 kernels, at most \d+ registers, no spills, ", printed, flags=re.MULTILINE)
    assert len(list(tmp_path.rglob("*.cubin"))) == 2


def test_compile_takes_purposes_and_names_what_spills(monkeypatch, tmp_path, capsys):
    target, compiled = named("sm_90a"), []

    def compile_all(kernels, arch, done):
        for i, kernel in enumerate(kernels):
            compiled.append(kernel)
            done(kernel, CompiledKernel(tmp_path, 255 - i % 7, 0, (64, 96, 8)[i] if i < 3 else 0))

    monkeypatch.setattr(compile_command, "compile_all", compile_all)
    monkeypatch.setattr(compile_command, "nvrtc_version", lambda: (13, 0))
    assert main(["compile", "--arch", "sm_90a", "--for", "check", "bench"]) == 0
    assert set(compiled) == check.kernels(target) | bench.kernels(target) and len(set(compiled)) == len(compiled)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:4] == [
        f"spills {size} bytes, {255 - i} registers: {compiled[i]}" for i, size in enumerate((64, 96, 8))
    ]
    assert printed[4].startswith(
        f"sm_90a: {len(compiled)} kernels, at most 255 registers, 3 spill (at most 96 bytes), "
    )
    compiled.clear()
    assert main(["compile", "--arch", "sm_90a", "--for", "tune"]) == 0
    assert set(compiled) == tune.kernels(target)


@pytest.mark.parametrize(("given", "options", "parts"), [
    ([], None, ["Scale", "Scale Causal"]), (["--causal"], {"causal": True}, ["Scale Causal"]),
    (["--window", "512,0"], {"window": (512, 0)}, ["Scale Window"]),
    (["--window", "7,", "--softcap", "30"], {"window": (7, None), "softcap": 30.0}, ["Scale Softcap WindowLeft"]),
    (["--window", ",7"], {"window": (None, 7)}, ["Scale WindowRight"]),
    (["--softcap", "2.5", "--causal"], {"softcap": 2.5, "causal": True}, ["Scale Softcap Causal"]),
], ids=str)  # fmt: skip
def test_compile_takes_the_options_of_a_call(given, options, parts, monkeypatch, tmp_path, capsys):
    """Then a call with these options finds its kernels compiled, forward and backward."""
    compiled = set()

    def compile_all(kernels, arch, done):
        compiled.update(kernels)
        for kernel in kernels:
            done(kernel, CompiledKernel(tmp_path, 255, 0, 0))

    monkeypatch.setattr(compile_command, "compile_all", compile_all)
    monkeypatch.setattr(compile_command, "nvrtc_version", lambda: (13, 0))
    q = np.broadcast_to(np.float16(0), (4, 16, 4096, 64))
    problem = AttentionProblem.from_arrays(q, q, q, **(options or {}))
    target, composed = named("sm_90a"), {"attention_forward", "attention_dkdv", "attention_dq"}
    for purpose, deterministic in (("core", False), ("all", False), ("all", True)):
        compiled.clear()
        assert main(["compile", "--arch", "sm_90a", "--for", purpose, *given]) == 0
        assert f"sm_90a: {len(compiled)} kernels, " in capsys.readouterr().out
        found = {" ".join(x.type for x in kernel.parts) for kernel in compiled if kernel.entry in composed}
        assert sorted(found) == parts
        asked = dataclasses.replace(problem, deterministic=deterministic)
        launches = (*plan_forward(asked, target).launches, *plan_backward(asked, target).launches)
        assert {launch.kernel for launch in launches} <= compiled


def test_compile_prepares_the_cpu_backend_where_there_is_no_gpu(monkeypatch, capsys):
    here = native.isa("float32")
    monkeypatch.setattr(native, "isas", lambda: [here])
    monkeypatch.setattr(compile_command, "CupyBackend", raises(RuntimeError("there is no GPU")))
    assert main(["compile"]) == 0
    printed = capsys.readouterr().out
    assert f"CPU backend: {here}, " in printed
    assert "CUDA kernels: none without --arch, for there is no GPU" in printed
    assert main(["compile", "--for", "core"]) == 1 == main(["compile", "--for", "cpu", "core"])
    assert main(["compile", "--for", "cpu"]) == 0
    monkeypatch.setattr(compile_command.native, "compile_library", raises(NoCompilerError("none here")))
    assert main(["compile", "--for", "cpu"]) == 1
    assert "none here" in capsys.readouterr().err


def raises(error):
    def fail(*_, **__):
        raise error

    return fail


def test_compile_tells_what_the_compiler_does_not_know(monkeypatch, capsys):
    def compile_library(isa, arithmetic):
        if isa == refused:
            raise ToolchainError("unknown flag")

    refused = "wide"
    monkeypatch.setattr(native, "isas", lambda: ["wide", "portable"])
    monkeypatch.setattr(native, "compile_library", compile_library)
    assert main(["compile", "--for", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "CPU backend: not for wide, unknown flag" in printed and "CPU backend: portable, " in printed
    refused = "portable"
    assert main(["compile", "--for", "cpu"]) == 1


@pytest.mark.slow
def test_what_compile_prepares_suffices_without_a_compiler(tmp_path):
    """On any CPU of this kind, in both arithmetics."""
    code = (
        "import numpy as np\nfrom cupy_flash import flash_attention\nfrom cupy_flash._src.backends import native\n"
        "for dtype in (np.float32, np.float64):\n    x = np.ones((2, 8, 16), dtype)\n"
        "    assert np.allclose(flash_attention(x, x, x), 1)\n"
        "print(*[isa for isa in native.isas() if [native.compile_library(isa, x) for x in native.ARITHMETIC]])"
    )
    environment = os.environ | {"CUPY_FLASH_CACHE_DIR": str(tmp_path)}
    for command in (["-m", "cupy_flash", "compile", "--for", "cpu"], ["-c", code]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        environment |= {"CXX": "no-such-compiler", "CUPY_FLASH_CPU_TIER": "native"}
    assert done.stdout.split() == " ".join(native.isas()).split() and not done.stderr


def test_the_module_runs_as_a_script():
    done = subprocess.run([sys.executable, "-m", "cupy_flash", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_readme_examples_run(block):
    exec(compile(block, "README.md", "exec"), {})


def test_readme_commands_exist():
    commands = set(re.findall(r"python -m cupy_flash (\w+)", README))
    assert commands == set(COMMANDS)
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r'"\.\[(\w+)\]"', README)) <= extras
