"""Scores and masks of the kernels: each component against its Python, and how several follow one another."""

import math

import numpy as np
import pytest
from cases import filled, in_effect
from emulator.both_paths import pointers, run_path

from cupy_flash._src import launch, packing, source
from cupy_flash._src.components import ARRAYS, COMPONENTS, LEARNING, arrays_among
from cupy_flash._src.components.component import Region, arrays_in, fill
from cupy_flash._src.components.mods import is_captured
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.specialization import Specialization, parts_of
from cupy_flash._src.structs import structs_of

SQ, SK, LANE = 23, 37, 4  # queries, keys, and how far the keys of a lane's columns lie apart
BATCH, HEAD, MEMBER = 2, 3, 1  # place.batch, place.head, and a head so many after that
FULL = (BATCH + 1, HEAD + MEMBER + 1, SQ, SK)
REACH = 6  # of ranges of queries and of keys, beside those of one

# Tells of every query and key what a step makes, its derivatives and whether the key is seen, of queries the sink, and
# of ranges of both what they see, by what they are seen, and whether they are whole.
KERNEL = """
#include "params.cuh"
PARTS

struct Keys {
  static constexpr int kCount = kSlots, kTogether = 1;
  template <int kRows>
  using Flags = FlagsOf<Keys, kRows>;
  int n0;
  __device__ int operator()(int j) const { return n0 + kLane * j; }
};

struct Found {
  const Composed<ForwardParams>* params;
  const double *s, *dscore;
  double *unit, *score, *ds, *term, *sink;
  int *seen, *keys, *queries, *covers;
};

extern "C" __global__ void compose(const __grid_constant__ Found f) {
  const BlockPlace place(f.params->components, f.params->shape, kBatch, kHead);
  const Score<double> score(f.params->components, place);
  const Mask mask(f.params->components, place);
  const Sink sink(f.params->components, place);
  const int sq = f.params->shape.seqlen_q, sk = f.params->shape.seqlen_k;
  *f.unit = score.unit();
  for (int n = 0; n < 2 * max(sq, sk); ++n) {
    const int first = n / 2, reach = n % 2 * kReach;
    const auto keys = mask.keys(first, min(first + reach, sq - 1));
    const auto queries = mask.queries(first, min(first + reach, sk - 1));
    if (first < sq) f.sink[first] = sink.logit(first, kMember);
    if (first < sq) f.keys[2 * n] = keys.begin, f.keys[2 * n + 1] = keys.end;
    if (first < sk) f.queries[2 * n] = queries.begin, f.queries[2 * n + 1] = queries.end;
  }
  for (int key = threadIdx.x; key < sk; key += 32) {
    for (int query = 0; query < sq; ++query) {
      const int i = query * sk + key;
      const auto row = score.row(query, kMember, Keys{key % kLane});
      const auto shown = mask.shown<2>(Keys{key % kLane}, [&](int n) {
        return QueryRow{n == 0 ? (query + 1) % sq : query, kMember};
      });
      f.score[i] = row.forward(f.s[i], key / kLane);
      f.ds[i] = row.backward(f.dscore[i], f.s[i], key / kLane);
      f.term[i] = row.template gradient<kTerm>(f.dscore[i], f.s[i], key / kLane);
      f.seen[i] = mask.row(query).sees(key) && shown.at(1, key / kLane);
      for (int n = 0; n < 4; ++n) f.covers[4 * i + n] = mask.covers(query, query + n, key, 1 << n);
    }
  }
}
"""


