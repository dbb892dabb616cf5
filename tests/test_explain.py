"""The command that prints occupancy, traffic and roofline of a problem's plan."""

import pytest

from cupy_flash.__main__ import main
from cupy_flash._src.analysis.roofline import DATASHEET
from cupy_flash._src.cli import explain
from cupy_flash._src.device import NAMED
from cupy_flash._src.toolchain import ToolchainError


@pytest.mark.parametrize("options", [
    ["--causal"], ["--backward"],
    pytest.param(["--backward", "--deterministic", "--heads-k", "1"], marks=pytest.mark.slow),
    pytest.param(["--dtype", "float32"], marks=pytest.mark.slow),
])  # fmt: skip
def test_explain(options, tmp_path, capsys):
    plot = tmp_path / "roofline.svg"
    arguments = ["explain", "--shape", "1,2,200,200,64", "--arch", "sm_80", "--plot", str(plot), *options]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"Plot: {plot}" in printed and "TFLOP/s at most" in printed and "A100" in printed
    drawn = plot.read_text()
    assert "CUDA cores" in drawn and ("tensor cores" in drawn) == ("float32" not in options)
    assert "sm_80" in printed and "limited by" in printed and "counted by the emulator" in printed
    if "float32" in options:
        assert "simt/attention_forward" in printed and "no formula" in printed
    else:
        assert "mma/attention" in printed and "as the formula" in printed and "  formula" not in printed
        assert "by the formula" in printed


def test_explain_invents_nothing_without_nvrtc(monkeypatch, capsys):
    def missing(kernel, arch):
        raise RuntimeError("NVRTC is missing: install it\nand more")

    monkeypatch.setattr(explain, "to_cubin", missing)
    assert main(["explain", "--shape", "1,1,8,8,8", "--arch", "sm_90"]) == 0
    printed = capsys.readouterr().out
    assert "on sm_90a" in printed and "are not known: NVRTC is missing: install it\n" in printed
    row = next(line for line in printed.splitlines() if line.startswith("mma/attention_forward "))
    assert row.split()[-5:] == ["-"] * 5


def test_explain_tells_why_a_changed_kernel_does_not_compile(mutate, capsys):
    mutate("attention/combine.cu", "num_splits; ++split) sum", "num_splitz; ++split) sum")
    assert main(["explain", "--shape", "1,1,1,4096,64", "--arch", "sm_80"]) == 1
    assert "attention/combine.cu" in (told := capsys.readouterr().err) and "num_splitz" in told


def test_explain_needs_no_compiler_for_the_bound(monkeypatch, capsys):
    def none(*args):
        raise ToolchainError("no C++ compiler")

    monkeypatch.setattr(explain, "_count", none)
    assert main(["explain", "--shape", "1,1,8,8,8", "--arch", "sm_80"]) == 2
    printed = capsys.readouterr()
    assert "TFLOP/s at most" in printed.out and "counting needs a C++ compiler: no C++ compiler" in printed.err


@pytest.mark.parametrize("arch", sorted(set(NAMED) - set(DATASHEET)))
def test_without_a_datasheet_there_is_no_roofline(arch, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(explain, "_count", lambda problem, target, args: [0])
    arguments = ["explain", "--shape", "1,1,8,8,8", "--arch", arch]
    assert main([*arguments, "--plot", str(tmp_path / "x.svg")]) == 1
    assert f"no datasheet's rates of {arch}: expected one of sm_70, " in capsys.readouterr().err
    assert main(arguments) == 0
    assert "no datasheet's rates" in capsys.readouterr().out


@pytest.mark.slow
def test_explain_reduces_what_is_too_large_to_emulate(capsys):
    assert main(["explain", "--shape", "8,32,16384,16384,128", "--heads-k", "8", "--arch", "sm_90a"]) == 0
    printed = capsys.readouterr().out
    assert "16384 queries, 16384 keys" in printed and "batch 1, 4 heads (1 of keys)" in printed


@pytest.mark.parametrize(("shape", "message"), [
    ("1,2,3", "expected five integers"), ("a,b,c,d,e", "expected five integers"), ("1,0,8,8,8", "expected positive"),
    ("1,2,8,8,600", "head_dim 600"),
])  # fmt: skip
def test_explain_refuses_bad_shapes(shape, message, capsys):
    assert main(["explain", "--shape", shape]) == 1
    assert message in capsys.readouterr().err
