"""The command that prints occupancy, traffic and roofline of a problem's plan."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from cupy_flash.__main__ import main
from cupy_flash._src.analysis.occupancy import occupancy
from cupy_flash._src.analysis.roofline import DATASHEET
from cupy_flash._src.analysis.traffic import launch_bytes
from cupy_flash._src.cli import explain
from cupy_flash._src.cli.units import format_bytes, format_seconds
from cupy_flash._src.compile import CompiledKernel
from cupy_flash._src.components import ARRAYS
from cupy_flash._src.device import NAMED, named
from cupy_flash._src.plan import plan_backward, plan_forward
from cupy_flash._src.problem import AttentionProblem
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


def test_explain_counts_gradients_of_options(capsys):
    """What kernels read of a bias is told beside, and their formulas hold."""
    line = "--backward --bias --sinks --alibi-slopes --wrt k bias sinks alibi_slopes --causal"
    assert main(["explain", "--shape", "1,2,150,200,64", "--arch", "sm_80", *line.split()]) == 0
    counts = capsys.readouterr().out.partition("counted by the emulator with ")[2]
    for kernel, count in {"dkdv": 1, "dterm": 2, "dsinks": 1}.items():
        found = re.findall(rf"  attention_{kernel} +[\d.]+ k?M?B  as the formula(.*)\n", counts)
        assert len(found) == count and all(("of options" in x) == (kernel != "dsinks") for x in found)
    assert "no formula" not in counts and "  formula" not in counts and ", wrt k bias sinks alibi_slopes" in counts


CARDS = {
    "sm_80": ("A100 SXM 40 GB", {True: 312, False: 19.5}, 1555),
    "sm_90a": ("H100 SXM", {True: 989.4, False: 66.9}, 3350),
}
CALLS = {
    "long": ("2,8,4096,4096,128", [], 2, 4, 1), "long, backward": ("2,8,4096,4096,128", ["--backward"], 2, 10, 1),
    "short": ("64,8,128,128,64", [], 64, 4, 1), "short, backward": ("64,8,128,128,64", ["--backward"], 64, 10, 1),
    "decode": ("8,8,1,4096,64", ["--heads-k", "2"], 8, 4, 4),
    "float32": ("2,8,1024,1024,64", ["--dtype", "float32"], 2, 4, 1),
}  # fmt: skip


@pytest.mark.parametrize("arch", CARDS)
@pytest.mark.parametrize("call", CALLS)
def test_explain_tells_the_numbers_of_the_call(call, arch, monkeypatch, tmp_path, capsys):
    """Work, bytes and bound by the definitions, on both sides of the ridge; what is drawn is what is printed."""
    figure = pytest.importorskip("matplotlib.figure")
    drawn = []
    monkeypatch.setattr(explain, "check_path", lambda path: None)
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path: drawn.append(self))
    monkeypatch.setattr(explain, "to_cubin", lambda kernel, arch: CompiledKernel(tmp_path, 168, 0, 0))
    monkeypatch.setattr(explain, "_print_counts", lambda *_: None)
    shape, options, b, products, group = CALLS[call]
    path = tmp_path / "roofline.svg"
    assert main(["explain", "--shape", shape, *options, "--arch", arch, "--plot", str(path)]) == 0
    printed = capsys.readouterr().out
    _, h, sq, sk, d = map(int, shape.split(","))
    itemsize, backward, mma = (4, False, False) if "float32" in options else (2, "--backward" in options, True)
    work = products * b * h * sq * sk * d
    q, kv, lse, scores = (
        b * h * sq * d * itemsize,
        b * h // group * sk * d * itemsize,
        b * h * sq * 4,
        b * h * sq * sk * itemsize,
    )
    once = (4 * q if backward else 2 * q) + (4 * kv if backward else 2 * kv) + lse
    standard = 7 * scores + 3 * q + 4 * kv if backward else 4 * scores + 2 * q + 2 * kv
    card, peaks, bandwidth = CARDS[arch]
    arithmetic, memory = work / (peaks[mma] * 1e12), once / (bandwidth * 1e9)
    by = "arithmetic" if arithmetic > memory else "memory"
    assert by == ("memory" if call == "decode" or call.startswith("short") else "arithmetic")
    assert f"  arithmetic              {work / 1e12:.3g} TFLOP\n" in printed
    assert f"  memory, each array once {format_bytes(once)}\n" in printed
    assert f"; the standard attention {format_bytes(standard)}\n" in printed
    assert f"{card}, by its datasheet, {peaks[mma]:g} TFLOP/s and {bandwidth:g} GB/s:" in printed
    least = max(arithmetic, memory)
    assert (
        f"  {by} bound, {format_seconds(least)} at least, {work / least / 1e12:.3g} TFLOP/s at most "
        f"(arithmetic {format_seconds(arithmetic)}, memory {format_seconds(memory)})\n" in printed
    )
    # Each launch has its occupancy, by the registers that the assembler tells.
    dtype = "float32" if itemsize == 4 else "float16"
    arrays = (
        np.broadcast_to(np.zeros((), dtype), (b, n, s, d)) for n, s in ((h, sq), (h // group, sk), (h // group, sk))
    )
    problem, target = AttentionProblem.from_arrays(*arrays), named(arch)
    plan = plan_backward(problem, target) if backward else plan_forward(problem, target)
    rows = [line.split() for line in printed.splitlines() if re.match(r"\w+/attention_\w+ ", line)]
    assert len(rows) == len(plan.launches)
    for row, launch in zip(rows, plan.launches, strict=True):
        o = occupancy(launch, target, 168)
        found = [f"{launch.kernel.family}/{launch.kernel.entry}", launch.grid, launch.block]
        found += [
            *format_bytes(launch.shared_bytes).split(),
            168,
            o.blocks,
            o.warps,
            *o.limited_by.split(),
            f"{o.waves:.2f}",
        ]
        assert row == [str(x) for x in found]
    moved = [launch_bytes(problem, plan, launch) for launch in plan.launches]
    total = sum(moved) if None not in moved else None
    assert (
        f"  L2 cache, every access  {format_bytes(total)} by the formula;" if total else "no formula for these"
    ) in printed
    # The roof of each unit has its corner at the ridge, and each point lies on the higher one.
    ((axes,),) = (f.axes for f in drawn)
    roofs = [line for line in axes.lines if len(line.get_xdata()) == 3]
    heights = [peaks[unit] for unit in ([False, True] if mma else [False])]
    low, high = axes.get_xlim()
    for line, height in zip(roofs, heights, strict=True):
        ridge = height * 1e3 / bandwidth
        assert list(line.get_xdata()) == pytest.approx([low, max(low, ridge), high])
        assert list(line.get_ydata()) == pytest.approx([min(height, bandwidth * x / 1e3) for x in line.get_xdata()])
    points = {
        line.get_label(): (*line.get_xdata(), *line.get_ydata()) for line in axes.lines if len(line.get_xdata()) == 1
    }
    sizes = {"each array once": once, "if no access met a cache": total, "standard attention, likewise": standard}
    known = {name: size for name, size in sizes.items() if size}
    assert [label.partition(":")[0] for label in points] == list(known)
    for (label, point), size in zip(points.items(), known.values(), strict=True):
        assert point == pytest.approx((work / size, min(peaks[mma], work / size * bandwidth / 1e3)))
        assert format_bytes(size) in label and low < point[0] < high


def test_the_title_of_the_roofline_fits_the_figure(monkeypatch, tmp_path):
    """However many options a call has."""
    figure, drawn = pytest.importorskip("matplotlib.figure"), []
    monkeypatch.setattr(explain, "check_path", lambda path: None)
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path: drawn.append(self))
    monkeypatch.setattr(explain, "to_cubin", lambda kernel, arch: CompiledKernel(tmp_path, 168, 0, 0))
    monkeypatch.setattr(explain, "_print_counts", lambda *_: None)
    options = ["--causal", "--window", "512,0", "--softcap", "30", *(f"--{x.replace('_', '-')}" for x in ARRAYS)]
    path = str(tmp_path / "x.svg")
    assert main(["explain", "--shape", "1,8,4096,4096,128", *options, "--arch", "sm_90a", "--plot", path]) == 0
    drawn[0].draw_without_rendering()
    (title,) = (axes._left_title for axes in drawn[0].axes)
    assert all(keyword in title.get_text() for keyword in ARRAYS)
    assert title.get_window_extent().x1 <= drawn[0].bbox.x1


@pytest.mark.parametrize(("options", "extra"), [([], 0), ([], 64), (["--backward"], 0), (["--backward"], -1)])
def test_explain_holds_the_formula_to_what_is_counted(options, extra, monkeypatch, tmp_path, capsys):
    small = []

    def count(problem, target, args):
        plan = plan_backward(problem, target) if args.backward else plan_forward(problem, target)
        small.append((problem, [launch_bytes(problem, plan, launch) for launch in plan.launches]))
        made = (size + extra * (i == 0) for i, size in enumerate(small[0][1]))
        return [
            SimpleNamespace(kernel=launch.kernel.entry, bytes_read=size, bytes_written=0, buffers={})
            for launch, size in zip(plan.launches, made, strict=True)
        ]

    monkeypatch.setattr(explain, "_count", count)
    monkeypatch.setattr(explain, "to_cubin", lambda kernel, arch: CompiledKernel(tmp_path, 168, 0, 0))
    assert (
        main(["explain", "--shape", "2,4,700,1500,64", "--heads-k", "2", "--causal", "--arch", "sm_90a", *options]) == 0
    )
    ((problem, formula),) = small
    # One key head and its group; the longer sequence is halved until there are few pairs.
    assert (problem.batch, problem.num_heads_q, problem.num_heads_k) == ((1,), 2, 1)
    assert (problem.seqlen_q, problem.seqlen_k, problem.q_offset) == (350, 187, -163)
    lines = capsys.readouterr().out.partition("counted by the emulator")[2].splitlines()[1:]
    assert len(lines) == len(formula)
    for i, (line, size) in enumerate(zip(lines, formula, strict=True)):
        off = extra * (i == 0)
        assert line.endswith(f"{format_bytes(size + off):>10}  {f'formula {size}' if off else 'as the formula'}")


@pytest.mark.parametrize(("window", "told", "seen"), [
    ("7,0", "(7, 0)", 64 * 8 - 28), ("7,", "(7, None)", 64 * 65 // 2 + 7 * 64 - 28), ("0,0", "(0, 0)", 64),
    (",1", "(None, 1)", 64 * 65 // 2 + 63),
])  # fmt: skip
def test_explain_counts_what_a_window_shows(window, told, seen, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(explain, "_print_counts", lambda *_: None)
    monkeypatch.setattr(explain, "to_cubin", lambda kernel, arch: CompiledKernel(tmp_path, 168, 0, 0))
    assert main(["explain", "--shape", "2,3,64,64,32", "--window", window, "--arch", "sm_80"]) == 0
    printed = capsys.readouterr().out
    assert f" 64 keys, window {told}\n" in printed
    assert f"  pairs that are seen     {seen / 64**2:.1%} of all\n" in printed
    assert f"  arithmetic              {6 * seen * 4 * 32 / 1e12:.3g} TFLOP\n" in printed


@pytest.mark.parametrize(("given", "told", "parts"), [
    (["--softcap", "30"], ", softcap 30.0", "Score=Scale+Softcap, k"),
    (["--softcap", "2.5", "--window", "7,1"], ", window (7, 1), softcap 2.5", "Score=Scale+Softcap, Mask=Window, k"),
    (["--causal", "--window", "7,"], ", causal, window (7, None)", "Score=Scale, Mask=Window, k"),
], ids=str)  # fmt: skip
def test_explain_composes_the_kernels_of_the_call(given, told, parts, monkeypatch, tmp_path, capsys):
    """They are what it plans, describes and counts."""
    monkeypatch.setattr(explain, "to_cubin", lambda kernel, arch: CompiledKernel(tmp_path, 168, 0, 0))
    for backward, entries in (([], {"forward"}), (["--backward", "--deterministic"], {"dkdv", "dq"})):
        assert main(["explain", "--shape", "1,2,70,90,32", "--arch", "sm_80", *backward, *given]) == 0
        printed = capsys.readouterr().out
        assert printed.count(f" 90 keys{told}\n") == 1 and printed.count(f" 90 keys{told}:\n") == 1
        kernels = [line for line in printed.splitlines() if line.startswith("  mma/attention_")]
        assert {re.search(r"attention_(\w+)\(", line)[1] for line in kernels} == entries
        assert all(parts in line for line in kernels)
        counted = printed.partition("counted by the emulator")[2].splitlines()[1:]
        assert counted and all(line.endswith("as the formula") for line in counted)


@pytest.mark.parametrize("window", ["7", "7,1,2", "a,1", "1.5,2", "7,-1", "None,0", "¹,0"])
def test_explain_refuses_what_is_no_window(window, capsys):
    with pytest.raises(SystemExit):
        main(["explain", "--shape", "1,1,8,8,8", "--window", window])
    assert f"{window!r} is not LEFT,RIGHT, two numbers of keys or nothing for all" in capsys.readouterr().err


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
    mutate("attention/combine.cu", "num_splits; first += 32) sum", "num_splitz; first += 32) sum")
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
    nothing = SimpleNamespace(kernel="attention_forward", bytes_read=0, bytes_written=0, buffers={})
    monkeypatch.setattr(explain, "_count", lambda problem, target, args: [nothing])
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