def composed(path, parts, tell, options=(), term=-1):
    """What a kernel of such a prelude finds, s and d loss / d score among it; `term` numbers the step that learns.

    ``tell(params, memory)`` fills in its parameters, where `memory` has the arrays of `options` by their names.
    """
    if path == "ptx":
        pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs CuPy and NVRTC")
    numbers = f"constexpr int kLane = {LANE}, kBatch = {BATCH}, kHead = {HEAD}, kMember = {MEMBER}, kReach = {REACH}, "
    numbers += f"kSlots = {-(-SK // LANE)}, kTerm = {term};\n"
    text = numbers + KERNEL.replace("PARTS", parts)
    declared = structs_of(source.flatten("parts", virtual={"parts": '#include "params.cuh"\n' + parts}))
    whole = declared["ForwardParams"]
    fields = [*((name, whole[name]) for name in whole.names), ("components", declared["Components"])]
    params, rng = np.zeros(1, np.dtype(fields, align=True)), np.random.default_rng(0)
    pairs = np.zeros((SQ, SK))
    arrays = {
        "params": params, "s": rng.standard_normal(pairs.shape), "dscore": rng.standard_normal(pairs.shape),
        "unit": np.zeros(1), "score": pairs, "ds": pairs, "term": pairs, "sink": np.zeros(SQ),
        "seen": np.zeros(pairs.shape, np.int32),
        "keys": np.zeros((SQ, 2, 2), np.int32), "queries": np.zeros((SK, 2, 2), np.int32),
        "covers": np.zeros((*pairs.shape, 4), np.int32),
    }  # fmt: skip
    outputs = list(arrays)[3:]

    def pack(memory):
        tell(memory["params"][0], memory)
        return pointers({name: memory[name] for name in arrays})

    inputs = arrays | dict(options)
    return arrays | run_path(path, "composed.cu", "compose", inputs, outputs, virtual={"composed.cu": text}, pack=pack)


def held_to(found, seen, spanned=None, exact=True):
    """Masks say of ranges what they say of single keys, `seen`, or of those in their intervals, `spanned`.

    Where they are not `exact`, what several say together, they may say more of several queries than these see.
    """
    np.testing.assert_array_equal(found["seen"], seen)
    spanned = seen if spanned is None else spanned
    for intervals, shown in ((found["keys"], spanned), (found["queries"], spanned.T)):
        positions = np.arange(shown.shape[1])
        for first, (alone, together) in enumerate(intervals):
            np.testing.assert_array_equal((alone[0] <= positions) & (positions < alone[1]), shown[first])
            of_any = positions[shown[first : first + REACH + 1].any(axis=0)]
            assert 0 <= together[0] <= together[1] <= len(positions)
            assert of_any.size == 0 or (together[0] <= of_any[0] and together[1] > of_any[-1])
            assert of_any.size == 0 or not exact or together[1] - together[0] == of_any[-1] + 1 - of_any[0]
    for n in range(4):
        whole = [
            [key + 2**n <= SK and spanned[query : query + n + 1, key : key + 2**n].all() for key in range(SK)]
            for query in range(SQ)
        ]
        np.testing.assert_array_equal(found["covers"][: SQ - n, :, n], whole[: SQ - n])


def all_examples():
    """Of each component alone; of positions that only lengths tell; and of all together."""
    for component in COMPONENTS:
        for value in component.examples:
            for offset in (None, -5, 30) if component.uses_offset else (None,):
                yield in_effect(component, value) | ({} if offset is None else {"q_offset": offset})
    lengths = {keyword: ARRAYS[keyword].examples[0] for keyword in ("k_lengths", "q_lengths")}
    yield from ({"window": (5, 3)} | lengths, {"causal": True, "k_lengths": lengths["k_lengths"]})
    yield from ({x.keyword: x.examples[n] for x in COMPONENTS} for n in (0, -1))


def told(options):
    return ", ".join(f"{name} {getattr(value, '__name__', value)}" for name, value in options.items())


def unless_empty(intervals):
    """The same; one of nothing, wherever, as (0, 0)."""
    return np.where(intervals[:, :1] < intervals[:, 1:], intervals, 0)


