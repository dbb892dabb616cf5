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
from cupy_flash._src import compile, forks, source, workers
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
static int64_t begun, ended, expected;

static void rest() {
  const timespec time = {0, 10000000};
  nanosleep(&time, nullptr);
}

extern "C" {
// How many threads take part where the caller waits for so many; less 1000 if it comes back before they end.
int64_t meet(int64_t to_start, int64_t threads) {
  allowed = to_start;
  expected = threads;
  begun = ended = 0;
  pool.run(3, [](void*, int64_t worker) {
    __atomic_fetch_add(&begun, 1, __ATOMIC_RELEASE);
    for (int64_t i = 0; i < worker; ++i) rest();  // so that they end one by one
    while (worker == 0 && __atomic_load_n(&begun, __ATOMIC_ACQUIRE) < expected) {}
    __atomic_fetch_add(&ended, 1, __ATOMIC_RELEASE);
  }, nullptr);
  return __atomic_load_n(&ended, __ATOMIC_ACQUIRE) == begun ? begun : begun - 1000;
}

// How often somebody begins after the caller has come back.
int64_t begin_late() {
  int64_t late = 0;
  for (int64_t i = 0; i < 30; ++i) {
    begun = 0;
    pool.run(3, [](void*, int64_t) { __atomic_fetch_add(&begun, 1, __ATOMIC_RELEASE); }, nullptr);
    const int64_t before = __atomic_load_n(&begun, __ATOMIC_ACQUIRE);
    rest();
    late += __atomic_load_n(&begun, __ATOMIC_ACQUIRE) != before;
  }
  return late;
}

// How many threads a call inside a call has.
int64_t nest() {
  begun = 0;
  pool.run(1, [](void*, int64_t worker) {
    const auto count = [](void*, int64_t) { __atomic_fetch_add(&begun, 1, __ATOMIC_RELEASE); };
    if (worker == 0) pool.run(3, count, nullptr);
  }, nullptr);
  return begun;
}
}
"""


@pytest.fixture(scope="module")
def compiled_pool():
    text = POOL + source.flatten("cpu/pool.h") + COUNT
    library = compile_shared(text, "pool", flags=("-std=c++17", "-O2", "-fPIC"), freestanding=True, folder="cpu")
    functions = ctypes.CDLL(str(library))
    for function in (functions.meet, functions.begin_late, functions.nest):
        function.restype = ctypes.c_int64
    functions.meet.argtypes = [ctypes.c_int64] * 2
    return functions


def test_the_compiled_pool_makes_do_with_the_threads_that_start(compiled_pool):
    meet = compiled_pool.meet
    assert [meet(0, 1), meet(1, 2), meet(0, 2)] == [1, 2, 2]


def test_a_job_of_the_compiled_pool_is_over_when_its_caller_comes_back(compiled_pool):
    """Who takes part is waited for, who comes too late does not begin, and who finds it at work works alone."""
    assert [compiled_pool.meet(3, 4) for _ in range(5)] == [4] * 5
    assert compiled_pool.begin_late() == 0
    assert compiled_pool.nest() == 1
    assert compiled_pool.meet(0, 4) == 4


HELPERS = """
import os, signal
import numpy as np
from cupy_flash import flash_attention
from cupy_flash._src.backends import native

def tasks():
    return {int(name) for name in os.listdir("/proc/self/task")}

def blocked(task):
    with open(f"/proc/self/task/{task}/status") as lines:
        return int(next(line for line in lines if line.startswith("SigBlk")).split()[1], 16)

def all_take_part():
    # The last thread's scratch is the last of a call's memory; on busy CPUs it may come too late for one call.
    lent = []
    native._borrow = lambda size: lent.append(np.zeros(size, np.uint8)) or lent[-1]
    for _ in range(1000):
        assert np.allclose(flash_attention(x, x, x), 1)
        if lent.pop()[-(2**15) :].any():
            return True

x = np.ones((1, 1500, 64), np.float32)

