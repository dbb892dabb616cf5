"""wrt: what it takes, that a gradient is the same whatever else is named, and that only what is named is computed."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from cases import Case, results, same_bits

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    emulator,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
)
from cupy_flash._src.analysis.budget import magnitudes
from cupy_flash._src.backends import host_terms, native, numpy_
from cupy_flash._src.components import INPUTS, LEARNING

X = np.random.default_rng(0).standard_normal((2, 5, 8), np.float32)
ALL = (*INPUTS, *LEARNING)
CASE = Case(
    batch=(2,), heads_k=2, group=2, sq=70, sk=90, d=16, causal=True, softcap=3.0,
    bias=(True, False, True), sinks=(True,), alibi_slopes=(False,),
)  # fmt: skip

NAMES = "q, k, v, alibi_slopes, bias, sinks, score_args"

# --- what it takes ---


def backward(q, k, v, **options):
    out, lse = flash_attention(q, k, v, return_lse=True)
    return flash_attention_backward(q, q, k, v, out, lse, **options)


def reference_backward(q, k, v, **options):
    return attention_reference_backward(q, q, k, v, **options)


@pytest.mark.parametrize("call", [backward, flash_attention_vjp, reference_backward])
@pytest.mark.parametrize(("wrt", "message"), [
    ("q", f"TypeError: wrt is 'q': expected a tuple or list of names, of {NAMES}"),
    (None, f"TypeError: wrt is None: expected a tuple or list of names, of {NAMES}"),
    ({"q"}, f"TypeError: wrt is {{'q'}}: expected a tuple or list of names, of {NAMES}"),
    ((1,), f"TypeError: wrt has 1: expected names, of {NAMES}"),
    (("q", "dk"), f"ValueError: wrt has 'dk': expected {NAMES}"),
    (["mask"], f"ValueError: wrt has 'mask': expected {NAMES}"),
    (("bias", "q"), "ValueError: wrt has 'bias', which was not passed: expected q, k, v"),
    (["sinks"], "ValueError: wrt has 'sinks', which was not passed: expected q, k, v"),
    (["score_args"], "ValueError: wrt has 'score_args', which was not passed: expected q, k, v"),
    (("k", "alibi_slopes"), "ValueError: wrt has 'alibi_slopes', which was not passed: expected q, k, v"),
    (("q", "k", "q"), "ValueError: wrt is ('q', 'k', 'q'): expected at least one name, and each once"),
    ((), "ValueError: wrt is (): expected at least one name, and each once"),
    ([], "ValueError: wrt is []: expected at least one name, and each once"),
], ids=str)  # fmt: skip
def test_names_that_are_none_are_refused(call, wrt, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call(X, X, X, wrt=wrt)
    assert f"{error.type.__name__}: {error.value}" == message


def test_a_forward_has_no_gradients():
    for call in (flash_attention, attention_reference):
        with pytest.raises(TypeError, match="unexpected keyword argument 'wrt'"):
            call(X, X, X, wrt=("q",))


# --- each gradient is the same whatever else is named ---


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_any_of_them_in_any_order(on, dtype):
    """The same bits, in the order of the names, each in the shape and dtype of its array."""
    case, rng = replace(CASE, dtype=dtype), np.random.default_rng(0)
    q, k, v, dout, dlse = case.arrays()
    out, lse = on(flash_attention, q, k, v, return_lse=True, **case.options)

    def gradients(wrt):
        found = on(
            flash_attention_backward, dout, q, k, v, out, lse, dlse=dlse, wrt=wrt, deterministic=True, **case.options
        )
        assert isinstance(found, tuple)
        return found

    given = {"q": q, "k": k, "v": v, **case.options}
    expected = dict(zip(ALL, gradients(ALL), strict=True))
    for name, x in expected.items():
        assert x.shape == given[name].shape and x.dtype == given[name].dtype and np.isfinite(x).all() and x.any()
    for size in range(1, len(ALL)) if on.name == "cpu" else (1, 2, 5):
        for names in itertools.combinations(ALL, size):
            wrt = tuple(rng.permutation(names).tolist())
            same_bits(gradients(wrt), [expected[name] for name in wrt])
    same_bits(gradients(["sinks", "v", "bias"]), [expected[name] for name in ("sinks", "v", "bias")])


def test_any_of_the_references():
    q, k, v, dout, dlse = CASE.arrays()
    for compute_dtype in (None, np.float64):
        options = {"dlse": dlse, "compute_dtype": compute_dtype, **CASE.options}
        expected = dict(zip(ALL, attention_reference_backward(dout, q, k, v, wrt=ALL, **options), strict=True))
        for size in range(1, len(ALL)):
            for wrt in itertools.combinations(ALL[::-1], size):
                found = attention_reference_backward(dout, q, k, v, wrt=wrt, **options)
                same_bits(found, [expected[name] for name in wrt])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_those_of_options_repeat_also_where_the_others_need_not(on, dtype):
    """And are those of a vjp."""
    case = replace(CASE, dtype=dtype)
    q, k, v, dout, dlse = arrays = case.arrays()
    out, lse, *expected = results(on, arrays, wrt=LEARNING, **case.options)
    options = {"wrt": ALL, "deterministic": False, **case.options}
    for _ in range(2):
        found = on(flash_attention_backward, dout, q, k, v, out, lse, dlse=dlse, **options)
        same_bits(found[len(INPUTS) :], expected)
    if on.name != "cuda":  # whose vjp takes arrays of its own
        of_vjp = on(flash_attention_vjp, q, k, v, **options)[1](dout, dlse)
        same_bits(of_vjp[len(INPUTS) :], expected)


def test_the_budget_knows_sizes_at_least_those_of_gradients():
    """Also where keys are far away, whose distances a slope's gradient has."""
    for q_offset in (20, 10**5):
        case = replace(CASE, q_offset=q_offset, causal=False, window=(None, None), softcap=None)
        arrays = case.arrays()
        options = case.options | {"alibi_slopes": np.float32([1e-6] * 4), "q_offset": q_offset}
        q, k, v, dout, dlse = arrays
        sizes = magnitudes(*arrays, wrt=ALL, **options)
        grads = attention_reference_backward(dout, q, k, v, dlse=dlse, wrt=ALL, **options)
        assert all(sizes[f"d{name}"] >= np.abs(x).max() for name, x in zip(ALL, grads, strict=True))