@pytest.mark.parametrize("path", ["host", "ptx"])
@pytest.mark.parametrize("options", [*all_examples()], ids=told)
def test_a_component_does_on_a_gpu_what_its_python_says(options, path):
    given = filled(options, FULL)
    q, k = np.zeros((*FULL[:2], SQ, 8)), np.zeros((*FULL[:2], SK, 8))
    problem = AttentionProblem.from_arrays(q, k, k, **given)
    arrays = problem.expanded(np, arrays_among(given))
    region = Region(problem.place(arrays, (BATCH, HEAD + MEMBER)), slice(0, SQ), slice(0, SK))

    def tell(params, memory):
        params["shape"] = packing.shape(problem)
        fill(params["components"], problem.components)
        for (struct, field, *_), name in arrays_in(params["components"].dtype, problem.components):
            if is_captured(name) and name in arrays:
                params["components"][struct][field]["data"] = memory[name].ctypes.data
            elif name in arrays:
                x = memory[name]
                layout = launch.Layout(name, x.shape, x.strides, x.itemsize, x.ctypes.data % 16)
                params["components"][struct][field] = (x.ctypes.data, *launch._pack(layout, 0)[1:])

    kernel = Specialization("", "", (("Element", "double"),), (), parts_of(problem.components))
    learning = [n for n, step in enumerate(problem.scores) if step.keyword in LEARNING] or [-1]
    found = composed(path, kernel.prelude().removeprefix("#pragma once\n"), tell, arrays, learning[0])
    score, inputs = found["s"], []
    for step in problem.scores:
        inputs.append(score)
        score = step.forward(np, score, region)
    slope = found["dscore"]
    for n, step, x in [*zip(range(len(inputs)), problem.scores, inputs, strict=True)][::-1]:
        term = step.term(np, slope, region) if n == learning[0] else None
        slope = step.backward(np, slope, x, region)
        if term is not None:
            np.testing.assert_allclose(found["term"], term, rtol=1e-14, atol=1e-14)
    assert found["unit"] > 0
    np.testing.assert_allclose(found["score"] * found["unit"] * math.log(2), score, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(found["ds"], slope, rtol=1e-14, atol=1e-14)
    sinks = -np.inf if problem.sinks is None else problem.sinks.of_queries(np, np.arange(SQ), region.place)
    np.testing.assert_array_equal(found["sink"], np.broadcast_to(sinks, SQ))
    seen = np.broadcast_to(problem.seen(np, region), (SQ, SK))
    begin, end = (np.broadcast_to(x, SQ)[:, None] for x in problem.keys(np.arange(SQ), place=region.place))
    elementwise = any(mask.elementwise for mask in problem.masks)
    spanned = (begin <= np.arange(SK)) & (np.arange(SK) < end) if elementwise else None
    held_to(found, seen, spanned, exact=len(problem.masks) < 2)
    for n, reach in enumerate((0, REACH)):
        for name, size, ranges in (("keys", SQ, problem.keys), ("queries", SK, problem.queries)):
            first = np.arange(size)
            expected = np.stack(ranges(first, np.minimum(first + reach, size - 1), region.place), axis=-1)
            np.testing.assert_array_equal(unless_empty(found[name][:, n]), unless_empty(expected))


# Steps and masks of other kinds than the first: with a row of its own, with another unit, with stairs for an edge, with
# holes; and a place that two others have changed.
SEVERAL = """
#include "attention/score/scale.cuh"
#include "attention/mask/causal.cuh"

struct SlopeParams {
  double slope;
};
template <class Accumulator>
struct Slope {  // score - slope * (head + 1) * (query - key)
  Accumulator slope, log2_unit;
  int batch, head;

  __device__ Slope(const SlopeParams& params, const Place& place, Accumulator unit)
      : slope(params.slope * 1.4426950408889634074 / unit), log2_unit(unit), batch(place.batch), head(place.head) {}
  __device__ Accumulator unit() const { return log2_unit; }

  template <class Columns>
  struct Row {
    const Slope& step;
    int query, head;
    Columns columns;  // a copy: what it is made of need not last

    __device__ Row(const Slope& step, int query, int head, const Columns& columns)
        : step(step), query(query), head(head), columns(columns) {}
    __device__ Accumulator forward(Accumulator s, int j) const {
      return s - step.slope * (step.batch * 100 + step.head + head + 1) * (query - columns(j));
    }
    __device__ Accumulator backward(Accumulator ds, Accumulator s, int j) const { return ds; }
    __device__ Accumulator term(Accumulator ds, int j) const {
      return -ds * (step.batch * 100 + step.head + head + 1) * (query - columns(j));
    }
  };
};

struct SquareParams {};
template <class Accumulator>
struct Square {  // score^2
  template <class Columns>
  using Row = UniformRow<Square>;

  Accumulator natural;

  __device__ Square(const SquareParams& params, const Place& place, Accumulator unit)
      : natural(unit / 1.4426950408889634074) {}
  __device__ Accumulator unit() const { return 1.4426950408889634074; }
  __device__ Accumulator forward(Accumulator s) const { return natural * s * (natural * s); }
  __device__ Accumulator backward(Accumulator ds, Accumulator s) const { return 2 * natural * s * ds; }
};

struct StairsParams {
  int width;
};
struct Stairs {  // query / 4 * 4 - width <= key < query / 4 * 4 + width
  static constexpr bool kCutsBelow = true, kCutsAbove = true, kElementwise = false;
  int width;

  __device__ Stairs(const StairsParams& params, const Place& place) : width(params.width) {}
  __device__ int key_end(int query) const { return query / 4 * 4 + width; }
  __device__ int key_begin(int query) const { return query / 4 * 4 - width; }
  __device__ int query_begin(int key) const { return max(0, key - width + 4) / 4 * 4; }
  __device__ int query_end(int key) const { return (key + width) / 4 * 4 + 4; }
};

struct HolesParams {
  int every;
};
struct Holes {  // (query + key + 100 * batch + head) % every != 0
  static constexpr bool kCutsBelow = false, kCutsAbove = false, kElementwise = true;
  int every, place;

  __device__ Holes(const HolesParams& params, const Place& place)
      : every(params.every), place(100 * place.batch + place.head) {}

  template <class Flags>
  struct Shown {
    int every, apart, numbers[2];

    template <class Columns, class RowOf>
    __device__ Shown(const Holes& holes, const Columns& columns, const RowOf& row, bool is_whole)
        : every(holes.every), apart(columns(1) - columns(0)) {
      for (int i = 0; i < 2; ++i) numbers[i] = holes.place + row(i).head + row(i).query + columns(0);
    }
    __device__ bool at(int i, int j) const { return (numbers[i] + j * apart) % every != 0; }
  };
};

struct StepParams {
  int by;
};
struct Step {
  template <class Params>
  __device__ static void move(Place& place, const Params& params) { place.q_offset += params.by; }
};
struct Doubled {
  template <class Params>
  __device__ static void move(Place& place, const Params& params) { place.q_offset *= 2; }
};

struct Components : StepParams, ScaleParams, SlopeParams, SquareParams, CausalParams, StairsParams, HolesParams {};
#include "attention/composed.cuh"
#include "attention/place.cuh"
#include "attention/score.cuh"
#include "attention/sink.cuh"
#include "attention/mask.cuh"
template <class Accumulator> using Score = ScoreOf<Accumulator, Scale, Slope, Square>;
using BlockPlace = PlaceOf<Step, Doubled>;
using Sink = SinkOf<>;
using Mask = MaskOf<Causal, Holes, Stairs>;
"""


@pytest.mark.parametrize("path", ["host", "ptx"])
@pytest.mark.parametrize("below", ["below", "above"])
def test_steps_follow_one_another_and_masks_hide_together(below, path):
    def tell(params, memory):
        for name, value in (("seqlen_q", SQ), ("seqlen_k", SK), ("q_offset", -2)):
            params["shape"][name] = value
        components = params["components"]
        components["ScaleParams"]["scale"], components["ScaleParams"]["unit"] = 0.3, 0.3 / math.log(2)
        components["SlopeParams"]["slope"], components["StairsParams"]["width"] = 0.01, 6
        components["HolesParams"]["every"], components["StepParams"]["by"] = 5, 3

    source = SEVERAL if below == "below" else SEVERAL.replace("kCutsBelow = true", "kCutsBelow = false")
    found = composed(path, source, tell, term=1)
    query, key = np.arange(SQ)[:, None], np.arange(SK)
    apart = (BATCH * 100 + HEAD + MEMBER + 1) * (query - key)
    before = 0.3 * found["s"] - 0.01 * apart
    np.testing.assert_allclose(found["score"] * found["unit"] * math.log(2), before**2, rtol=1e-12)
    np.testing.assert_allclose(found["ds"], 0.3 * 2 * before * found["dscore"], rtol=1e-12)
    np.testing.assert_allclose(found["term"], -apart * 2 * before * found["dscore"], rtol=1e-12)
    assert np.isneginf(found["sink"]).all()
    spanned = (key <= query + 2) & (key < query // 4 * 4 + 6) & ((below == "above") | (key >= query // 4 * 4 - 6))
    held_to(found, spanned & ((query + key + BATCH * 100 + HEAD + MEMBER) % 5 != 0), spanned)