def attend():
    before, mask = tasks(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert all_take_part()
    helpers = tasks() - before
    assert len(helpers) == 2, helpers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    for task in helpers:
        for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
            assert blocked(task) >> (number - 1) & 1, (task, number)

attend()
child = os.fork()
if child == 0:
    assert len(tasks()) == 1
    attend()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are told of in Linux's /proc")
def test_compiled_helpers_take_part_and_no_signals_in_a_forked_child_too():
    assert python(HELPERS, CUPY_FLASH_NUM_THREADS="3").strip() == "0"


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
    before, used = threading.active_count(), set()
    pool = workers.Pool()
    for wanted in (1, 3, 2, 1, 0, 3):
        used.clear()
        job = workers.Job(lambda _: (used.add(threading.get_ident()), time.sleep(0.005)), range(20))
        with job:
            pool.offer(job, wanted)
            job.work()
        assert len(used) <= wanted + 1
    assert threading.active_count() == before + 3


def test_callers_at_the_same_time_start_no_thread_twice():
    pool, all_here = workers.Pool(), threading.Barrier(6)
    before = threading.active_count()

    def call():
        all_here.wait(timeout=30)
        pool.offer(workers.Job(print, []), 3)

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert threading.active_count() == before + 3


def test_the_first_error_is_raised():
    pool, second_begun = workers.Pool(), threading.Event()

    def fail(n):
        if n == 0:
            assert second_begun.wait(30)
            raise KeyError("first")
        second_begun.set()
        while job._error is None:
            time.sleep(0.001)
        raise ValueError("second")

    job = workers.Job(fail, range(100))
    with pytest.raises(KeyError, match="first"), job:
        pool.offer(job, 1)
        job.work()


def meet_at_a_fork():
    """A gate, what lets the thread inside leave, who was inside in which order, and threads: inside, forking, later."""
    gate, inside, leave, order = forks._Gate(), threading.Event(), threading.Event(), []

    def work():
        with gate.whole():
            inside.set()
            assert leave.wait(30)
            with gate.whole():
                order.append("at work")

    def fork():
        gate.before_fork()
        order.append("fork")
        gate.after_in_parent()

    def come_later():
        with gate.whole():
            order.append("later")

    together = [threading.Thread(target=function, daemon=True) for function in (work, fork, come_later)]
    for thread in together:
        thread.start()
        assert inside.wait(30)
        time.sleep(0.05)  # until it waits
    return gate, leave, order, together


def test_a_fork_waits_for_who_is_at_work_and_who_comes_later_waits_for_it():
    """Who is at work may come again meanwhile: the fork waits for it."""
    gate, leave, order, together = meet_at_a_fork()
    leave.set()
    for thread in together:
        thread.join(30)
    assert order == ["at work", "fork", "later"]
    with gate.whole():
        gate.before_fork()  # a thread at work may fork
        gate.after_in_parent()


def test_a_fork_waits_no_longer_than_its_patience(monkeypatch):
    monkeypatch.setattr(forks, "PATIENCE", 0.3)
    _, leave, order, (work, *others) = meet_at_a_fork()
    for thread in others:
        thread.join(30)
    assert order == ["fork", "later"] and work.is_alive()
    leave.set()
    work.join(30)
    assert order == ["fork", "later", "at work"]


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
    for _ in range(100):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# --- how many ---


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs os.sched_getaffinity")
def test_the_least_of_affinity_and_quota_counts(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 3, 4})
    for quota, expected in ((None, 3), (2, 2), (3, 3), (8, 3)):
        monkeypatch.setattr(workers, "_quota", lambda root, quota=quota: quota)
        assert workers.cpus() == expected


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
    native.library(native.isa("float32"), "float32")  # knows the type
    asked, idents, call = [], set(), native._call_type()
    monkeypatch.setattr(native, "_call_type", lambda: lambda *args: asked.append(call(*args)) or asked[-1])
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
