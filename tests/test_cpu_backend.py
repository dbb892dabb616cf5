"""What is particular to the CPU backend, in both tiers: threads, memory, and the numerics of its tiles."""

import ctypes
import gc
import os
import signal
import threading
import time
import tracemalloc
import warnings

import ml_dtypes
import numpy as np
import oracle
import pytest
import threadpoolctl
from cases import Case, check
from processes import interruptible

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
)
from cupy_flash._src import workers
from cupy_flash._src.backends import native, numpy_, threads
from cupy_flash._src.problem import DTYPES


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


@pytest.fixture
def poisoned(monkeypatch):
    """What is read before it is written, results too, is nan."""
    empty = np.empty

    def poison(*args, **options):
        x = empty(*args, **options)
        ctypes.memset(x.ctypes.data, 0xFF, x.nbytes)
        return x

    monkeypatch.setattr(np, "empty", poison)
    monkeypatch.setattr(native, "_free", [])
    monkeypatch.setattr(native, "KEPT_BYTES", -1)
    monkeypatch.setattr(numpy_, "_scratch", threads.Scratch())


numpy_tier = pytest.mark.parametrize("tier", ["numpy"], indirect=True)
every_tier = pytest.mark.usefixtures("tier")

# --- numerics of tiles ---


def hard_inputs(name, rows=300):
    """q, k, v, dout of one head with 1400 keys, three tiles, whose scores are hard for an online softmax."""
    q, k, v, dout = draw((rows, 16), (1400, 16), (1400, 8), (rows, 8))
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
        k[-3] = 100 * q[rows // 60]
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
    for rows in (300, 3):
        for result, error, budget in errors_and_budgets(*hard_inputs(name, rows), causal=causal):
            assert error <= budget, result


@every_tier
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 3e-2), ("float32", 4e-3), ("float64", 1e-11)])
def test_scores_far_below_0_of_any_number_of_keys(dtype, tolerance):
    """Near -2000: beside them anything that stands for no key, a 0 say, would take all the weight."""
    for rows, causal in ((1, False), (7, True), (30, False), (30, True)):
        for keys in (*range(1, 8), 9, 11, 13, 23, 121, 247):
            q, k, v, dout = draw((rows, 8), (keys, 8), (keys, 5), (rows, 5))
            q[:, 0], k[:, 0] = 1, -2000
            inputs = [x.astype(DTYPES[dtype]) for x in (q, k, v, dout)]
            q, k, v, dout = (x.astype(np.float64) for x in inputs)
            exact = oracle.attention(q, k, v, dout=dout, causal=causal, scale=1)
            for name, x, y in zip(exact._fields, run(*inputs, causal=causal, scale=1), exact, strict=True):
                if name == "dq":  # but for the feature in which k is large: the sum of dS is 0
                    x, y = x[:, 1:], y[:, 1:]
                bound = tolerance * max(1, np.abs(y[np.isfinite(y)]).max(initial=0))
                np.testing.assert_allclose(x.astype(np.float64), y, rtol=tolerance, atol=bound)


@every_tier
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_each_row_may_meet_the_largest_score_alone(dtype):
    """1000 above all before it, at a key that is near 0 for the other rows of its vector and panel."""
    rows = 48
    q, k, v = np.eye(rows), np.zeros((240 * rows, rows)), draw((240 * rows, 4))[0]
    winners = 240 * np.arange(rows) + 200
    k[winners, np.arange(rows)] = 1000
    q, k, v = (x.astype(DTYPES[dtype]) for x in (q, k, v))
    out, lse = flash_attention(q, k, v, scale=1.0, return_lse=True)
    np.testing.assert_array_equal(out, v[winners])
    np.testing.assert_array_equal(lse, 1000)


@every_tier
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("rows", "keys"), [(2, 1000), (9, 1000), (60, 130)])
def test_a_row_without_a_finite_score_is_0_and_gives_nothing(rows, keys, dtype):
    """Its products overflow to -inf; the other rows are as without it."""
    q, k, v, dout = draw((rows, 16), (keys, 16), (keys, 8), (rows, 8), dtype=DTYPES[dtype])
    k[:, 0] = 4
    q[0], q[:, 0] = 0, 0
    q[0, 0] = -float(ml_dtypes.finfo(dtype).max)
    out, lse, dq, dk, dv = run(q, k, v, dout, scale=1.0)
    assert lse[0] == -np.inf and not out[0].any() and not dq[0].any()
    expected = run(q[1:], k, v, dout[1:], scale=1.0)
    eps = float(ml_dtypes.finfo(dtype).eps)
    for x, y in zip((out[1:], lse[1:], dq[1:], dk, dv), expected, strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)
        np.testing.assert_allclose(x, y, rtol=8 * eps, atol=8 * eps * np.abs(y).max())


