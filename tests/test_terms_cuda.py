"""Gradients of options, as far as only the kernels have them: what is read and written, splits, tiles, empty blocks."""

import contextlib

import numpy as np
import pytest
from cases import Case, check, results, same_bits
from conftest import On, slow_among
from emulator.both_paths import run_path

from cupy_flash import emulator, flash_attention, flash_attention_backward
from cupy_flash._src import kernels, launch
from cupy_flash._src.analysis.traffic import array_bytes, launch_bytes
from cupy_flash._src.backends.emulator import EmulatorBackend
from cupy_flash._src.device import named
from cupy_flash._src.operands import Gradients
from cupy_flash._src.plan import plan_backward, plan_forward, plan_term
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.specialization import Variant
from cupy_flash._src.tiles import MMA_HEAD_DIM_BUCKETS, mma_term_candidates

ON, SLOW = On("emulator"), pytest.mark.slow
SIZES = {"batch": (2,), "heads_k": 1, "group": 2, "d": 16}
EACH = (True,) * 4  # axes of scores of a batch


@pytest.fixture
def poisoned(monkeypatch):
    """What is allocated without zeros is NaN."""
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float, **_: np.full(shape, np.nan, dtype))


@pytest.fixture
def in_splits(replan):
    """A context manager: what adds up to an element of a gradient is shared by so many blocks."""

    @contextlib.contextmanager
    def planned(count):
        def plan(problem, device, term, num_splits=None):
            return plan_term(problem, device, term, num_splits or count)

        launch._term_parts.cache_clear()
        with replan(plan_term=plan):
            yield
        launch._term_parts.cache_clear()

    return planned


# --- what is read and written ---


def counted(case, wrt, *, deterministic=False, **options):
    """The problem, plans and launches of a forward and a backward."""
    q, k, v, dout, _ = case.arrays()
    options = case.options | options
    problem = AttentionProblem.from_arrays(q, k, v, **options, deterministic=deterministic, wrt=wrt)
    with emulator.settings(mode="counted"):
        out, lse = flash_attention(q, k, v, return_lse=True, **options, backend="emulator")
        runs = [emulator.last_run().launches]
        options |= {"deterministic": deterministic, "wrt": wrt}
        flash_attention_backward(dout, q, k, v, out, lse, **options, backend="emulator")
        runs.append(emulator.last_run().launches)
    plans = [plan(problem, named("sm_80")) for plan in (plan_forward, plan_backward)]
    return problem, list(zip(plans, runs, strict=True))


