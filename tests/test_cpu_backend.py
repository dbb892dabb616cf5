"""What is particular to the CPU backend, in both tiers: threads, memory, and the numerics of its tiles."""

import _thread
import os
import threading
import time
import tracemalloc
import warnings

import ml_dtypes
import numpy as np
import oracle
import pytest
import threadpoolctl
from processes import interruptible

from cupy_flash import attention_reference, attention_reference_backward, flash_attention, flash_attention_vjp
from cupy_flash._src import workers
from cupy_flash._src.backends import native, numpy_, threads


def draw(*shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def run(q, k, v, dout, dlse=None, **options):
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, **options)
    return out, lse, *vjp(dout, dlse)


def blas_threads():
    return [x["num_threads"] for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas"]


@pytest.fixture
def with_threads(monkeypatch):
    """A function that sets the number of threads."""

    def set_number(n):
        monkeypatch.setattr(threads, "num_threads", lambda: n)

    return set_number


numpy_tier = pytest.mark.parametrize("tier", ["numpy"], indirect=True)
every_tier = pytest.mark.usefixtures("tier")

# --- numerics of tiles ---


def hard_inputs(name):
    """q, k, v, dout of one head with 1400 keys, three tiles, whose scores are hard for an online softmax."""
    q, k, v, dout = draw((300, 16), (1400, 16), (1400, 8), (300, 8))
    position = np.linspace(0, 1, 1400, dtype=np.float32)[:, None]
    if name == "large":
        return q * 50, k * 50, v, dout  # |scores| to 1e4
    if name == "growing":
        return np.abs(q), np.abs(k) * 60 * position, v, dout
    if name == "falling":
        return np.abs(q), np.abs(k) * 60 * (1 - position), v, dout
    if name == "some rows grow":
        q[::7] *= 40
        return q, k * (1 + 5 * position), v, dout
    if name == "spike in the last tile":
        k[-3] = 100 * q[5]
        return q, k, v, dout
    if name == "far below 0":
        return np.abs(q), -np.abs(k) * 400, v, dout
    raise ValueError(name)


HARD = ["large", "growing", "falling", "some rows grow", "spike in the last tile", "far below 0"]


def errors_and_budgets(q, k, v, dout, **options):
    """Largest error of each result, and twice that of naive arithmetic in the same dtype plus eps.

    The backward gets lse rounded to float32, so its P = exp(S - lse) has a relative error of eps * |lse|
    whatever it does: that is in the budget of the gradients.
    """
    exact = oracle.attention(q, k, v, dout=dout, **options)
    naive = attention_reference(q, k, v, return_lse=True, **options)
    naive = *naive, *attention_reference_backward(dout, q, k, v, **options)
    eps = np.finfo(np.float32).eps
    for name, x, y, z in zip(exact._fields, run(q, k, v, dout, **options), naive, exact, strict=True):
        error, naive_error = np.abs(x - z).max(), np.abs(y - z).max()
        rounding = 4 if name in ("out", "lse") else 4 + np.abs(exact.lse).max()
        yield name, error, 2 * naive_error + rounding * eps * max(1, np.abs(z).max())


@every_tier
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", HARD)
def test_hard_scores_stay_in_the_error_budget(name, causal):
    for result, error, budget in errors_and_budgets(*hard_inputs(name), causal=causal):
        assert error <= budget, result


@numpy_tier
def test_scores_far_below_0_need_the_moving_reference(monkeypatch, tier):
    monkeypatch.setattr(numpy_, "SMALL", 0)
    q, k, v, _ = hard_inputs("far below 0")
    assert not np.allclose(flash_attention(q, k, v), attention_reference(q, k, v), atol=1e-2)


@numpy_tier
def test_growing_scores_overflow_without_the_moving_reference_and_are_computed_again(monkeypatch, tier):
    headrooms, block = [], numpy_._forward_block

    def record(*args):
        headrooms.append(args[7:])
        block(*args)

    monkeypatch.setattr(numpy_, "_forward_block", record)
    q, k, v, _ = hard_inputs("growing")
    exact = attention_reference(q, k, v)
    for large, again in ((numpy_.LARGE, set()), (np.inf, {(numpy_.HEADROOM,)})):
        headrooms.clear()
        monkeypatch.setattr(numpy_, "LARGE", large)
        np.testing.assert_allclose(flash_attention(q, k, v), exact, atol=1e-4)
        assert set(headrooms) == {()} | again


@every_tier
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "dout"])
def test_a_nan_or_inf_reaches_only_what_sees_it(where, value):
    q, k, v, dout = draw((2, 300, 8), (2, 300, 8), (2, 300, 8), (2, 300, 8))
    {"q": q, "k": k, "v": v, "dout": dout}[where][1, 140, 3] = value
    exact = oracle.attention(q, k, v, dout=dout, causal=True)
    for x, y in zip(run(q, k, v, dout, causal=True), exact, strict=True):
        finite = np.isfinite(y)
        assert np.isfinite(x[0]).all()
        if np.isnan(value):
            np.testing.assert_array_equal(np.isfinite(x), finite)
        both = finite & np.isfinite(x)
        assert both[:, :140].sum() == finite[:, :140].sum()
        np.testing.assert_allclose(x[both], y[both], rtol=1e-4, atol=1e-5)


