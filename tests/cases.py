"""Problems with their arrays: what hypothesis draws, and the error budget every backend must keep."""

from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import strategies as st
from memory_layouts import CONTIGUOUS, UNTOUCHED, any_layout, lay_out, named
from oracle import attention

from cupy_flash import attention_reference, attention_reference_backward, flash_attention, flash_attention_backward
from cupy_flash._src.analysis.budget import magnitudes, spent
from cupy_flash._src.components import COMPONENTS, LEARNING, Options, arrays_among
from cupy_flash._src.components.component import Sizes
from cupy_flash._src.components.component import filled as filled_in
from cupy_flash._src.problem import DTYPES

SIZES = Sizes("float32", 64, 30, 20)
# Arrays of a call in their order, and those that may be constant along an axis.
OPERANDS, RESULTS = ("q", "k", "v", "dout", "dlse"), ("out", "lse")


@dataclass(frozen=True)
class Case:
    """One call: shapes, options, memory layouts, and the seed of its numbers."""

    dtype: str = "float32"
    batch: tuple = ()
    batch_k: tuple | None = None  # leading dimensions of k and v when they broadcast
    heads_k: int = 1
    group: int = 1
    sq: int = 64
    sk: int = 64
    d: int = 64
    dv: int | None = None
    causal: bool = False
    window: tuple | None = None
    q_offset: int | str | None = None  # a number, or what `lengths` takes
    scale: float | None = None
    softcap: float | None = None
    alibi_slopes: tuple | None = None  # leading axes that are not 1 in front of the heads
    bias: tuple | None = None  # axes of (..., Hq, Sq, Sk) that are not 1
    sinks: tuple | None = None  # as alibi_slopes
    mask: tuple | None = None  # axes of (..., Hq, Sq, Sk) that are not 1
    k_lengths: int | str | None = None
    q_lengths: int | str | None = None
    k_starts: int | str | None = None
    layouts: dict = field(default_factory=dict, hash=False)  # of arrays by name, of those that are not contiguous
    seed: int = 0
    magnitude: float = 1.0
    options: dict = field(init=False, compare=False)

    def __post_init__(self):
        options = {name: getattr(self, name) for name in ("causal", "window", "scale", "softcap")}
        object.__setattr__(self, "options", options | self._arrays_of_options())

    def _arrays_of_options(self):
        """Those that are given; numbers as they are."""
        rng = np.random.default_rng(self.seed + 1)
        *batch, heads, sq, sk = (*self.shapes()["lse"], self.sk)
        placed = self.causal or self.window not in (None, (None, None)) or self.alibi_slopes is not None
        found = {
            "k_lengths": lengths(rng, self.k_lengths, batch, 0, sk),
            "q_lengths": lengths(rng, self.q_lengths, batch, 0, sq),
            "k_starts": lengths(rng, self.k_starts, batch, 0, sk // 2),
            # Without those that take it a position is refused.
            "q_offset": lengths(rng, self.q_offset, batch, -sq - 5, sk + 5) if placed else None,
        }
        if self.alibi_slopes is not None:
            found["alibi_slopes"] = rng.uniform(-0.05, 0.3, (*real(batch, self.alibi_slopes), heads)).astype(np.float32)
        if self.mask is not None:
            shape = real((*batch, heads, sq, sk), self.mask)
            found["mask"] = rng.random(shape) < rng.choice([0.1, 0.8])
            found["mask"] &= rng.random((*shape[:-1], 1)) < 0.8  # some rows see nothing
        wide = [np.dtype(np.float32), DTYPES[self.dtype]]
        if self.bias is not None:
            x = self.magnitude * rng.standard_normal(real((*batch, heads, sq, sk), self.bias))
            if rng.random() < 0.5:  # some keys are hidden, and some rows see nothing
                x[(rng.random(x.shape) < 0.3) | (rng.random((*x.shape[:-1], 1)) < 0.1)] = -np.inf
            found["bias"] = self.laid_out("bias", x.astype(wide[rng.integers(2)]))
        if self.sinks is not None:
            x = rng.normal(0, 3, (*real(batch, self.sinks), heads))
            x[rng.random(x.shape) < 0.2] = -np.inf
            found["sinks"] = x.astype(wide[rng.integers(2)])
        return {name: x for name, x in found.items() if x is not None}

    def shapes(self):
        """Of the arrays of a call, by name."""
        dv = self.d if self.dv is None else self.dv
        batch_k = self.batch if self.batch_k is None else self.batch_k
        heads, batch = self.heads_k * self.group, np.broadcast_shapes(self.batch, batch_k)
        out = (*batch, heads, self.sq, dv)
        return {
            "q": (*self.batch, heads, self.sq, self.d),
            "k": (*batch_k, self.heads_k, self.sk, self.d),
            "v": (*batch_k, self.heads_k, self.sk, dv),
            "dout": out,
            "dlse": out[:-1],
            "out": out,
            "lse": out[:-1],
        }

    @property
    def wrt(self):
        """All that there are gradients of."""
        return ("q", "k", "v", *(name for name in LEARNING if name in self.options))

    def laid_out(self, name, x):
        """The array in its layout."""
        return lay_out(x, self.layouts.get(name, CONTIGUOUS))

    def all_in(self, layout):
        """The same case with all arrays in one of `memory_layouts.LAYOUTS`."""
        return replace(self, layouts={
            name: named(layout, len(shape), rows_of=1 if name in ("dlse", "lse") else 2)
            for name, shape in self.shapes().items()
        })  # fmt: skip

    def laid_out_by(self, seed):
        """The same case, each array in a layout of its own."""
        shapes = self.shapes()
        if self.bias is not None and len(self.bias) > 1:
            shapes["bias"] = real((*shapes["lse"], self.sk), self.bias)
        return replace(self, layouts={
            name: any_layout(f"{seed} {name}", shape, constant=name not in RESULTS) for name, shape in shapes.items()
        })  # fmt: skip

    def arrays(self):
        """q, k, v, dout, dlse in their layouts."""
        rng, shapes = np.random.default_rng(self.seed), self.shapes()
        values = {name: rng.standard_normal(shapes[name]) for name in OPERANDS}
        accumulator = np.float64 if self.dtype == "float64" else np.float32
        for name, x in values.items():
            size = self.magnitude if name in "qkv" else 1.0
            values[name] = self.laid_out(name, (size * x).astype(accumulator if name == "dlse" else DTYPES[self.dtype]))
        return tuple(values.values())


def real(full, axes):
    """The last axes of `full`, of which those are 1 that are not true."""
    return tuple(n if own else 1 for n, own in zip(full[::-1], axes[::-1], strict=False))[::-1]


def lengths(rng, kind, batch, low, high):
    """Numbers from `low` to `high`: "each" batch element its own, or "each32"; "one", an array of one for all."""
    if kind is None or isinstance(kind, int):
        return kind
    numbers = rng.integers(low, high + 1, () if kind == "one" else batch)
    return np.asarray(numbers, np.int32 if kind == "each32" else np.int64)


ANY_DTYPE = st.sampled_from(sorted(DTYPES))
WINDOW_SIDES = st.one_of(st.none(), st.integers(0, 5), st.integers(0, 200))
LENGTHS = st.sampled_from([None, None, None, None, "each", "each32", "one"])
HEAD_DIMS = st.sampled_from([1, 7, 8, 32, 33, 64, 65, 80, 128])


@st.composite
def cases(draw, max_seqlen=150, head_dims=HEAD_DIMS, dtypes=ANY_DTYPE, arrays=False, **fixed):
    """Cases of every shape, layout and option; of those that are arrays if asked for. Keywords fix fields."""
    sk = draw(st.integers(0, max_seqlen))
    sq = draw(st.one_of(st.integers(0, max_seqlen), st.just(sk)))
    d = draw(head_dims)
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    broadcast = [n if draw(st.booleans()) else 1 for n in batch]
    drawn = {
        "dtype": draw(dtypes),
        "batch": batch,
        "batch_k": tuple(broadcast[draw(st.integers(0, len(batch))) :]),
        "heads_k": draw(st.integers(1, 2)),
        "group": draw(st.sampled_from([1, 1, 2, 3])),
        "sq": sq,
        "sk": sk,
        "d": d,
        "dv": draw(st.one_of(st.none(), head_dims)),
        "causal": draw(st.booleans()),
        "window": draw(st.one_of(st.none(), st.tuples(WINDOW_SIDES, WINDOW_SIDES))),
        "q_offset": draw(st.one_of(st.none(), st.integers(-max_seqlen - 5, max_seqlen + 5))),
        "scale": draw(st.sampled_from([None, None, 0.3, -0.2, 0.0])),
        "softcap": draw(st.sampled_from([None, None, None, 0.7, 20.0])),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "magnitude": draw(st.sampled_from([1.0, 1.0, 4.0])),
    }
    if arrays:
        sides = {"k_lengths": sk, "q_lengths": sq, "k_starts": sk}
        drawn |= {name: draw(st.one_of(LENGTHS, LENGTHS, st.integers(0, side))) for name, side in sides.items()}
        axes = st.tuples(*[st.booleans()] * draw(st.integers(1, 3 + len(batch))))
        drawn["mask"] = draw(st.one_of(st.none(), st.none(), axes))
        of_heads = st.one_of(st.none(), st.none(), st.tuples(*[st.booleans()] * len(batch)))
        drawn |= {name: draw(of_heads) for name in ("alibi_slopes", "sinks")}
        axes = st.tuples(*[st.booleans()] * draw(st.integers(1, 3 + len(batch))))
        drawn["bias"] = draw(st.one_of(st.none(), axes))
        drawn["q_offset"] = draw(st.sampled_from([drawn["q_offset"], drawn["q_offset"], "each", "each32"]))
    case = Case(**{**drawn, **fixed})
    return case if "layouts" in fixed else case.laid_out_by(case.seed)


def check(case, on, *, dlse=True, **backward_options):
    """Forward and backward of a case stay within the error budget; returns (out, lse, dq, dk, dv), and gradients of
    options.
    """
    q, k, v, dout, grad_lse = case.arrays()
    wrt = case.wrt
    if not dlse:
        grad_lse = None
    expected = attention(q, k, v, dout=dout, dlse=grad_lse, **case.options)
    naive_out, naive_lse = attention_reference(q, k, v, return_lse=True, **case.options)
    naive_grads = attention_reference_backward(dout, q, k, v, dlse=grad_lse, **case.options, wrt=wrt)

    space = case.laid_out("out", np.zeros(expected.out.shape, q.dtype))
    out, lse = on(flash_attention, q, k, v, return_lse=True, out=space, **case.options)
    if out is space:
        only_what_it_shows_is_written(out)
    else:
        assert on.name == "cuda", "out is not what was given as out"
    out, lse = case.laid_out("out", out), case.laid_out("lse", lse)
    options = {"dlse": grad_lse, **case.options, "wrt": wrt, **backward_options}
    grads = on(flash_attention_backward, dout, q, k, v, out, lse, **options)
    approximate = getattr(on, "approximate", False)  # a function that is no On calls the CPU's backend
    sizes = magnitudes(q, k, v, dout, grad_lse, **case.options, wrt=wrt, approximate=approximate)
    within_budget("out", out, naive_out, expected.out, sizes["out"])
    within_budget("lse", lse, naive_lse, expected.lse, sizes["lse"])
    for name, x, naive in zip(wrt, grads, naive_grads, strict=True):
        within_budget(f"d{name}", x, naive, expected.of(name), sizes[f"d{name}"])
    return out, lse, *grads


def filled(options, full=(3, 2, SIZES.seqlen_q, SIZES.seqlen_k)):
    """Options, some of them examples of components, as a call takes them that has scores of this shape."""
    return filled_in(options, np.random.default_rng(0), full)


def in_effect(component, value):
    """Options that put this value of a component's keyword into effect: positions need what they matter to."""
    return {component.keyword: value} | ({"causal": True} if component.concept == "Place" else {})


def made(component, value, sizes=SIZES):
    """A component as this value of its keyword puts it into effect."""
    given = filled(in_effect(component, value), (3, 2, sizes.seqlen_q, sizes.seqlen_k))
    return component.of(Options.of(arrays_among(given), **given).by_keyword, sizes)


def every_component(example=0):
    """All, each of one of its examples; some that no call has together, as where one takes another's place."""
    return tuple(made(component, component.examples[example]) for component in COMPONENTS)


def only_what_it_shows_is_written(x):
    """Assert that the memory around a view of `lay_out` holds the NaN that it was made of."""
    if x.base is not None and x.base.size <= UNTOUCHED:
        values = x.copy()
        x[...] = np.nan
        assert np.isnan(x.base).all()
        x[...] = values


def within_budget(name, x, naive, exact, size=1.0):
    """Assert the budget of `cupy_flash._src.analysis.budget`."""
    error, budget = spent(x, naive, exact, size)
    assert error <= budget, f"{name}: error {error:.3g}, the budget is {budget:.3g}"


def results(on, arrays, wrt=("q", "k", "v"), **options):
    """out, lse and gradients of the arrays q, k, v, dout, dlse; they are deterministic."""
    q, k, v, dout, dlse = arrays
    out, lse = on(flash_attention, q, k, v, return_lse=True, **options)
    options |= {"dlse": dlse, "deterministic": True, "wrt": wrt}
    return out, lse, *on(flash_attention_backward, dout, q, k, v, out, lse, **options)


# Of results of two attentions that are alike, to the largest number.
ERROR = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-5, "float64": 1e-13}


def close(found, expected, error=2e-5):
    """Each result of an attention with another's, to this part of its largest number."""
    for x, y in zip(found, expected, strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)
        np.testing.assert_allclose(x, y, rtol=0, atol=error * np.abs(y[np.isfinite(y)]).max(initial=1))


def same_bits(first, second):
    for x, y in zip(first, second, strict=True):
        assert x.tobytes() == y.tobytes()