def read_of(launches, name):
    return {x.kernel: x.buffers[name].read for x in launches if name in x.buffers and x.buffers[name].read}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("sk", "of"), [(100, "float32"), (98, "q"), pytest.param(95, "q", marks=SLOW)]
)  # pairs of a lane, or none
def test_a_bias_is_read_once_by_each_kernel_and_its_gradient_written_once(dtype, sk, of):
    case = Case(dtype, **SIZES, sq=70, sk=sk)
    bias = np.random.default_rng(0).standard_normal((2, 2, 70, sk)).astype(dtype if of == "q" else of)
    problem, ((_, forward), (plan, backward)) = counted(case, ("q", "k", "v", "bias"), deterministic=True, bias=bias)
    once = ("attention_forward", "attention_dkdv", "attention_dq", "attention_dterm")
    assert read_of(forward, "bias") | read_of(backward, "bias") == dict.fromkeys(once, bias.nbytes)
    (of_term,) = plan.terms
    parts = of_term.num_splits > 1
    written = {x.kernel: (x.buffers[name].written) for x in backward for name in ("dterm", "dterm_parts")
               if name in x.buffers and x.buffers[name].written}  # fmt: skip
    whole = problem.accumulator.itemsize * bias.size
    assert written == (
        {"attention_dterm": of_term.num_splits * whole, "attention_sum_splits": bias.nbytes} if parts
        else {"attention_dterm": bias.nbytes}
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1, 130, 190), (2, 1, 1, 190), (130, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_gradient_of_what_is_broadcast_has_no_other_memory(dtype, shape):
    """Beside parts of its own size: an element of them is written once by each split."""
    case = Case(dtype, **SIZES, sq=130, sk=190)
    bias = np.zeros(shape, np.float32)
    _, (_, (plan, backward)) = counted(case, ("bias",), bias=bias)
    (of_term,) = plan.terms
    *_, dterm = (x for x in backward if x.kernel == "attention_dterm")
    buffers = {name: buffer.written for name, buffer in dterm.buffers.items() if buffer.written}
    name = "dterm_parts" if of_term.num_splits > 1 else "dterm"
    assert buffers == {name: of_term.num_splits * bias.nbytes}


OPTIONS = {
    "all": (("q", "k", "v", "bias", "sinks", "alibi_slopes"), {}),
    "of keys": (("k", "bias"), {"causal": True, "bias": (False, False, True)}),
    "of heads": (("v", "alibi_slopes"), {"window": (20, 5), "bias": None, "sinks": None}),
    "no inputs": (("sinks", "bias"), {"causal": True, "window": (40, None), "q_offset": -10, "alibi_slopes": None}),
    "of queries": (("q", "sinks"), {"window": (9, 3), "q_offset": -20, "bias": (True, True, False)}),
}


@pytest.mark.parametrize("chosen", slow_among(OPTIONS, ["of heads", "no inputs", "of queries"]))
def test_traffic_of_gradients_is_what_the_emulator_counts(chosen):
    """And what is read of a bias what explain tells: of the forward at most, some of whose warps see less."""
    wrt, options = OPTIONS[chosen]
    defaults = {"bias": EACH, "sinks": (True,), "alibi_slopes": (False,)}
    case = Case("float16", **SIZES, sq=130, sk=100, dv=24, **(defaults | options))
    problem, runs = counted(case, wrt)
    arrays = {name: x for name, x in case.options.items() if isinstance(x, np.ndarray)}
    for plan, launches in runs:
        read = 0
        for step, found in zip(plan.launches, launches, strict=True):
            of_options = sum(found.buffers[name].read for name in arrays if name in found.buffers)
            read += read_of([found], "bias").get(step.kernel.entry, 0) if "bias" in arrays else 0
            own = of_options if step.kernel.parts else 0
            expected = launch_bytes(problem, plan, step)
            assert found.bytes_read + found.bytes_written - own == expected, step.kernel
        if "bias" in arrays:
            told = array_bytes(problem, plan, arrays)["bias"]
            assert read == told or (plan is runs[0][0] and 0.7 * told < read < told)


def test_equal_launches_of_two_options_are_told_apart():
    """Sums of as many elements, of other numbers of splits."""
    x = np.broadcast_to(np.float16(0), (2, 2, 3000, 32))
    options = {"alibi_slopes": np.zeros(2, np.float32), "sinks": np.zeros(2, np.float32)}
    problem = AttentionProblem.from_arrays(x, x, x, **options, wrt=tuple(options))
    plan = plan_backward(problem, named("sm_80"))
    of_slopes, of_sinks = plan.terms
    assert of_slopes.sum_splits == of_sinks.sum_splits and of_slopes.num_splits != of_sinks.num_splits
    for of in plan.terms:
        assert launch_bytes(problem, plan, of.sum_splits) == 2 * 4 * (of.num_splits + 1)


LANES = """
#include "specialization.cuh"
#include "COLUMNS"
struct Params { int* rows; int* cols; };
extern "C" __global__ void lanes(const __grid_constant__ Params p) {
  const COLUMN_TYPE columns{};
  p.rows[threadIdx.x] = ROW_OF(0);
#pragma unroll
  for (int j = 0; j < columns.kCount; ++j) p.cols[threadIdx.x * columns.kCount + j] = columns(j);
}
"""


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_warp_reads_whole_sectors_of_a_bias(dtype, itemsize):
    """Each row's lanes read 32 bytes, or 16 and the other half of that sector next."""
    kernel = kernels.forward(Variant.of(dtype, 64), named("sm_80"))
    mma = kernel.family == "mma"
    text = LANES.replace("COLUMNS", "mma/columns.cuh" if mma else "simt/matmul.cuh")
    text = text.replace("COLUMN_TYPE", "KeyColumns<1>" if mma else "KeyColumns").replace(
        "ROW_OF", "row_of" if mma else "row_of<kBlockM / kRowGroups>"
    )
    count, together = (kernel.constant("kBlockN") // 4, 2) if mma else (kernel.constant("kBlockN") // 8, 1)
    if not mma:
        count = kernel.constant("kBlockN") // kernel.constant("kLanes")
    arrays = {"rows": np.zeros(32, np.int32), "cols": np.zeros((32, count), np.int32)}
    virtual = {"lanes.cu": '#include "params.cuh"\n' + text, "specialization.cuh": kernel.prelude()}
    found = run_path("host", "lanes.cu", "lanes", arrays, ["rows", "cols"], virtual=virtual)
    for j in range(0, count, together):
        cols = found["cols"][:, j : j + together]
        for row in np.unique(found["rows"]):
            read = np.unique(cols[found["rows"] == row]) * itemsize
            assert read.max() - read.min() == (read.size - 1) * itemsize and read.size * itemsize in (16, 32, 64)
            assert read.min() % (read.size * itemsize) == 0
            if read.size * itemsize == 16:  # of a sector of 32 bytes that the next two columns complete
                (others,) = (set(found["cols"][found["rows"] == row][:, i].tolist()) for i in [(j + 2) % count])
                assert j % 4 or {x * itemsize // 32 for x in others} == {read.min() // 32}


# --- sums ---

SHARED = [(False, False, True, True), (False, True)]  # axes of a bias
MORE = [pytest.param(x, marks=SLOW) for x in ((True, True, False, True), (True, False, True, False))]


@pytest.mark.parametrize("dtype", ["float16", "float32", pytest.param("float64", marks=SLOW)])
@pytest.mark.parametrize("axes", [*SHARED, *MORE], ids=str)
def test_splits_change_a_gradient_by_rounding_only(in_splits, dtype, axes):
    """More than there are tiles, too: some blocks have nothing to add."""
    case = Case(dtype, **SIZES, sq=70, sk=90, bias=axes, sinks=(False,), alibi_slopes=(True,), causal=True, seed=3)
    found = []
    for count in (1, 3, 40):
        with in_splits(count), emulator.settings(mode="checked"):
            found.append(check(case, ON)[-3:])
        names = [x.kernel for x in emulator.last_run().launches]
        assert names.count("attention_sum_splits") == (3 if count > 1 else 0)
    for other in found[1:]:
        for x, y in zip(found[0], other, strict=True):
            scale = np.abs(x.astype(float)).max() + 1
            np.testing.assert_allclose(x.astype(float), y.astype(float), rtol=0, atol=3e-3 * scale)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_order_of_threads_adds_the_same_up(dtype):
    case = Case(dtype, **SIZES, sq=70, sk=90, bias=(False, False, True, True), sinks=(True,), alibi_slopes=(False,))
    wrt = ("bias", "sinks", "alibi_slopes")
    found = []
    for seed in (1, 2):
        with emulator.settings(mode="checked", seed=seed):
            found.append(results(ON, case.arrays(), wrt, **case.options))
    same_bits(*found)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "axes", [(False, True) * 2 + (False,), pytest.param((True, False) * 2 + (True,), marks=SLOW)], ids=str
)
def test_more_leading_dimensions_than_a_launch_takes(dtype, axes):
    """What adds up over those that launches follow one another for joins what is there."""
    case = Case(dtype, batch=(2,) * 5, sq=3, sk=5, d=8, bias=(*axes, True, True, True), sinks=axes, alibi_slopes=axes)
    check(case, ON)
    launched = [x.kernel for x in emulator.last_run().launches]
    assert launched.count("attention_dterm") == 4 and launched.count("attention_dsinks") == 2


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "more",
    [
        {"q_offset": -100},
        {"k_lengths": 0},
        *(pytest.param(x, marks=SLOW) for x in ({"q_offset": -30}, {"window": (3, 0)})),
    ],
    ids=str,
)
def test_tiles_that_nobody_sees_have_a_gradient_of_0(dtype, more):
    """Written, not left as memory was; also where no tile of a block is met."""
    case = Case(dtype, **SIZES, sq=70, sk=150, causal=True, bias=EACH, sinks=(True,), alibi_slopes=(False,), **more)
    *_, dslopes, dbias, _ = check(case, ON)
    if more == {"q_offset": -100} or "k_lengths" in more:
        assert not dbias.any() and not dslopes.any()
    assert not dbias[..., 0, 100:].any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_not_there_does_not_reach_gradients_of_options(dtype, value):
    """Of tiles that some of the queries see, the keys that none does, and the other way round."""
    case = Case(dtype, **SIZES, sq=70, sk=90, bias=(False, False, True, True), sinks=(True,), alibi_slopes=(False,))
    options = case.options | {"k_lengths": np.array([33, 80]), "q_lengths": np.array([70, 2]), "k_starts": 5}
    arrays = case.arrays()
    q, k, v, dout, dlse = padded = [x.copy() for x in arrays]
    for batch, (end, queries) in enumerate(((33, 70), (80, 2))):
        for x in (k, v):
            x[batch, :, :5] = x[batch, :, end:] = value
        for x in (q, dout, dlse):
            x[batch, :, queries:] = value
    wrt = ("bias", "sinks", "alibi_slopes")
    same_bits(results(ON, padded, wrt, **options), results(ON, arrays, wrt, **options))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_more_rows_than_a_block_of_a_sinks_gradient_has(dtype):
    case = Case(dtype, batch=(2,), group=3, sq=1100, sk=3, d=8, sinks=(True,))
    q, k, v, dout, dlse = case.arrays()
    sinks = np.float32([[0.5, -1, 3], [-np.inf, 0, 2]])
    options = {"sinks": sinks, "q_lengths": np.array([1100, 1030])}
    out, lse, found = results(ON, (q, k, v, dout, dlse), ("sinks",), **options)
    exists = np.arange(1100) < options["q_lengths"][:, None, None]
    delta = (dout.astype(float) * out.astype(float)).sum(-1) - dlse
    with np.errstate(invalid="ignore"):
        exact = -np.where(exists, np.exp(sinks[..., None] - lse.astype(float)) * delta, 0).sum(-1)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4 if dtype == "float32" else 2e-3)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_of_a_packed_tile_have_the_biases_and_sinks_of_their_heads(dtype):
    """And of numbers that lie apart each its own."""
    case = Case(dtype, **SIZES | {"group": 4}, sq=3, sk=100, bias=EACH, sinks=(True,))
    for layout in ("contiguous", "odd strides"):
        laid_out = case if layout == "contiguous" else case.laid_out_by(5)
        check(laid_out, ON)
    apart = np.zeros((2, 4, 3, 200), np.float32)
    apart[..., ::2] = case.options["bias"]
    options = case.options | {"bias": apart[..., ::2]}
    whole = case.options | {"bias": apart[..., ::2].copy()}
    same_bits(results(ON, case.arrays(), case.wrt, **options), results(ON, case.arrays(), case.wrt, **whole))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_row_without_keys_has_its_sink_or_nothing(dtype):
    q, k, v, *_ = Case(dtype, group=2, sq=5, sk=7, d=8).arrays()
    sinks = np.float32([-np.inf, 1.5])
    out, lse = flash_attention(q, k, v, sinks=sinks, k_lengths=0, return_lse=True, backend="emulator")
    assert not out.any() and (lse == sinks[:, None]).all()


