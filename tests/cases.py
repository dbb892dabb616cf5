"""Problems with their arrays: what hypothesis draws, and the error budget every backend must keep."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from oracle import attention

from cupy_flash import attention_reference, attention_reference_backward, flash_attention, flash_attention_backward
from cupy_flash._src.analysis.budget import magnitudes, spent
from cupy_flash._src.problem import DTYPES

LAYOUTS = ("contiguous", "bshd", "padded", "reversed", "strided_cols", "offset")


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
    q_offset: int | None = None
    scale: float | None = None
    layouts: tuple = ("contiguous",) * 3
    seed: int = 0
    magnitude: float = 1.0
    options: dict = field(init=False, compare=False)

    def __post_init__(self):
        q_offset = self.q_offset if self.causal else None  # a position without causal is refused
        options = {"causal": self.causal, "q_offset": q_offset, "scale": self.scale}
        object.__setattr__(self, "options", options)

    def arrays(self):
        """q, k, v, dout, dlse in their layouts; dout and dlse are contiguous like the results."""
        rng = np.random.default_rng(self.seed)
        dv = self.d if self.dv is None else self.dv
        batch_k = self.batch if self.batch_k is None else self.batch_k
        heads = self.heads_k * self.group
        shapes = [
            (*self.batch, heads, self.sq, self.d),
            (*batch_k, self.heads_k, self.sk, self.d),
            (*batch_k, self.heads_k, self.sk, dv),
        ]
        out_shape = (*np.broadcast_shapes(self.batch, batch_k), heads, self.sq, dv)
        dtype = DTYPES[self.dtype]
        q, k, v = (
            lay_out((self.magnitude * rng.standard_normal(s)).astype(dtype), layout)
            for s, layout in zip(shapes, self.layouts, strict=True)
        )
        dout = lay_out(rng.standard_normal(out_shape).astype(dtype), self.layouts[0])
        dlse = rng.standard_normal(out_shape[:-1]).astype(np.float64 if self.dtype == "float64" else np.float32)
        return q, k, v, dout, dlse


def lay_out(x, layout):
    """A view with the values of x in other memory, which is NaN wherever the view does not look."""
    *lead, h, s, d = x.shape

    def poisoned(shape):
        return np.full(shape, np.nan, x.dtype)

    if layout == "contiguous":
        return x
    if layout == "bshd":
        view = poisoned((*lead, s, h, d)).swapaxes(-2, -3)
    elif layout == "padded":  # rows keep 16-byte alignment
        view = poisoned((*lead, h, s + 3, d + 24))[..., 2 : s + 2, 8 : 8 + d]
    elif layout == "reversed":
        view = poisoned((*lead, h, s, d))[..., ::-1, ::-1, :]
    elif layout == "strided_cols":
        view = poisoned((*lead, h, s, 2 * d + 1))[..., 1::2]
    elif layout == "offset":  # one element past alignment
        view = poisoned(x.size + 1)[1:].reshape(x.shape)
    else:
        raise ValueError(layout)
    view[...] = x
    return view


HEAD_DIMS = st.sampled_from([1, 7, 8, 32, 33, 64, 65, 80, 128])


@st.composite
def cases(draw, max_seqlen=150, head_dims=HEAD_DIMS, **fixed):
    """Cases of every shape, layout and option; keywords fix fields."""
    sk = draw(st.integers(0, max_seqlen))
    sq = draw(st.one_of(st.integers(0, max_seqlen), st.just(sk)))
    d = draw(head_dims)
    batch = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    broadcast = [n if draw(st.booleans()) else 1 for n in batch]
    drawn = {
        "dtype": draw(st.sampled_from(sorted(DTYPES))),
        "batch": batch,
        "batch_k": tuple(broadcast[draw(st.integers(0, len(batch))) :]),
        "heads_k": draw(st.integers(1, 2)),
        "group": draw(st.sampled_from([1, 1, 2, 3])),
        "sq": sq,
        "sk": sk,
        "d": d,
        "dv": draw(st.one_of(st.none(), head_dims)),
        "causal": draw(st.booleans()),
        "q_offset": draw(st.one_of(st.none(), st.integers(-max_seqlen - 5, max_seqlen + 5))),
        "scale": draw(st.sampled_from([None, None, 0.3, -0.2, 0.0])),
        "layouts": tuple(draw(st.sampled_from(LAYOUTS)) for _ in range(3)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "magnitude": draw(st.sampled_from([1.0, 1.0, 4.0])),
    }
    return Case(**{**drawn, **fixed})


def check(case, on, *, dlse=True, **backward_options):
    """Forward and backward of a case stay within the error budget; returns (out, lse, dq, dk, dv)."""
    q, k, v, dout, grad_lse = case.arrays()
    if not dlse:
        grad_lse = None
    expected = attention(q, k, v, dout=dout, dlse=grad_lse, **case.options)
    naive_out, naive_lse = attention_reference(q, k, v, return_lse=True, **case.options)
    naive_grads = attention_reference_backward(dout, q, k, v, dlse=grad_lse, **case.options)

    out, lse = on(flash_attention, q, k, v, return_lse=True, **case.options)
    assert out.dtype == q.dtype
    grads = on(flash_attention_backward, dout, q, k, v, out, lse, dlse=grad_lse, **case.options, **backward_options)
    sizes = magnitudes(q, k, v, dout, grad_lse, **case.options)
    results = zip(
        sizes, (out, lse, *grads), (naive_out, naive_lse, *naive_grads), expected, sizes.values(), strict=True
    )
    for name, x, naive, exact, size in results:
        within_budget(name, x, naive, exact, size)
    return out, lse, *grads


def within_budget(name, x, naive, exact, size=1.0):
    """Assert the budget of `cupy_flash._src.analysis.budget`."""
    error, budget = spent(x, naive, exact, size)
    assert error <= budget, f"{name}: error {error:.3g}, the budget is {budget:.3g}"