# --- only what is named is computed ---


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("wrt", "kernels"), [
    (("q",), {"dq"}), (("k",), {"dkdv"}), (("v",), {"dkdv"}), (("k", "v"), {"dkdv"}), (("bias",), {"dterm"}),
    (("alibi_slopes",), {"dterm"}), (("sinks",), {"dsinks"}), (("sinks", "q"), {"dq", "dsinks"}),
], ids=lambda names: " ".join(sorted(names)) if isinstance(names, set) else str(names))  # fmt: skip
def test_kernels_that_run(wrt, kernels, deterministic):
    q, k, v, dout, dlse = CASE.arrays()
    out, lse = flash_attention(q, k, v, return_lse=True, **CASE.options)
    options = {"dlse": dlse, "wrt": wrt, "deterministic": deterministic, "backend": "emulator", **CASE.options}
    flash_attention_backward(dout, q, k, v, out, lse, **options)
    ran = {x.kernel.removeprefix("attention_") for x in emulator.last_run().launches}
    assert ran - {"sum_splits"} == kernels | {"delta"}


def test_products_that_the_compiled_tier_runs(monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "native")
    ran, run = [], native._run
    monkeypatch.setattr(native, "_run", lambda name, *args: (ran.append(name), run(name, *args)))
    q, k, v, dout, dlse = CASE.arrays()
    out, lse = flash_attention(q, k, v, return_lse=True, **CASE.options)
    for wrt, expected in (
        (("q",), ["backward"]), (("v", "sinks"), ["backward"]), (("sinks",), []), (("bias",), ["term"]),
        (("alibi_slopes", "bias"), ["term"] * 2), (("bias", "k"), ["backward", "term"]),
    ):  # fmt: skip
        ran.clear()
        flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, wrt=wrt, backend="cpu", **CASE.options)
        assert ran == expected