@pytest.mark.parametrize("axes", [EACH, (False, True, False, True)], ids=str)
def test_splits_of_keys_have_one_sink(replan, axes):
    case = Case("float16", **SIZES, sq=3, sk=300, sinks=(True,), bias=axes)
    for splits in (1, 3):
        with replan(plan_forward=lambda problem, device, tiles, count=splits: plan_forward(
            problem, device, tiles, num_splits=count
        )):  # fmt: skip
            check(case, ON)
        assert emulator.last_run() is not None


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_slopes_have_a_gradient_without_races(in_splits, dtype):
    """Of which every tile of a head adds up to one number, with a bias behind."""
    case = Case(dtype, **SIZES, sq=140, sk=130, alibi_slopes=(False,), bias=(False, True, True))
    for seed in (1, 2):
        with in_splits(2), emulator.settings(mode="checked", seed=seed):
            check(case, ON)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_every_batch_element_has_its_own_gradient(dtype):
    check(Case(dtype, batch=(2, 3), heads_k=1, group=1, sq=10, sk=20, d=8, bias=(True, False, *EACH[1:])), ON)
    check(Case(dtype, batch=(2, 3), heads_k=1, group=1, sq=10, sk=20, d=8, bias=(False, True, *EACH[1:])), ON)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_groups_share_keys(dtype):
    check(Case(dtype, heads_k=3, group=2, sq=10, sk=20, d=8, bias=(True, False, True)), ON)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("array", range(5))
