"""Options on the command line: what `compile` makes is what calls launch, and `explain` tells what each adds."""

import argparse
import dataclasses
import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest

from cupy_flash.__main__ import main
from cupy_flash._src.analysis import traffic
from cupy_flash._src.cli import arguments, explain
from cupy_flash._src.cli import compile as compile_command
from cupy_flash._src.cli.units import format_bytes
from cupy_flash._src.compile import CompiledKernel
from cupy_flash._src.components import ARRAYS, CAPTURED, COMPONENTS, FLOATS, GATHERED, INPUTS, KEYWORDS, LEARNING
from cupy_flash._src.device import named
from cupy_flash._src.plan import all_specializations, plan_backward, plan_forward
from cupy_flash._src.problem import DTYPES, AttentionProblem, Term
from cupy_flash._src.specialization import ELEMENT, Variant, parts_of

# Arrays are flags; each of these alone and together with others, as calls combine them.
CALLS = [
    "--alibi-slopes", "--mask", "--k-lengths", "--q-lengths", "--k-starts", "--causal --q-offset",
    "--causal --k-lengths", "--causal --k-lengths --q-lengths", "--window 64,0 --q-offset --k-starts",
    "--bias", "--sinks", "--causal --bias --sinks --alibi-slopes",
    "--causal --alibi-slopes --softcap 30", "--mask --causal --k-lengths --q-lengths --k-starts --alibi-slopes",
]  # fmt: skip


def parsed(line):
    parser = argparse.ArgumentParser()
    arguments.add_options(parser)
    return parser.parse_args(line.split())


def test_every_option_has_its_flag():
    """But scale, which every kernel has; a function's arguments have one too."""
    parser = argparse.ArgumentParser()
    arguments.add_options(parser)
    flags = {action.dest for action in parser._actions} - {"help"}
    assert flags == {component.keyword for component in COMPONENTS} - {"scale"} | set(CAPTURED)
    assert set(ARRAYS) < flags <= set(KEYWORDS)


def test_flags_that_are_not_given_are_no_options():
    assert arguments.options(parsed("")) == {}
    for name in ARRAYS:
        given = arguments.options(parsed(f"--{name.replace('_', '-')}"), (1, 3, 1, 1))
        assert list(given) == [name] and isinstance(given[name], np.ndarray) and given[name].size <= 3


def test_what_gradients_are_of():
    parser = argparse.ArgumentParser()
    arguments.add_wrt(parser, "all")
    assert parser.parse_args([]).wrt is None
    assert parser.parse_args(["--wrt", "v", "sinks"]).wrt == ["v", "sinks"]
    (action,) = (x for x in parser._actions if x.dest == "wrt")
    assert set(action.choices) == {*INPUTS, *LEARNING, *GATHERED} and "all" in action.help


def problems(options):
    """Of both families and all plans: long, of few queries, of few keys, with grouped heads; each kind of gradient."""
    for dtype, (heads_k, group, sq, sk, d), deterministic in itertools.product(
        DTYPES, ((2, 1, 640, 640, 64), (1, 8, 1, 4096, 128), (1, 2, 1500, 24, 64), (1, 3, 70, 300, 512)), (False, True)
    ):
        heads, zero = heads_k * group, np.zeros((), DTYPES[dtype])
        q, k = (np.broadcast_to(zero, (2, n, s, d)) for n, s in ((heads, sq), (heads_k, sk)))
        given = arguments.options(options, (1, heads, 1, 1))
        for numbers in {np.dtype(np.float32), DTYPES[dtype]}:
            taken = given | {name: given[name].astype(numbers) for name in FLOATS if name in given}
            yield AttentionProblem.from_arrays(q, k, k, **taken, deterministic=deterministic)


@pytest.mark.parametrize("line", CALLS)
@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
def test_what_is_compiled_is_what_calls_with_these_options_launch(line, arch):
    device, options = named(arch), parsed(line)
    made = set(all_specializations(device, [arguments.options(options)]))
    composed = {(kernel.types[0], kernel.parts) for kernel in made if kernel.family != "attention"}
    launched, asked = set(), set()
    for problem in problems(options):
        parts = parts_of(problem.components)
        of_backward = Variant(problem.dtype, 1, 1, parts).backward.parts
        asked |= {(("Element", ELEMENT[problem.dtype]), of) for of in (parts, of_backward)}
        plans = [plan_forward(problem, device)]
        plans += [plan_backward(each, device) for each in (problem, problem.with_wide_out)]
        launched |= {launch.kernel for plan in plans for launch in plan.launches}
    assert launched <= made and asked == composed
    assert {kernel.entry for kernel in launched} >= {"attention_forward", "attention_combine", "attention_dq"}