@every_tier
def test_layout_does_not_change_the_result():
    q, k, v, dout = draw((1, 300, 4, 24), (1, 520, 2, 24), (1, 520, 2, 16), (1, 300, 4, 16))
    views = [x.transpose(0, 2, 1, 3) for x in (q, k, v, dout)]
    expected = run(*(np.ascontiguousarray(x) for x in views), causal=True)
    odd = [np.repeat(x, 2, axis=-1)[..., ::-1, ::2][..., ::-1, :] for x in views]  # last axis not contiguous
    for arrays in (views, odd):
        for x, y in zip(run(*arrays, causal=True), expected, strict=True):
            np.testing.assert_array_equal(x, y)


# --- threads ---


@every_tier
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_bits_do_not_depend_on_the_number_of_threads(dtype, with_threads):
    inputs = draw((4, 900, 16), (2, 1300, 16), (2, 1300, 16), (4, 900, 16), dtype=dtype)
    results = []
    for n in (1, 2, 5):
        with_threads(n)
        results.append([x.tobytes() for x in run(*inputs, causal=True)])
    assert results[0] == results[1] == results[2]


def test_items_run_at_the_same_time(with_threads):
    with_threads(3)
    barrier = threading.Barrier(3)
    threads.run(lambda _: barrier.wait(timeout=30), range(3))  # raises BrokenBarrierError if one has to wait


@numpy_tier
def test_one_head_uses_all_threads_in_both_directions(with_threads, monkeypatch, tier):
    with_threads(2)
    barrier, used = threading.Barrier(2), {"forward": set(), "backward": set()}

    def record(name, function):
        def wrapped(*args):
            if threading.get_ident() not in used[name]:
                used[name].add(threading.get_ident())
                barrier.wait(timeout=30)
            return function(*args)

        return wrapped

    monkeypatch.setattr(numpy_, "_forward_block", record("forward", numpy_._forward_block))
    monkeypatch.setattr(numpy_._Backward, "key_block", record("backward", numpy_._Backward.key_block))
    q, k, v, dout = draw(*[(1100, 8)] * 4)
    run(q, k, v, dout)
    assert [len(x) for x in used.values()] == [2, 2]


@every_tier
def test_calls_from_several_user_threads(with_threads):
    with_threads(3)
    before = blas_threads()
    inputs = [draw(*[(2, 700, 16)] * 4, seed=i) for i in range(6)]
    expected = [[x.tobytes() for x in run(*x, causal=True)] for x in inputs]
    seen = [None] * len(inputs)

    def work(i):
        for _ in range(3):
            seen[i] = [x.tobytes() for x in run(*inputs[i], causal=True)]

    users = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert seen == expected
    assert blas_threads() == before


def test_blas_has_one_thread_inside_and_its_own_number_after():
    with threadpoolctl.threadpool_limits(2, "blas"):
        inside, entered, leave = [], threading.Event(), threading.Event()

        def hold(_):
            entered.set()
            assert leave.wait(30)
            inside.append(blas_threads())

        other = threading.Thread(target=threads.run, args=(hold, [0]))
        other.start()
        assert entered.wait(30)
        threads.run(lambda _: inside.append(blas_threads()), [0])
        inside.append(blas_threads())  # the other is still inside
        leave.set()
        other.join()
        assert all(set(x) == {1} for x in inside)
        assert len(inside) == 3
        assert set(blas_threads()) == {2}


def test_exceptions_reach_the_caller(with_threads):
    with_threads(3)
    before, started = blas_threads(), []

    def fail(i):
        started.append(i)
        raise KeyError(i)

    with pytest.raises(KeyError):
        threads.run(fail, range(100))
    assert len(started) <= 3
    assert blas_threads() == before