def test_gradients_of_options_are_spoilt_too(dtype, array):
    """Whichever of the five arrays that a vjp keeps has changed."""
    rng = np.random.default_rng(0)
    problem_of = AttentionProblem.from_arrays
    q = np.zeros((2, 2, 5, 8), dtype)
    options = {"bias": np.zeros((1, 2, 5, 5), np.float32), "sinks": np.zeros(2, dtype), "wrt": ("bias", "sinks")}
    problem = problem_of(q, q, q, **options)
    backend = EmulatorBackend("sm_80")
    for changed in (np.zeros(5, np.int32), np.eye(5, dtype=np.int32)[array]):
        terms = {term.keyword: rng.standard_normal(term.shape).astype(term.dtype) for term in problem.terms}
        before = {name: x.copy() for name, x in terms.items()}
        launch.spoil(backend, problem, changed, Gradients(None, None, None, terms))
        for name, x in terms.items():
            assert np.isnan(x).all() if changed.any() else x.tobytes() == before[name].tobytes()


def test_a_gradient_of_nothing_is_0(poisoned):
    for sq, sk in ((0, 5), (5, 0)):
        case = Case("float32", sq=sq, sk=sk, d=8, bias=(True, False, False), sinks=(), alibi_slopes=())
        q, k, v, dout, dlse = case.arrays()
        lse = np.full((1, sq), -np.inf, np.float32)
        wrt = ("bias", "alibi_slopes")
        found = ON(flash_attention_backward, dout, q, k, v, dout, lse, dlse=dlse, wrt=wrt, **case.options)
        assert all(not x.any() for x in found)


