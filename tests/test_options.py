"""causal, scale, q_offset and the other options: what is taken for one, and that it is read at every call."""

import gc
import itertools
import weakref
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from cases import made
from oracle import visible

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
)
from cupy_flash._src.components import COMPONENTS
from cupy_flash._src.components.component import Mask
from cupy_flash._src.problem import DTYPES, AttentionProblem
from cupy_flash._src.specialization import Variant

X = np.random.default_rng(0).standard_normal((3, 2, 6, 8)).astype(np.float32)


class Tensor:
    """A tensor as other libraries have it: hashed by identity, changed in place, with methods for its one element."""

    def __init__(self, value, ndim=0):
        self.value, self.ndim, self.dtype = value, ndim, "library.some_type"

    def __repr__(self):
        return f"Tensor({self.value!r}, ndim={self.ndim})"

    def item(self):
        return self.value

    def __float__(self):
        raise AssertionError("warns where the tensor has a gradient")

    def __index__(self):
        return int(self.value)


def problem(**options):
    return AttentionProblem.from_arrays(*X, **options)


def backward(q, k, v, **options):
    return flash_attention_backward(q, q, k, v, q, q[..., 0], **options)


def vjp(*arrays, **options):
    return flash_attention_vjp(*arrays, **options)[0]


def reference_backward(*arrays, **options):
    return attention_reference_backward(arrays[0], *arrays, **options)


CALLS = [flash_attention, backward, vjp, attention_reference, reference_backward]


@pytest.mark.parametrize("call", CALLS)
def test_a_tensor_changed_in_place_counts_anew(call):
    scale, offset = Tensor(0.5), Tensor(0)
    results = []
    for scale.value, offset.value in ((0.5, 0), (2.0, 0), (2.0, -3)):
        results.append(call(*X, causal=True, scale=scale, q_offset=offset))
        expected = call(*X, causal=True, scale=scale.value, q_offset=offset.value)
        np.testing.assert_array_equal(results[-1], expected)
    assert not np.array_equal(results[0], results[1]) and not np.array_equal(results[1], results[2])


def test_an_array_changed_in_place_counts_anew():
    scale, offset = np.array(0.5), np.array(2)
    for scale[()], offset[()] in ((0.5, 2), (2.0, 2), (2.0, -1)):
        found = problem(causal=True, scale=scale, q_offset=offset)
        assert (found.scale, found.q_offset) == (scale, offset)


def test_no_foreign_object_is_kept():
    options = {"scale": Tensor(0.5), "q_offset": Tensor(1)}
    seen = [weakref.ref(x) for x in options.values()]
    flash_attention(*X, causal=True, **options)
    del options
    gc.collect()
    assert [x() for x in seen] == [None, None]


@pytest.mark.parametrize("scale", [
    0.5, Fraction(1, 2), Decimal("0.5"), np.float16(0.5), np.longdouble(0.5), ml_dtypes.bfloat16(0.5),
    np.array(0.5), np.array(0.5, ml_dtypes.bfloat16), np.array(Fraction(1, 2), object), Tensor(0.5),
])  # fmt: skip
def test_a_real_number_of_any_kind_is_a_scale(scale):
    for call in (lambda **o: problem(**o).scale, lambda **o: flash_attention(*X, **o)):
        np.testing.assert_array_equal(call(scale=scale), call(scale=0.5))
    assert type(problem(scale=scale).scale) is float


@pytest.mark.parametrize("scale", [2, np.int8(2), np.uint64(2), np.array(2), Tensor(2), np.float64(2)])
def test_a_whole_number_is_a_scale(scale):
    assert problem(scale=scale).scale == 2.0


@pytest.mark.parametrize("offset", [-2, np.int8(-2), np.array(-2), np.array(-2, object), Tensor(-2)])
def test_an_integer_of_any_kind_is_an_offset(offset):
    found = problem(causal=True, q_offset=offset).q_offset
    assert found == -2 and type(found) is int


