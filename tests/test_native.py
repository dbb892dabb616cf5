"""What is particular to the CPU backend's compiled tier: its choice, compilation, scheduling and vector widths."""

import functools
import platform
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import oracle
import pytest
from cases import Case, check
from conftest import slow_among
from processes import ATTEND, python

from cupy_flash import flash_attention, flash_attention_backward, flash_attention_vjp
from cupy_flash._src import toolchain
from cupy_flash._src.backends import cpu as cpu_backend
from cupy_flash._src.backends import get, native, threads
from cupy_flash._src.problem import DTYPES
from cupy_flash._src.toolchain import ToolchainError, find_compiler

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "native")


def run(*inputs, **options):
    q, k, v, dout = inputs
    out, vjp = flash_attention_vjp(q, k, v, **options)
    return out, *vjp(dout)


def draw(*shapes, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


# --- the choice of the tier ---


def test_the_status_names_the_tier_and_its_isa(monkeypatch):
    assert "compiled C++ for " + native.isa("float32") in get("cpu").status()
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "numpy")
    assert get("cpu").status().startswith("NumPy")


def test_without_a_compiler_numpy_serves_and_tells_what_to_install(tmp_path):
    out, err = python(ATTEND, CXX="no-such-compiler", CUPY_FLASH_CACHE_DIR=str(tmp_path))
    assert out.startswith("NumPy")
    assert 'pip install "cupy-flash[emulator]"' in out
    assert not err


def test_without_a_compiler_native_is_an_error(tmp_path):
    code = f"try:\n    exec({ATTEND!r})\nexcept RuntimeError as error:\n    print(error)"
    out, _ = python(code, CXX="no-such-compiler", CUPY_FLASH_CACHE_DIR=str(tmp_path), CUPY_FLASH_CPU_TIER="native")
    assert "CUPY_FLASH_CPU_TIER is 'native'" in out and "pip install" in out


def test_a_compiler_that_fails_is_warned_of_once(tmp_path):
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo broken 1 && exit\necho seeded failure >&2\nexit 1\n')
    broken.chmod(0o755)
    out, err = python(ATTEND, CXX=str(broken), CUPY_FLASH_CACHE_DIR=str(tmp_path / "cache"))
    assert out.startswith("NumPy")
    assert err.count("RuntimeWarning") == 1 and "seeded failure" in err
    assert err.count("<string>:") == 1, "it is told at the caller's line"


def test_after_a_compiler_that_was_killed_the_next_call_tries_again(tmp_path):
    killed = tmp_path / "killed"
    killed.write_text('#!/bin/sh\n[ "$1" = --version ] && echo killed 1 && exit\nkill -TERM $$\n')
    killed.chmod(0o755)
    cpu = tmp_path / "cache" / "cpu"
    made = native.compile_library(native.isa("float32"))
    later = f"{ATTEND}import shutil\nshutil.copy({str(made)!r}, {str(cpu)!r})\n{ATTEND}"
    out, err = python(later, CXX=str(killed), CUPY_FLASH_CACHE_DIR=str(cpu.parent))
    before, after = out.splitlines()
    assert before.startswith("NumPy") and after.startswith("compiled C++")
    assert "was ended by SIGTERM" in err and "the next may be faster" in err


def test_a_compiler_that_is_always_killed_is_given_up(tmp_path):
    counts = tmp_path / "counts"
    killed = tmp_path / "killed"
    killed.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo killed 1 && exit\necho >> {counts}\nkill -KILL $$\n')
    killed.chmod(0o755)
    out, err = python(ATTEND * 4, CXX=str(killed), CUPY_FLASH_CACHE_DIR=str(tmp_path / "cache"))
    assert out.count("NumPy") == 4 and len(counts.read_text()) == 8
    assert "its compiled tier failed" in err and "SIGKILL" in err


AS_ON_WINDOWS = """
import os, sys
for name in ("fcntl", "grp", "pwd"):
    sys.modules[name] = None
for name in ("getuid", "geteuid", "register_at_fork", "fork", "O_NOFOLLOW", "sched_getaffinity"):
    delattr(os, name)
from cupy_flash._src import toolchain
toolchain.os = type(sys)("os")
vars(toolchain.os).update(vars(os), name="nt")
"""


def test_where_nothing_is_compiled_yet_numpy_serves(tmp_path):
    """Windows, as far as the package asks: no locks of files, no users, no forks."""
    out, err = python(AS_ON_WINDOWS + ATTEND, CUPY_FLASH_CACHE_DIR=str(tmp_path))
    assert out.startswith("NumPy") and "not yet on" in out and not err