# --- tiles ---


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", MMA_HEAD_DIM_BUCKETS)
@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
def test_every_candidate_of_the_gradients_of_options(head_dim, arch, monkeypatch):
    """Each on a problem that has some of its blocks; the last of a list fits Turing."""
    candidates = mma_term_candidates(head_dim)
    most = named(arch).shared_per_block
    fitting = [tile for tile in candidates if tile.term_shared_bytes(head_dim, head_dim) <= most]
    assert fitting and (arch == "sm_75" or fitting == candidates)
    for tile in dict.fromkeys(fitting) if arch == "sm_80" else fitting[:1]:
        monkeypatch.setattr(kernels, "mma_term_candidates", lambda wide, tile=tile: [tile])
        plan_term.cache_clear()
        launch._term_parts.cache_clear()
        case = Case("float16", group=2, heads_k=1, sq=tile.block_m + 20, sk=2 * tile.block_n + 10, d=head_dim,
                    dv=head_dim - 8, causal=True, bias=(False, True, True), q_offset=60)  # fmt: skip
        with emulator.settings(mode="checked"):
            check(case, On(f"emulator:{arch}"))
    plan_term.cache_clear()
    launch._term_parts.cache_clear()


def test_no_bank_conflicts_where_sums_are_stored():
    """A quad's two columns of eight rows, and rows that are written once the tile is whole."""
    case = Case("float16", sq=128, sk=128, d=64, bias=(True, True))
    _, (_, (_, backward)) = counted(case, ("bias",))
    (found,) = (x for x in backward if x.kernel == "attention_dterm")
    assert found.shared_accesses > 0 and found.bank_conflicts == 0