# --- more than a block ---


@every_tier
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "case",
    [
        Case(heads_k=1, group=2, sq=400, sk=720, d=24, dv=40, causal=True),
        Case(dtype="bfloat16", heads_k=2, sq=400, sk=720, d=24, dv=40, causal=True),
        Case(dtype="float64", heads_k=2, group=9, sq=3, sk=1300, d=16, causal=True, q_offset=1100),
        Case(dtype="float16", heads_k=3, group=2, sq=2, sk=800, d=40, causal=True),
    ],
    ids=lambda case: f"{case.dtype}, {case.sq} x {case.sk}",
)
def test_heads_of_many_blocks_share_their_keys(case):
    check(case, lambda function, *arrays, **options: function(*arrays, backend="cpu", **options))


@every_tier
@pytest.mark.usefixtures("poisoned")
def test_the_causal_mask_may_cut_blocks_anywhere():
    q, k, v, dout = draw((70, 8), (130, 8), (130, 8), (70, 8))
    for q_offset in (-70, -69, -5, *range(33), 59, 60, 128, 129):  # 32 queries: the widest panel
        options = {"causal": True, "q_offset": q_offset}
        exact = oracle.attention(q, k, v, dout=dout, **options)
        for x, y in zip(run(q, k, v, dout, **options), exact, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


# --- nan ---


@numpy_tier
def test_scores_far_below_0_need_the_moving_reference(monkeypatch, tier):
    monkeypatch.setattr(numpy_, "SMALL", 0)
    q, k, v, _ = hard_inputs("far below 0")
    assert not np.allclose(flash_attention(q, k, v), attention_reference(q, k, v), atol=1e-2)


@numpy_tier
def test_growing_scores_overflow_without_the_moving_reference_and_are_computed_again(monkeypatch, tier):
    headrooms, block = [], numpy_._forward_block

    def record(*args):
        headrooms.append(args[9:])
        block(*args)

    monkeypatch.setattr(numpy_, "_forward_block", record)
    q, k, v, _ = hard_inputs("growing")
    exact, exact_lse = attention_reference(q, k, v, return_lse=True)
    for large, again in ((numpy_.LARGE, set()), (np.inf, {(numpy_.HEADROOM,)})):
        headrooms.clear()
        monkeypatch.setattr(numpy_, "LARGE", large)
        out, lse = flash_attention(q, k, v, return_lse=True)
        np.testing.assert_allclose(out, exact, atol=1e-4)
        np.testing.assert_allclose(lse, exact_lse, rtol=1e-6)
        assert set(headrooms) == {()} | again


@every_tier
@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "dout"])
def test_an_inf_reaches_only_what_sees_it(where, value):
    q, k, v, dout = draw((2, 300, 8), (2, 300, 8), (2, 300, 8), (2, 300, 8))
    {"q": q, "k": k, "v": v, "dout": dout}[where][1, 140, 3] = value
    exact = oracle.attention(q, k, v, dout=dout, causal=True)
    for x, y in zip(run(q, k, v, dout, causal=True), exact, strict=True):
        finite = np.isfinite(y)
        assert np.isfinite(x[0]).all()
        both = finite & np.isfinite(x)
        assert both[:, :140].sum() == finite[:, :140].sum()
        np.testing.assert_allclose(x[both], y[both], rtol=1e-4, atol=1e-5)


def nan_after(dout, q, k, v, out, lse, dlse, q_offset):
    """Where a head's out, lse and, for the out and lse given, gradients are nan if these elements are."""
    seen = np.arange(len(k)) <= np.arange(len(q))[:, None] + q_offset
    s = seen & (q.any(axis=1)[:, None] | k.any(axis=1))
    p = s | seen & lse[:, None]
    ds = p | seen & ((dout.any(axis=1) | out.any(axis=1) | dlse)[:, None] | v.any(axis=1))
    results = s.any(axis=1)[:, None] | seen @ v, s.any(axis=1)
    return *results, ds.any(axis=1)[:, None], ds.any(axis=0)[:, None], p.any(axis=0)[:, None] | seen.T @ dout