@pytest.mark.parametrize("line", CALLS)
def test_compile_takes_the_options(line, monkeypatch, tmp_path, capsys):
    compiled = []

    def compile_all(kernels, arch, done):
        for kernel in kernels:
            compiled.append(kernel)
            done(kernel, CompiledKernel(tmp_path, 100, 0, 0))

    monkeypatch.setattr(compile_command, "compile_all", compile_all)
    monkeypatch.setattr(compile_command, "nvrtc_version", lambda: (13, 0))
    assert main(["compile", "--arch", "sm_80", "--for", "all", *line.split()]) == 0
    given = arguments.options(parsed(line))
    assert compiled == list(dict.fromkeys(all_specializations(named("sm_80"), [given])))
    assert f"sm_80: {len(compiled)} kernels" in capsys.readouterr().out


@pytest.mark.parametrize("wrt", ["q", "k", "v", "k v", "q v bias", "bias", "sinks", "alibi_slopes sinks"])
@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
def test_compile_makes_the_kernels_of_gradients_that_are_asked_for(wrt, arch, monkeypatch, tmp_path):
    """All that such calls launch, and none that only others do."""
    line, made, launched = "--causal --bias --sinks --alibi-slopes", set(), set()
    monkeypatch.setattr(compile_command, "compile_all", lambda kernels, arch, done: made.update(kernels) or [
        done(kernel, CompiledKernel(tmp_path, 100, 0, 0)) for kernel in kernels
    ])  # fmt: skip
    monkeypatch.setattr(compile_command, "nvrtc_version", lambda: (13, 0))
    assert main(["compile", "--arch", arch, "--for", "all", *line.split(), "--wrt", *wrt.split()]) == 0
    for problem in problems(parsed(line)):
        shape = (*problem.lse_shape, problem.seqlen_k)
        own = (*(1 for _ in shape[:-3]), shape[-3], 1, 1)
        terms = [Term(name, own, "float32") for name in LEARNING if name in wrt.split()]
        for each in (problem, problem.with_wide_out):
            wanted = dataclasses.replace(each, wrt=tuple(wrt.split()), terms=tuple(terms))
            launched |= {launch.kernel for launch in plan_backward(wanted, named(arch)).launches}
        launched |= {launch.kernel for launch in plan_forward(problem, named(arch)).launches}
    assert launched <= made
    usual = {"attention_merge", "attention_seal", "attention_find_changed", "attention_spoil", "attention_spoil_term"}
    assert {kernel.entry for kernel in made} <= {kernel.entry for kernel in launched} | usual
    of_keys = [kernel for kernel in made if kernel.entry == "attention_dkdv"]
    wants = {(kernel.constant("kWantsDk"), kernel.constant("kWantsDv")) for kernel in of_keys}
    terms = [kernel for kernel in made if kernel.entry == "attention_dterm"]
    learned = {kernel.parts[kernel.constant("kTerm")].component.keyword for kernel in terms}
    assert learned == {"bias", "alibi_slopes"} & set(wrt.split())
    asked = ("k" in wrt.split(), "v" in wrt.split())
    assert wants == ({asked} if any(asked) else set())


@pytest.mark.parametrize(("line", "message"), [
    ("--wrt q bias", "wrt has 'bias', which was not passed"),
    ("--q-offset", "q_offset is an array: expected none without"), ("--softcap -1", "softcap is -1.0: expected"),
])  # fmt: skip
def test_options_that_no_call_has_together_are_refused(line, message, monkeypatch, capsys):
    monkeypatch.setattr(compile_command, "nvrtc_version", lambda: (13, 0))
    monkeypatch.setattr(compile_command, "compile_all", lambda *_: pytest.fail("compiled"))
    assert main(["compile", "--arch", "sm_80", "--for", "core", *line.split()]) == 1
    assert message in capsys.readouterr().err
    assert main(["explain", "--shape", "1,2,8,8,32", *line.split()]) == 1
    assert message in capsys.readouterr().err


# What `explain` tells.


def explained(line, monkeypatch, tmp_path, capsys, shape="2,6,256,512,64"):
    """What it prints of the plan, with no compiler."""
    monkeypatch.setattr(explain, "to_cubin", lambda kernel, arch: CompiledKernel(tmp_path, 168, 0, 0))
    monkeypatch.setattr(explain, "_print_counts", lambda *_: None)
    assert main(["explain", "--shape", shape, "--arch", "sm_80", *line.split()]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("line", "told"), [
    ("", "Scale (0.125)"), ("--causal --softcap 30", "Scale (0.125), Softcap (30), Causal"),
    ("--window 5, --k-starts", "Scale (0.125), WindowLeft (5, open), KeyStarts"),
    ("--causal --k-lengths --alibi-slopes --mask", "Offsets, Scale (0.125), Alibi, Causal, KeyLengths, Boolean"),
])  # fmt: skip
def test_explain_tells_what_is_in_effect(line, told, monkeypatch, tmp_path, capsys):
    assert f"\nin effect: {told}\n" in explained(line, monkeypatch, tmp_path, capsys)