def test_a_notice_that_nobody_can_read_fails_no_call(tmp_path):
    """Its reader gone, or the file closed: what is told is lost, in a warning too, and nothing else."""
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo broken 1 && exit\nexit 1\n')
    broken.chmod(0o755)
    away = "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 2)\n"
    for n, lost in enumerate((away, "import sys\nsys.stderr.close()\n", "import sys\nsys.stderr = None\n")):
        out, err = python(lost + ATTEND, CXX=str(broken), CUPY_FLASH_CACHE_DIR=str(tmp_path / str(n)))
        assert out.count("\n") == 1 and out.startswith("NumPy")
        assert not err


def test_a_cached_library_needs_no_compiler(tmp_path):
    cache = {"CUPY_FLASH_CACHE_DIR": str(tmp_path)}
    out, err = python(ATTEND, **cache)
    assert out.startswith("compiled C++") and err.count("compiling the CPU backend") == 1
    assert python(ATTEND, CXX="no-such-compiler", **cache) == (out, "")


def test_a_library_that_cannot_be_loaded_is_warned_of_once(monkeypatch):
    """A folder where nothing may be executed, say."""
    tried = []

    def refuse(path):
        tried.append(path)
        raise OSError("seeded: failed to map segment")

    monkeypatch.setattr(native, "load", refuse)
    monkeypatch.setattr(native, "library", functools.cache(native.library.__wrapped__))
    monkeypatch.setattr(cpu_backend, "_settled", {})
    with pytest.raises(RuntimeError, match="CUPY_FLASH_CPU_TIER is 'native'"), pytest.warns(match="seeded"):
        run(*draw(*[(4, 8)] * 4))
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "")  # as if it were not set
    x = np.ones((4, 8), np.float32)
    assert np.array_equal(flash_attention(x, x, x), x)
    assert get("cpu").status().startswith("NumPy") and "seeded" in get("cpu").status()
    assert len(tried) == 1


