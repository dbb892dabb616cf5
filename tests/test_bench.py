"""`bench` with everything but the GPU: NumPy in CuPy's place, stand-ins for the other libraries."""

import contextlib
import csv
import gc
import itertools
import re
import shutil
import sys
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
import workload
from stand_ins import Tensor

from cupy_flash import attention_reference, attention_reference_backward
from cupy_flash.__main__ import main
from cupy_flash._src import backends
from cupy_flash._src.cli import UserError, ahead, bench
from cupy_flash._src.cli.bench import book as books
from cupy_flash._src.cli.bench import listing, machine, methods, readme, runner, table, telemetry, timing
from cupy_flash._src.cli.bench.cases import HIDDEN, TOKENS, Case, Numbers, cases
from cupy_flash._src.cli.bench.plot import plot
from cupy_flash._src.cli.bench.verify import Expected
from cupy_flash._src.compile import text_to_cubin
from cupy_flash._src.device import named
from cupy_flash._src.plan import all_specializations, core_specializations
from cupy_flash._src.problem import DTYPES

ROOT = Path(__file__).parents[1]
TODAY = "2026-01-02"
PLACE = {
    "device": "NVIDIA Fake 1", "arch": "sm_80", "driver": "1.2.3", "cuda": "13.0", "cupy": "14.0",
    "cupy_flash": "0.1.0", "commit": "abc",
}  # fmt: skip


def small(direction="forward", causal=True, heads_k=4, **fields):
    sq = 1 if direction == "decode" else 40
    values = {"dtype": "float16", "batch": 2, "heads_q": 4, "seqlen_q": sq, "seqlen_k": 40, "head_dim": 32}
    return Case(direction, heads_k=heads_k, causal=causal and direction != "decode", **values | fields)


SMALL = [small(), small("backward"), small("decode", heads_k=2), small("backward", causal=False, heads_k=2)]
NUMBERS = sys.modules[Numbers.__module__]
POOL = NUMBERS.POOL


@pytest.fixture(autouse=True)
def few_numbers(monkeypatch):
    """Small cases need few; `POOL` millions take a tenth of a second for each tensor."""
    monkeypatch.setattr(NUMBERS, "POOL", 65537)


@pytest.fixture
def figures(monkeypatch):
    """What is plotted, by the name of its file: what it shows is asked, and turning it into pixels takes seconds."""
    figure = pytest.importorskip("matplotlib.figure")
    saved = {}
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path: saved.update({path.name: self}))
    return saved


# What is measured.


def test_cases_are_those_of_the_papers():
    full = cases("float16", quick=False)
    training = [c for c in full if c.direction != "decode" and not c.option]
    assert len(set(full)) == len(full)
    assert len(training) == 2 * 2 * 3 * 6
    assert all(c.batch * c.seqlen_q == TOKENS and c.heads_q * c.head_dim == HIDDEN for c in training)
    assert {c.seqlen_k for c in full if c.direction == "decode"} >= {131072}
    assert set(cases("float16", quick=True)) < set(full)
    assert {c.dtype for c in cases("bfloat16", quick=True)} == {"bfloat16"}
    widths = [c.head_dim for c in cases("float16", quick=True)]
    assert widths.index(256) == len(widths) - widths.count(256)


def test_reduced_cases_keep_direction_head_dimension_mask_and_group():
    full = cases("float16", quick=True)
    reduced = [c.reduced() for c in full]
    assert all(c.seqlen_k <= 256 and c.heads_q <= 16 and c.batch == 1 for c in reduced)
    kept = [
        [(c.direction, c.head_dim, c.causal, c.group, c.option.strip("0123456789")) for c in some]
        for some in (full, reduced)
    ]
    assert kept[0] == kept[1] and len(set(reduced)) == len(set(kept[0]))
    assert small().reduced().seqlen_k == small().seqlen_k  # never longer


def test_work_is_counted_as_the_papers_do():
    case = Case("forward", "float16", 2, 3, 3, 5, 7, 11, False)
    assert case.flops == 4 * 2 * 3 * 5 * 7 * 11
    assert Case("backward", "float16", 2, 4, 4, 6, 6, 8, True).flops == 2.5 * 4 * 2 * 4 * 6 * 6 * 8 / 2
    decode = Case("decode", "float16", 1, 8, 2, 1, 1000, 64, False)
    assert decode.bytes_moved == 2 * (2 * 8 * 64 + 2 * 2 * 1000 * 64)
    backward = Case("backward", "bfloat16", 2, 8, 2, 5, 6, 64, True)  # q, out, dout, dq; k, v, dk, dv
    assert backward.bytes_moved == 2 * 2 * 64 * (4 * 8 * 5 + 4 * 2 * 6)


def test_inputs_are_views_of_shared_memory_and_differ_by_row():
    numbers = Numbers(np)
    long, short = (numbers.inputs(small(batch=b, seqlen_q=s, seqlen_k=s)) for b, s in ((1, 64), (2, 32)))
    assert long.q.shape == (1, 4, 64, 32) and long.q.swapaxes(1, 2).flags.c_contiguous
    assert np.shares_memory(long.q, short.q)
    assert len({x.tobytes() for x in long}) == 4 and all(0.9 < x.astype(float).std() < 1.1 for x in long)
    case = Case("forward", "float16", 1, 1, 1, 1, 2**15, 64, False)
    k = numbers.inputs(case).k  # more than the pool of numbers
    assert len(np.unique(k[0, 0].view(np.uint16), axis=0)) == 2**15
    assert POOL > 4e6 and all(POOL % n for n in range(2, 2048)), "as prime as the one used here"


def test_launches_are_those_of_the_plan():
    forward = runner.launches(small(), named("sm_90a"))
    assert forward[0].kernel.entry == "attention_forward" and forward[0].kernel.family == "mma"
    entries = {x.kernel.entry for x in runner.launches(small("backward", dtype="bfloat16"), named("sm_80"))}
    assert entries >= {"attention_forward", "attention_delta", "attention_dkdv"}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_what_is_compiled_ahead_is_what_is_launched(arch):
    every = {Case(**{**vars(c), "dtype": dtype}) for c in cases("float16", False) for dtype in ("float16", "bfloat16")}
    launched = {launch.kernel for case in every for launch in runner.launches(case, named(arch))}
    assert bench.kernels(named(arch)) == launched


# Verification.


def standard(case):
    x = Numbers(np).inputs(case)
    return methods.standard(np, case, x), x


