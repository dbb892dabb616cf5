"""Score steps and masks of the CPU backend's compiled tier, by components that only these tests have.

One step depends on positions and keeps nothing, two are not linear; a mask gives chunks of queries keys of their own.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import pytest

from cupy_flash._src import source
from cupy_flash._src.backends import native
from cupy_flash._src.components import COMPONENTS
from cupy_flash._src.components.component import Interval, Mask, Region, Score
from cupy_flash._src.operands import Cotangents, Operands
from cupy_flash._src.problem import DTYPES, AttentionProblem

STEPS = """
#include "cpu/score.h"

struct SlopeParams {
  double slope;
};
struct SquareParams {
  double size;
};
struct CurveParams {
  double size;
};

inline int64_t lanes(int64_t x) { return x; }
template <class V>
V lanes(V x) { return x; }

template <class T>
class Slope {
 public:
  static constexpr bool kKeeps = false, kAdds = true, kMultiplies = false, kPasses = false;
  template <class Place>
  Slope(const SlopeParams& params, const Place&, double unit) : slope_(T(params.slope)), natural_(T(unit * kLn2)) {}
  bool used() const { return slope_ != 0; }
  double unit() const { return kLog2E; }
  Vector<T> forward(Vector<T> x, Mask<T> rows, int64_t column, Vector<T>&) const {
    return x * natural_ + slope_ * __builtin_convertvector(Integer<T>(column) - rows, Vector<T>);
  }
  Vector<T> forward(Vector<T> x, int64_t row, Mask<T> columns, Vector<T>&) const {
    return x * natural_ + slope_ * __builtin_convertvector(columns - Integer<T>(row), Vector<T>);
  }

 private:
  T slope_, natural_;
};

// In a unit of its own, not to be taken for the next one's or the last one's.
template <class T>
class Square {
 public:
  static constexpr bool kKeeps = true, kAdds = false, kMultiplies = false, kPasses = false;
  template <class Place>
  Square(const SquareParams& params, const Place&, double unit) : size_(T(params.size)), natural_(T(unit * kLn2)) {}
  bool used() const { return size_ != 0; }
  double unit() const { return 3 * kLog2E; }
  template <class Rows, class Columns>
  Vector<T> forward(Vector<T> x, Rows, Columns, Vector<T>& kept) const {
    kept = 2 * size_ * natural_ * x;
    return size_ / 3 * (natural_ * x) * (natural_ * x);
  }
  Vector<T> backward(Vector<T> g, Mask<T>, int64_t, Vector<T> kept) const { return g * kept; }

 private:
  T size_, natural_;
};

template <class T>
class Curve {
 public:
  static constexpr bool kKeeps = true, kAdds = false, kMultiplies = false, kPasses = false;
  template <class Place>
  Curve(const CurveParams& params, const Place&, double unit) : size_(T(params.size)), natural_(T(unit * kLn2)) {}
  bool used() const { return size_ != 0; }
  double unit() const { return kLog2E; }
  template <class Rows, class Columns>
  Vector<T> forward(Vector<T> x, Rows, Columns, Vector<T>& kept) const {
    const Vector<T> s = natural_ * x, inverse = T(1) / (T(1) + s * s);
    kept = size_ * (T(1) - s * s) * inverse * inverse;
    return size_ * s * inverse;
  }
  Vector<T> backward(Vector<T> g, Mask<T>, int64_t, Vector<T> kept) const { return g * kept; }

 private:
  T size_, natural_;
};
"""

CHUNKS = """
#include "cpu/mask.h"

struct ChunksParams {
  int64_t size, width, apart;
};

class Chunks : public Unbounded {
 public:
  template <class Place>
  Chunks(const ChunksParams& params, const Place&) : x_(params) {}
  int64_t key_begin(int64_t query) const { return x_.size ? query / x_.size * x_.apart : 0; }
  int64_t key_end(int64_t query) const { return x_.size ? key_begin(query) + x_.width : INT64_MAX; }
  int64_t query_begin(int64_t key) const {
    return x_.size ? (key - x_.width + x_.apart) / x_.apart * x_.size : 0;
  }
  int64_t query_end(int64_t key) const { return x_.size ? (key / x_.apart + 1) * x_.size : INT64_MAX; }