def test_turns_keep_their_order():
    turns, entered, order = threads.Turns(), threading.Event(), []

    def second():
        entered.set()
        turns.wait("place", 1)
        order.append(1)

    other = threading.Thread(target=second)
    other.start()
    assert entered.wait(30)
    other.join(timeout=0.05)  # it has no way on
    turns.wait("place", 0)
    order.append(0)
    turns.done("place")
    other.join()
    assert order == [0, 1]


@numpy_tier
@pytest.mark.parametrize("failing", [0, 512, 1024])
def test_a_failing_block_ends_the_backward(failing, with_threads, monkeypatch, tier):
    """The other threads wait for its turn in dq: they must not wait for ever."""
    with_threads(3)
    inputs = draw(*[(1500, 8)] * 4)
    scores = numpy_._Tile.scores

    def fail(tile, q, k):
        if tile.j0 == failing and tile.i0 == 512 and q.shape[1] == 9:  # the backward has one more column
            raise MemoryError("seeded")
        return scores(tile, q, k)

    monkeypatch.setattr(numpy_._Tile, "scores", fail)
    with pytest.raises(MemoryError, match="seeded"):
        run(*inputs)


def test_an_interrupt_leaves_no_thread_at_work(with_threads):
    with_threads(2)
    started, finished = [], []

    def item(i):
        started.append(i)
        if threading.current_thread() is not threading.main_thread():
            if not finished:
                _thread.interrupt_main()  # as Ctrl-C does, wherever the main thread is
            time.sleep(0.1)
            finished.append(i)
        else:
            time.sleep(0.01)

    with interruptible(), pytest.raises(KeyboardInterrupt):
        threads.run(item, range(1000))
    left = len(finished)
    assert 1 <= left <= len(started) < 100
    time.sleep(0.2)
    assert len(finished) == left


def test_the_quota_of_a_container_counts(tmp_path):
    assert workers._quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    for quota, period, expected in (("-1", "100000", None), ("250000", "100000", 3), ("1000", "100000", 1)):
        (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
        (tmp_path / "cpu/cpu.cfs_period_us").write_text(f"{period}\n")
        workers._quota.cache_clear()
        assert workers._quota(tmp_path) == expected
    for text, expected in (("max 100000\n", 1), ("200000 100000\n", 2), ("nonsense\n", 1)):  # 1: of version 1
        (tmp_path / "cpu.max").write_text(text)
        workers._quota.cache_clear()
        assert workers._quota(tmp_path) == expected
    workers._quota.cache_clear()


@every_tier
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_computes(with_threads):
    with_threads(2)
    inputs = draw(*[(2, 600, 16)] * 4)
    with threadpoolctl.threadpool_limits(2, "blas"):
        expected = [x.tobytes() for x in run(*inputs)]  # the pool exists

        def fork_inside(_):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads alive
                pid = os.fork()
            if pid == 0:
                right = [x.tobytes() for x in run(*inputs)] == expected and set(blas_threads()) == {2}
                os._exit(0 if right else 1)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        codes: list[int] = []
        fork_inside(0)
        threads.run(fork_inside, [0])
    assert codes == [0, 0]


# --- memory ---


@every_tier
def test_memory_is_linear_in_the_sequence():
    seqlen = 6000
    q, k, v, dout = draw(*[(seqlen, 8)] * 4)
    run(q, k, v, dout, causal=True)
    tracemalloc.start()
    run(q, k, v, dout, causal=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    outputs = 4 * q.nbytes
    assert peak < 2 * outputs + 1e6  # the score matrix has 144 MB


def test_scratch_is_bounded(tier):
    scratch = threads.Scratch()
    first = scratch("a", (10, 20), np.dtype(np.float32))
    assert np.shares_memory(first, scratch("a", (5, 5), np.dtype(np.float32)))
    assert not np.shares_memory(first, scratch("b", (5, 5), np.dtype(np.float32)))
    assert scratch("a", (30, 30), np.dtype(np.float32)).shape == (30, 30)

    def held():
        return sum(x.nbytes for x in (native._free if tier == "native" else numpy_._scratch._buffers.values()))

    run(*draw(*[(3000, 512)] * 4))
    before = held()
    assert before < 96e6
    run(*draw(*[(6000, 512)] * 4))
    assert held() == before