@every_tier
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "keys"), [(200, 301), (9, 900), (2, 290)])
def test_a_nan_makes_nan_of_exactly_what_follows_from_it(rows, keys, dtype):
    """One element of one argument, in both directions."""
    q_offset = keys - rows - 20
    options, kind = {"causal": True, "q_offset": q_offset}, np.float64 if dtype == "float64" else np.float32
    q, k, v, dout = draw((2, rows, 16), (1, keys, 16), (1, keys, 24), (2, rows, 24), dtype=DTYPES[dtype])
    (dlse,) = draw((2, rows), dtype=kind)
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    clean = {"dout": dout, "q": q, "k": k, "v": v, "out": out, "lse": lse, "dlse": dlse}
    for name in clean:
        spoiled = {key: x.copy() for key, x in clean.items()}
        head = len(spoiled[name]) - 1
        row = (head, q_offset + 1 if name in "kv" else rows // 2)
        spoiled[name][row if name in ("lse", "dlse") else (*row, -1)] = np.nan
        flags = {key: np.isnan(x.astype(kind)) for key, x in spoiled.items()}
        results = flash_attention(*map(spoiled.get, "qkv"), return_lse=True, **options)
        results += flash_attention_backward(**spoiled, **options)
        of_heads = [
            nan_after(*(flags[key][0 if key in "kv" else h] for key in clean), q_offset=q_offset) for h in (0, 1)
        ]
        expected = [np.stack(x) for x in zip(*of_heads, strict=True)]
        expected[3:] = [x.any(axis=0, keepdims=True) for x in expected[3:]]  # of the key head
        for x, nan in zip(results, expected, strict=True):
            np.testing.assert_array_equal(np.isnan(x.astype(kind)), np.broadcast_to(nan, x.shape), err_msg=name)


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


@numpy_tier
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_bits_do_not_depend_on_the_number_of_threads(dtype, with_threads, tier):
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


def test_blas_has_one_thread_until_the_last_item_has_ended(with_threads):
    """The caller is done while its helper still computes."""
    with_threads(2)
    both, inside = threading.Barrier(2), []

    def item(_):
        both.wait(timeout=30)
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
            inside.extend(blas_threads())

    with threadpoolctl.threadpool_limits(2, "blas"):
        threads.run(item, [0, 1])
    assert set(inside) == {1}


def test_no_thread_of_a_job_warns_of_numbers(with_threads):
    """NumPy's error state is each thread's own."""
    with_threads(2)
    both, small = threading.Barrier(2), np.full(2, 1e-30, np.float32)

    def item(_):
        both.wait(timeout=30)
        return small * small / 0

    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        threads.run(item, [0, 1])


def test_as_many_threads_work_as_there_may_be(with_threads):
    used = set()
    for number in (1, 3, 2, 1):
        with_threads(number)
        used.clear()
        threads.run(lambda _: (used.add(threading.get_ident()), time.sleep(0.005)), range(20))
        assert 1 <= len(used) <= number


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
        if tile.j0 == failing and tile.region.rows.start == 512 and q.shape[1] == 9:  # the backward has one more column
            raise MemoryError("seeded")
        return scores(tile, q, k)

    monkeypatch.setattr(numpy_._Tile, "scores", fail)
    with pytest.raises(MemoryError, match="seeded"):
        run(*inputs)


@pytest.mark.parametrize(
    ("tier", "direction"), [("native", "forward"), ("numpy", "forward"), ("numpy", "backward")], indirect=["tier"]
)
def test_an_interrupt_ends_a_long_call_soon_and_leaves_no_thread_at_work(tier, direction, with_threads):
    """A minute of work or more."""
    with_threads(2)
    x, lse = (np.broadcast_to(np.float32(value), (24, 30000, *rest)) for value, rest in ((1, (64,)), (0, ())))
    warm = x[:1, :1000]
    run(warm, warm, warm, warm)  # has compiled
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    before = time.process_time()
    with interruptible(), pytest.raises(KeyboardInterrupt):
        timer.start()
        if direction == "forward":
            flash_attention(x, x, x)
        else:
            flash_attention_backward(x, x, x, x, x, lse)
    ended = time.process_time()
    assert ended - before < 15  # of 100 and more
    time.sleep(0.3)
    assert time.process_time() - ended < 0.1


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_computes_on_as_many_threads(with_threads, tier, monkeypatch):
    """Numbers and limits are right in a child too, of a call at work as well; of `tier` "numpy" its threads meet."""
    with_threads(2)
    inputs = draw(*[(2, 600, 16)] * 4)
    forward_block = numpy_._forward_block

    def meet(*args):
        if threading.get_ident() not in used:
            used.append(threading.get_ident())
            barrier.wait(timeout=30)
        return forward_block(*args)

    def fork_inside(_):
        nonlocal barrier
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads alive
            pid = os.fork()
        if pid == 0:
            status = 2
            try:
                barrier, used[:] = threading.Barrier(2), []
                right = [x.tobytes() for x in run(*inputs)] == expected and set(blas_threads()) == {2}
                status = 0 if right and (tier == "native" or len(used) == 2) else 1
            finally:
                os._exit(status)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    barrier, used, codes = threading.Barrier(2), [], []
    monkeypatch.setattr(numpy_, "_forward_block", meet)
    with threadpoolctl.threadpool_limits(2, "blas"):
        expected = [x.tobytes() for x in run(*inputs)]  # the pool exists
        fork_inside(0)
        threads.run(fork_inside, [0])
    assert codes == [0, 0]


# --- what a vjp keeps ---


@every_tier
def test_each_change_is_told_by_its_name():
    q, k, v, dout = draw((4, 9, 8), (2, 12, 8), (2, 12, 6), (4, 9, 6))
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True)
    arrays = {"q": q, "k": k, "v": v, "out": out, "lse": lse}
    for changed in (*[(name,) for name in arrays], ("q", "v"), ("k", "out", "lse")):
        before = {name: arrays[name].copy() for name in changed}
        for name in changed:
            arrays[name][-1, -1] += 1
        with pytest.raises(ValueError, match=f"^{' and '.join(changed)} changed since flash_attention_vjp"):
            vjp(dout)
        for name in changed:
            arrays[name][...] = before[name]
    vjp(dout)


