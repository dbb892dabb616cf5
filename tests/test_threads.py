"""Threads of a job: how many, at any time of a process' life, and none where none can be started."""

import _thread
import ctypes
import os
import signal
import threading
import time
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import processes
import pytest
import threadpoolctl
from processes import interruptible

from cupy_flash import flash_attention, flash_attention_vjp, merge_attention
from cupy_flash._src import compile, source, workers
from cupy_flash._src.backends import native, threads
from cupy_flash._src.toolchain import compile_shared


def compute():
    """Every kind of call, each with work for several threads."""
    x = np.ones((2, 1100, 16), np.float32)
    (out, lse), vjp = flash_attention_vjp(x, x, x, return_lse=True)
    merged, _ = merge_attention(out, lse, out, lse)
    return np.allclose(merged, 1) and np.allclose(vjp(x)[2], 1, rtol=1e-5)


def python(code, **environment):
    """What a script in a fresh process prints; on standard error nothing but what is compiled."""
    unset = {name: None for name in os.environ if name.endswith("_NUM_THREADS")}
    out, err = processes.python(code, **(unset | {"CUPY_FLASH_CPU_TIER": "native"} | environment))
    assert all(line.startswith("cupy_flash: compiling") for line in err.splitlines()), err
    return out


# --- the end of a process ---

LATE = {
    "a thread that outlives the main thread": """
def late():
    threading.main_thread().join()
    call()

threading.Thread(target=late).start()
""",
    "atexit": """
import atexit

atexit.register(call)
""",
}
CALL = """
import sys, threading
import numpy as np
from cupy_flash import flash_attention_vjp, merge_attention

def call():
    x = np.ones((2, 1100, 16), np.float32)
    (out, lse), vjp = flash_attention_vjp(x, x, x, return_lse=True)
    merged, _ = merge_attention(out, lse, out, lse)
    assert np.allclose(merged, 1) and np.allclose(vjp(x)[2], 1, rtol=1e-5)
    print("computed")

"""


@pytest.mark.parametrize("before", ["", "call()\n"], ids=["the first call", "a later call"])
@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
def test_calls_at_the_end_of_a_process(late, before, tier):
    out = python(CALL + before + late, CUPY_FLASH_CPU_TIER=tier, CUPY_FLASH_NUM_THREADS="3")
    assert out == "computed\n" * (1 + bool(before))


def test_a_process_ends_while_helpers_work(tier):
    """Threads of a daemon's call are ended with it, silently."""
    code = CALL + (
        "def forever():\n    while True:\n        call()\n\n"
        "threading.Thread(target=forever, daemon=True).start()\ncall()\n"
    )
    assert "computed" in python(code, CUPY_FLASH_CPU_TIER=tier, CUPY_FLASH_NUM_THREADS="3")


# --- where no thread can be started ---