 private:
  ChunksParams x_;
};
"""


@dataclass(frozen=True)
class Slope(Score):
    """s + slope (key - query)"""

    slope: float

    def params(self):
        return {"slope": self.slope, "of_another_language": 1}

    def forward(self, xp, s, region):
        return s + self.slope * (region.keys(xp) - region.queries(xp))

    def backward(self, xp, ds, s, region):
        return ds


@dataclass(frozen=True)
class Square(Score):
    """size s^2"""

    size: float

    def forward(self, xp, s, region):
        return self.size * s * s

    def backward(self, xp, ds, s, region):
        return ds * 2 * self.size * s


@dataclass(frozen=True)
class Curve(Score):
    """size s / (1 + s^2)"""

    size: float

    def forward(self, xp, s, region):
        return self.size * s / (1 + s * s)

    def backward(self, xp, ds, s, region):
        return ds * self.size * (1 - s * s) / (1 + s * s) ** 2


@dataclass(frozen=True)
class Chunks(Mask):
    """Each `size` queries see `width` keys, which lie `apart` keys behind those of the queries before."""

    size: int
    width: int
    apart: int

    def keys(self, query, place):
        begin = query // self.size * self.apart
        return Interval(begin, begin + self.width)

    def queries(self, key, place):
        return Interval((key - self.width + self.apart) // self.apart * self.size, (key // self.apart + 1) * self.size)


@pytest.fixture
def compiled_in(monkeypatch):
    """The components above stand in the registry, before and after its own."""
    name = __name__.rpartition(".")[2]
    offsets, scale, *others = COMPONENTS
    monkeypatch.setattr(native, "COMPONENTS", (offsets, scale, Slope, Square, Curve, *others, Chunks))
    virtual = {
        "cpu/components.h": native._components_header(),
        f"cpu/score/{name}.h": STEPS,
        f"cpu/mask/{name}.h": CHUNKS,
    }
    monkeypatch.setattr(native, "flatten", lambda file: source.flatten(file, virtual=virtual))
    for cached in ("_structs", "_call_type", "library", "_shape"):
        monkeypatch.setattr(native, cached, functools.cache(getattr(native, cached).__wrapped__))


def attend(problem, q, k, v, dout):
    out = np.full(problem.out_shape, np.nan, problem.storage)
    lse = np.full(problem.lse_shape, np.nan, problem.accumulator)
    operands = Operands(q, k, v, out, lse)
    native.forward(problem, operands)
    return out, lse, *native.backward(problem, operands, Cotangents(dout))[:3]


def exact(problem, q, k, v, dout):
    """In float64, by the components' own rules: the results of `attend`."""
    q, k, v, dout = (x.astype(np.float64) for x in (q, k, v, dout))
    group = problem.group_size
    k, v = (x.repeat(group, axis=-3) for x in (k, v))
    scores, region = [q @ k.swapaxes(-1, -2)], region_of(problem)
    for step in problem.scores:
        scores.append(step.forward(np, scores[-1], region))
    s = np.where(visible(problem), scores.pop(), -np.inf)
    top = s.max(axis=-1, keepdims=True)
    top[top == -np.inf] = 0  # of a row that sees no key
    p = np.exp(s - top)
    total = p.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0]
    p /= np.where(total == 0, 1, total)
    out = p @ v
    g = p * (dout @ v.swapaxes(-1, -2) - (dout * out).sum(axis=-1, keepdims=True))
    for step, x in zip(reversed(problem.scores), reversed(scores), strict=True):
        g = step.backward(np, g, x, region)

    def of_group(x):
        return x.reshape(*x.shape[:-3], -1, group, *x.shape[-2:]).sum(axis=-3)

    transposed = g.swapaxes(-1, -2), p.swapaxes(-1, -2)
    return out, lse, g @ k, of_group(transposed[0] @ q), of_group(transposed[1] @ dout)


def region_of(problem):
    """All scores."""
    return Region(problem.place(), slice(0, problem.seqlen_q), slice(0, problem.seqlen_k))


def visible(problem):
    """Which keys a query sees."""
    return problem.seen(np, region_of(problem))


def draw(problem):
    rng = np.random.default_rng(0)
    shapes = (problem.q_shape, problem.k_shape, problem.v_shape, problem.out_shape)
    return [rng.standard_normal(shape).astype(problem.storage) for shape in shapes]


def problem_of(dtype, heads_q, heads_k, sq, sk, d, dv, *, components=(), **options):
    shapes = (heads_q, sq, d), (heads_k, sk, d), (heads_k, sk, dv)
    problem = AttentionProblem.from_arrays(*[np.empty(shape, DTYPES[dtype]) for shape in shapes], **options)
    return replace(problem, components=(*problem.components, *components))


CHAINS = {
    "one that keeps nothing": [Slope(0.02)],
    "one that keeps": [Square(0.3)],
    "the last": [Curve(-2.0)],
    "all": [Slope(-0.01), Square(0.3), Curve(4.0)],
    "all and a mask": [Slope(-0.01), Square(0.3), Curve(4.0), Chunks(37, 90, 30)],
}
SHAPES = {
    "panels": (4, 2, 90, 301, 40, 24),
    "packed heads": (6, 2, 7, 290, 24, 40),
    "rows": (2, 1, 2, 290, 33, 20),
    "chunks of keys": (1, 1, 9, 1900, 24, 40),
    "blocks of keys": (2, 1, 210, 1000, 16, 16),
}


