"""The budget of errors: each term as loops over the definition count it, and tight on both sides."""

import ml_dtypes
import numpy as np
import pytest
from cases import Case, check, within_budget
from conftest import On
from oracle import attention, seen_in

from cupy_flash import attention_reference, attention_reference_backward
from cupy_flash._src.analysis.budget import magnitudes, spent
from cupy_flash._src.problem import DTYPES

RESULTS = ("out", "lse", "dq", "dk", "dv")
CASES = {
    "plain": Case(sq=5, sk=7, d=6, dv=3),
    "groups and a batch, causal": Case(batch=(2,), heads_k=2, group=3, sq=4, sk=9, d=5, dv=2, causal=True),
    "tiles of keys": Case(sq=2, sk=75, d=2, dv=2, causal=True, q_offset=60, magnitude=0.1),
    "broadcast, an offset, a negative scale": Case(
        batch=(3,), batch_k=(1,), group=2, sq=4, sk=5, d=3, dv=6, causal=True, q_offset=-1, scale=-0.8
    ),
    "a window": Case(group=2, sq=7, sk=9, d=4, dv=3, window=(2, 1), q_offset=1),
    "a window that begins within a tile": Case(sq=3, sk=75, d=2, dv=2, causal=True, window=(40, None), magnitude=0.1),
    "biases, one of each head and batch element": Case(
        batch=(2,), heads_k=1, group=2, sq=4, sk=6, d=3, dv=2, alibi_slopes=(True,), q_offset="each"
    ),
    "lengths, a mask and a cap": Case(
        batch=(2,),
        group=2,
        sq=6,
        sk=40,
        d=3,
        dv=2,
        mask=(True, True, True, True),
        softcap=0.9,
        alibi_slopes=(False,),
        causal=True,
        k_lengths="each",
        q_lengths="each32",
        k_starts="one",
    ),
    "scores below and beyond a cap": Case(group=2, sq=3, sk=7, d=4, dv=3, causal=True, scale=1.5, softcap=0.9),
}


# Of a GPU, in eps: how wrong ex2 is, lg2, a term of a tensor core's sum; the headroom and lag in units of ln 2.
ON_A_GPU = {
    "float16": (2.5, 2, 1.25, 0, 8),
    "bfloat16": (2.5 + 19 * np.log(2), 2, 1.25, 38, 8),
    "float32": (2.5, 2, 0, 0, 0),
    "float64": (0, 0, 0, 0, 0),
}


def rises_after(highest, i):
    """How often a maximum that begins with tile i rises in the tiles after it."""
    rises, top = 0, highest[i]
    for x in highest[i + 1 :]:
        rises, top = rises + (x > top), max(x, top)
    return rises


def weight_factors(keys, s):
    """How many 2^x a key's weight in the forward has at most: its own, and one for each rise after its tile."""
    tiles = keys // 16 - keys[0] // 16
    highest = [max(s[tiles == i], default=-np.inf) for i in range(tiles[-1] + 1)]
    rises = [max(rises_after(highest, i), rises_after(highest[::-1], tiles[-1] - i)) for i in range(tiles[-1] + 1)]
    return np.array([1 + rises[i] for i in tiles])


