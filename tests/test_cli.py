"""The commands of `python -m cupy_flash`, and the code that the README shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import require_gpu

from cupy_flash.__main__ import COMMANDS, main
from cupy_flash._src import backends
from cupy_flash._src.backends import native
from cupy_flash._src.cli import bench, check, demo, plot, tune
from cupy_flash._src.cli import compile as compile_command
from cupy_flash._src.cli.agreement import Agreement, largest_difference
from cupy_flash._src.cli.measure import Case, measure_apart
from cupy_flash._src.cli.text import embed, read_text
from cupy_flash._src.compile import CompiledKernel
from cupy_flash._src.device import named
from cupy_flash._src.plan import core_specializations
from cupy_flash._src.problem import DTYPES
from cupy_flash._src.toolchain import NoCompilerError, ToolchainError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADS, HEAD_DIM = demo.HEADS, demo.HEAD_DIM


def figures(text):
    return [float(x) for x in re.findall(r"\d\.\de[+-]\d\d", text)]


def test_demo_compares_and_plots(tmp_path, capsys):
    plot = tmp_path / "memory.png"
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
    assert standard.out_error < 8 * out_eps
    results = [agreement.flash(backend) for backend in ("cpu", "emulator")]
    for result in results:
        assert result.out_error <= 2 * standard.out_error + 8 * out_eps
        assert result.grad_error <= 2 * standard.grad_error + 16 * max(grad_eps)
    assert 0 < largest_difference([standard, *results]) <= 3 * standard.grad_error + 16 * max(grad_eps)


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
    standard, flash = demo._show_costs("cpu", "float32", [64, 128])
    assert (list(standard), list(flash)) == ([64], [64, 128])
    assert "does not suffice" in capsys.readouterr().out


def test_the_text_is_long_enough_and_its_embedding_repeatable():
    text = read_text()
    assert len(text) >= max(demo.SEQLENS)
    assert text.isascii()
    q, k, v = embed(text, 300, HEADS, HEAD_DIM)
    assert q.shape == k.shape == v.shape == (HEADS, 300, HEAD_DIM)
    assert 0.5 < q.std() < 2 and 0.5 < v.std() < 2
    longer = embed(text, len(text) + 10, HEADS, HEAD_DIM)[0]
    np.testing.assert_allclose(longer[:, :300], q, rtol=1e-4, atol=1e-5)


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
    monkeypatch.setattr("cupy_flash._src.plan.core_specializations", lambda d: list(core_specializations(d))[:2])
    assert main(["compile", "--arch", "sm_75", "--arch", "sm_90a", "--for", "core"]) == 0
    printed = capsys.readouterr().out
    for arch in ("sm_75", "sm_90a"):
        assert re.search(rf"^{arch}: 2 kernels, at most \d+ registers, no spills, ", printed, flags=re.MULTILINE)
    assert len(list(tmp_path.rglob("*.cubin"))) == 4


def test_compile_takes_purposes_and_names_what_spills(monkeypatch, tmp_path, capsys):
    target, compiled = named("sm_90a"), []

    def compile_all(kernels, arch, done):
        for i, kernel in enumerate(kernels):
            compiled.append(kernel)
            done(kernel, CompiledKernel(tmp_path, 255, 0, 0 if i else 64))

    monkeypatch.setattr(compile_command, "compile_all", compile_all)
    monkeypatch.setattr(compile_command, "nvrtc_version", lambda: (13, 0))
    assert main(["compile", "--arch", "sm_90a", "--for", "check", "bench"]) == 0
    assert set(compiled) == check.kernels(target) | bench.kernels(target) and len(set(compiled)) == len(compiled)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == f"spills 64 bytes, 255 registers: {compiled[0]}"
    assert printed[2].startswith(
        f"sm_90a: {len(compiled)} kernels, at most 255 registers, 1 spill (at most 64 bytes), "
    )
    compiled.clear()
    assert main(["compile", "--arch", "sm_90a", "--for", "tune"]) == 0
    assert set(compiled) == tune.kernels(target)


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