COMBINED = [(name, "float32") for name in CHAINS] + [("all and a mask", name) for name in DTYPES if name != "float32"]


@pytest.mark.parametrize(("chain", "dtype"), COMBINED)
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_steps_follow_one_another_and_gradients_pass_back(sizes, chain, dtype, compiled_in):
    tolerance = 40 * float(np.finfo(DTYPES[dtype]).eps) if dtype in ("float32", "float64") else 0.02
    for options in ({"window": (70, 40), "q_offset": 5}, {"causal": True, "q_offset": 5}, {"scale": -0.4}):
        problem = problem_of(dtype, *sizes, components=CHAINS[chain], **options)
        inputs = draw(problem)
        for result, expected in zip(attend(problem, *inputs), exact(problem, *inputs), strict=True):
            wide, atol = result.astype(np.float64), tolerance * np.abs(expected).max()
            np.testing.assert_allclose(wide, expected, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("steps", [(), (Square(0.3),)], ids=["plain", "stepped"])
@pytest.mark.parametrize("sizes", SHAPES.values(), ids=SHAPES)
def test_every_mask_hides_numbers_that_are_not_finite(sizes, steps, compiled_in):
    """Whichever of two masks hides them: what sees none of them is as it was."""
    chunks, options = Chunks(50, 70, 45), {"window": (55, 10), "q_offset": 20}
    problem = problem_of("float32", *sizes, components=(*steps, chunks), **options)
    q, k, v, dout = draw(problem)
    expected = attend(problem, q, k, v, dout)
    for result, x in zip(expected, exact(problem, q, k, v, dout), strict=True):
        np.testing.assert_allclose(result, x, rtol=1e-5, atol=1e-5 * np.abs(x).max())
    seen, (begin, end) = visible(problem), problem.keys(np.arange(problem.seqlen_q))
    behind = [slice(int(first), None) for first in (end[0], end[-1] - 1, end[-1])]
    before = [slice(0, int(last)) for last in (begin[0] + 1, begin[-1], begin[-1] + 1)]
    for where in (*behind, *before):
        hidden = ~seen[:, where].any(axis=1)  # from these queries
        for value in (np.nan, np.inf):
            for x in (k, v):
                x[..., where, :] = value
            *of_queries, dk, dv = attend(problem, q, k, v, dout)
            for result, x in zip(of_queries, expected[:3], strict=True):
                np.testing.assert_allclose(result[:, hidden], x[:, hidden], rtol=1e-5, atol=1e-5)
                assert not np.isfinite(result[:, ~hidden]).any()
            unseen = ~seen.any(axis=0)
            assert not dk[:, unseen].any() and not dv[:, unseen].any()
        q, k, v, dout = draw(problem)


@pytest.mark.parametrize("window", [(20, 7), (20, None), (None, 7), (0, 0)], ids=str)
def test_a_window_may_cut_blocks_anywhere(window):
    """With rows that see no key at either end, or nothing but such."""
    for q_offset in (-97, -70, -5, *range(33), 59, 120, 149, 150):  # 32 queries: the widest panel
        problem = problem_of("float32", 1, 1, 70, 130, 8, 8, window=window, q_offset=q_offset)
        inputs = draw(problem)
        for result, expected in zip(attend(problem, *inputs), exact(problem, *inputs), strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_block_of_queries_may_begin_at_any_block_of_keys(dtype, monkeypatch):
    """Its gradient has parts from there on, and none from a block that no query sees."""
    monkeypatch.setattr(native, "_borrow", lambda size: np.full(size, 0xFF, np.uint8))
    problem = problem_of(dtype, 2, 2, 500, 1700, 24, 16, window=(30, 40), q_offset=600)
    inputs = draw(problem)
    for result, expected in zip(attend(problem, *inputs), exact(problem, *inputs), strict=True):
        np.testing.assert_allclose(result.astype(np.float64), expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def test_keys_between_those_of_chunks_are_seen_by_none(compiled_in):
    """A block of queries then has parts of its gradient from blocks of keys that it sees nothing of."""
    problem = problem_of("bfloat16", *SHAPES["blocks of keys"], components=(Chunks(100, 30, 450),))
    inputs = draw(problem)
    for result, expected in zip(attend(problem, *inputs), exact(problem, *inputs), strict=True):
        np.testing.assert_allclose(result.astype(np.float64), expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def test_components_that_are_not_in_effect_change_no_bit(compiled_in, request):
    problem = problem_of("float32", *SHAPES["panels"], causal=True)
    inputs = draw(problem)
    results = attend(problem, *inputs)
    request.getfixturevalue("monkeypatch").undo()
    for x, y in zip(results, attend(problem, *inputs), strict=True):
        np.testing.assert_array_equal(x, y)
