"""causal, scale, q_offset and the other options: what is taken for one, and that it is read at every call."""

import gc
import itertools
import weakref
from decimal import Decimal
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from cases import filled, made
from oracle import seen_in

from cupy_flash import (
    attention_reference,
    attention_reference_backward,
    flash_attention,
    flash_attention_backward,
    flash_attention_vjp,
)
from cupy_flash._src.components import ARRAYS, COMPONENTS, Options, arrays_among
from cupy_flash._src.components.component import Mask, Place, Region
from cupy_flash._src.components.offsets import Offsets
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


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("call", CALLS)
def test_no_foreign_object_is_kept(call):
    arrays = {name: component.examples[0] for name, component in ARRAYS.items()}
    for options in ({"scale": Tensor(0.5), "q_offset": Tensor(1)}, filled(arrays, (2, 6, 6))):
        seen = [weakref.ref(x) for x in options.values()]
        call(*X, causal=True, **options)
        options.clear()
        gc.collect()
        assert [x() for x in seen] == [None] * len(seen)


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
        if name == "q_offset" and getattr(value, "ndim", 0):
            continue  # an array: tests/test_validation.py
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
    expected = "options are causal, softness: expected only q_offset, scale, "
    with pytest.raises(TypeError, match=expected):
        problem(causal=True, softness=1.0)
    with pytest.raises(TypeError, match=expected):
        Variant.of("float16", 64, causal=True, softness=1.0)


def flat(value):
    """What tuples within tuples hold."""
    return [x for part in value for x in flat(part)] if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda x: x.keyword)
def test_components_of_equal_values_are_one(component):
    """A call is found again by what is left of its options: plain values, alike however often they are checked."""
    for value in component.examples:
        given = filled({component.keyword: value})
        checked, again = (Options.of(arrays_among(given), **given).by_keyword[component.keyword] for _ in range(2))
        assert checked == again and hash(checked) == hash(again)
        assert component.lacks is not None or component.captured or component.check(checked) == checked
        kinds = {type(x) for x in flat(checked) if not isinstance(x, np.dtype)}
        assert kinds <= {bool, int, float, str, type(None)}
        one, other = (made(component, value) for _ in range(2))
        assert one is not None and one == other and hash(one) == hash(other)


def test_positions_are_told_where_they_matter_alone():
    """What a call does not use is not in its kernels."""
    lengths = filled({name: ARRAYS[name].examples[0] for name in ("k_lengths", "q_lengths")}, (2, 6, 6))
    for options, told in (
        ({}, False), ({"window": (None, None)}, False), ({"causal": True}, True), ({"window": (2, None)}, True),
        ({"alibi_slopes": np.ones(2, np.float32)}, True), ({"causal": True, "q_offset": 3}, False),
    ):  # fmt: skip
        found = problem(**lengths, **options).components
        assert any(isinstance(component, Offsets) for component in found) == told, options


MASKS = [{x.keyword: value} for x in COMPONENTS if issubclass(x, Mask) for value in x.examples]


def inside(interval, positions, shape):
    """Which positions (of the last axis) lie in an interval whose ends may be columns, one for all, or None."""
    inside = np.ones(shape, bool)
    for end, holds in zip(interval, (np.less_equal, np.greater), strict=True):
        inside &= True if end is None else holds(end, positions)
    return inside


BATCH, HEADS = 3, 2
SOME = ((0, 0), (2, 1))  # heads, and batch elements, that differ in all arrays that may differ there


def head_dim_4(sq, sk, options):
    """A problem of these lengths, and its options' arrays as its backends take them."""
    found = AttentionProblem.from_arrays(*(np.zeros((BATCH, HEADS, n, 4)) for n in (sq, sk, sk)), **options)
    return found, found.expanded(np, arrays_among(options))