def by_loops(q, k, v, dout, dlse, *, scale, softcap=None, alibi_slopes=None, approximate=False, **mask):
    """What `magnitudes` says, an element at a time: the terms of each result, and what each rounding moves."""
    ex2, lg2, cut, headroom, lag = ON_A_GPU[q.dtype.name] if approximate else (0, 0, 0, 0, 0)
    storage = float(ml_dtypes.finfo(q.dtype).eps)
    sums = float(np.finfo(np.float64 if q.dtype == np.float64 else np.float32).eps)
    q, k, v, dout = (x.astype(np.float64) for x in (q, k, v, dout))
    keys_batch = k.shape[:-3]
    batch = np.broadcast_shapes(q.shape[:-3], keys_batch)
    (hq, sq, d), (hk, sk, dv) = q.shape[-3:], v.shape[-3:]
    q, k, v = (np.broadcast_to(x, batch + x.shape[-3:]) for x in (q, k, v))
    scale = 1 / np.sqrt(d) if scale is None else scale
    slopes = np.broadcast_to(0 if alibi_slopes is None else alibi_slopes, (*batch, hq)).astype(np.float64)
    steps = 0 if softcap is alibi_slopes is None else 2
    steps += 2**12 if softcap is not None and approximate and storage > 2**-20 else 0  # tanh.approx: 2^-11
    cap, largest_step, largest_product = softcap, 0.0, 0.0
    largest_score = largest_lse = largest_off = 0.0
    queries = sq * hq // hk * (int(np.prod(batch)) // int(np.prod(keys_batch)))  # that meet in a key's gradient
    alike_d, alike_dv, alike_keys, alike_queries = (0 if cut else min(n, 128) / 8 for n in (d, dv, sk, queries))
    out, dq = np.zeros((*batch, hq, sq, dv)), np.zeros((*batch, hq, sq, d))
    dq_delta, dk, dk_delta, dv_terms = (np.zeros_like(dq), *(np.zeros((*batch, hk, sk, n)) for n in (d, d, dv)))
    alike, off_out, off_dq, off_dk, off_dv = (np.zeros_like(x) for x in (out, out, dq, dk, dv_terms))
    for index in np.ndindex(*batch, hq):
        key = (*index[:-1], index[-1] // (hq // hk))
        seen, offset = seen_in(index, (*batch, hq, sq, sk), **mask)
        for i in range(sq):
            row = (*index, i)
            for j in range(sk):
                largest_score = max(largest_score, abs(scale) * np.abs(q[row]) @ np.abs(k[key][j]))
                product = scale * q[row] @ k[key][j]
                largest_product = max(largest_product, abs(product))
                made = (cap * np.tanh(product / cap) if cap else product) - slopes[index] * abs(i + offset - j)
                largest_step = max(largest_step, abs(made) if steps else 0)
            keys = np.flatnonzero(seen[i])
            if not len(keys):
                continue
            s, slope = scale * k[key][keys] @ q[row], np.full(len(keys), scale)
            if cap:
                s, slope = cap * np.tanh(s / cap), scale / np.cosh(s / cap) ** 2
            s = s - slopes[index] * np.abs(i + offset - keys)
            e = np.exp(s - s.max())
            p = e / e.sum()
            largest_lse = max(largest_lse, abs(s.max()) + np.log(e.sum()))
            out[row] = p @ np.abs(v[key][keys])
            alike[row] = alike_keys * np.abs(p @ v[key][keys])
            delta = storage / sums * np.sqrt(((dout[row] * (p @ v[key][keys])) ** 2).sum())
            dp = np.abs(v[key][keys]) @ np.abs(dout[row])
            dscore = p * (dp + p @ dp + abs(dlse[row]))
            ds = abs(slope) * dscore
            dq[row] = ds @ np.abs(k[key][keys])
            dq_delta[row] = delta * np.abs((slope * p) @ k[key][keys])
            dk[key][keys] += np.outer(ds, np.abs(q[row]))
            dk_delta[key][keys] += np.outer((slope * p * delta) ** 2, q[row] ** 2)
            dv_terms[key][keys] += np.outer(p, np.abs(dout[row]))

            weights = ex2 * weight_factors(keys, s) * p
            in_units = np.log2(e.sum()) - headroom
            lse_off = weights.sum() + lg2 * np.log(2) * max(1, abs(in_units), abs(in_units + lag))
            out_off = weights + weights.sum() * p
            ds_off = (
                abs(slope) * p * (out_off @ dp)
                + 2 * steps * abs(scale) * dscore
                + (ex2 + lse_off + cut * (dv + sk) + alike_dv + alike_keys) * ds
            )
            largest_off = max(largest_off, lse_off)
            off_out[row] = out_off @ np.abs(v[key][keys]) + cut * sk * out[row]
            off_dq[row] = (ds_off + (cut * sk + alike_keys) * ds) @ np.abs(k[key][keys])
            in_queries = cut * queries + alike_queries
            off_dk[key][keys] += np.outer(ds_off + in_queries * ds, np.abs(q[row]))
            off_dv[key][keys] += np.outer((ex2 + lse_off + in_queries) * p, np.abs(dout[row]))
    score = 1 + (1 + cut * d) * largest_score + alike_d * largest_product + steps * largest_step
    lse = score + largest_lse
    again = lse + steps * largest_step  # the score that the gradients make may err to the other side
    return {
        "out": (score * out + off_out + alike).max(), "lse": lse + largest_off,
        "dq": (again * dq + dq_delta + off_dq).max(),
        "dk": (again * dk + np.sqrt(dk_delta) + off_dk).max(), "dv": (again * dv_terms + off_dv).max(),
    }  # fmt: skip


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_magnitudes_are_those_of_the_definition(name, dtype, approximate):
    """Where query heads or entries of a batch share a key, its gradient is taken to have as many terms of the
    largest's size: at least what the loops count, at most that often.
    """
    case = CASES[name]
    arrays = [x.astype(DTYPES[dtype]) if i < 4 else x for i, x in enumerate(case.arrays())]
    options = case.options | {"approximate": approximate}
    found, counted = magnitudes(*arrays, **options), by_loops(*arrays, **options)
    shared = case.group * (3 if case.batch_k else 1)
    assert list(found) == list(RESULTS)
    for result, size in counted.items():
        most = shared if result in ("dk", "dv") else 1
        assert size * (1 - 1e-12) <= found[result] <= size * most * (1 + 1e-12), result
    without = magnitudes(*arrays[:4], None, **options)
    expected = by_loops(*arrays[:4], np.zeros_like(arrays[4]), **options)
    assert without["dq"] == pytest.approx(expected["dq"], rel=1e-12) and without["dv"] == found["dv"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_spent_and_what_there_is(dtype):
    """Twice the naive error, eps of sums times the size (twice in float64), one rounding of the largest result."""
    eps = float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    sums, roundings = (2.0**-52, 2) if dtype == "float64" else (2.0**-23, 1)
    exact = np.array([[0.5, -4.0], [0.0, 1.0]])
    x, naive = exact.astype(DTYPES[dtype]), exact.astype(DTYPES[dtype])
    x[1, 0], naive[0, 0] = 0.25, 0.5 + 8 * eps
    for size in (1.0, 3.0):
        error, budget = spent(x, naive, exact, size)
        assert error == 0.25
        assert budget == pytest.approx(2 * 8 * eps + roundings * sums * size + 4 * eps, rel=1e-12)
    assert spent(x, naive, exact) == spent(x, naive, exact, 1.0)


@pytest.fixture(scope="module", params=DTYPES)
def judged(request):
    """For each result of a case: what naive attention gives, the exact result, and the size of the terms."""
    case = Case(dtype=request.param, heads_k=2, group=2, sq=12, sk=10, d=16, dv=8, causal=True)
    q, k, v, dout, dlse = case.arrays()
    naive = attention_reference(q, k, v, return_lse=True, **case.options)
    naive += attention_reference_backward(dout, q, k, v, dlse=dlse, **case.options)
    exact = attention(q, k, v, dout=dout, dlse=dlse, **case.options)
    sizes = magnitudes(q, k, v, dout, dlse, **case.options)
    return {name: x for name, *x in zip(sizes, naive, exact, sizes.values(), strict=True)}


@pytest.mark.parametrize("name", RESULTS)
def test_one_and_a_half_budgets_are_refused_and_nine_tenths_are_not(judged, name):
    """In any element; the exact results are those of the type, so that the planted error is the only one."""
    naive, exact, size = judged[name]
    finite = np.isfinite(exact)
    good = exact.astype(naive.dtype)
    exact = good.astype(np.float64)
    _, budget = spent(good, naive, exact, size)
    assert budget < 0.2 * np.abs(exact[finite]).max(), "a result of zeros is refused"
    smallest = np.argmin(np.where(finite, np.abs(exact), np.inf))
    for position in (smallest, np.flatnonzero(finite)[0], np.flatnonzero(finite)[-1]):
        for share in (0.9, 1.5, -0.9, -1.5):
            x = good.copy()
            value = x.astype(np.float64).flat[position] + share * budget
            x.flat[position] = value
            error = abs(float(x.flat[position]) - exact.flat[position])
            if abs(share) < 1 and error <= budget:
                within_budget(name, x, naive, exact, size)
            elif error > budget:
                with pytest.raises(AssertionError, match=rf"^{name}: error {error:.3g}, the budget is {budget:.3g}"):
                    within_budget(name, x, naive, exact, size)
        if position == smallest:
            assert abs(share) == 1.5 and error == pytest.approx(1.5 * budget, rel=0.01)


@pytest.mark.parametrize("name", RESULTS)
def test_what_is_no_number_in_the_wrong_place_is_refused(judged, name):
    naive, exact, size = judged[name]
    good = exact.astype(naive.dtype)
    within_budget(name, good, naive, exact, size)
    for position in (0, -1):
        for value in (np.nan, np.inf, -np.inf, 0.0):
            x = good.copy()
            if not np.isfinite(x.flat[position]) and value == x.flat[position]:
                continue
            if value == 0 and np.isfinite(x.flat[position]):
                continue
            x.flat[position] = value
            with pytest.raises(AssertionError, match=f"^{name}: error"):
                within_budget(name, x, naive, exact, size)
    for value in (np.nan, np.inf, -np.inf):  # nor is an exact result that is none met by a number
        broken = exact.copy()
        broken.flat[-1] = value
        with pytest.raises(AssertionError, match=f"^{name}: error"):
            within_budget(name, good, naive, broken, size)
        within_budget(name, broken.astype(naive.dtype), broken, broken, size)
        with pytest.raises(AssertionError, match=f"^{name}: error"):  # and naive attention's excuses no other
            within_budget(name, good + naive.dtype.type(1), broken, exact, size)


@pytest.mark.parametrize("name", RESULTS)
def test_a_wrong_shape_is_refused(judged, name):
    naive, exact, size = judged[name]
    good = exact.astype(naive.dtype)
    for x in (good[None], good[:1], good[..., :1], good[..., :-1], good.ravel()):
        with pytest.raises(AssertionError, match=f"^{name}: error inf"):
            within_budget(name, x, naive, exact, size)


def test_nothing_costs_nothing():
    nothing, rows = np.zeros((2, 0, 3)), np.full((2, 3), -np.inf)
    assert spent(nothing, nothing, nothing) == spent(rows, rows, rows) == (0.0, 0.0)
    arrays = Case(sq=0, sk=4, d=8).arrays()
    arrays = Case(sq=0, sk=4, d=8).arrays()
    sizes = magnitudes(*arrays, causal=False, q_offset=None, scale=None)
    assert {name: sizes[name] for name in RESULTS if name != "lse"} == dict.fromkeys(("out", "dq", "dk", "dv"), 0.0)


SEEDS = [("bfloat16", 198), ("bfloat16", 382), ("float16", 2)]


@pytest.mark.parametrize(("dtype", "seed"), SEEDS)
def test_delta_of_a_rounded_output_is_in_the_budget(tier, dtype, seed):
    """One query and large numbers: dq and dk of these seeds are off by what the rounding of out does to delta."""
    check(Case(dtype=dtype, sq=1, sk=45, d=64, seed=seed, magnitude=4.0), On("cpu"))


@pytest.mark.slow
def test_delta_of_a_rounded_output_is_in_the_budget_of_every_seed(on):
    for seed in range(400):
        check(Case(dtype="bfloat16", sq=1, sk=45, d=64, seed=seed, magnitude=4.0), on)