def walked(problem, plan, launch):
    """Pairs of blocks that have a pair of a query and a key that sees it, and all pairs."""
    block_m, block_n = launch.kernel.constant("kBlockM"), launch.kernel.constant("kBlockN")
    packed = getattr(plan, "packed_heads", 1)
    keys = problem.keys(np.arange(problem.seqlen_q)[:, None])
    seen = (keys.begin <= np.arange(problem.seqlen_k)) & (np.arange(problem.seqlen_k) < keys.end)
    seen = np.repeat(seen, packed, axis=0)
    corners = itertools.product(range(0, len(seen), block_m), range(0, problem.seqlen_k, block_n))
    met = [seen[i : i + block_m, j : j + block_n].any() for i, j in corners]
    return sum(met), len(met)


@pytest.mark.parametrize("line", ["--causal", "--window 100,30", "--window 0,0", "--causal --mask", "--k-lengths"])
@pytest.mark.parametrize("more", ["", "--backward", "--backward --deterministic", "--dtype float32", "--heads-k 1"])
def test_explain_tells_the_share_of_blocks_that_are_met(line, more, monkeypatch, tmp_path, capsys):
    shape = "1,8,5,999,64" if "heads-k" in more else "2,6,333,512,64"
    made, plan_of = [], explain._plan
    monkeypatch.setattr(explain, "_plan", lambda *a: made.append((a[0], plan_of(*a))) or made[-1][1])
    printed = explained(f"{line} {more}", monkeypatch, tmp_path, capsys, shape)
    ((problem, plan),) = made
    launches = [x for x in plan.launches if x.kernel.family != "attention"]
    counts = [walked(problem, plan, launch) for launch in launches]
    assert re.findall(r"blocks that are met     (\S+) of all, (\w+)", printed) == [
        (f"{met / every:.1%}", launch.kernel.entry) for (met, every), launch in zip(counts, launches, strict=True)
    ]
    assert counts == [traffic.block_pairs(problem, plan, launch) for launch in launches]
    if line == "--k-lengths":  # which only the call knows
        assert all(met == every for met, every in counts)


@pytest.mark.parametrize(("more", "kernels"), [("", 1), ("--backward", 1), ("--backward --deterministic", 2)])
def test_explain_tells_what_arrays_add(more, kernels, monkeypatch, tmp_path, capsys):
    line = f"--window 64,0 --mask --k-lengths --alibi-slopes --q-offset {more}"
    made, plan_of = [], explain._plan
    monkeypatch.setattr(explain, "_plan", lambda *a: made.append(plan_of(*a)) or made[-1])
    printed = explained(line, monkeypatch, tmp_path, capsys)
    blocks = sum(x.grid for x in made[0].launches if x.kernel.family == "mma")
    # Where windows lie only the call tells, so they hide nothing here.
    added = {"mask": kernels * 2 * 6 * 256 * 512, "k_lengths": 8 * blocks, "alibi_slopes": 4 * blocks}
    for name, size in (added | {"q_offset": 8 * blocks}).items():
        assert f"  {name:<22}  {format_bytes(size)} read, " in printed
    lies = format_bytes(2 * 6 * 256 * 512), format_bytes(256 * 512)
    assert "it lies in {}, or {} where batch and heads share it\n".format(*lies) in printed
    assert "that only the call knows: above as if they hid no key" in printed
    assert "only the call knows" not in explained("--causal --softcap 2", monkeypatch, tmp_path, capsys)


@pytest.mark.parametrize(("line", "kernels"), [("", 1), ("--wrt q k bias", 2), ("--deterministic --wrt bias q v", 3)])
def test_explain_tells_what_gradients_of_options_add(line, kernels, monkeypatch, tmp_path, capsys):
    made, plan_of = [], explain._plan
    monkeypatch.setattr(explain, "_plan", lambda *a: made.append(plan_of(*a)) or made[-1])
    printed = explained(f"--backward --bias --sinks {line}", monkeypatch, tmp_path, capsys)
    (plan,) = made
    assert f"  bias                    {format_bytes(kernels * 2 * 6 * 256 * 512 * 4)} read, " in printed
    assert "  sinks                   0 B read, " in printed
    for term in plan.terms:
        shape, splits = "1x6x256x512", f"{term.kernel.grid} blocks, {term.num_splits} to an element"
        assert f"gradient of {term.term.keyword}, {shape}, by {splits}" in printed
    assert len(plan.terms) == ("bias" in line)
    assert ("mma/attention_dterm" in printed) == ("bias" in line)
    assert ("two passes" in printed) == ("deterministic" in line)
    assert f", wrt {line.partition('--wrt ')[2]}\n" in printed or not line