@pytest.fixture
def no_threads(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_state", threads._State())
    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.usefixtures("no_threads")
def test_the_caller_computes_alone(tier, monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", "3")
    assert compute()


POOL = """
#include <pthread.h>
static int allowed;
#define pthread_create(...) (allowed-- > 0 ? pthread_create(__VA_ARGS__) : 11)
"""
COUNT = """
static Pool pool;
static int64_t met, expected;
extern "C" int64_t meet(int64_t to_start, int64_t threads) {
  allowed = to_start;
  expected = threads;
  met = 0;
  pool.run(3, [](void*, int64_t worker) {
    __atomic_fetch_add(&met, 1, __ATOMIC_RELEASE);
    while (worker == 0 && __atomic_load_n(&met, __ATOMIC_ACQUIRE) < expected) {}
  }, nullptr);
  return met;
}
"""


def test_the_compiled_pool_makes_do_with_the_threads_that_start():
    text = POOL + source.flatten("cpu/pool.h") + COUNT
    library = compile_shared(text, "pool", flags=("-std=c++17", "-O2", "-fPIC"), freestanding=True, folder="cpu")
    meet = ctypes.CDLL(str(library)).meet
    meet.restype, meet.argtypes = ctypes.c_int64, [ctypes.c_int64] * 2
    assert [meet(0, 1), meet(1, 2), meet(0, 2)] == [1, 2, 2]


# --- the pool ---


def test_a_job_that_helpers_come_too_late_for_keeps_nothing_alive():
    pool, entered, leave = workers.Pool(), threading.Event(), threading.Event()

    def hold(_):
        entered.set()
        assert leave.wait(30)

    busy = workers.Job(hold, [0])
    with busy:
        pool.offer(busy, 1)
        assert entered.wait(30)
        arrays = np.empty(1)
        alive, job = weakref.ref(arrays), workers.Job(lambda _, arrays=arrays: None, [0])
        with job:
            pool.offer(job, 1)
            job.work()
        del arrays
        assert alive() is None
        leave.set()


def test_callers_share_the_threads_that_one_of_them_wanted():
    before = threading.active_count()
    pool = workers.Pool()
    for wanted in (1, 3, 2, 3):
        job = workers.Job(lambda _: None, range(9))
        with job:
            pool.offer(job, wanted)
            job.work()
    assert threading.active_count() == before + 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_fork_waits_until_the_limit_of_blas_is_set(monkeypatch):
    """threadpoolctl sets it under a lock, which a child would inherit locked, by a thread that it does not have."""
    entered = threading.Event()

    class Library:
        num_threads = 2
        lock = threading.Lock()

        def set_num_threads(self, number):
            with self.lock:
                entered.set()
                time.sleep(0.1)
                self.num_threads = number

    monkeypatch.setattr(threads, "_state", threads._State())
    library = Library()
    threads._state.one_blas_thread._found = [library]
    other = threading.Thread(target=threads.run, args=(lambda _: None, [0]))
    other.start()
    assert entered.wait(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads alive
        pid = os.fork()
    if pid == 0:
        threads.run(lambda _: None, range(9))
        os._exit(library.num_threads != 2)
    other.join()
    for _ in range(300):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# --- how many ---


def blas_threads():
    return [x["num_threads"] for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas"]


@pytest.fixture
def cpus(monkeypatch):
    """A function that lets this process have so many CPUs, and nothing in the environment say otherwise."""
    for name in [name for name in os.environ if name.endswith("_NUM_THREADS")]:
        monkeypatch.delenv(name)

    def have(number):
        monkeypatch.setattr(workers, "cpus", lambda: number)

    have(16)
    with threadpoolctl.threadpool_limits(16, "blas"):
        yield have


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3), ("4,2", 4), (" 5 , 2", 5), ("99", 16)] + [(x, 16) for x in ("", "0", "-2", "two", "1.5", ",2", "0,2")],
)
def test_the_number_for_openmp_counts_if_it_is_one(value, expected, cpus, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads.num_threads() == expected


@pytest.mark.usefixtures("cpus")
def test_the_least_counts_but_for_our_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with threadpoolctl.threadpool_limits(5):
        assert threads.num_threads() == 5
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert threads.num_threads() == 3
        monkeypatch.setenv("CUPY_FLASH_NUM_THREADS", "20")
        assert threads.num_threads() == 20
        monkeypatch.delenv("CUPY_FLASH_NUM_THREADS")
    assert threads.num_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.num_threads() == 16


@pytest.mark.parametrize(("number", "expected"), [(63, 63), (64, 200)])
def test_the_most_that_a_build_of_openblas_can_have_is_no_limit(number, expected, cpus, monkeypatch):
    cpus(200)
    with threadpoolctl.threadpool_limits(number, "blas"):
        assert threads.num_threads() == expected


BLAS = {
    "MKL takes one for each core, not for each of its two threads": ("mkl", "intel", 8, 16),
    "MKL with fewer": ("mkl", "intel", 7, 7),
    "MKL without threads": ("mkl", "sequential", 1, 16),
    "OpenBLAS without threads": ("openblas", "disabled", 1, 16),
    "OpenBLAS that does not tell": ("openblas", "openmp", None, 16),
    "BLIS has one unless it is asked for more": ("blis", "pthreads", 1, 16),
}


@pytest.mark.usefixtures("cpus")
@pytest.mark.parametrize(("kind", "layer", "number", "expected"), BLAS.values(), ids=BLAS)
def test_what_a_blas_has_by_itself_is_no_limit(kind, layer, number, expected, monkeypatch):
    library = SimpleNamespace(internal_api=kind, threading_layer=layer, num_threads=number)
    monkeypatch.setattr(threads._state.one_blas_thread, "_found", [library])
    assert threads.num_threads() == expected


@pytest.mark.usefixtures("cpus")
def test_tiles_of_another_call_are_no_limit():
    seen = []

    def look(_):
        seen.append((threads.num_threads(), set(blas_threads())))

    threads.run(look, [0])
    with threadpoolctl.threadpool_limits(5, "blas"):
        threads.run(look, [0])
    assert seen == [(16, {1}), (5, {1})]


NUMBER = """
from cupy_flash._src import workers
workers.cpus = lambda: 2
from cupy_flash._src.backends.threads import num_threads
print(num_threads())
"""
ENVIRONMENTS = {
    "a worker of joblib": (dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"), "1"),
    "BLAS kept from spinning": ({"OPENBLAS_NUM_THREADS": "1"}, "2"),
    "ours first": ({"OMP_NUM_THREADS": "1", "CUPY_FLASH_NUM_THREADS": "3"}, "3"),
}


@pytest.mark.parametrize(("environment", "expected"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_what_a_process_starts_with(environment, expected):
    assert python(NUMBER, **environment).strip() == expected


@pytest.mark.usefixtures("cpus")
def test_both_tiers_heed_a_limit(monkeypatch):
    native.library(native.isa("float32"), "float32")  # knows the class
    asked, idents, call = [], set(), native._Call
    monkeypatch.setattr(native, "_Call", lambda *args: asked.append(call(*args)) or asked[-1])
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "native")
    with threadpoolctl.threadpool_limits(1):
        flash_attention(*[np.ones((2, 1100, 16), np.float32)] * 3)
        threads.run(lambda _: (idents.add(threading.get_ident()), time.sleep(0.001)), range(50))
    assert [x.threads for x in asked] == [1]
    assert idents == {threading.get_ident()}


def test_small_calls_do_not_ask(tier, monkeypatch):
    def fail():
        raise AssertionError("asked")

    monkeypatch.setattr(threads, "num_threads", fail)
    x = np.ones((4, 8), np.float32)
    assert np.array_equal(flash_attention(x, x, x), x)


# --- kernels compiled together ---


@pytest.fixture
def cubins(monkeypatch):
    """A function that lets another compile, on so many CPUs."""

    def replace(to_cubin, cpus=2):
        monkeypatch.setattr(compile, "to_cubin", lambda kernel, arch: to_cubin(kernel))
        monkeypatch.setattr(workers, "cpus", lambda: cpus)

    return replace


def test_the_caller_is_told_of_each_kernel_as_it_ends(cubins):
    told, callers = [threading.Event() for _ in range(5)], set()

    def after_the_one_before(kernel):
        assert kernel == 0 or told[kernel - 1].wait(30)
        return -kernel

    def done(kernel, compiled):
        assert compiled == -kernel
        callers.add(threading.current_thread())
        told[kernel].set()

    cubins(after_the_one_before)
    assert compile.compile_all(iter(range(5)), "sm_80", done) == [0, -1, -2, -3, -4]
    assert callers == {threading.current_thread()}


def test_as_many_kernels_as_cpus_compile_at_once(cubins):
    barrier = threading.Barrier(3)
    cubins(lambda kernel: barrier.wait(timeout=30), cpus=3)
    assert sorted(compile.compile_all(range(3), "sm_80")) == [0, 1, 2]
    assert compile.compile_all([], "sm_80") == []


def test_an_error_is_raised_when_other_kernels_have_ended(cubins):
    begun, ended, both = [], [], threading.Barrier(2)

    def fail(kernel):
        begun.append(kernel)
        both.wait(timeout=30)
        if kernel == 0:
            raise compile.CompileError("seeded")
        time.sleep(0.1)
        ended.append(kernel)

    cubins(fail)
    with pytest.raises(compile.CompileError, match="seeded"):
        compile.compile_all(range(100), "sm_80")
    assert sorted(begun) == [0, 1] and ended == [1]


@pytest.mark.parametrize("start", ["threads", "no threads"])
def test_an_interrupt_waits_for_no_kernel_that_was_not_begun(start, cubins, request):
    if start == "no threads":
        request.getfixturevalue("no_threads")
    begun, ended = [], []

    def interrupt(kernel):
        begun.append(kernel)
        if kernel == 5:
            _thread.interrupt_main()
        time.sleep(0.05)
        ended.append(kernel)

    cubins(interrupt)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        compile.compile_all(range(1000), "sm_80")
    assert len(begun) < 50
    assert set(begun) - set(ended) <= {5}  # which the interrupt ends where there is no other thread


@pytest.mark.usefixtures("no_threads")
def test_the_caller_compiles_alone(cubins):
    seen = []
    cubins(lambda kernel: -kernel)
    assert compile.compile_all(range(5), "sm_80", lambda *args: seen.append(args)) == [0, -1, -2, -3, -4]
    assert seen == [(i, -i) for i in range(5)]
