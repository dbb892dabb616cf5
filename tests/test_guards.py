"""Indices that may leave their arrays are looked at before kernels run, of keys that are seen, and on every backend."""

import numpy as np
import pytest

from cupy_flash import attention_reference, flash_attention, flash_attention_backward

X = np.random.default_rng(0).standard_normal((2, 4, 150, 16))
TABLE = np.arange(8.0)


def looked_up(s, b, h, i, j, table, first):
    return s + table[first[b, h, i] + j // 64]


def call(on, **options):
    if on == "reference":
        return attention_reference(X, X, X, **options)
    return flash_attention(X, X, X, backend=on, **options)


@pytest.fixture(params=["reference", "cpu", "emulator:sm_80"])
def on(request):
    return request.param


def first(where=(), value=0):
    found = np.zeros((2, 4, 150), int)
    found[where] = value
    return found


@pytest.mark.parametrize(("where", "value"), [((1, 3, 149), 6), ((0, 1, 70), -9), ((1, 0, 0), 8)])
def test_one_score_whose_element_is_not_there_is_found(on, where, value):
    with pytest.raises(
        IndexError, match=r"^score_mod looked_up \(.*test_guards\.py, line \d+\): table\[first\[b, h, i\]"
    ):
        call(on, score_mod=looked_up, score_args=(TABLE, first(where, value)))


@pytest.mark.parametrize(("value", "options"), [
    (6, {"k_lengths": 128}), (6, {"causal": True, "q_offset": -30, "k_lengths": 128}),
    (-9, {"window": (0, 200), "q_offset": 64}),
    (6, {"mask_mod": lambda b, h, i, j: j < 128}), (6, {"mask": np.arange(150) < 128}),
    (5, {}), (-8, {}),
], ids=["k_lengths", "causal", "window", "mask_mod", "mask", "last", "first"])  # fmt: skip
def test_of_keys_that_are_not_seen_nothing_is_looked_up(on, value, options):
    """The last query's index leaves the table with keys from 128 on, or before 64."""
    out = call(on, score_mod=looked_up, score_args=(TABLE, first((1, 3, 149), value)), **options)
    assert np.isfinite(out).all()


def test_backwards_look_too():
    options = {"score_mod": looked_up, "score_args": (TABLE, first())}
    for backend in ("cpu", "emulator:sm_80"):
        out, lse = flash_attention(X, X, X, return_lse=True, backend=backend, **options)
        options["score_args"][1][0, 0, 0] = 100
        with pytest.raises(IndexError, match="leaves the array"):
            flash_attention_backward(X, X, X, X, out, lse, backend=backend, **options)
        options["score_args"][1][0, 0, 0] = 0