def test_products_that_the_numpy_tier_runs(monkeypatch):
    """Beside those of the scores and of their gradients; the sinks need none."""
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "numpy")
    q, k, v, dout, dlse = CASE.arrays()
    out, lse = flash_attention(q, k, v, return_lse=True, **CASE.options)
    counts = {"products": 0, "scores": 0, "sinks": 0}

    def count(name, owner, attribute):
        function = getattr(owner, attribute)

        def counted(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, attribute, counted)

    count("products", numpy_._Tile, "matmul"), count("scores", numpy_._Tile, "scores")
    count("sinks", host_terms, "sinks_of")
    heads = 8  # of one block of queries and of keys
    for wrt, products, scores in ((("q",), 1, 1), (("v",), 1, 1), (("k", "q"), 2, 1), (("sinks",), 0, 0),
                                  (("bias",), 0, 1), (("bias", "alibi_slopes"), 0, 2), (ALL, 3, 3)):  # fmt: skip
        counts.update(products=0, scores=0, sinks=0)
        flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse, wrt=wrt, backend="cpu", **CASE.options)
        expected = {"products": heads * products, "scores": heads * scores, "sinks": heads * ("sinks" in wrt)}
        assert counts == expected, wrt


# --- the gradients are those of differences ---

SMALL = {"dtype": "float64", "batch": (2,), "heads_k": 1, "group": 2, "sq": 5, "sk": 6, "d": 4, "dv": 3}
OPTIONS = [
    {"bias": (True,) * 4, "sinks": (True,), "alibi_slopes": (True,)},
    {"bias": (True, False, True), "sinks": (False,), "alibi_slopes": (False,), "softcap": 0.8},
    {"bias": (True, False), "sinks": (False,), "alibi_slopes": (False,), "causal": True, "softcap": 1.5, "q_offset": 0},
    {"bias": (True,), "sinks": (True,), "alibi_slopes": (False,), "window": (2, 1), "q_offset": "each"},
    {"bias": (True, False, False), "sinks": (False,), "alibi_slopes": (True,), "mask": (True, True), "seed": 3},
    {"bias": (True, False, False, True), "sinks": (False,), "alibi_slopes": (False,), "k_lengths": "each",
     "q_lengths": "each", "k_starts": "each", "softcap": 2.0},
]  # fmt: skip


def differences(loss, x, step=2.0**-10):
    """The gradient of a loss with respect to x, which changes in place: five points, to the fourth order."""
    gradient = np.zeros(x.shape)
    for at in np.ndindex(x.shape):
        for steps, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
            before, x[at] = x[at], x[at] + steps * step
            gradient[at] += weight * loss() / (12 * step)
            x[at] = before
    return gradient


@functools.cache
def small(number):
    """Arrays and options of one of OPTIONS in float64, and the differences of a loss with respect to what wrt names.

    It is sum(dout * out) + sum(dlse * lse) over the rows whose lse is a number.
    """
    case = Case(**SMALL | OPTIONS[number])
    q, k, v, dout, dlse = arrays = case.arrays()
    exact = {name: case.options[name].astype(np.float64) for name in ("bias", "sinks")}
    exact["alibi_slopes"] = (case.options["alibi_slopes"] * 2**12).round() / np.float32(2**12)  # float32 has its steps
    given = case.options | exact

    def loss():
        out, lse = attention_reference(q, k, v, return_lse=True, **given)
        return (dout * out).sum() + (dlse * np.where(np.isfinite(lse), lse, 0)).sum()

    return arrays, given, [differences(loss, x) for x in (q, k, v, *(given[name] for name in LEARNING))]


@pytest.mark.parametrize("number", range(len(OPTIONS)))
def test_gradients_are_those_of_differences(on, number):
    (q, k, v, dout, dlse), options, expected = small(number)
    out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
    found = on(flash_attention_backward, dout, q, k, v, out, lse, dlse=dlse, wrt=ALL, **options)
    of_reference = attention_reference_backward(dout, q, k, v, dlse=dlse, wrt=ALL, **options)
    for name, exact, *gradients in zip(ALL, expected, found, of_reference, strict=True):
        rounded = 1e-7 * np.abs(exact).max() if name == "alibi_slopes" else 0  # to float32, as slopes are
        for gradient in gradients:
            np.testing.assert_allclose(gradient, exact, rtol=1e-8, atol=1e-8 + rounded)