@pytest.mark.parametrize("case", [*SMALL, small("backward", seqlen_q=96, seqlen_k=96)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_verification_accepts_standard_attention(case, dtype):
    case = Case(**{**vars(case), "dtype": dtype})
    bound, x = standard(case)
    assert 0 < Expected(case, x).error(bound, x) < 0.05


WRONG = {
    "a tenth too large": lambda x: x * x.dtype.type(1.1),
    "an element of the last row": lambda x: put(x, (-1, -1, -1, 3), x[-1, -1, -1, 3] + x.dtype.type(0.5)),
    "an element of the first row": lambda x: put(x, (-1, -1, 0, 3), x[-1, -1, 0, 3] - x.dtype.type(0.5)),
    "one that is no number": lambda x: put(x, (-1, -1, 0, 1), np.nan),
    "an infinite one": lambda x: put(x, (-1, -1, -1, 2), np.inf),
}


def put(x, where, value):
    x = x.copy()
    x[where] = value
    return x


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("case", "name"), [*((SMALL[1], n) for n in ("dq", "dk", "dv")), (SMALL[0], "out"),
                                            (SMALL[2], "out"), (SMALL[3], "dk")], ids=str)  # fmt: skip
def test_verification_rejects_what_is_wrong_in_any_result(case, name, wrong):
    bound, x = standard(case)
    forward, backward = bound.forward, bound.backward

    def spoiled(saved, dout):
        grads = dict(zip(("dq", "dk", "dv"), backward(saved, dout), strict=True))
        return tuple((grads | {name: WRONG[wrong](grads[name])}).values())

    bound.forward, bound.backward = lambda: WRONG[wrong](forward()), spoiled
    with pytest.raises(ArithmeticError, match=f"^wrong: {name} is off by"):
        Expected(case, x).error(bound, x)


def test_verification_grants_what_rounding_explains():
    """Four errors of naive attention in the storage type, and four roundings of the result; tells the largest error."""
    case = small(seqlen_q=96, seqlen_k=96)
    bound, x = standard(case)
    expected = Expected(case, x)
    heads = slice(case.heads_q - case.group, case.heads_q)
    q, k, v = x.q[-1:, heads], x.k[-1:, -1:], x.v[-1:, -1:]
    naive, exact = (attention_reference(q, k, v, causal=True, compute_dtype=t) for t in (None, np.float64))
    rows = [*range(32), *range(64, 96)]
    difference = np.abs(naive.astype(np.float64) - exact)[:, :, rows].max()
    allowed = 4 * difference + 4 * 2**-10 * np.abs(exact[:, :, rows]).max()
    out = np.zeros((case.batch, case.heads_q, *exact.shape[2:]))
    bound.forward = lambda: out
    for share in (0.99, -0.99, 1.01, -1.01):
        out[-1, heads] = exact[0]
        out[-1, heads, -1] += share * allowed
        if abs(share) < 1:
            assert expected.error(bound, x) == pytest.approx(0.99 * allowed)
        else:
            with pytest.raises(ArithmeticError):
                expected.error(bound, x)


# Timing.


def test_events_enclose_the_call_alone(monkeypatch, cupy):
    """Two calls to warm up; then each after a flush of the L2 cache and a wait longer than its launch."""
    done, now = cupy.done, [0.0]

    def call():
        done.append("call")
        now[0] += 0.002  # of the host, to launch

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    elapsed = iter([4.0, 2.0, 8.0, 6.0, 1.0, 3.0, 100.0] + [4.0] * 93)
    monkeypatch.setattr(cupy.cuda, "get_elapsed_time", lambda begin, end: next(elapsed))
    result = timing.EventTimer().measure(call)
    assert done[:4] == ["call", "synchronize", "call", "synchronize"]
    cycles = round((50e-6 + 2 * 0.002) * timing.MAX_CYCLES_PER_SECOND)
    assert done[4:-1] == ["flush", f"spin {cycles}", "record", "call", "record"] * 100  # 0.2 s of 2 ms
    assert done[-1] == "synchronize" and next(elapsed, None) is None
    assert result == (0.004, 0.004, 0.004, 100)


@pytest.mark.parametrize(("seconds", "repeats"), [
    (0.0, 100), (0.0019, 100), (0.0021, 95), (0.01, 20), (0.02, 10), (0.0286, 7), (0.1, 7), (60.0, 7),
])  # fmt: skip
def test_short_calls_are_repeated_more(seconds, repeats):
    assert timing.repeats_for(seconds) == repeats


def test_the_host_timer_finds_the_time_of_one_call(monkeypatch):
    """A queue that takes 3 ms a call after a latency of 50 ms, launches of 1 ms in between."""
    now, ready = [0.0], [0.0]

    def call():
        now[0] += 0.001
        ready[0] = max(ready[0], now[0] + 0.05) + 0.003

    def wait(result):
        now[0] = max(now[0], ready[0])

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    result = timing.HostTimer(wait).measure(call)
    assert result[:3] == pytest.approx((0.003,) * 3) and result.repeats == timing.MIN_REPEATS


def test_what_the_host_cannot_time_is_refused(monkeypatch):
    """Noise larger than the call: the tenth of the times that is least may be none, or less."""
    ticks = iter([0.0] * 4 + [x for i in range(7) for x in (0.0, (1.0, 9.0)[i > 1], 0.0, 2.0)])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    with pytest.raises(RuntimeError, match="too short for the host's clock"):
        timing.HostTimer(lambda result: None).measure(lambda: None)


def test_spread_is_the_percentiles():
    assert timing.Timing.of([float(i) for i in range(101)]) == (50, 10, 90, 101)


def test_the_spinning_kernel_compiles(tmp_path, monkeypatch):
    pytest.importorskip("cupy", reason="NVRTC comes with the extra cuda13")
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", str(tmp_path))
    assert text_to_cubin(timing.SPIN, "spin.cu", "spin", "sm_90a").path.exists()


# A stand-in for CuPy on which the whole command runs.


class Stream:
    ptr = 77

    def __init__(self, done, non_blocking=True):
        self.done_list = done

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def synchronize(self):
        self.done_list.append("synchronize")


@pytest.fixture
def cupy(monkeypatch):
    """NumPy with the parts of cupy.cuda that the harness uses; `done` lists what was asked of the device."""
    done, times = [], itertools.cycle([4.0, 2.0, 8.0, 6.0, 1.0, 3.0, 100.0])

    class Event:
        def record(self, stream):
            assert isinstance(stream, Stream)
            self.at = len(done)
            done.append("record")

    class Memory:
        def __init__(self, size):
            self.size = size

        def memset_async(self, value, size, stream):
            assert size == self.size == 2 * device.attributes["L2CacheSize"] and isinstance(stream, Stream)
            done.append("flush")

        def copy_from_device_async(self, source, size, stream):
            assert source is not self and size == source.size == self.size and isinstance(stream, Stream)

    class Pool:
        taken = 0  # of what a call under `using_allocator` took

        def malloc(self, size):
            raise AssertionError

        def total_bytes(self):
            return self.taken

        def free_all_blocks(self):
            self.taken = 0

    @contextlib.contextmanager
    def using_allocator(malloc):
        malloc.__self__.taken += 4096
        yield

    def elapsed(begin, end):
        """Seven at a time with median 4, tenth 1.6, ninetieth 44.8 ms, and a mean of neither."""
        assert begin.at < end.at
        return next(times)

    class CUDARuntimeError(RuntimeError):
        pass

    def device_synchronize():
        if fake.lost:
            raise CUDARuntimeError("cudaErrorIllegalAddress")

    runtime = types.SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceProperties=lambda index: {"name": b"NVIDIA Fake 1", "major": 8, "minor": 0},
        runtimeGetVersion=lambda: 13020,
        driverGetVersion=lambda: 13000,
        deviceSynchronize=device_synchronize,
        CUDARuntimeError=CUDARuntimeError,
    )
    device = types.SimpleNamespace(
        attributes={"L2CacheSize": 1024}, compute_capability="80", synchronize=lambda: None, pci_bus_id="0000:1B:00.0"
    )
    fake = types.ModuleType("cupy")
    fake.__getattr__ = lambda name: getattr(np, name)
    fake.__version__, fake.done, fake.lost, fake.compiled = "14.0", done, False, set()
    fake.get_default_memory_pool = Pool
    fake.cuda = types.SimpleNamespace(
        runtime=runtime,
        Device=lambda *index: device,
        Event=Event,
        Stream=lambda non_blocking: Stream(done),
        MemoryPool=Pool,
        alloc=Memory,
        get_elapsed_time=elapsed,
        get_current_stream=lambda: Stream(done),
        using_allocator=using_allocator,
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(
        timing, "_spin_kernel", lambda index: lambda grid, block, arguments: done.append(f"spin {arguments[0]}")
    )
    monkeypatch.setattr(machine.Gpu, "matmul_size", 64)
    monkeypatch.setattr(ahead, "compile_all", lambda kernels, arch: fake.compiled.update(kernels))
    return fake


def test_the_stand_in_offers_nothing_that_cupy_lacks(cupy, monkeypatch):
    monkeypatch.undo()
    real = pytest.importorskip("cupy", reason="CuPy comes with the extra cuda13")
    assert all(hasattr(real.cuda, name) for name in vars(cupy.cuda))
    assert all(hasattr(real.cuda.runtime, name) for name in vars(cupy.cuda.runtime))
    for owner, names in {
        real.cuda.MemoryPointer: ("memset_async", "copy_from_device_async"),
        real.cuda.MemoryPool: ("malloc", "total_bytes", "free_all_blocks"),
        real.cuda.Stream: ("synchronize", "done", "begin_capture", "end_capture", "__enter__"),
        real.cuda.Event: ("record",),
        real.cuda.Device: ("attributes", "compute_capability", "synchronize"),
        real.cuda.Graph: ("launch",),
        real.ndarray: ("__dlpack__", "view", "copy", "get"),
        real: ("from_dlpack", "get_default_memory_pool", "matmul", "where", "exp"),
    }.items():
        assert all(hasattr(owner, name) for name in names), owner


class Numbered(methods.Method):
    """Standard attention in NumPy under another name, failing or wrong if asked."""

    distribution = "numpy"

    def __init__(self, name, fail=None):
        self.name, self.fail = name, fail

    def bind(self, case, x):
        if self.fail:
            self.fail()
        return methods.standard(np, case, x)


@pytest.fixture
def command(cupy, monkeypatch, tmp_path):
    """`bench` on small cases with given methods; returns the exit status."""
    get, gpu = backends.get, types.SimpleNamespace(device=named("sm_80"), status=str)
    monkeypatch.setattr(backends, "get", lambda name: gpu if name == "cuda" else get(name))
    monkeypatch.setattr(bench, "commit_of_sources", lambda: "abc")
    monkeypatch.setattr(bench, "cases", lambda dtype, quick: SMALL)
    monkeypatch.setattr(bench, "plot", lambda rows, stem: [])
    monkeypatch.setattr(timing, "SECONDS", 0)

    def command(*arguments, peers=(), out=tmp_path / "results.csv"):
        monkeypatch.setattr(bench, "all_methods", lambda backend: [methods.Flash(), *peers])
        return main(["bench", "--out", str(out), *arguments])

    return command


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_bench_measures_writes_and_plots(command, cupy, figures, tmp_path, monkeypatch, capsys):
    def refuse():
        raise ValueError("no kernel for this |\n shape")

    class Wrong(Numbered):
        def bind(self, case, x):
            bound = super().bind(case, x)
            bound.forward, bound.backward = (lambda: x.q), (lambda saved, dout: (x.q, x.k, x.v))
            return bound

    class Missing(Numbered):
        def load(self):
            raise ImportError("No module named 'other'")

    monkeypatch.setattr(bench, "plot", plot)
    peers = [Numbered("peer"), Numbered("refusing", refuse), Missing("absent"), Wrong("wrong"), methods.Standard()]
    (tmp_path / "results.csv").touch()
    assert command(peers=peers) == 0
    rows = rows_of(tmp_path / "results.csv")
    assert tuple(rows[0]) == books.FIELDS
    assert len(rows) == 2 + 5 * len(SMALL)
    by_method = {name: [r for r in rows if r["method"] == name] for name in ("cupy_flash", "peer", "refusing", "cupy")}
    rates = {r["direction"]: r["tflops"] or r["gbps"] for r in by_method["cupy"]}
    assert rates == {"matmul": f"{2 * 64**3 / 0.004 / 1e12:.6g}", "copy": f"{2 * 2**30 / 0.004 / 1e9:.6g}"}
    for row in rows:
        if row["method"] == "wrong":
            assert re.match(r"wrong: (out|dq) is off by ", row["status"]) and row["median_us"] == row["tflops"] == ""
        elif row["method"] != "refusing":
            times = [row[name] for name in ("median_us", "p10_us", "p90_us", "repeats", "timer")]
            assert times == ["4000", "1600", "44800", "7", "events"]
    for row in by_method["cupy_flash"]:
        case = books.case_of(row)
        assert row["status"] == "ok" and case in SMALL and row["peak_bytes"] == "4096"
        assert float(row["tflops"]) == pytest.approx(case.flops / 0.004 / 1e12, rel=1e-5)
        assert float(row["gbps"]) == pytest.approx(case.bytes_moved / 0.004 / 1e9, rel=1e-5)
        assert "attention_" in row["plan"] and float(row["error"]) > 0
        assert {str(kernel) for kernel in cupy.compiled} >= set(re.findall(r"(\w+/\w+\(.*?\)) x \d+", row["plan"]))
        assert row["commit"] == "abc" and row["device"] == "NVIDIA Fake 1" and row["cuda"] == "13.2"
        assert row["arch"] == "sm_80" and re.fullmatch(r"20\d\d-\d\d-\d\d", row["date"])
    assert {r["status"] for r in by_method["refusing"]} == {"ValueError: no kernel for this | shape"}
    assert {r["method_version"] for r in by_method["peer"]} == {np.__version__}
    printed = capsys.readouterr()
    assert "not compared: absent, ImportError: No module named 'other'" in printed.out
    assert printed.out.count("failed: refusing") == len(SMALL)
    assert "| 1.00 |" in printed.out  # all take the same time
    told = re.findall(r"^\[(\d+)/20\] .* S 40 .*$", printed.err, flags=re.MULTILINE)
    assert told == ["5", "10", "15", "20"] and "\r" not in printed.err
    assert list(figures) == [f"results-{direction}.png" for direction in ("forward", "backward", "decode")]
    assert all(f"{tmp_path / name}\n" in printed.out for name in figures)


def test_bench_goes_on_where_it_stopped(command, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results.csv"
    assert command("--minutes", "0") == 0
    assert f"{len(SMALL)} measurements left" in capsys.readouterr().out
    assert len(rows_of(out)) == 2  # the limits
    assert command("--only", "decode") == 0
    assert len(rows_of(out)) == 3
    assert command() == 0
    assert len(rows_of(out)) == 2 + len(SMALL)
    with out.open("a") as file:
        file.write("forward,float16,2")  # a run that was killed while it wrote
    before = out.read_text()
    assert command() == 0
    assert out.read_text() == before
    out.write_text(before.rpartition("\n")[0] + "\n")
    monkeypatch.setattr(bench, "commit_of_sources", lambda: "another")
    assert command() == 0
    assert len(rows_of(out)) == 2 * (2 + len(SMALL))


def test_a_method_that_breaks_the_device_is_written_down_and_passed_over(command, cupy, tmp_path, capsys):
    def crash():
        cupy.lost = True
        raise RuntimeError("an illegal memory access")

    peers = [Numbered("crashing", crash), Numbered("peer")]
    for done in range(1, len(SMALL) + 1):
        cupy.lost = False
        assert command(peers=peers) == 1
        assert "the GPU refuses more after crashing" in capsys.readouterr().err
        assert sum(r["method"] == "crashing" for r in rows_of(tmp_path / "results.csv")) == done
    cupy.lost = False
    assert command(peers=peers) == 0
    assert len(rows_of(tmp_path / "results.csv")) == 2 + 3 * len(SMALL)


def test_methods_take_turns():
    book = books.Book(Path("nowhere.csv"), PLACE)
    order = [m.name for _, m in runner.pending(SMALL, methods.all_methods("cuda"), book)]
    turns = (
        ["cupy_flash", "torch flash", "torch cudnn", "torch efficient", "jax cudnn", "flash-attn-3"],
        ["flash-attn-4", "FlexAttention"],
        ["torch math", "standard (CuPy)"],
    )
    assert order == [name for turn in turns for _ in SMALL for name in turn]


def test_memory_of_a_failed_call_is_free_before_the_next(command, tmp_path):
    """Though a cycle holds the traceback, and a pool is not of the method that failed."""
    held, released = [], []

    class Held:
        pass

    def fail():
        large = Held()
        held.append(weakref.ref(large))
        error = MemoryError("no more of it")
        error.itself = error
        raise error

    class Pooled(Numbered):
        def release(self):
            released.append([each() is None for each in held])

    gc.disable()
    try:
        assert command(peers=[Pooled("pooled"), Numbered("failing", fail)]) == 0
    finally:
        gc.enable()
    assert len(held) == len(SMALL) and all(map(all, released))
    assert [len(each) for each in released] == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4]


def test_results_of_other_columns_are_not_mixed(command, tmp_path, capsys):
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    assert command() == 1
    assert "other columns" in capsys.readouterr().err


def test_without_progress_bars_and_plots_bench_still_measures(command, tmp_path, monkeypatch, capsys):
    for name in ("tqdm", "matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(bench, "plot", plot)
    assert command() == 0
    printed = capsys.readouterr()
    assert "no plots" in printed.out and printed.err.count("cupy_flash") == len(SMALL)


def test_a_terminal_gets_a_bar_and_every_rate(command, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert command(peers=[Numbered("peer")]) == 0
    told = capsys.readouterr().err
    assert "bench |" in told
    rates = re.findall(r"\[(\d)/8\] (\w+) .* (\S+) +(\S+) (\S+)", told)
    for (_, direction, method, rate, unit), case, ours in zip(
        rates, [c for c in SMALL for _ in range(2)], [True, False] * 4, strict=True
    ):
        assert (direction, method) == (case.direction, "cupy_flash" if ours else "peer")
        amount, expected = (case.bytes_moved / 1e9, "GB/s") if direction == "decode" else (case.flops / 1e12, "TFLOP/s")
        assert (rate, unit) == (f"{amount / 0.004:.4g}", expected)
    assert [number for number, *_ in rates] == list("12345678")


@pytest.mark.parametrize(("arguments", "seconds"), [
    (["--minutes", "2"], 120), (["--minutes", "0.5", "--quick"], 30), (["--quick"], 270), ([], float("inf")),
])  # fmt: skip
def test_minutes_are_of_sixty_seconds(command, arguments, seconds, monkeypatch):
    deadlines = []
    monkeypatch.setattr(bench.time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(runner, "measure_all", lambda *arguments: deadlines.append(arguments[-1]))
    assert command(*arguments) == 0
    assert deadlines == [1000 + seconds]


def test_time_is_up_between_two_measurements(command, monkeypatch, tmp_path, capsys):
    now = itertools.count(0, 20)  # one at 20 s, at 40 and at 60
    monkeypatch.setattr(bench.time, "monotonic", lambda: next(now))
    assert command("--minutes", "1") == 0
    assert [r["direction"] for r in rows_of(tmp_path / "results.csv")[2:]] == ["forward", "backward", "decode"]
    assert "1 measurements left" in capsys.readouterr().out


@pytest.mark.parametrize("lost", [False, True])
def test_a_limit_that_fails_is_written_down(command, cupy, lost, tmp_path, capsys):
    def matmul(x, y):
        cupy.lost = lost
        raise RuntimeError("cuBLAS is missing")

    cupy.matmul = matmul
    assert command() == int(lost)
    first, *others = rows_of(tmp_path / "results.csv")
    assert (first["direction"], first["status"], first["tflops"]) == ("matmul", "RuntimeError: cuBLAS is missing", "")
    printed = capsys.readouterr()
    if lost:
        assert not others and "the GPU refuses more after RuntimeError: cuBLAS is missing" in printed.err
    else:
        assert len(others) == 1 + len(SMALL) and "and copy: 537 GB/s." in printed.out
        assert re.search(r"\| forward, causal, float16 .* \| - \| - \| - \| - \| 4\.1 kB \|", printed.out)


def test_peak_memory_is_of_the_calls_own_pool(cupy):
    """Asked while the result is alive, and after the call alone has taken from it."""
    pools = []

    class Pool(cupy.cuda.MemoryPool):
        def __init__(self):
            pools.append(self)

        def total_bytes(self):
            return self.taken if held() is not None else 0

    class Result:
        pass

    def call():
        nonlocal held
        result = Result()
        held = weakref.ref(result)
        pools[-1].taken += 100
        return result

    held = lambda: None  # noqa: E731
    cupy.cuda.MemoryPool = Pool
    assert machine.Gpu(named("sm_80")).peak_bytes(call) == 4196
    assert len(pools) == 1 and held() is None


@pytest.mark.parametrize(("text", "version"), [
    ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version: gcc 12.2.0\n", "550.54.15"),
    ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57  Release Build\n", "575.57"),
    ("NVRM\n", None), (None, None),
])  # fmt: skip
def test_the_drivers_version_is_its_own(text, version, monkeypatch, tmp_path):
    path = tmp_path / "version"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(machine, "Path", lambda name: path if name == "/proc/driver/nvidia/version" else None)
    assert machine._driver() == version


def test_bench_is_rehearsed_in_the_emulator(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "all_methods", methods.all_methods)
    out = tmp_path / "rehearsal.csv"
    arguments = ["bench", "--backend", "emulator:sm_90a", "--only", "decode", "--out", str(out)]
    assert main(arguments) == 0
    rows = rows_of(out)
    assert [r["method"] for r in rows] == ["cupy", "cupy", "cupy_flash", "standard (NumPy)"]
    assert {r["status"] for r in rows} == {"ok"} and {r["timer"] for r in rows} == {"emulator"}
    assert {r["device"] for r in rows} == {"emulator:sm_90a"} and {r["repeats"] for r in rows} == {"1"}
    assert "attention_" in rows[2]["plan"] and float(rows[2]["error"]) > 0
    assert main(arguments) == 0
    assert rows_of(out) == rows
    assert "float16 matmul of 64 and copy" in capsys.readouterr().out


def test_what_would_be_measured_is_listed_without_a_gpu(monkeypatch, capsys):
    found = {"torch": "2.14"}

    def version(name):
        if found.get(name) is None:
            raise listing.PackageNotFoundError
        return found[name]

    monkeypatch.setattr(listing, "version", version)
    assert main(["bench", "--list", "--only", "decode", "--quick"]) == 0
    printed = capsys.readouterr().out
    cases_there = [c for c in cases("float16", True) if c.direction == "decode"]
    assert all(f"  {case}\n" in printed for case in cases_there) and f"{len(cases_there)} cases" in printed
    for method in methods.all_methods("cuda"):
        assert f"  {method.name}  " in printed
    functions = "softcapmod, documentsmod\n"
    assert re.search(rf"torch cudnn +installed, 2\.14; without softcap, sinks, {functions}", printed)
    assert re.search(
        rf"flash-attn-4 +missing: .*flash-attn-4; without alibi, documents, lengths, bias, {functions}", printed
    )
    assert re.search(r"FlashInfer +left out: ", printed)
    # Torch's three fast methods and ours take 1.5 s each, FlexAttention 15, the standard ones 3 each.
    monkeypatch.setattr(listing, "find_spec", lambda name: name == "cupy")
    monkeypatch.setattr(methods.Standard, "version", "14.0")
    for options, minutes in (["--quick"], 5), (["--quick", "--minutes", "99"], 15), (["--minutes", "2"], 2), ([], 45):
        assert main(["bench", "--list", *options]) == 0
        there = [m for m in methods.all_methods("cuda") if m.distribution == "torch" or m.module == "cupy"]
        count = sum(m.takes(c) for m in there for c in cases("float16", "--quick" in options))
        expected = f"{count} measurements with what is installed, about {minutes} min\n"
        assert capsys.readouterr().out.endswith(expected)
    assert main(["bench", "--list", "--backend", "emulator", "--only", "decode"]) == 0
    assert f"  {cases_there[0].reduced()}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "text"), [("--only", "sideways"), ("--methods", "tortch")])
def test_a_name_that_nothing_has_is_refused(option, text, capsys):
    assert main(["bench", option, text]) == 1
    assert f"{option} is {text!r}: no " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "cpu", "--out", "x.csv"], "--backend is 'cpu'"),
        (["--backend", "emulator:sm_1", "--out", "x.csv"], "architecture is 'sm_1'"),
        (["--backend", "emulator"], "name one with --out"),
    ],
)
def test_malformed_backends_are_named(arguments, message, capsys):
    assert main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_files_are_named_after_device_and_day(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert bench._default_path("NVIDIA H200", TODAY) == Path("nvidia-h200-2026-01-02.csv")
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    assert bench._default_path("NVIDIA H200", TODAY).parent == tmp_path / "benchmarks" / "results"
    digest = bench.commit_of_sources()
    assert re.fullmatch(r"sources-[0-9a-f]{12}", digest)  # no repository
    shutil.copytree(bench.source.root(), tmp_path / "sources")
    monkeypatch.setattr(bench.source, "root", lambda: tmp_path / "sources")
    assert bench.commit_of_sources() == digest
    next((tmp_path / "sources").rglob("combine.cu")).write_text("changed")
    assert bench.commit_of_sources() != digest


@pytest.mark.parametrize("changed", ["", " M cuda_src/mma/forward.cu\n"])
def test_a_commit_tells_whether_the_code_has_changed_since(changed, tmp_path, monkeypatch):
    def git(command, cwd, **options):
        assert command[0] == "git" and cwd == tmp_path
        if command[1] == "status":
            assert command[-3:] == ["--", "cupy_flash", "cuda_src"] and "--untracked-files=no" in command
        return types.SimpleNamespace(stdout=changed if command[1] == "status" else "0123456789ab\n")

    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    monkeypatch.setattr(bench.subprocess, "run", git)
    assert bench.commit_of_sources() == "0123456789ab" + "+changes" * bool(changed)


# Table and README.


def row(case, method, speed, status="ok", **columns):
    values = dict.fromkeys(books.FIELDS, "") | books.case_columns(case) | PLACE
    speeds = {"tflops": str(speed), "gbps": str(speed), "peak_bytes": "2000000", "method_version": "9", "date": TODAY}
    times = {"median_us": "100", "p10_us": "80", "p90_us": "125"}
    return values | speeds | times | {"method": method, "status": status} | columns


def rows():
    forward, decode = small(), small("decode", heads_k=2)
    return [
        row(runner.matmul_case(8192), "cupy", 800),
        row(runner.copy_case(2**30), "cupy", 4000),
        row(forward, "cupy_flash", 400),
        row(forward, "slower", 300),
        row(forward, "faster", 500),
        row(forward, "broken", 0, "ValueError: no"),
        row(decode, "cupy_flash", 3600),
        row(decode, "slower", 1800),
    ]


def test_the_table_shows_the_ratio_to_the_best_and_the_share_of_the_most():
    text = table.render(rows())
    assert "| forward, causal, float16 | 32 | 2 | 4 | 40 | 400 | 50% | faster | 500 | 0.80 | 2 MB |" in text
    assert "| decode, float16 | 32 | 2 | 4/2 | 40 | 3600 | 90% | slower | 1800 | 2.00 | 2 MB |" in text
    assert "matmul of 8192 and copy: 800 TFLOP/s, 4000 GB/s" in text


def test_the_table_shows_our_failures_and_cases_without_others():
    text = table.render([row(small(), "cupy_flash", 0, "wrong: out is off by 1")])
    assert "| wrong: out is off by 1 | - | - | - | - |" in text
    alone = table.render([row(small(), "cupy_flash", 7)])
    assert "| 7 | - | - | - | - | 2 MB |" in alone


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, books.FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def test_the_readme_section_is_of_the_newest_file_and_its_last_commit(tmp_path):
    assert readme.section(tmp_path) == readme.NOT_YET
    write(tmp_path / "z-2026-01-01.csv", rows())
    old = [{**r, "commit": "older", "tflops": "1", "gbps": "1"} for r in [*rows(), row(small(), "gone", 900)]]
    write(tmp_path / "a-2026-01-02.csv", old + rows())
    (tmp_path / "b-golden.csv").write_text("not results")
    text = readme.section(tmp_path)
    assert "a-2026-01-02.csv" in text and "NVIDIA Fake 1, 2026-01-02" in text
    assert "faster 9" in text and "gone" not in text
    assert table.render(rows()) in text
    page = f"before\n{readme.BEGIN}\nwhatever\n{readme.END}\nafter\n"
    made = readme.replace(page, tmp_path)
    assert made == f"before\n{readme.BEGIN}\n{text}\n{readme.END}\nafter\n"
    assert readme.replace(made, tmp_path) == made
    with pytest.raises(UserError, match="once each"):
        readme.replace("no marks", tmp_path)


def test_the_readme_is_in_step_with_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.replace(text, ROOT / "benchmarks" / "results") == text


def bars(ax, number):
    """Of each method in a panel: where its bars stand, how high they are, and the ends of their lines."""
    lines = [tuple(map(tuple, line.get_data())) for line in ax.lines if len(set(line.get_xdata())) == 1]
    found = {}
    for container in ax.containers:
        (bar,) = container
        middle = bar.get_x() + bar.get_width() / 2
        ((_, spread),) = [line for line in lines if line[0][0] == pytest.approx(middle)]
        found.setdefault(bar.get_facecolor(), []).append((middle, bar.get_height(), *spread))
    return {number[color]: values for color, values in found.items()}


def test_the_plot_shows_every_number(figures, tmp_path):
    """Bars are rates, lines from that of the ninetieth percentile of the time to that of the tenth."""
    colors = pytest.importorskip("matplotlib.colors")
    chosen = [c for c in cases("float16", quick=False) if c.head_dim in (64, 128) and not c.option]
    measured = [
        row(c, method, 1000 * i + n) for i, c in enumerate(chosen) for n, method in enumerate(("b", "cupy_flash", "a"))
    ]
    for each in measured:  # the other unit's column is no rate of this case
        each["tflops" if each["direction"] == "decode" else "gbps"] = "7777777"
    spread = measured[0]
    spread.update(median_us="300", p10_us="200", p90_us="600")
    written = plot([*rows()[:2], *measured], tmp_path / "x")
    assert [path.name for path in written] == list(figures) == ["x-forward.png", "x-backward.png", "x-decode.png"]
    palette = sys.modules[plot.__module__]
    number = {colors.to_rgba(c): m for c, m in zip(palette.PEER_COLORS, "ab", strict=False)}
    number[colors.to_rgba(palette.OUR_COLOR)] = "cupy_flash"
    seen = 0
    for name, figure in figures.items():
        direction = name[2:-4]
        decode = direction == "decode"
        assert figure._suptitle.get_text().startswith(f"Attention {direction} on NVIDIA Fake 1, {TODAY}\n")
        assert len(figure.axes) == (2 if decode else 4)
        for ax in figure.axes:
            title = ax.get_title(loc="left")
            panel = [
                c for c in sorted(chosen, key=lambda c: c.seqlen_k) if c.direction == direction
                and title == (f"float16, head dimension 128, {c.heads_q} heads, {c.heads_k} of keys" if decode else
                              f"float16, head dimension {c.head_dim}" + ", causal" * c.causal)
            ]  # fmt: skip
            assert panel and ax.get_ylabel() == ("GB/s" if decode else "TFLOP/s")
            assert [tick.get_text().split("\n")[0] for tick in ax.get_xticklabels()] == [
                f"{c.seqlen_k // 1024}k" if c.seqlen_k >= 1024 else str(c.seqlen_k) for c in panel
            ]
            (most,) = [line.get_ydata()[0] for line in ax.lines if line.get_label() == "measured matmul or copy"]
            assert most == (4000 if decode else 800)
            for place, method in enumerate(("cupy_flash", "a", "b")):
                for s, (c, (x, rate, low, high)) in enumerate(zip(panel, bars(ax, number)[method], strict=True)):
                    expected = 1000 * chosen.index(c) + ("b", "cupy_flash", "a").index(method)
                    assert (round(x), rate) == (s, expected)
                    assert np.sign(round(x - s, 9)) == place - 1
                    slowest, fastest = (0.5, 1.5) if (c, method) == (chosen[0], "b") else (0.8, 1.25)
                    assert (low, high) == pytest.approx((slowest * expected, fastest * expected))
                    seen += 1
    assert seen == len(measured)


def test_the_plot_has_every_method_and_tells_no_memory_from_bad_memory(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    case, names = small(), [m.name for m in methods.all_methods("cuda")]
    monkeypatch.setattr(sys.modules[plot.__module__], "files", lambda stem: {"forward": stem.with_suffix(".svg")})
    failures = [
        row(case, "fallen", 0, "cudaErrorIllegalAddress: an illegal memory access was encountered"),
        row(case, "full", 0, "OutOfMemoryError: Out of memory allocating 9 bytes"),
    ]
    (written,) = plot([*rows()[:2], *(row(case, m, 100) for m in names), *failures], tmp_path / "x")
    drawn = re.findall(r"<!-- (.*?) -->", written.read_text(encoding="utf-8"))
    assert set(names) <= {words.removesuffix(" 9") for words in drawn}
    assert drawn.count("failed") == drawn.count("OOM") == 1


# The other libraries.


def attend(q, k, v, causal):
    out = attention_reference(*(np.asarray(t) for t in (q, k, v)), causal=causal).view(Tensor)
    out.causal = causal
    return out


@pytest.fixture
def nvml(monkeypatch):
    """A stand-in for pynvml, whose GPU grows warmer with each look and tells no power; `seen` has the bus asked for."""

    class NVMLError(Exception):
        pass

    def power(handle):
        raise NVMLError

    temperatures = iter(range(40, 1000))
    fake = types.SimpleNamespace(
        NVML_CLOCK_SM=1, NVML_TEMPERATURE_GPU=0, NVMLError=NVMLError, nvmlInit=lambda: None, seen=[],
        nvmlDeviceGetHandleByPciBusId=lambda bus: fake.seen.append(bus) or "handle",
        nvmlDeviceGetClockInfo=lambda handle, kind: {("handle", 1): 1980}[handle, kind],
        nvmlDeviceGetPowerUsage=power,
        nvmlDeviceGetTemperature=lambda handle, kind: {("handle", 0): next(temperatures)}[handle, kind],
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_rows_tell_clock_and_temperature_before_and_after(command, nvml, tmp_path):
    assert command() == 0
    written = rows_of(tmp_path / "results.csv")
    assert nvml.seen == [b"0000:1B:00.0"]
    for number, row in enumerate(written):
        assert (row["sm_mhz_before"], row["sm_mhz_after"], row["watts_before"]) == ("1980", "1980", "")
        assert (row["celsius_before"], row["celsius_after"]) == (str(40 + 2 * number), str(41 + 2 * number))


def test_power_is_in_watts(nvml, monkeypatch):
    nvml.nvmlDeviceGetPowerUsage = lambda handle: 250_500
    sensors = telemetry.Telemetry(lambda: "0000:1B:00.0")
    assert sensors.read("after") == {"sm_mhz_after": 1980, "watts_after": 250.5, "celsius_after": 40}


def test_without_nvml_the_columns_are_empty(command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert command() == 0
    assert {row["sm_mhz_after"] for row in rows_of(tmp_path / "results.csv")} == {""}


@pytest.fixture
def libraries(cupy, monkeypatch):
    """Modules torch, flash_attn.cute and jax on NumPy; `asked` lists how they were called."""
    asked = []

    def module(name, **members):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**members))
        return sys.modules[name]

    @contextlib.contextmanager
    def sdpa_kernel(chosen):
        asked.append(chosen[0])
        yield

    def sdpa(q, k, v, is_causal, enable_gqa=False):
        assert enable_gqa == (q.shape[1] != k.shape[1])
        return attend(q, k, v, is_causal)

    def grad(out, leaves, dout, retain_graph):
        causal = out.causal if hasattr(out, "causal") else out.base.causal
        return tuple(
            g.view(Tensor)
            for g in attention_reference_backward(*(np.asarray(t) for t in (dout, *leaves)), causal=causal)
        )

    torch_cuda = types.SimpleNamespace(
        is_available=lambda: True,
        ExternalStream=lambda ptr: ptr,
        stream=lambda ptr: asked.append(("stream", ptr)) or contextlib.nullcontext(),
        synchronize=lambda: None,
        reset_peak_memory_stats=lambda: None,
        memory_allocated=lambda: 1000,
        max_memory_allocated=lambda: 3000,
        empty_cache=lambda: None,
    )
    module(
        "torch",
        cuda=torch_cuda,
        float16=np.float16,
        bfloat16=DTYPES["bfloat16"],
        int16=np.int16,
        from_dlpack=lambda a: np.from_dlpack(a).view(Tensor),
        no_grad=contextlib.nullcontext,
        autograd=types.SimpleNamespace(grad=grad),
        _dynamo=types.SimpleNamespace(reset=lambda: asked.append("reset")),
        compile=lambda f, dynamic: f,
        __version__="0",
    )
    names = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
    module("torch.nn.attention", sdpa_kernel=sdpa_kernel, SDPBackend=types.SimpleNamespace(**{n: n for n in names}))
    module("torch.nn.functional", scaled_dot_product_attention=sdpa)

    def flex(q, k, v, block_mask=None, enable_gqa=False):
        assert enable_gqa == (q.shape[1] != k.shape[1])
        if block_mask is not None:
            i, j = np.arange(q.shape[2])[:, None], np.arange(k.shape[2])
            assert (block_mask[0](0, 0, i, j) == (j <= i)).all() and block_mask[3:] == (q.shape[2], k.shape[2])
        return attend(q, k, v, block_mask is not None)

    module(
        "torch.nn.attention.flex_attention",
        flex_attention=flex,
        create_block_mask=lambda mask, b, h, sq, sk, device: (mask, b, h, sq, sk),
    )

    def flash_attn_func(q, k, v, causal, num_splits):
        asked.append(("splits", num_splits))
        return attend(*(t.transpose(1, 2) for t in (q, k, v)), causal).transpose(1, 2), None

    module("flash_attn.cute", flash_attn_func=flash_attn_func)
    module("flash_attn_interface", flash_attn_func=flash_attn_func)

    def dot_product_attention(q, k, v, is_causal, implementation):
        assert implementation == "cudnn"
        out = attention_reference(*(a.swapaxes(1, 2) for a in (q, k, v)), causal=is_causal)
        asked.append(("jax", is_causal))
        return out.swapaxes(1, 2)

    def vjp(f, *arguments):
        out = f(*arguments)
        causal = asked[-1][1]
        swapped = [a.swapaxes(1, 2) for a in arguments]
        return out, lambda dout: tuple(
            g.swapaxes(1, 2) for g in attention_reference_backward(dout.swapaxes(1, 2), *swapped, causal=causal)
        )

    module(
        "jax",
        jit=lambda f: f,
        vjp=vjp,
        block_until_ready=lambda a: a,
        default_backend=lambda: "gpu",
        nn=types.SimpleNamespace(dot_product_attention=dot_product_attention),
    )

    def from_dlpack(a):
        assert a.flags.c_contiguous  # JAX has no strides
        return a

    module("jax.dlpack", from_dlpack=from_dlpack)
    return asked


PEERS = [m for m in methods.all_methods("cuda") if not isinstance(m, (methods.Flash, methods.Standard))]


@pytest.mark.parametrize("method", PEERS, ids=lambda m: m.name)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_adapters_pass_the_same_problem_on(libraries, method, case):
    method.load()
    x = Numbers(np).inputs(case)
    bound = method.bind(case, x)
    assert np.shares_memory(bound.take(x.q), x.q)
    assert bound.give(bound.take(x.q)).shape == x.q.shape
    with method.on_stream(Stream([])):
        assert Expected(case, x).error(bound, x) < 0.02
    if isinstance(method, methods.Torch):
        assert ("stream", Stream.ptr) in libraries
        assert method.peak_bytes(None, bound.forward) == 2000
    if isinstance(method, methods.Sdpa):
        assert method.backend in libraries
    if isinstance(method, methods.FlashAttentionFunc):
        assert ("splits", 0 if case.direction == "decode" else 1) in libraries


def test_all_peers_run_through_the_command(command, libraries, monkeypatch, tmp_path):
    assert command(peers=PEERS) == 0
    written = rows_of(tmp_path / "results.csv")
    # The stand-ins take no time that the host's clock could tell apart twice.
    assert {r["status"] for r in written if r["timer"] == "events"} == {"ok"}
    assert {r["method"] for r in written} == {"cupy", "cupy_flash", *(m.name for m in PEERS)}


def test_libraries_that_are_not_here_are_told(monkeypatch, capsys):
    for name in ("torch", "jax"):
        monkeypatch.setitem(sys.modules, name, None)
    assert bench._loaded(PEERS) == []
    printed = capsys.readouterr().out
    assert all(f"not compared: {m.name}, ModuleNotFoundError" in printed for m in PEERS)


def test_memory_of_jax_is_left_to_others(libraries, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    methods.Jax().load()
    assert methods.os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


# What profilers run.


def test_the_readme_counts_and_names_the_kernels():
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    core, every = (list(kernels(named("sm_90a"))) for kernels in (core_specializations, all_specializations))
    entries = [kernel.entry for kernel in core]
    forwards, backwards = (entries.count(f"attention_{name}") for name in ("forward", "dkdv"))
    rows = len(core) - forwards - backwards
    shown = " ".join(text.split())
    assert f"{len(core)} kernels: those of" in shown and f"{len(every)} of them" in shown
    assert f"{forwards} forwards, {backwards} backwards and {rows} that go over rows" in shown
    assert set(re.findall(r"`(attention_\w+)`", text)) <= {kernel.entry for kernel in every}


@pytest.mark.parametrize("backend", ["cpu", "emulator:sm_90a"])
@pytest.mark.parametrize("learned", [{}, {"bias": (4, 24, 40), "sinks": (4,)}], ids=["plain", "learned"])
def test_the_workload_is_a_forward_and_a_backward(backend, learned, capsys):
    arguments = ["--seqlen", "40", "--seqlen-q", "24", "--heads", "4", "--heads-k", "2", "--head-dim", "32", "--causal"]
    wrt = ("q", "k", "v", *learned)
    arguments += [*(f"--{name}" for name in learned), *(["--wrt", *wrt] if learned else [])]
    workload.main(["--backend", backend, *arguments])
    rng = np.random.default_rng(0)
    shapes = (1, 4, 24, 32), (1, 2, 40, 32), (1, 2, 40, 32), (1, 4, 24, 32)
    q, k, v, dout = (rng.standard_normal(s, np.float32).astype(np.float16) for s in shapes)
    numbers = np.random.default_rng(0)  # of options in their order
    options = {name: numbers.standard_normal(shape).astype(np.float32) for name, shape in learned.items()}
    options |= {"causal": True, "compute_dtype": np.float64}
    exact = [*attention_reference(q, k, v, return_lse=True, **options)]
    exact += attention_reference_backward(dout, q, k, v, **options, wrt=wrt)
    word, *pairs = capsys.readouterr().out.split()
    assert word == "checksum" and pairs[::2] == ["out", "lse", *(f"d{name}" for name in wrt)]
    assert [float(x) for x in pairs[1::2]] == pytest.approx([np.abs(x).sum() for x in exact], rel=1e-3)
