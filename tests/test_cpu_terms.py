"""Gradients of options in the CPU backend's compiled tier: which pass adds them up, and in what order."""

import numpy as np
import pytest
from cases import Case, check, results, same_bits
from conftest import On

from cupy_flash._src.backends import native
from cupy_flash._src.problem import AttentionProblem

CPU = On("cpu")

CASES = {
    "shared by all": Case(batch=(3,), heads_k=2, group=2, sq=70, sk=150, bias=(True, True)),
    "by the batch": Case("bfloat16", batch=(3,), heads_k=2, group=3, sq=210, sk=520, bias=(True, True, True)),
    "by heads": Case(batch=(2, 2), heads_k=2, sq=50, sk=40, bias=(True, False, False, True, True)),
    "by none": Case("float64", batch=(2,), group=2, sq=30, sk=70, bias=(True, True, True, True)),
    "with all else": Case(
        batch=(3,), heads_k=2, group=2, sq=200, sk=300, bias=(True, True, True), window=(90, 20), softcap=2.0,
        sinks=(True,), mask=(True, True), q_lengths="each", k_lengths="each",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", "native")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_pass_of_other_gradients_gives_a_bias_the_bits_of_one_of_its_own(case, monkeypatch):
    """It adds them up where items of work are left for all threads."""
    names, run, found = [], native._run, []
    monkeypatch.setattr(native, "_run", lambda name, *rest: (names.append(name), run(name, *rest)))
    for key_block in (1, 10**9):  # as many items, or one for each unit
        monkeypatch.setattr(native, "KEY_BLOCK", key_block)
        monkeypatch.setattr(native.threads, "num_threads", lambda: 4)
        found.append(results(CPU, case.arrays(), **case.options, wrt=("q", "k", "v", "bias")))
    assert names == ["forward", "backward", "forward", "backward", "term"]
    same_bits(*found)
    check(case, CPU)


@pytest.mark.parametrize("hidden", ["nan", "inf"])
def test_what_a_mask_hides_gives_a_bias_nothing(hidden, monkeypatch):
    monkeypatch.setattr(native, "KEY_BLOCK", 1)
    case = Case(batch=(2,), sq=40, sk=90, bias=(True, True), window=(9, 0))
    q, k, v, dout, dlse = case.arrays()
    expected = results(CPU, (q, k, v, dout, dlse), **case.options, wrt=("q", "bias"))[3]
    v[..., 70:, :] = float(hidden)  # of the last rows' keys
    found = results(CPU, (q, k, v, dout, dlse), **case.options, wrt=("q", "bias"))[3]
    assert expected[20:].any() and not expected[:, :41].any()
    np.testing.assert_array_equal(found[:20], expected[:20])


def test_few_slopes_are_shared_by_as_many_items_whatever_the_threads(monkeypatch):
    """And each part has its heads, though they are no multiple of the parts."""
    case, found = Case(batch=(67,), heads_k=1, group=2, sq=9, sk=20, d=8, alibi_slopes=(False,)), []
    for number in (1, 2):
        monkeypatch.setattr(native.threads, "num_threads", lambda number=number: number)
        found.append(check(case, CPU))
    same_bits(*found)


def test_heads_that_share_a_bias_come_together():
    """Numbers of key heads, of each of (2, 3) batch elements two, in a row those that share."""
    q, k, v, *_ = Case(batch=(2, 3), heads_k=2, group=2).arrays()
    problem = AttentionProblem.from_arrays(q, k, v)
    assert native._order(problem, (1, 1, 4)).tolist() == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    assert native._order(problem, (2, 1, 1)).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert native._order(problem, (2, 3, 4)).tolist() == [[n] for n in range(12)]