@pytest.mark.parametrize("value", ["fast", "Native", "1"])
def test_a_bad_tier_is_named(value, monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", value)
    with pytest.raises(ValueError, match=f"CUPY_FLASH_CPU_TIER is '{value}': expected one of auto, native, numpy"):
        run(*draw(*[(4, 8)] * 4))


def test_the_number_of_threads_can_be_set(monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", "3")
    assert threads.num_threads() == 3
    assert "3 threads" in get("cpu").status()
    for value in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", value)
        with pytest.raises(ValueError, match=f"CUPY_FLASH_NUM_THREADS is '{value}'"):
            run(*draw(*[(300, 8)] * 4))  # enough to share


# --- scheduling ---


@pytest.fixture
def with_threads(monkeypatch):
    """A function that sets the number of threads, and lets them help with the smallest problem."""

    def set_number(n):
        monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", str(n))
        monkeypatch.setattr(native, "INLINE_WORK", 0)

    return set_number


SHAPES = {
    "blocks of queries": ((4, 700, 24), (2, 1100, 24), (2, 1100, 16), (4, 700, 16)),
    "chunks of keys": ((1, 3, 24), (1, 5000, 24), (1, 5000, 16), (1, 3, 16)),
    "packed heads": ((6, 5, 24), (2, 900, 24), (2, 900, 16), (6, 5, 16)),
}


@pytest.mark.parametrize("options", [{"causal": True}, {"window": (320, 20)}], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_bits_do_not_depend_on_the_number_of_threads(shapes, dtype, options, with_threads):
    inputs = draw(*shapes, dtype=dtype)
    results = []
    for n in (1, 2, 5):
        with_threads(n)
        results.append([x.tobytes() for x in run(*inputs, **options)])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_one_head_uses_all_threads(direction, with_threads, monkeypatch):
    """Each writes to scratch of its own, the last of what a call has."""
    with_threads(2)
    inputs = draw(*[(4000, 64)] * 4)
    run(*inputs)  # starts the threads
    lent = []
    monkeypatch.setattr(native, "_borrow", lambda size: lent.append(np.zeros(size, np.uint8)) or lent[-1])
    run(*inputs)
    memory = lent[direction == "backward"]
    assert memory[-len(memory) // 4 :].any()


def test_the_keys_beside_a_window_take_no_memory(with_threads, monkeypatch):
    """They are no part of what a block of queries is cut into."""
    with_threads(1)
    lent, borrow = [], native._borrow
    monkeypatch.setattr(native, "_borrow", lambda size: lent.append(size) or borrow(size))
    for rows in (700, 4000):
        flash_attention(*draw(*[(rows, 16)] * 3), window=(10, 5))
    assert lent[1] < lent[0] + 1000  # a counter for each block of queries


@pytest.mark.parametrize("sq", [1, 8])
def test_threads_share_what_takes_longer_than_to_wake_them(sq, monkeypatch):
    """A long read of keys by one query as well as many products."""
    monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", "3")
    asked = []
    native.library(native.isa("float32"), "float32")  # knows the type
    call = native._call_type()
    monkeypatch.setattr(native, "_call_type", lambda: lambda *args: asked.append(call(*args)) or asked[-1])
    for sk, window in ((300, None), (4096, None), (4096, (300 - sq, None))):
        flash_attention(*draw((sq, 64), (sk, 64), (sk, 64)), window=window)
    assert [x.threads for x in asked] == [1, 3, 1]


def test_calls_at_the_same_time_keep_apart(with_threads):
    """One has the pool, the others work alone."""
    with_threads(3)
    inputs = [draw((2, 500 + 90 * i, 16), *[(2, 800, 16)] * 2, (2, 500 + 90 * i, 16)) for i in range(4)]
    expected = [run(*x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for results, exact in zip(pool.map(lambda x: run(*x), inputs), expected, strict=True):
                assert all(np.array_equal(x, y) for x, y in zip(results, exact, strict=True))


def test_a_call_inside_a_call(with_threads):
    """A signal's handler may compute between two slices of the call that it interrupts."""
    with_threads(2)
    inputs, small = draw(*[(6000, 64)] * 4), draw(*[(300, 8)] * 4)
    expected, inner = run(*inputs), []
    before = signal.signal(signal.SIGALRM, lambda *_: inner.append(run(*small)))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        results = run(*inputs)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert inner
    assert all(np.array_equal(x, y) for x, y in zip(inner[0], run(*small), strict=True))
    assert all(np.array_equal(x, y) for x, y in zip(results, expected, strict=True))


# --- vector widths ---

CASES = [
    Case(heads_k=2, group=2, sq=200, sk=150, d=40, dv=24, causal=True, q_offset=5),
    Case(heads_k=1, group=3, sq=2, sk=700, d=20, causal=True, q_offset=600),
    Case(heads_k=1, group=4, sq=7, sk=300, d=40, causal=True, q_offset=290),
    Case(heads_k=2, group=2, sq=400, sk=350, d=40, dv=24, window=(70, 30), q_offset=-45),
    Case(heads_k=1, group=3, sq=2, sk=700, d=20, window=(300, 5), q_offset=600),
    Case(dtype="float64", heads_k=1, sq=70, sk=130, d=33, dv=65),
    Case(dtype="float64", heads_k=1, sq=2, sk=130, d=33, dv=34),
    Case(dtype="float16", sq=64, sk=64, d=16, causal=True, magnitude=4.0),
    Case(dtype="bfloat16", sq=5, sk=300, d=7).all_in("strided_cols"),
    Case(
        batch=(2,), heads_k=2, group=2, sq=200, sk=150, d=40, window=(90, 20), alibi_slopes=(), mask=(True,) * 4,
        k_lengths="each", q_lengths="each32", k_starts="each",
    ),
    Case(batch=(2,), group=2, sq=2, sk=300, d=20, alibi_slopes=(True,), mask=(True,) * 3, k_lengths="each"),
    Case(dtype="float64", batch=(2,), sq=70, sk=130, d=33, causal=True, mask=(True, True), k_lengths="each"),
    Case(dtype="bfloat16", batch=(2,), sq=90, sk=130, d=24, mask=(True, True), k_lengths="each"),
]  # fmt: skip


def on_cpu(function, *arrays, **options):
    return function(*arrays, backend="cpu", **options)


BUILDS = {
    "SSE": (),
    "NEON": ("-DVECTOR_BYTES=16", "-DREGISTERS=32"),
    "AVX-512": ("-DVECTOR_BYTES=64", "-DREGISTERS=32"),
    "AVX-512 BF16": ("-DVECTOR_BYTES=64", "-DREGISTERS=32", "-DBFLOAT16_PAIRS"),
    "SSE, pairs": ("-DBFLOAT16_PAIRS",),
}


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Memory that begins a byte past a cache line. What is read before it is written is nan, what lies beyond stays."""
    beyond = []

    def borrow(size):
        whole = np.full(size + 4096, 0xFF, np.uint8)
        begin = (1 - whole.ctypes.data) % 64
        beyond.append(whole[begin + size :])
        return whole[begin : begin + size]

    monkeypatch.setattr(native, "_borrow", borrow)
    yield
    assert beyond and all((x == 0xFF).all() for x in beyond)


@pytest.fixture
def with_build(monkeypatch):
    """A function that chooses one of `BUILDS`, in which every item of work ends a slice, and two threads."""
    flatten = native.flatten

    def short_slices(name):
        return re.sub("kSliceSeconds = .*;", "kSliceSeconds = 0;", flatten(name))

    def choose(name):
        monkeypatch.setattr(native, "flatten", short_slices)
        monkeypatch.setattr(native, "_FLAGS", (*native._FLAGS, *BUILDS[name]))
        monkeypatch.setattr(native, "library", functools.cache(native.library.__wrapped__))
        monkeypatch.setattr(native, "isa", lambda arithmetic: "portable")
        monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", "2")  # fewer than there are items

    return choose


@pytest.mark.slow  # the widest take half a minute each, in parts of narrower vectors, others ten seconds
@pytest.mark.parametrize("build", BUILDS)
def test_vectors_of_any_width_are_right(build, with_build, poisoned_memory):
    """The paths of other CPUs, by the compiler's vectors in parts."""
    with_build(build)
    for case in CASES:
        check(case, on_cpu)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX is an extension of x86-64")
@pytest.mark.parametrize("isa", slow_among(["AVX-512 BF16", "AVX-512", "AVX2"], ["AVX-512 BF16", "AVX-512"]))
def test_wide_vectors_compile_on_any_x86(isa):
    assert native.compile_library(isa).stat().st_size > 0


# What systems report of CPUs, in files of tests/cpuinfo: machine, system, instruction sets, and those for any code.
LINUX, MAC = ("x86_64", "linux"), ("x86_64", "darwin")
AVX2 = {"-msse4.2", "-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2"}
CPUS = {
    "core_i7-3770_ivy_bridge": (*LINUX, "portable", {"-msse4.2", "-mf16c"}),
    "core_i7-4770_haswell": (*LINUX, "AVX2", AVX2),
    "epyc_7543_zen_3": (*LINUX, "AVX2", AVX2),
    "xeon_phi_7210_knights_landing": (*LINUX, "AVX2", AVX2),
    "xeon_gold_6130_skylake": (*LINUX, "AVX-512", AVX2),
    "ryzen_9_9950x_zen_5": (*LINUX, "AVX-512 BF16", AVX2),
    "xeon_platinum_8468_sapphire_rapids": (*LINUX, "AVX-512 BF16", AVX2),
    "neoverse_n1": ("aarch64", "linux", "portable", set()),
    "apple_m1_under_linux": ("aarch64", "linux", "portable", set()),
    "mac_with_a_core_i9-9880h": (*MAC, "AVX2", AVX2),
    "mac_with_a_xeon_w-2140b": (*MAC, "AVX-512", AVX2),
}


@pytest.fixture
def cpu(monkeypatch):
    """A function that lets this machine be one that reports the text of a file, or nothing where there is none."""

    def report(path, machine, system):
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(toolchain, "_CPUINFO", path if system == "linux" else path / "none")
        command = (sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", str(path))
        monkeypatch.setattr(toolchain, "_SYSCTL", command if system == "darwin" else ("no-such-command",))
        monkeypatch.setattr(native, "cpu_features", toolchain.cpu_features.__wrapped__)
        monkeypatch.setattr(toolchain, "cpu_features", toolchain.cpu_features.__wrapped__)

    return report


def test_every_report_is_read():
    assert {path.stem for path in (TESTS / "cpuinfo").iterdir()} == set(CPUS)


@pytest.mark.parametrize("name", CPUS)
def test_isa_is_the_widest_of_the_cpu(name, cpu, monkeypatch):
    machine, system, expected, flags = CPUS[name]
    cpu(TESTS / "cpuinfo" / f"{name}.txt", machine, system)
    monkeypatch.setattr(native, "compile_library", lambda isa, arithmetic: None)
    assert native.isa.__wrapped__("float32") == expected
    assert set(toolchain.cpu_flags()) == flags


@pytest.mark.parametrize("system", ["linux", "darwin", "win32", "freebsd14"])
@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "arm64"])
def test_a_silent_system_gets_the_portable_code(machine, system, cpu, tmp_path):
    cpu(tmp_path / "none", machine, system)
    assert toolchain.cpu_features() == frozenset() and toolchain.cpu_flags() == ()
    assert native.isa.__wrapped__("float32") == "portable"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX is an extension of x86-64")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("refused", "expected"), [("-mavx512bf16", "AVX-512"), ("-mavx512*", "AVX2"), ("-m*", "portable")]
)
def test_where_the_compiler_refuses_flags_the_next_isa_serves(refused, expected, cpu, tmp_path, monkeypatch):
    old = tmp_path / "old-compiler"
    old.write_text(
        f'#!/bin/sh\nfor x; do case "$x" in {refused}) echo "$x: unknown" >&2; exit 1;; esac; done\n'
        f'exec {" ".join(find_compiler().command)} "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", str(tmp_path / "cache"))
    cpu(TESTS / "cpuinfo" / "ryzen_9_9950x_zen_5.txt", *LINUX)
    for arithmetic in ("float32", "float64"):
        assert native.isa.__wrapped__(arithmetic) == expected
        assert native.compile_library(expected, arithmetic).is_file()


def members(dtype):
    """The fields and where they lie; of a base class, whose name is a class's, those of the class by its name too."""
    for name, (of, offset, *_) in dtype.fields.items():
        yield from (
            [(f"{name}::{inner}", offset + at) for inner, at in members(of)] if name[0].isupper() else [(name, offset)]
        )


def test_the_structures_are_those_of_the_source(tmp_path):
    """Sizes and offsets, as the compiler sees them."""
    found = {name: dtype for name, dtype in native._structs().items() if dtype.names}
    assert {"ScaleParams", "Components", "Layout", "Shape", "Call"} <= found.keys()
    checks = [f'static_assert(sizeof({name}) == {dtype.itemsize}, "");' for name, dtype in found.items()]
    checks += [
        f'static_assert(__builtin_offsetof({name}, {member}) == {offset}, "");'
        for name, dtype in found.items()
        for member, offset in members(dtype)
    ]
    text = native.flatten("cpu/shape.h") + "\n".join(checks)
    compiler = find_compiler().command
    (tmp_path / "check.cpp").write_text(text)
    subprocess.run([*compiler, "-std=c++17", "-fsyntax-only", str(tmp_path / "check.cpp")], check=True)


HIDDEN = {
    "panels": Case(heads_k=2, group=2, sq=90, sk=301, d=24, dv=40, causal=True, q_offset=150),
    "packed heads": Case(heads_k=2, group=5, sq=7, sk=290, d=24, dv=40, causal=True, q_offset=250),
    "rows": Case(heads_k=1, group=2, sq=2, sk=290, d=24, dv=40, causal=True, q_offset=200),
    "chunks of keys": Case(heads_k=1, sq=9, sk=1900, d=24, dv=40, causal=True, q_offset=1000),
    "pairs": Case(dtype="bfloat16", batch=(4,), sq=90, sk=301, d=23, dv=40, causal=True, q_offset=101),
    "wide pairs": Case(dtype="bfloat16", sq=90, sk=301, d=23, dv=40, causal=True, q_offset=101),
}
PAIRS = {"pairs": "SSE, pairs", "wide pairs": "AVX-512 BF16"}  # and their builds


def in_window(case):
    """The same with keys that no query sees at both ends: 37 in front."""
    return replace(case, causal=False, window=(case.q_offset - 37, 0))


@pytest.mark.parametrize("name", slow_among(HIDDEN, {"wide pairs"}))
def test_every_path_stays_in_the_error_budget(name, with_build, poisoned_memory, monkeypatch):
    """One thread has all of the memory, two take turns as they come."""
    if name in PAIRS:
        with_build(PAIRS[name])
    for number in ("1", "2"):
        monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", number)
        check(HIDDEN[name], on_cpu)
        check(in_window(HIDDEN[name]), on_cpu)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", slow_among(HIDDEN, {"wide pairs"}))
def test_hidden_numbers_do_not_matter(name, value, with_build, poisoned_memory):
    case = HIDDEN[name]
    if name in PAIRS:
        with_build(PAIRS[name])
    q, k, v, dout, _ = case.arrays()
    expected = run(q, k, v, dout, **case.options)
    hidden = case.sq + case.q_offset  # the first key that no query sees; the one before is seen by the last query
    for x in (k, v):
        x[..., hidden - 1 :, :] = value
    out, dq, dk, dv = run(q, k, v, dout, **case.options)
    assert np.isnan(out[..., -1, :].astype(np.float32)).any()
    assert_close(case, (out, dq), expected, slice(-1))
    for x in (dk, dv):
        assert not x[..., hidden:, :].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", slow_among(HIDDEN, {"wide pairs"}))
def test_hidden_numbers_before_a_window_do_not_matter(name, value, with_build, poisoned_memory):
    case = in_window(HIDDEN[name])
    if name in PAIRS:
        with_build(PAIRS[name])
    q, k, v, dout, _ = case.arrays()
    expected = run(q, k, v, dout, **case.options)
    for x in (k, v):
        x[..., :38, :] = value  # the last of them is seen by the first query
    out, dq, dk, dv = run(q, k, v, dout, **case.options)
    assert np.isnan(out[..., 0, :].astype(np.float32)).any()
    assert_close(case, (out, dq), expected, slice(1, None))
    for x in (dk, dv):
        assert not x[..., :37, :].any()


def assert_close(case, results, expected, rows):
    """In these rows."""
    eps = float(ml_dtypes.finfo(case.dtype).eps)
    for x, y in zip(results, expected, strict=False):
        x, y = (a[..., rows, :].astype(np.float64) for a in (x, y))
        np.testing.assert_allclose(x, y, rtol=8 * eps, atol=8 * eps)


GUARDED = """
import ctypes, mmap
import numpy as np
from cupy_flash import flash_attention, flash_attention_backward

def guarded(dtype, begin, end):
    rows, pitch = 4096, 64 * np.dtype(dtype).itemsize
    x = np.frombuffer(mmap.mmap(-1, rows * pitch), dtype).reshape(rows, -1)
    x[begin:end] = np.random.default_rng(0).standard_normal((end - begin, 64))
    for first, last in ((0, begin), (end, rows)):
        address, size, no_access = x.ctypes.data + first * pitch, (last - first) * pitch, 0
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), no_access) == 0
    return x

options = {"window": (300, 40), "q_offset": 2000}
for dtype, sq in ((np.float32, 2), (np.float16, 2), (np.float32, 9), (np.float32, 900), (np.float16, 900)):
    q = np.random.default_rng(1).standard_normal((sq, 64)).astype(dtype)
    begin, end = 1700, 2040 + sq
    k, v = (guarded(dtype, begin // 64 * 64 - 512, end // 64 * 64 + 576) for _ in "kv")
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    _, dk, dv = flash_attention_backward(out, q, k, v, out, lse, **options)
    for x in (dk, dv):
        assert x[begin:end].any(axis=1).all() and not x[:begin].any() and not x[end:].any()
print("clean")
"""


def test_keys_that_no_query_sees_are_not_read():
    """What lies blocks of keys away from a window may not be touched: a process that does is ended."""
    out, _ = python(GUARDED, CUPY_FLASH_CPU_TIER="native")
    assert out.strip() == "clean"


def test_descriptions_of_calls_are_kept_but_for_very_many_heads():
    """They have numbers for each head."""
    for heads, kept in ((native.CACHED_HEADS, 1), (native.CACHED_HEADS + 1, 0)):
        native._shape.cache_clear()
        x = np.ones((heads, 1, 1), np.float32)
        assert np.array_equal(flash_attention(x, x, x), x)
        assert native._shape.cache_info().currsize == kept


# --- numbers near the largest ---

PATHS = {
    "panels": (90, 256),
    "narrow panels": (6, 256),
    "rows": (2, 256),
    "chunks": (2, 4096),
    "pairs": (90, 256),
    "wide pairs": (90, 256),
}


@pytest.fixture
def path(request, with_build):
    """Numbers of queries and keys that take this path."""
    if request.param in PAIRS:
        with_build(PAIRS[request.param])
    return PATHS[request.param]


def every_path(*dtypes):
    """Parameters `path` and `dtype`; numbers of float64 are no pairs."""
    return pytest.mark.parametrize(
        ("path", "dtype"),
        [
            pytest.param(path, dtype, marks=pytest.mark.slow if path == "wide pairs" else ())
            for path in PATHS
            for dtype in dtypes
            if path not in PAIRS or dtype != "float64"
        ],
        indirect=["path"],
    )


@every_path("float16", "bfloat16", "float32", "float64")
@pytest.mark.parametrize("part", [0.01, 0.7])
def test_values_near_the_largest_number_are_averaged(path, dtype, part):
    """A sum of p v before it is divided by that of p must not overflow, the scores equal or rising about the slack."""
    (sq, sk), dtype = path, np.dtype(DTYPES[dtype])
    v = np.full((sk, 8), part * float(ml_dtypes.finfo(dtype).max)).astype(dtype)
    q, k = np.ones((sq, 16), dtype), np.zeros((sk, 16), dtype)
    for last in (0, 5, 7):  # 7.2 and 10.1 in log2 units above the tiles before
        k[sk // 2 :] = last / 16
        out, lse = flash_attention(q, k, v, scale=1.0, return_lse=True)
        exact, eps = oracle.attention(q, k, v, scale=1.0), float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(out.astype(np.float64) / float(v[0, 0]), 1, rtol=4 * eps + 1e-5)
        np.testing.assert_allclose(lse, exact.lse, rtol=1e-6)


@every_path("bfloat16", "float32", "float64")
def test_one_key_of_large_numbers_gives_its_value(path, dtype):
    number = 1e70 if dtype == "float64" else 133120
    q, v = np.full((path[0], 16), number).astype(DTYPES[dtype]), np.full((1, 8), number).astype(DTYPES[dtype])
    out = flash_attention(q, q[:1], v)
    np.testing.assert_array_equal(out, np.broadcast_to(v, out.shape))


@every_path("float32")
@pytest.mark.parametrize("size", 2.0 ** np.array([20, 23, 24, 26, 30, 60, 99]))
def test_scores_far_from_0_keep_their_order(path, dtype, size):
    """Where the numbers are sparse: the largest score wins, and equal ones share."""
    sq, sk = path
    q, k, v = np.ones((sq, 8), dtype), np.full((sk, 8), size / 16, dtype), *draw((sk, 8))
    winners = slice(sk - 7, sk - 3)
    k[winners] = size / 8
    out, lse = flash_attention(q, k, v, scale=1.0, return_lse=True)
    np.testing.assert_allclose(out, np.broadcast_to(v[winners].mean(axis=0), out.shape), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(lse, size + np.log(4), rtol=1e-6)


def test_no_probability_of_the_backward_exceeds_1():
    """A lse that does not fit the scores, by a factor of e^20."""
    q, k, v, dout = draw((40, 16), (1, 16), (1, 16), (40, 16))
    out, lse = flash_attention(q, k, v, return_lse=True)
    _, _, dv = flash_attention_backward(dout, q, k, v, out, lse - 20)
    np.testing.assert_allclose(dv[0], dout.sum(axis=0), rtol=1e-5, atol=1e-5)


def test_no_query_head_leaves_gradients_of_zero():
    out, dq, dk, dv = run(*draw((0, 5, 8), *[(2, 7, 8)] * 2, (0, 5, 8)))
    assert out.shape == dq.shape == (0, 5, 8)
    assert dk.shape == dv.shape == (2, 7, 8)
    assert not dk.any() and not dv.any()


# --- memory ---

# g++ 12 compiles a library so in 15 s, with -O2 in 111.
ADDRESS_SANITIZER = """
from cupy_flash._src.backends import native
native._FLAGS += ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")
"""

SANITIZED = f"""
import sys
import test_mods_cpu
from cases import Case, check
from memory_layouts import LAYOUTS
{ADDRESS_SANITIZER}

def on(function, *arrays, **options):
    return function(*arrays, backend="cpu", **options)

for isa in dict.fromkeys((native.isa("float32"), "portable")):
    native.isa = lambda arithmetic: isa
    native.compile_mods.cache_clear(), native._compiled_mod.cache_clear()
    if isa == "portable":
        native._FLAGS += ("-DBFLOAT16_PAIRS",)
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        check(Case(dtype=dtype, heads_k=2, group=2, sq=500, sk=700, d=33, dv=20, window=(90, 31), q_offset=-40), on)
        check(Case(dtype=dtype, heads_k=2, group=2, sq=3, sk=700, d=33, dv=20, window=(300, 7), q_offset=590), on)
        case = Case(dtype=dtype, heads_k=2, group=2, sq=70, sk=200, d=33, dv=20, causal=True)
        for layout in LAYOUTS:
            check(case.all_in(layout), on)
        for seed in range(4):
            check(case.laid_out_by(seed), on)
        for d, dv in ((1, 512), (64, 64), (100, 7)):
            for sq, sk in ((1, 1), (1, 129), (130, 1), (200, 90)):
                check(Case(dtype=dtype, sq=sq, sk=sk, d=d, dv=dv, causal=sq != sk, q_offset=3), on)
        check(Case(dtype=dtype, heads_k=2, group=7, sq=3, sk=700, d=24, causal=True, q_offset=690), on)
        check(Case(dtype=dtype, sq=900, sk=1300, d=64, causal=True), on)
        native.TABLE_WORK = 0
        for form in test_mods_cpu.FORMS:
            test_mods_cpu.check(form, dtype)
            test_mods_cpu.check(form, dtype, **test_mods_cpu.ALL_ELSE)
print("clean")
"""

OVERRUN = f"""
import os
os.environ["CUPY_FLASH_NUM_THREADS"] = "1"  # of several one may find nothing left to do in the memory that is short
{ADDRESS_SANITIZER}
borrow = native._borrow
native._borrow = lambda size: borrow(size - 256)
from cases import Case, check
# A mask's bytes lie last.
check(Case(sq=200, sk=240, d=512, dv=64, mask=(True, True)), lambda f, *a, **o: f(*a, backend="cpu", **o))
"""


RACES = """
import os
os.environ["CUPY_FLASH_NUM_THREADS"] = "4"
from concurrent.futures import ThreadPoolExecutor
from cases import Case, check
from cupy_flash._src.backends import native
native._FLAGS += ("-fsanitize=thread", "-g1")
native.INLINE_WORK = 0
text = native.flatten("cpu/attention.cpp")
assert {old!r} in text
native.flatten = lambda name: text.replace({old!r}, {new!r})

def on(function, *arrays, **options):
    return function(*arrays, backend="cpu", **options)

cases = [
    Case(dtype="bfloat16", heads_k=1, group=2, sq=600, sk=1000, d=33, causal=True),
    Case(dtype="bfloat16", heads_k=1, group=2, sq=600, sk=1000, d=33, window=(300, 20)),
    Case(heads_k=1, group=2, sq=3, sk=5300, d=64),
    Case(heads_k=1, sq=500, sk=1000, d=32),
]
for case in cases:
    check(case, on)
with ThreadPoolExecutor(3) as pool:
    list(pool.map(lambda case: check(case, on), cases))
print("clean")
"""
TURN = "while (__atomic_load_n(turn, __ATOMIC_ACQUIRE) != before + 1) sched_yield();"


@pytest.fixture
def sanitizer():
    """A function that gives the environment in which a library built with these sanitizers can be loaded."""
    compiler = find_compiler()
    if "g++" not in compiler.command[0] or compiler.is_clang:
        pytest.skip("needs g++")

    def preload(*libraries):
        found = [
            subprocess.run(
                [*compiler.command, f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in libraries
        ]
        if not all(Path(name).is_absolute() for name in found):
            pytest.skip(f"needs {' and '.join(libraries)}")
        return {"LD_PRELOAD": " ".join(found), "CUPY_FLASH_CPU_TIER": "native"}

    return preload


@pytest.fixture
def address_sanitizer(sanitizer):
    return sanitizer("libasan.so", "libubsan.so") | {"ASAN_OPTIONS": "detect_leaks=0"}


@pytest.fixture
def thread_sanitizer(sanitizer):
    # OpenBLAS, of the reference, is not built for it: it may have no threads.
    return sanitizer("libtsan.so") | {"TSAN_OPTIONS": "halt_on_error=1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.slow
def test_sanitizers_find_nothing(address_sanitizer):
    out, _ = python(SANITIZED, timeout=1500, **address_sanitizer)
    assert out.strip() == "clean"


@pytest.mark.slow
def test_sanitizers_find_an_overrun(address_sanitizer):
    with pytest.raises(AssertionError, match="AddressSanitizer"):
        python(OVERRUN, timeout=1500, **address_sanitizer)


@pytest.mark.slow
def test_the_thread_sanitizer_finds_nothing(thread_sanitizer):
    out, _ = python(RACES.format(old=TURN, new=TURN), timeout=1500, **thread_sanitizer)
    assert out.strip() == "clean"


@pytest.mark.slow
def test_the_thread_sanitizer_finds_a_turn_not_waited_for(thread_sanitizer):
    with pytest.raises(AssertionError, match="ThreadSanitizer: data race"):
        python(RACES.format(old=TURN, new=""), timeout=1500, **thread_sanitizer)


def test_a_source_that_does_not_compile_is_an_error(monkeypatch):
    monkeypatch.setattr(native, "flatten", lambda name: "nonsense;")
    with pytest.raises(ToolchainError, match="nonsense"):
        native.compile_library("portable")
