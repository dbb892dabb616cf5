"""How rows reach shared memory: by accesses as wide as they allow, and through the heads of a group in turn."""

import dataclasses
import functools
import itertools

import pytest
from cases import Case, check
from conftest import On
from memory_layouts import Layout

from cupy_flash import emulator, flash_attention, flash_attention_vjp
from cupy_flash._src.device import named
from cupy_flash._src.plan import plan_backward
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.tiles import MmaTile
from cupy_flash._src.tuning import tiles

RAGGED = Case(dtype="float16", heads_k=1, group=2, sq=70, sk=150, causal=True, q_offset=40)
OFFSETS = (8, 4, 2, 1)  # elements of 2 bytes before the first: accesses of 16, 8, 4 bytes, and one by one


def beginning_at(offset, case):
    return dataclasses.replace(case, layouts={name: Layout(offset=offset) for name in case.shapes()})


def lying_apart(case):
    return case.all_in("strided_cols")


NARROW = [*(functools.partial(beginning_at, offset) for offset in OFFSETS), lying_apart]


@pytest.mark.parametrize(
    ("arch", "d", "dv", "sq"), [("sm_80", 36, 34, 70), ("sm_80", 34, 60, 64), ("sm_75", 36, 60, 70)]
)
@pytest.mark.parametrize("deterministic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rows_of_narrow_vectors(arch, d, dv, sq, deterministic):
    """8 bytes, 4 bytes, on Turing through a single slot; NaN stands behind the last element of each row."""
    case = dataclasses.replace(RAGGED, d=d, dv=dv, sq=sq)
    gaps = {name: Layout(gaps=(*(0 for _ in shape[:-2]), 4)) for name, shape in case.shapes().items()}
    with emulator.settings(mode="checked"):
        check(dataclasses.replace(case, layouts=gaps), On(f"emulator:{arch}"), deterministic=deterministic)


def test_columns_that_lie_apart_in_more_than_one_group():
    check(lying_apart(dataclasses.replace(RAGGED, d=128, dv=100)), On("emulator:sm_80"))


WIDTHS = [(64, 64), (36, 100), (34, 20), (33, 64), (128, 20)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "path", "d", "dv"),
    [*((arch, "host", *x) for arch in ("sm_75", "sm_90a") for x in WIDTHS), ("sm_80", "ptx", 100, 36)],
)
def test_rows_of_narrow_vectors_thoroughly(arch, path, d, dv):
    case = dataclasses.replace(RAGGED, d=d, dv=dv)
    for laid_out, deterministic in itertools.product((lambda x: x, *NARROW), (False, True)):
        with emulator.settings(mode="checked", path=path, seed=1):
            check(laid_out(case), On(f"emulator:{arch}"), deterministic=deterministic)


def copies(case, arch="sm_80"):
    """Asynchronous copies and bytes read of the forward and of the kernel of dK and dV; a call of each is checked."""
    q, k, v, dout, _ = case.arrays()
    options = case.options | {"backend": f"emulator:{arch}"}
    with emulator.settings(mode="counted"):
        _, vjp = flash_attention_vjp(q, k, v, **options)
        forward = emulator.last_run().launches[0]
        vjp(dout)
    (dkdv,) = (x for x in emulator.last_run().launches if x.kernel == "attention_dkdv")
    return [(x.cp_async, [x.buffers[name].read for name in "qkv"]) for x in (forward, dkdv)]


def test_only_rows_at_odd_elements_are_gathered():
    """Rows of 128 bytes that begin off 16: twice as many copies of 8 bytes, four times as many of 4, or none."""
    for wide, *narrow, none in zip(*(copies(beginning_at(offset, RAGGED)) for offset in OFFSETS), strict=True):
        statistics, read = none  # lse and delta come in copies of 4 bytes whatever else there is
        assert wide[0] > statistics and wide[1] == read
        assert narrow == [(statistics + times * (wide[0] - statistics), read) for times in (2, 4)]
    assert copies(lying_apart(RAGGED))[0][0] == copies(beginning_at(1, RAGGED))[0][0] == 0


@pytest.mark.parametrize("warps", [1, 8])
def test_tiles_of_fewer_rows_than_threads_copy(warps):
    """8 warps have threads for 32 rows, and 16 to copy; one warp has them for 4, which are swizzled in two ways."""
    case = dataclasses.replace(RAGGED, group=1, causal=False, q_offset=None)
    with tiles(forward=MmaTile(16 * warps, 16, warps)), emulator.settings(mode="checked"):
        q, k, v, *_ = case.arrays()
        found = flash_attention(q, k, v, backend="emulator:sm_80")
    expected = flash_attention(q, k, v, backend="emulator:sm_80")
    assert abs(found.astype(float) - expected.astype(float)).max() < 1e-3


def in_splits(splits, problem, *args):
    """The plan of the backward with so many shares of the query heads of a group, be the keys seen or not."""
    plan = plan_backward(dataclasses.replace(problem, q_offset=problem.seqlen_k), *args)
    dkdv = dataclasses.replace(plan.dkdv, grid=plan.dkdv.grid // plan.num_splits * splits)
    assert splits == 1 or plan.convert_dkdv
    convert = plan.convert_dkdv if splits > 1 else None
    return dataclasses.replace(plan, num_splits=splits, dkdv=dkdv, convert_dkdv=convert)


def walk(replan, group, splits, sq, q_offset, arch="sm_80", d=64):
    """Keys of two blocks, of which the first query that sees them is anywhere; dK and dV of one share, or added up."""
    case = dataclasses.replace(RAGGED, group=group, sq=sq, q_offset=q_offset, d=d)
    with replan(plan_backward=functools.partial(in_splits, splits)):
        check(case, On(f"emulator:{arch}"))


def test_a_block_of_keys_goes_through_the_queries_of_each_head(replan):
    """The first query that sees a key stands within a block, at its edge, or after the last; all of a block or some."""
    kernel = plan_backward(AttentionProblem.from_arrays(*RAGGED.arrays()[:3], **RAGGED.options), named("sm_80")).dkdv
    m, n = (kernel.kernel.constant(name) for name in ("kBlockM", "kBlockN"))
    assert m == 64 and n == 128  # what the sizes below are chosen for
    for group, splits, sq, q_offset, d in [
        (1, 1, 2 * m + 5, -20, 64), (3, 1, m, 150, 64), (3, 2, 3 * m + 1, n - m, 64), (3, 4, 2 * m, 0, 64),
        (7, 1, m + 1, -m, 64), (7, 5, 30, -31, 40),
    ]:  # fmt: skip
        walk(replan, group, splits, sq, q_offset, d=d)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "d"), [("sm_75", 40), ("sm_90a", 64)])
def test_a_block_of_keys_goes_through_the_queries_of_each_head_thoroughly(replan, arch, d):
    for (group, splits), sq in itertools.product([(1, 1), (3, 2), (7, 5)], (63, 65, 190)):
        for q_offset in (150, 0, -64, -70, -sq):
            walk(replan, group, splits, sq, q_offset, arch, d)