@pytest.mark.parametrize("options", MASKS)
@pytest.mark.parametrize("offset", [None, -40, -3, 0, 5, 40])
def test_ends_of_a_mask_never_fall_and_belong_together(options, offset):
    """Both intervals say which query sees which key, for numbers as for arrays of them; and nothing, untold."""
    queries, keys = np.arange(30), np.arange(20)
    found, arrays = head_dim_4(30, 20, filled(options, (BATCH, HEADS, 30, 20)))
    for mask, head in itertools.product(found.masks, SOME):
        place = found.place(arrays, head)._replace(q_offset=offset)
        of_queries, of_keys = mask.keys(queries[:, None], place), mask.queries(keys[:, None], place)
        np.testing.assert_array_equal(inside(of_queries, keys, (30, 20)), inside(of_keys, queries, (20, 30)).T)
        for of_all, of_one, positions in ((of_queries, mask.keys, queries), (of_keys, mask.queries, keys)):
            for field, ends in zip(of_all._fields, of_all, strict=True):
                alone = [getattr(of_one(position, place), field) for position in positions.tolist()]
                if ends is None:
                    assert alone == [None] * len(positions)
                else:
                    assert alone == np.broadcast_to(ends, (len(positions), 1)).ravel().tolist()
                    assert (np.diff(alone) >= 0).all()
            assert of_one(positions, Place(30, 20, None)) == (None, None)


TOGETHER = [
    {"causal": True, "window": (4, 9)},
    {"causal": True} | {name: ARRAYS[name].examples[0] for name in ("k_lengths", "q_lengths")},
    {"window": (2, 3)} | {name: ARRAYS[name].examples[-1] for name in ("k_lengths", "q_lengths", "k_starts")},
    {name: ARRAYS[name].examples[0] for name in ("mask", "k_starts", "q_lengths")},
]


@pytest.mark.parametrize("options", [{}, *MASKS, *TOGETHER])
@pytest.mark.parametrize(("sq", "sk"), [(9, 7), (3, 12), (12, 3), (1, 1), (0, 4), (4, 0)])
def test_intervals_of_a_problem_hold_what_is_seen(options, sq, sk):
    """Of rows and columns of the mask and of blocks of them; empty ones begin where they end, within the sizes."""
    options = filled(options, (BATCH, HEADS, sq, sk))
    for q_offset in offsets_for(options, sq, sk):
        given = options | {"q_offset": q_offset}
        found, arrays = head_dim_4(sq, sk, given)
        for head in SOME if arrays else SOME[:1]:
            place, (seen, _) = found.place(arrays, head), seen_in(head, (BATCH, HEADS, sq, sk), **given)
            hold(found, place, seen)
            region = Region(place, slice(0, sq), slice(0, sk))
            np.testing.assert_array_equal(np.broadcast_to(found.seen(np, region), seen.shape), seen)
            (begin, end), seeing = found.seeing, np.flatnonzero(seen.any(axis=1))
            assert ((begin <= seeing) & (seeing < end)).all() and (arrays or len(seeing) == end - begin)


def offsets_for(options, sq, sk):
    """All that are near, where positions matter; of each batch element its own too."""
    if not {"causal", "window"} & options.keys():
        return [None]
    own = np.random.default_rng(1).integers(-sq - 3, sk + 4, BATCH)
    return [*range(-sq - 10, sk + 11, 1 if len(options) < 3 else 5), None, own, own.astype(np.int32)]


def hold(found, place, seen):
    """The intervals of a problem, at a place, hold just what is seen there, as far as intervals can."""
    elementwise = any(mask.elementwise for mask in found.masks)
    for flags, intervals in ((seen, found.keys), (seen.T, found.queries)):
        size, other = flags.shape
        for first, last in itertools.combinations_with_replacement(range(size), 2):
            begin, end = intervals(first, last, place)
            assert 0 <= begin <= end <= other
            shown = np.flatnonzero(flags[first : last + 1].any(axis=0))
            # Of several masks a block may see less than the ends say.
            if elementwise or (first < last and len(found.masks) > 1):
                assert ((begin <= shown) & (shown < end)).all()
            else:
                np.testing.assert_array_equal(shown, np.arange(begin, end))
        if size:
            together = intervals(np.arange(size), np.full(size, size - 1), place)
            assert [tuple(x) for x in np.transpose(together)] == [intervals(i, size - 1, place) for i in range(size)]