def test_explain_tells_what_sinks_add(monkeypatch, tmp_path, capsys):
    """In the forward, whose last kernel reads them; their gradient takes no scores."""
    for shape, numbers in (("16,16,512,512,64", None), ("1,8,1,4096,64", 8)):
        printed = explained("--sinks", monkeypatch, tmp_path, capsys, shape)
        b, h, sq, sk, d = map(int, shape.split(","))
        q, k = np.broadcast_to(np.float16(0), (b, h, sq, d)), np.broadcast_to(np.float16(0), (b, h, sk, d))
        plan = plan_forward(AttentionProblem.from_arrays(q, k, k, sinks=np.zeros(h, np.float32)), named("sm_80"))
        assert (plan.combine is None) == (numbers is None)
        size = 4 * (numbers or plan.forward.grid * plan.packed_heads)
        assert f"  sinks                   {format_bytes(size)} read, " in printed
    printed = explained("--sinks --backward --wrt sinks", monkeypatch, tmp_path, capsys)
    assert "\ngradient of sinks, 1x6x1x1, by " in printed and "arithmetic              0 TFLOP" in printed
    assert "attention/attention_dsinks" in printed and "mma/" not in printed


def test_a_mask_is_read_where_windows_show_and_once_in_all_spans():
    x = np.broadcast_to(np.float32(0), (1, 1, 2**16, 64))
    mask = {"mask": np.zeros((1, 1), bool), "alibi_slopes": np.zeros(1, np.float32)}
    problem = AttentionProblem.from_arrays(x, x, x, causal=True, window=(9, None), **mask)
    plan = plan_forward(problem, named("sm_80"))
    assert plan.num_spans == 2
    found = traffic.array_bytes(problem, plan, mask)
    assert found == {"mask": 10 * 2**16 - 45, "alibi_slopes": 4 * 2 * plan.forward.grid}
    x = np.broadcast_to(np.float16(0), (1, 8, 1, 64))
    problem = AttentionProblem.from_arrays(x, x[:, :1], x[:, :1], alibi_slopes=np.zeros(8, np.float32))
    plan = plan_forward(problem, named("sm_80"))  # a number for each head of a tile
    assert traffic.array_bytes(problem, plan, {"alibi_slopes": mask["alibi_slopes"]}) == {
        "alibi_slopes": 4 * plan.packed_heads * plan.forward.grid
    }
    assert plan.packed_heads == 8


def test_counts_of_calls_with_arrays_have_no_formula(monkeypatch, tmp_path, capsys):
    """Arrays are those of an example, of the sizes that are counted."""
    asked = {}

    def forward(q, k, v, **given):
        asked["forward"] = given
        return np.zeros_like(q), np.zeros(q.shape[:-1], np.float32)

    monkeypatch.setattr(explain, "to_cubin", lambda kernel, arch: CompiledKernel(tmp_path, 168, 0, 0))
    monkeypatch.setattr(explain, "flash_attention", forward)
    monkeypatch.setattr(explain, "flash_attention_backward", lambda *_, **given: asked.update(backward=given))
    kernels = [f"attention_{name}" for name in ("delta", "dkdv", "convert_dq", "convert_dkdv")]
    launches = [SimpleNamespace(kernel=kernel, bytes_read=7, bytes_written=5, buffers={}) for kernel in kernels]
    report = SimpleNamespace(launches=launches)
    monkeypatch.setattr(explain.emulator, "last_run", lambda: report)
    line = "--heads-k 1 --causal --mask --k-lengths --alibi-slopes --backward"
    assert main(["explain", "--shape", "3,2,100,60,64", "--arch", "sm_80", *line.split()]) == 0
    told = re.findall(r"attention_(\w+) +12 B  (no formula|formula \d+)\n", capsys.readouterr().out)
    assert [(kernel, how) for kernel, how in told if how == "no formula"] == [("dkdv", "no formula")] and len(told) == 4
    for given in asked.values():
        shapes = {name: given[name].shape for name in ("mask", "k_lengths", "alibi_slopes")}
        assert shapes == {"mask": (1, 2, 100, 60), "k_lengths": (1,), "alibi_slopes": (2,)}
        assert given["causal"] is True and given["backend"] == "emulator:sm_80"
        assert 0 < given["mask"].mean() < 1
    assert asked["forward"]["mask"] is asked["backward"]["mask"]