BOOLEANS = [True, np.True_, np.array(True), Tensor(True)]
NEITHER = [
    "2", b"2", bytearray(b"2"), np.array("2"), np.str_("2"), [2], np.array([2]), np.array([[2.0]]), Tensor(2, ndim=1),
    2j, np.complex64(2), np.clongdouble(2), np.array(2j), Tensor(2j), np.timedelta64(2, "ns"),
    np.array(2, "datetime64[ns]"), np.ma.masked, np.ma.masked_array(2), np.array(None), ..., float, {},
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", [*BOOLEANS, *NEITHER], ids=repr)
def test_what_is_no_number_is_refused(call, value):
    for name, expected in (("scale", "a real number"), ("q_offset", "an int")):
        with pytest.raises(TypeError) as error:
            call(*X, **{name: value})
        assert str(error.value) == f"{name} is {value!r}: expected {expected}"


@pytest.mark.parametrize("value", [0.5, np.float64(2), np.array(2.0), Tensor(2.0), Decimal(2), Fraction(2)], ids=repr)
def test_only_an_integer_is_an_offset(value):
    with pytest.raises(TypeError) as error:
        problem(q_offset=value)
    assert str(error.value) == f"q_offset is {value!r}: expected an int"


@pytest.mark.parametrize(("value", "message"), [
    (10**400, "scale is of type int .*too large"),
    (10**5000, "scale is of type int .*too large"),
    (Fraction(10**400), "scale is of type Fraction .*too large"),
    (Decimal("1e400"), "scale is inf"),
    (Decimal("sNaN"), "scale is of type Decimal .*signaling NaN"),
    (np.longdouble("1e400"), "scale is inf"),
    (float("nan"), "scale is nan"),
    (np.float32("-inf"), "scale is -inf"),
    (Tensor(float("inf")), "scale is inf"),
], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
@pytest.mark.parametrize("call", CALLS)
def test_a_scale_is_finite(call, value, message):
    with pytest.raises(ValueError, match=f"{message}.*: expected a finite number"):
        call(*X, scale=value)


@pytest.mark.parametrize("value", [0, 1, "False", None, np.array(True), Tensor(True)], ids=repr)
def test_a_switch_is_true_or_false(value):
    for call, names in (
        (flash_attention, ("causal", "return_lse")),
        (backward, ("causal", "deterministic")),
        (vjp, ("causal", "deterministic", "return_lse")),
        (attention_reference, ("causal", "return_lse")),
        (reference_backward, ("causal",)),
    ):
        for name in names:
            with pytest.raises(TypeError) as error:
                call(*X, **{name: value})
            assert str(error.value) == f"{name} is {value!r}: expected True or False"


def test_numpys_booleans_are_switches():
    expected = flash_attention(*X, causal=True, return_lse=True)
    for x, y in zip(flash_attention(*X, causal=np.True_, return_lse=np.True_), expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_negative_zero_does_not_depend_on_earlier_calls():
    found = [problem(scale=scale).scale for scale in (-0.0, 0.0, -0.0)]
    assert np.signbit(found).tolist() == [False] * 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_scale(on, dtype):
    """Scores of 0 stay 0, others decide; one step more is refused."""
    limit = float(np.finfo(np.float64 if dtype == "float64" else np.float32).max) * np.log(2)
    q, k = np.zeros((2, 5, 16), DTYPES[dtype]), np.zeros((2, 7, 16), DTYPES[dtype])
    v = np.random.default_rng(0).standard_normal((2, 7, 16)).astype(DTYPES[dtype])
    within = {"rtol": 0.02, "atol": 0.01}
    for scale in (limit * (1 - 1e-6), -limit * (1 - 1e-6)):
        out, lse = on(flash_attention, q, k, v, scale=scale, return_lse=True)
        np.testing.assert_allclose(lse, np.full((2, 5), np.log(7)), rtol=1e-6)
        np.testing.assert_allclose(out.astype(float), v.astype(float).mean(1, keepdims=True).repeat(5, 1), **within)
        dq, dk, dv = on(flash_attention_backward, out, q, k, v, out, lse, scale=scale)
        if dtype != "float16":  # in which tensor cores take scale * dS, as naive attention does: it overflows
            assert not dq.any() and not dk.any()
        np.testing.assert_allclose(dv.astype(float), out.astype(float).sum(1, keepdims=True).repeat(7, 1) / 7, **within)
    few = np.concatenate([np.full((2, 1, 16), 2.0**-12), np.zeros((2, 6, 16))], axis=1).astype(DTYPES[dtype])
    out = on(flash_attention, q + 1, few, v, scale=limit * (1 - 1e-6))
    np.testing.assert_array_equal(out, v[:, :1].repeat(5, 1))
    for scale in (limit * (1 + 1e-6), -limit * (1 + 1e-6)):
        with pytest.raises(ValueError) as error:
            on(flash_attention, q, k, v, scale=scale)
        largest = "1.25e+308" if dtype == "float64" else "2.36e+38"
        assert str(error.value) == f"scale is {scale}: expected at most {largest} in size for {dtype}"


def test_a_problem_takes_no_other_options():
    expected = "options are causal, softness: expected only scale, "
    with pytest.raises(TypeError, match=expected):
        problem(causal=True, softness=1.0)
    with pytest.raises(TypeError, match=expected):
        Variant.of("float16", 64, causal=True, softness=1.0)


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda x: x.keyword)
def test_components_of_equal_values_are_one(component):
    """A call is found again by what is left of its options: plain values, alike however often they are checked."""
    for value in component.examples:
        checked = component.check(value)
        assert component.check(checked) == checked and hash(checked) == hash(component.check(value))
        assert {type(x) for x in np.ravel(np.array(checked, object))} <= {bool, int, float, str, type(None)}
        one, other = (made(component, value) for _ in range(2))
        assert one is not None and one == other and hash(one) == hash(other)


MASKS = [{x.keyword: value} for x in COMPONENTS if issubclass(x, Mask) for value in x.examples]


def inside(interval, positions):
    """Which positions (of the last axis) lie in an interval whose ends may be columns, or None."""
    inside = np.ones(np.broadcast_shapes(positions.shape, *(np.shape(x) for x in interval if x is not None)), bool)
    for end, holds in zip(interval, (np.less_equal, np.greater), strict=True):
        inside &= True if end is None else holds(end, positions)
    return inside


@pytest.mark.parametrize("options", MASKS)
@pytest.mark.parametrize("offset", [-40, -3, 0, 5, 40])
def test_ends_of_a_mask_never_fall_and_belong_together(options, offset):
    """Both intervals say which query sees which key, for numbers as for arrays of them."""
    queries, keys = np.arange(30), np.arange(20)
    for mask in problem(**options).masks:
        of_queries, of_keys = mask.keys(queries[:, None], offset), mask.queries(keys[:, None], offset)
        np.testing.assert_array_equal(inside(of_queries, keys), inside(of_keys, queries).T)
        for of_all, of_one, positions in ((of_queries, mask.keys, queries), (of_keys, mask.queries, keys)):
            for field, ends in zip(of_all._fields, of_all, strict=True):
                alone = [getattr(of_one(position, offset), field) for position in positions.tolist()]
                assert alone == ([None] * len(positions) if ends is None else ends.ravel().tolist())
                assert ends is None or (np.diff(ends.ravel()) >= 0).all()


@pytest.mark.parametrize("options", [{}, *MASKS, {"causal": True, "window": (4, 9)}])
@pytest.mark.parametrize(("sq", "sk"), [(9, 7), (3, 12), (12, 3), (1, 1), (0, 4), (4, 0)])
def test_intervals_of_a_problem_hold_what_is_seen(options, sq, sk):
    """Of rows and columns of the mask and of blocks of them; empty ones begin where they end, within the sizes."""
    for q_offset in range(-25, 26) if options else [None]:
        options = options | {"q_offset": q_offset}
        found = AttentionProblem.from_arrays(*(np.zeros((2, n, 4)) for n in (sq, sk, sk)), **options)
        seen = visible(sq, sk, **options)
        for flags, intervals in ((seen, found.keys), (seen.T, found.queries)):
            size, other = flags.shape
            for first, last in itertools.combinations_with_replacement(range(size), 2):
                begin, end = intervals(first, last)
                assert 0 <= begin <= end <= other
                np.testing.assert_array_equal(
                    np.flatnonzero(flags[first : last + 1].any(axis=0)), np.arange(begin, end)
                )
            if size:
                together = intervals(np.arange(size), np.full(size, size - 1))
                assert [tuple(x) for x in np.transpose(together)] == [intervals(i, size - 1) for i in range(size)]
        begin, end = found.seeing
        np.testing.assert_array_equal(np.flatnonzero(seen.any(axis=1)), np.arange(begin, end))