@every_tier
def test_changed_signs_of_a_row_of_float64_are_told():
    """Bits of the same place in every word."""
    (q,) = draw((1, 1, 64), dtype=np.float64)
    _, vjp = flash_attention_vjp(q, q.copy(), q.copy())
    q *= -1
    with pytest.raises(ValueError, match=r"^q changed"):
        vjp(q)


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

    run(*draw(*[(8, 960, 64)] * 4))
    before = held()
    assert before < 32e6
    run(*draw(*[(8, 1920, 64)] * 4))
    assert held() <= before + 4096


def test_memory_of_large_calls_is_given_back(monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "native")
    monkeypatch.setattr(native, "_free", [])
    for most, kept in ((2**25, 1), (1, 0)):
        monkeypatch.setattr(native, "KEPT_BYTES", most)
        run(*draw(*[(60, 8)] * 4))
        assert len(native._free) == kept
        native._free.clear()


@every_tier
def test_memory_of_calls_at_the_same_time_is_given_back(with_threads, monkeypatch):
    """Of their threads, all at work at once, no more is left than of one."""
    with_threads(1)
    monkeypatch.setattr(native, "_free", [])
    inputs = draw(*[(2, 300, 128)] * 4)

    def at_once(users):
        barrier = threading.Barrier(users)
        borrow, scores = native._borrow, numpy_._Tile.scores

        def meet(function, *args):
            result = function(*args)
            if not hasattr(met, "before"):
                met.before = barrier.wait(timeout=30)
            return result

        met = threading.local()
        with monkeypatch.context() as patch:
            patch.setattr(native, "_borrow", lambda size: meet(borrow, size))
            patch.setattr(numpy_._Tile, "scores", lambda *args: meet(scores, *args))
            callers = [threading.Thread(target=run, args=inputs) for _ in range(users)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        at_once(1)
        alone = at_once(1)
        assert at_once(6) < alone + 1e5  # of which each has 500 KB and more
    finally:
        tracemalloc.stop()
