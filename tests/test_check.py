"""`check`: what it runs, what its lines say, and that a check costs no more than itself."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import slow_among

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    emulator,
    flash_attention,
    flash_attention_backward,
    merge_attention,
)
from cupy_flash.__main__ import main
from cupy_flash._src.cli import UserError, ahead, check, worker
from cupy_flash._src.cli.check import staged, suite
from cupy_flash._src.cli.problems import LAYOUTS, SMOKE, Problem, problems
from cupy_flash._src.cli.worker import Failed, Worker, attempt, stage
from cupy_flash._src.compile import CompileError
from cupy_flash._src.components import COMPONENTS, INPUTS
from cupy_flash._src.device import named
from cupy_flash._src.plan import plan_backward, plan_forward
from cupy_flash._src.problem import DTYPES, AttentionProblem

ROOT = Path(__file__).parents[1]
TINY = Problem(batch=(2,), heads_k=2, group=2, sq=9, sk=13, d=16, options={"causal": True})
LEARNED = dataclasses.replace(TINY, options=TINY.options | suite.LEARNED)
NAMES = ["out", "lse", "dq", "dk", "dv"]  # of what is compared where no option has a gradient
ALL_NAMES = [*NAMES, *(f"d{name}" for name in suite.LEARNED)]
ON_EMULATOR = ["check", "--backend", "emulator:sm_80"]
MERGE = "merge: two parts of the keys, deterministic=True"
GOLDEN = ROOT / "tests" / "golden" / "primitives.npz"


class Here(Worker):
    """Runs jobs in this process, where a test can change the kernels."""

    def run(self, function, *arguments):
        return attempt(function, *arguments)


class Unused(Worker):
    """Has the same answer to everything."""

    def run(self, function, *arguments):
        return worker.Answer("fine")


class Gpu:
    """What `check` asks of the CUDA backend; `broken` says which of it fails."""

    device = named("sm_80")

    def __init__(self, monkeypatch):
        self.broken, self.launched = None, []
        runtime = types.SimpleNamespace(getDevice=lambda: 0, deviceSynchronize=lambda: self.may_fail("synchronize"))
        self.namespace = types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime))
        for module in (staged, suite):
            monkeypatch.setattr(module, "runtime_of", lambda backend: self)
        monkeypatch.setattr(staged.compile, "to_cubin", lambda kernel, arch: self.may_fail("compile"))
        monkeypatch.setattr(staged, "_kernel", lambda kernel, device_index: self.may_fail("load"))

    def may_fail(self, what):
        if what == self.broken:
            raise RuntimeError("so it is")

    def run(self, step, params, tensors):
        self.may_fail("launch")
        self.launched.append(step.kernel.entry)


@pytest.fixture
def gpu(monkeypatch):
    return Gpu(monkeypatch)


@pytest.mark.parametrize("name", ["check", "bench"])
def test_without_a_gpu_the_commands_say_so(name, monkeypatch, capsys):
    def none(name):
        raise RuntimeError('backend "cuda" needs a GPU: the driver shows none')

    monkeypatch.setattr("cupy_flash._src.backends.get", none)
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
    for component in COMPONENTS:
        values = {p.options.get(component.keyword, component.default) for p in found}
        assert component.examples and values >= {component.default, *component.examples}
    assert {p.group for p in found} >= {1, 2, 7, 8} and any(p.sq == 1 and p.sk > 2000 for p in found)
    for p in found:
        assert p.reduced().sk > 0 or p.sk == 0
        short = dataclasses.replace(p, sq=min(p.sq, 5), sk=min(p.sk, 7))
        q, k, v, dout, dlse = short.arrays()
        assert all(np.isfinite(x.astype(np.float64)).all() for x in (q, k, v, dout, dlse))
        assert short.problem() == AttentionProblem.from_arrays(
            q, k, v, **short.given(), deterministic=p.deterministic, wrt=p.wrt
        )
        assert dout.shape == short.problem().out_shape and dlse.shape == dout.shape[:-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_layout_leaves_out_is_no_number(layout):
    """A kernel that reads beside an array then gives no number, and the numbers are the same in every layout."""
    p = dataclasses.replace(TINY, layout=layout)
    for x, same in zip(p.arrays()[:4], TINY.arrays(), strict=False):
        assert np.array_equal(x, same)
        memory = x if x.base is None else x.base
        while memory.base is not None and isinstance(memory.base, np.ndarray):
            memory = memory.base
        holes = memory.size - x.size
        assert np.isnan(memory).sum() == holes and (holes > 0) == (layout in ("padded", "odd strides"))
        assert x.flags.c_contiguous == (layout == "contiguous")


def test_smoke_reaches_each_family_by_each_dtype():
    assert list(suite.checks("cuda"))[: len(SMOKE)] == [f"smoke: {name}" for name in SMOKE]
    for name, p in SMOKE.items():
        launches = plan_forward(p.problem(), named("sm_90a")).launches
        launches += plan_backward(p.problem(), named("sm_90a")).launches
        families = {x.kernel.family for x in launches if x.kernel.entry in ("attention_forward", "attention_dkdv")}
        assert (families, p.dtype) == ({name.split()[0]}, name.split()[1])
        assert p.options == {"causal": True} and 200 <= p.sq < 1000


def test_every_check_has_a_group():
    groups = ["smoke", "values", "repeats", "merge"]
    assert list(dict.fromkeys(name.partition(": ")[0] for name in suite.checks("emulator:sm_80"))) == groups
    found = suite.checks("cuda")
    assert list(dict.fromkeys(name.partition(": ")[0] for name in found)) == [*groups, "stream", "graph", "changed"]
    assert len(found) == len(SMOKE) + len(list(problems())) + len(DTYPES) + 2 + 2 + 4


@pytest.mark.parametrize("name", [
    "smoke: mma float16", MERGE, "values: float16, D 64, H 2, S 200x260, bias of_each_head",
    pytest.param("values: float16, D 64, H 2, S 200x260, sinks of_heads", marks=pytest.mark.slow),
    pytest.param("repeats: float32, gradients of options", marks=pytest.mark.slow),
    pytest.param("values: float16, D 192, H 2, S 200x260", marks=pytest.mark.slow),
    pytest.param("repeats: float32", marks=pytest.mark.slow),
    pytest.param("merge: two parts of the keys, deterministic=False", marks=pytest.mark.slow),
])  # fmt: skip
def test_checks_pass_on_the_emulator(name, monkeypatch, capsys):
    monkeypatch.setattr(check, "Worker", Here)
    assert main([*ON_EMULATOR, "--only", name]) == 0
    printed = capsys.readouterr().out
    assert f"] ok     {name}" in printed and printed.endswith(" checks passed\n")


@pytest.mark.parametrize("name", slow_among(["smoke: simt float32", MERGE], {MERGE}))
def test_checks_pass_with_the_errors_of_a_gpu(name, monkeypatch, capsys):
    monkeypatch.setattr(check, "Worker", Here)
    told = set()
    for arithmetic in ("exact", "hardware-high"):
        assert main([*ON_EMULATOR, "--only", name, "--arithmetic", arithmetic]) == 0
        told.add(capsys.readouterr().out.splitlines()[1])
        assert emulator.current().arithmetic == "exact"
    assert len(told) == 2 and all(f"] ok     {name}" in line for line in told)


@pytest.mark.slow
def test_every_check_passes_with_the_errors_of_a_gpu():
    """Of options those on tensor cores: others are wrong by 2^x and logarithms alone, as without options."""
    skipped = [word for name in ("float64", "primitive", "float32, D 64, H 2, S 200x260") for word in ("--skip", name)]
    assert main([*ON_EMULATOR, "--arithmetic", "hardware", *skipped]) == 0


def test_the_budget_knows_whose_errors_it_is_for(monkeypatch):
    """The primitives have the same arithmetic as the checks, which a GPU is not asked for: it has its own."""
    asked = []
    monkeypatch.setattr(suite, "spent", lambda x, naive, exact, size: (0.0, size))
    monkeypatch.setattr(
        suite, "magnitudes", lambda *a, approximate, **o: asked.append(approximate) or dict.fromkeys(NAMES, 1.0)
    )
    for backend, arithmetic in (
        ("cuda", "exact"),
        ("cpu", "hardware"),
        ("emulator", "exact"),
        ("emulator:sm_80", "hardware"),
    ):
        with emulator.settings(arithmetic=arithmetic):
            suite._within_budget(backend, TINY, [None] * len(NAMES))
    assert asked == [True, False, False, True]

    record = check._recorder(None, on_gpu=False)

    def answer(primitive, arch, arithmetic):
        asked.append(arithmetic)
        return primitive.expected(primitive.inputs)

    monkeypatch.setattr(record, "Worker", Here)
    monkeypatch.setattr(record, "run_on_emulator", answer)
    assert main([*ON_EMULATOR, "--only", "primitive: lg2", "--arithmetic", "hardware-low"]) == 0
    assert set(asked[4:]) == {"hardware-low"}


def names_of(printed):
    """Of the checks that were told, in order."""
    return [line[line.index("] ") + 9 :].split("  ")[0] for line in printed.splitlines() if line.startswith("[")]


def test_only_and_skip_choose(monkeypatch, capsys):
    monkeypatch.setattr(check, "Worker", Unused)
    only = [*ON_EMULATOR, "--only", "float64", "--skip", "primitive"]
    assert main(only) == main([*only, "--skip", "no such"]) == 0
    found = names_of(capsys.readouterr().out)
    chosen = found[: len(found) // 2]
    assert chosen == found[len(found) // 2 :]
    assert {name.partition(": ")[0] for name in chosen} == {"smoke", "values", "repeats"}
    assert all("float64" in name for name in chosen)
    main([*only, "--skip", "D 40", "--skip", "smoke"])
    expected = [name for name in chosen if "D 40" not in name and "smoke" not in name]
    assert names_of(capsys.readouterr().out) == expected != chosen


def seeded(backend, name, arithmetic):
    """In the place of `perform`: some checks go wrong, each in its own way."""
    stage("fault", "a kernel")
    if "D 32" in name:
        raise ValueError("no such\nluck")
    if "D 64" in name:
        time.sleep(1000)
    if "D 96" in name:
        os._exit(7)
    if "D 128" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "D 192" in name:
        stage("values")
        raise Failed("out: error 1, the budget is 0")
    return f"process {os.getpid()}"


def test_what_goes_wrong_costs_only_its_check(monkeypatch, capsys):
    monkeypatch.setattr(check, "perform", seeded)
    chosen = ["--only", "values: bfloat16", "--skip", "causal", "--skip", "S 1500"]
    assert main([*ON_EMULATOR, *chosen, "--limit", "3"]) == 1
    printed = capsys.readouterr()
    lines = {line.split(", D ")[1].split(",")[0]: line for line in printed.out.splitlines() if ", D " in line}
    assert list(lines) == ["32", "64", "96", "128", "192", "256", "512"]
    assert all((" FAILED " in line) == (int(d) <= 192) for d, line in lines.items())
    assert lines["32"].endswith(" fault: a kernel: ValueError: no such | luck")
    assert lines["64"].endswith(" hang: no answer within 3 s (fault: a kernel)")
    assert lines["96"].endswith(" crash: its process ended with code 7 (fault: a kernel)")
    assert lines["128"].endswith(" crash: its process was ended by SIGSEGV (fault: a kernel)")
    assert lines["192"].endswith(" values: out: error 1, the budget is 0")
    assert lines["256"].split()[-1] == lines["512"].split()[-1] != str(os.getpid())
    assert "5 of 7 checks failed: values: bfloat16, D 32, H 2/1, S 200x260, deterministic; " in printed.err


def raise_(error):
    raise error


def always():
    return True


@pytest.mark.parametrize(("survives", "same"), [(always, True), (worker.never, False)])
def test_a_process_that_can_go_on_is_kept(survives, same):
    with Worker(60, survives) as jobs:
        first = jobs.run(os.getpid).value
        assert jobs.run(os.getpid).value == first != os.getpid()
        assert jobs.run(raise_, Failed("wrong")).failure == "start: wrong"
        assert (jobs.run(os.getpid).value == first) is same
        last = jobs.run(os.getpid).value
        os.kill(last, signal.SIGKILL)  # between two jobs: neither is to blame
        jobs._process.join(60)
        assert jobs.run(os.getpid).value not in (last, None)
    assert jobs._process is None


def slow_to_compile():
    stage("compile", "a kernel")
    time.sleep(3)
    stage("launch")
    return "done"


def test_compiling_does_not_count():
    with Worker(2) as jobs:
        assert jobs.run(slow_to_compile).value == "done"


@pytest.mark.parametrize("parent", [["-m", "cupy_flash"], ["-c", "from cupy_flash.__main__ import main; main()"]])
def test_any_interpreter_can_be_the_parent(parent):
    command = [sys.executable, *parent, *ON_EMULATOR, "--only", "S 1x1", "--skip", "S 1x129"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "] ok     values: float16, D 64, H 2, S 1x1 " in done.stdout and "1 checks passed" in done.stdout


def test_wrong_numbers_are_named(mutate, monkeypatch, capsys):
    mutate("attention/online_softmax.cuh", "fma(row_sum[i], factor, sum)", "row_sum[i] + sum")
    monkeypatch.setattr(check, "Worker", Here)
    name = "values: float32, D 40, H 2/1, S 200x260, causal"
    assert main([*ON_EMULATOR, "--only", name]) == 1
    printed = capsys.readouterr()
    assert f"FAILED {name}" in printed.out and " values: out: error " in printed.out
    assert "; lse: error " in printed.out and "the budget is" in printed.out
    assert printed.err == f"cupy_flash check: 1 of 1 checks failed: {name}\n"


@pytest.mark.parametrize(
    ("replacement", "stage_and_error"),
    [
        ("int n0 = no_such_name", "compile: attention_forward of simt/forward.cu: ToolchainError: "),
        ("int n0 = (threadIdx.x ? 0 : (__syncthreads(), 0))", "fault: attention_forward of simt/forward.cu: Emulator"),
    ],
)
def test_the_emulators_failures_name_stage_and_kernel(mutate, replacement, stage_and_error):
    mutate("simt/forward.cu", "const int n0 = step.at;", f"const {replacement};")
    failure = attempt(suite.perform, "emulator:sm_80", "smoke: simt float32").failure
    assert failure.startswith(stage_and_error)
    assert "run" not in vars(staged.runtime_of("emulator:sm_80"))  # later checks launch as ever


def test_a_launch_that_the_emulator_refuses(replan):
    def too_much_shared_memory(problem, device, *tiles):
        plan = plan_forward(problem, device)
        return dataclasses.replace(plan, forward=dataclasses.replace(plan.forward, shared_bytes=2**20))

    with replan(plan_forward=too_much_shared_memory):
        failure = attempt(suite.perform, "emulator:sm_80", "smoke: simt float32").failure
    assert failure.startswith("launch: attention_forward of simt/forward.cu: EmulatorError: launch in ")


def one_launch():
    launch = plan_forward(SMOKE["mma float16"].problem(), named("sm_80")).forward
    staged.ready("cuda", [launch])
    with staged.one_by_one("cuda"):
        staged.runtime_of("cuda").run(launch, None, {})


@pytest.mark.parametrize("broken", ["compile", "load", "launch", "synchronize"])
def test_a_gpus_failures_name_stage_and_kernel(gpu, broken):
    assert attempt(one_launch).failure == ""
    gpu.broken = broken
    in_stage = "fault" if broken == "synchronize" else broken
    assert attempt(one_launch).failure == f"{in_stage}: attention_forward of mma/forward.cu: RuntimeError: so it is"
    assert gpu.launched == ["attention_forward"] * (2 if broken == "synchronize" else 1)


def test_a_process_goes_on_while_its_device_answers(gpu):
    assert suite.survives("cuda") and suite.survives("emulator:sm_80")
    gpu.broken = "synchronize"
    assert not suite.survives("cuda")
    assert suite.survives("emulator:sm_80")


def test_an_unknown_check_is_refused():
    assert attempt(suite.perform, "emulator:sm_80", "no such").failure == "start: KeyError: 'no such'"


def test_kernels_are_compiled_ahead(gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(suite, "compile_ahead", lambda kernels, arch: asked.append((kernels, arch)))
    suite.compile_for("cuda", ["smoke: mma float16", "values: float16, D 64, H 2, S 0x5"])
    ((kernels, arch),) = asked
    assert arch == "sm_80"
    assert {kernel.entry for kernel in kernels} >= {"attention_forward", "attention_delta", "attention_dkdv"}
    assert "attention_seal" not in {kernel.entry for kernel in kernels}


@pytest.mark.parametrize("arch", ["sm_75", "sm_90a"])
def test_kernels_of_gradients_of_options_are_among_those_of_checks(arch):
    found = suite.kernels(named(arch))
    assert {kernel.entry for kernel in found} >= {
        "attention_seal", "attention_find_changed", "attention_spoil",
        *(f"attention_{name}" for name in ("dterm", "dsinks", "sum_splits", "spoil_term")),
    }  # fmt: skip
    terms = [kernel for kernel in found if kernel.entry == "attention_dterm"]
    assert {kernel.family for kernel in terms} == {"mma", "simt"}
    learning = {part.component.keyword for kernel in terms for part in kernel.parts if part.component.learns}
    assert learning == {"alibi_slopes", "bias"}  # those of sinks have a kernel that goes over rows


def test_a_kernel_that_does_not_compile_fails_where_it_is_needed(monkeypatch, capsys):
    def fail(kernels, arch):
        raise CompileError("simt/forward.cu -arch=sm_80: no\nlong log")

    monkeypatch.setattr(ahead, "compile_all", fail)
    ahead.compile_ahead([], "sm_80")
    assert capsys.readouterr().err.endswith("simt/forward.cu -arch=sm_80: no\n")


# What a check asks of the results: on the CPU backend, or on stand-ins for a GPU, whose results a test spoils.


def put(x, value):
    """A copy with another last element."""
    x = x.copy()
    x[(-1,) * x.ndim] = value
    return x


def half_the_largest(x):
    """Or 0.5, whichever is more."""
    return x.dtype.type(0.5) * np.abs(x).max(initial=1)


@pytest.fixture
def computed(monkeypatch):
    """Let the checks compute on the CPU backend; `computed.spoil[name]` changes the result that a check reads."""
    runtime = types.SimpleNamespace(namespace=np, device=named("sm_80"))
    here = types.SimpleNamespace(spoil={})

    def spoiled(**arrays):
        return tuple(here.spoil.get(name, lambda x: x)(x) for name, x in arrays.items())

    def forward(q, k, v, **options):
        here.exact = flash_attention(q, k, v, **options | {"return_lse": True, "backend": "cpu"})
        out, lse = spoiled(out=here.exact[0], lse=here.exact[1]) if here.whole else here.exact
        return (out, lse) if options.get("return_lse") else out

    def merge(*parts, backend):
        here.exact = merge_attention(*parts, backend="cpu")
        return spoiled(out=here.exact[0], lse=here.exact[1])

    def backward(dout, q, k, v, out, lse, **options):  # not of what was spoiled
        grads = flash_attention_backward(dout, q, k, v, *here.exact, **options | {"backend": "cpu"})
        return spoiled(**{f"d{name}": x for name, x in zip(options.get("wrt", INPUTS), grads, strict=True)})

    here.whole = True
    monkeypatch.setattr(suite, "runtime_of", lambda backend: runtime)
    monkeypatch.setattr(suite, "ready", lambda backend, launches: None)
    monkeypatch.setattr(suite, "one_by_one", lambda backend: contextlib.nullcontext())
    monkeypatch.setattr(suite, "flash_attention", forward)
    monkeypatch.setattr(suite, "merge_attention", merge)
    monkeypatch.setattr(suite, "flash_attention_backward", backward)
    return here


SPOILS = {
    "no number": lambda x: put(x, np.nan),
    "infinite": lambda x: put(x, -np.inf),
    "an element off": lambda x: put(x, x[(-1,) * x.ndim] + half_the_largest(x)),
    "an element too large": lambda x: put(x, x[(-1,) * x.ndim] - half_the_largest(x)),
    "zero": np.zeros_like,
    "another shape": lambda x: x[..., :-1],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_wrong_number_in_any_result_fails_and_is_named(name, dtype, computed):
    p = dataclasses.replace(LEARNED, dtype=dtype)
    assert "% of the error budget (" in suite._values("cpu", p)
    for spoil in SPOILS.values():
        computed.spoil = {name: spoil}
        with pytest.raises(Failed, match=rf"^{name}: error \S+, the budget is \S+$"):
            suite._values("cpu", p)
    computed.spoil = dict.fromkeys(ALL_NAMES, SPOILS["no number"])
    with pytest.raises(Failed, match="; ".join(rf"{n}: error \S+ the budget is \S+" for n in ALL_NAMES)):
        suite._values("cpu", p)


@pytest.mark.parametrize("name", NAMES)
def test_merged_results_are_held_to_the_same(name, computed):
    computed.whole, p = False, dataclasses.replace(TINY, options={}, deterministic=True)
    assert "% of the error budget (" in suite._merge("cpu", p)
    for spoil in (spoil for what, spoil in SPOILS.items() if what != "another shape"):
        computed.spoil = {name: spoil}
        with pytest.raises(Failed, match=f"^{name}: error "):
            suite._merge("cpu", p)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_result_may_spend_its_budget_and_no_more(name):
    p = dataclasses.replace(LEARNED, dtype="float64")
    options = p.given()
    q, k, v, dout, dlse = p.arrays()
    exact = [
        *attention_reference(q, k, v, return_lse=True, **options),
        *attention_reference_backward(dout, q, k, v, dlse=dlse, **options, wrt=p.wrt),
    ]
    index = ALL_NAMES.index(name)
    size = suite.magnitudes(q, k, v, dout, dlse, **options, wrt=p.wrt)[name]
    budget = suite.spent(exact[index], exact[index], exact[index], size)[1]
    for share in (0.9, -0.9, 1.1, -1.1):
        off = [put(x, x[(-1,) * x.ndim] + share * budget) if i == index else x for i, x in enumerate(exact)]
        if abs(share) < 1:
            told = re.fullmatch(r"(\d+)% of the error budget \((\w+)\)", suite._within_budget("cpu", p, off))
            assert abs(int(told[1]) - 90) < 8 and told[2] == name
        else:
            with pytest.raises(Failed, match=f"^{name}: error "):
                suite._within_budget("cpu", p, off)


@pytest.mark.parametrize("backend", ["cuda", "emulator:sm_80"])
@pytest.mark.parametrize("name", [*ALL_NAMES, None])
def test_bits_that_do_not_repeat_fail(name, backend, computed, monkeypatch):
    """One bit in the last repeat, the sign of a zero here; what is no number repeats too."""
    repeats = 100 if backend == "cuda" else 3
    made, asked = [], []

    def vjp(q, k, v, **options):
        asked.append(options)
        results = {n: np.array([0.0, np.nan, 1.0], np.float32) for n in ALL_NAMES}
        made.append(results)
        if len(made) == repeats and name:
            results[name][0] = -0.0
        out, lse, *grads = results.values()
        return (out, lse), lambda dout, dlse: tuple(grads)

    monkeypatch.setattr(suite, "flash_attention_vjp", vjp)
    p = dataclasses.replace(LEARNED, deterministic=True)
    expected = {"backend": backend, "deterministic": True, "return_lse": True, "wrt": p.wrt} | p.given()
    if name:
        with pytest.raises(Failed, match=f"^{name} differs in repeat {repeats - 1}$"):
            suite._repeats(backend, p)
    else:
        assert suite._repeats(backend, p) == f"{repeats} times the same bits"
    assert len(made) == repeats and all(options.keys() == expected.keys() for options in asked)
    assert all(np.array_equal(options[n], x) for options in asked for n, x in expected.items())


@pytest.mark.parametrize("name", [None, *ALL_NAMES[2:]])
def test_a_number_in_the_gradients_of_what_has_changed_fails(name, computed, monkeypatch):
    """One of them, the last of all."""
    before = np.zeros(3, np.float16)

    def vjp(q, k, v, **options):
        out = before.copy()

        def backward(dout, dlse):
            assert not (out == before).any()
            nothing = {n: np.full(3, np.nan, np.float16) for n in ALL_NAMES[2:]}
            return tuple(put(x, 0) if n == name else x for n, x in nothing.items())

        return (out, None), backward

    monkeypatch.setattr(suite, "flash_attention_vjp", vjp)
    if name:
        with pytest.raises(Failed, match=f"^{name} has numbers$"):
            suite._changed("cuda", LEARNED)
    else:
        assert suite._changed("cuda", LEARNED) == "no gradient has a number"


def fake_cupy(monkeypatch, stream):
    nothing = types.SimpleNamespace(synchronize=lambda: None, malloc=None)
    cuda = types.SimpleNamespace(
        Device=lambda: nothing, MemoryPool=lambda: nothing, Stream=lambda non_blocking: stream,
        using_allocator=lambda malloc: contextlib.nullcontext(),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda, zeros_like=np.zeros_like))


@pytest.mark.parametrize(("done", "spoil", "failure"), [
    (False, lambda out: out, None), (True, lambda out: out, "the call waited for the stream"),
    (False, np.zeros_like, "the result is not that of the stream's data"),
    (False, SPOILS["no number"], "the result is not that of the stream's data"),
    (False, lambda out: put(out, np.nextafter(out[-1, -1, -1, -1], np.float16(9))), "the result is not that of"),
])  # fmt: skip
def test_a_stream_is_not_waited_for_and_keeps_its_order(done, spoil, failure, computed, monkeypatch):
    class Stream(contextlib.nullcontext):
        def __enter__(self):
            computed.spoil = {"out": spoil}

        def synchronize(self):
            spun.append("waited")

    stream, spun = Stream(), []
    stream.done = done
    fake_cupy(monkeypatch, stream)
    monkeypatch.setattr("cupy_flash._src.cli.bench.timing.spin", spun.append)
    if failure:
        with pytest.raises(Failed, match=f"^{failure}"):
            suite._stream("cuda", TINY)
    else:
        assert suite._stream("cuda", TINY) == "asynchronous, in order"
    cycles, waited = spun
    assert cycles / 2.6e9 > 0.05 and waited == "waited"


class OnGpu(np.ndarray):
    def get(self):
        return np.array(self)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("name", "off"), [
    (None, 0.0), (None, "stale"), *((n, off) for n in ("out", "dq", "dk", "dv") for off in (np.nan, 2.0**-10, 2.0**-8)),
])  # fmt: skip
def test_a_replay_is_held_to_a_direct_call(name, off, deterministic, computed, monkeypatch):
    """By atomic additions in another order dK, dV and dQ may be off by 2e-3."""
    made, given = [], {}

    def results(**options):
        out, lse = flash_attention(*given["qkv"], causal=True, return_lse=True, backend="cpu")
        return out, lse, *flash_attention_backward(given["dout"], *given["qkv"], out, lse, causal=True, backend="cpu")

    def forward(*qkv, causal, return_lse):
        given["qkv"] = qkv
        made.append([x.view(OnGpu) for x in flash_attention(*qkv, causal=True, return_lse=True, backend="cpu")])
        return made[-1]

    def backward(dout, *arrays, causal, deterministic):
        given["dout"] = dout
        made[-1] += [x.view(OnGpu) for x in flash_attention_backward(dout, *arrays, causal=True, backend="cpu")]
        return made[-1][2:]

    def launch(stream):
        assert len(made) == 2, "a call fills the pool, another is captured"
        for n, x, new in zip(NAMES, made[-1], results(), strict=True):
            if off != "stale":
                x[...] = new
            if n == name:
                x[-1, -1, 0, -1] += np.float16(off)

    monkeypatch.setattr(suite, "flash_attention", forward)
    monkeypatch.setattr(suite, "flash_attention_backward", backward)
    stream = contextlib.nullcontext()
    stream.begin_capture, stream.end_capture = (lambda: None), (lambda: types.SimpleNamespace(launch=launch))
    fake_cupy(monkeypatch, stream)
    p = dataclasses.replace(TINY, deterministic=deterministic)
    if off == 0 or (off == 2.0**-10 and not deterministic):
        assert re.fullmatch(r"the replay differs by 0(\.00[01]\d*)?", suite._graph("cuda", p))
    else:
        with pytest.raises(Failed, match=r"^the replay differs by"):
            suite._graph("cuda", p)


def test_a_primitive_that_answers_wrongly_fails_the_command(monkeypatch, capsys):
    record = check._recorder(None, on_gpu=False)

    def answer(primitive, arch, arithmetic):
        outputs = primitive.expected(primitive.inputs)
        if primitive.name == "vote":
            for x in outputs.values():
                x.view(np.uint8).flat[-1] ^= 1
        return outputs

    monkeypatch.setattr(record, "Worker", Here)
    monkeypatch.setattr(record, "run_on_emulator", answer)
    assert main([*ON_EMULATOR, "--only", "primitive: "]) == 1
    printed = capsys.readouterr()
    count = len(check._primitives(record, "emulator:sm_80", 80))
    assert printed.err == f"cupy_flash check: 1 of {count} checks failed: primitive: vote\n"
    assert printed.out.count("] ok     primitive: ") == count - 1


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "cpu"], "--backend is 'cpu'"),
        (["--backend", "emulator:sm_1"], "architecture is 'sm_1'"),
        ([*ON_EMULATOR[1:], "--only", "nothing like this"], "no check is left: --only is 'nothing like this'"),
        (
            [*ON_EMULATOR[1:], "--only", "merge", "--skip", "keys"],
            "no check is left: --only is 'merge', --skip is ['keys']",
        ),
        ([*ON_EMULATOR[1:], "--limit", "0"], "--limit is 0: expected seconds, more than 0"),
        (["--arithmetic", "hardware"], "--arithmetic is hardware: expected none, a GPU has its own"),
        (["--golden", "/missing/file.npz"], "/missing is not a directory"),
        ([*ON_EMULATOR[1:], "--golden", str(GOLDEN)], "is for what a GPU answers"),
    ],
)
def test_malformed_checks_are_named(arguments, message, capsys):
    assert main(["check", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_emulator_answers_the_primitives(monkeypatch, tmp_path, capsys):
    file = tmp_path / "golden.npz"
    chosen = ["check", "--backend", "emulator:sm_90", "--only", "primitive: v"]
    assert main([*chosen, "--golden", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "[  1/1] ok     primitive: vote" in printed and f"primitives recorded in {file}" in printed
    with np.load(file) as golden:
        summary = json.loads(str(golden["summary"]))
    assert summary["device"] == {"name": "emulator:sm_90a", "compute_capability": 90}
    assert summary["outcomes"] == {"vote": {"status": "passed", "message": ""}}
    before = set(GOLDEN.parent.iterdir())
    monkeypatch.setattr(check._recorder(None, on_gpu=False), "Worker", Here)
    assert main(chosen) == 0
    assert "recorded" not in capsys.readouterr().out and set(GOLDEN.parent.iterdir()) == before


def test_primitives_are_those_that_the_backend_has():
    record = check._recorder(None, on_gpu=True)
    on_gpu, emulated = (check._primitives(record, name, 90) for name in ("cuda", "emulator:sm_90a"))
    assert on_gpu == list(record.ALL)
    assert emulated == [name for name in on_gpu if record.ALL[name] in record.PRIMITIVES] != on_gpu


def test_a_gpus_answers_are_recorded_where_there_are_none(monkeypatch, tmp_path, capsys):
    """By the checkout's recorder, which tests/emulator/test_golden.py tests."""
    record = check._recorder(None, on_gpu=True)
    asked = []

    def answer(file, *, names, report, timeout, device, run):
        asked.append((file, timeout, device, run))
        for name in names:
            report(name, record.Outcome("passed") if name == "widen" else record.Outcome("differs", "any\nis wrong"))

    monkeypatch.setattr(record, "record", answer)
    monkeypatch.setattr(record, "FILE", tmp_path / "earlier.npz")
    report = check.Report(2)
    check._record(record, "cuda", tmp_path / "golden.npz", ["vote", "widen"], 7.0, report)
    assert report.failed == ["primitive: vote"]
    printed = capsys.readouterr().out
    assert "FAILED primitive: vote" in printed and "any | is wrong" in printed and "ok     primitive: widen" in printed
    check._record(record, "cuda", None, ["widen"], 7.0, report)
    record.FILE.touch()
    check._record(record, "cuda", None, ["widen"], 7.0, report)
    assert [file for file, *_ in asked] == [tmp_path / "golden.npz", tmp_path / "earlier.npz", None]
    assert {tuple(rest) for _, *rest in asked} == {(7.0, None, record.run_on_gpu)}


def test_a_wheel_has_no_primitives(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "TESTS", tmp_path)
    assert check._recorder(None, on_gpu=True) is None
    with pytest.raises(UserError, match="checkout"):
        check._recorder(tmp_path / "golden.npz", on_gpu=True)
