"""README's table of the names that other libraries use, and the answers to them."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import cupy_flash
from cupy_flash._src import names

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
X = np.ones((2, 4, 8), np.float32)
FORWARD = inspect.signature(cupy_flash.flash_attention).parameters
VJP = inspect.signature(cupy_flash.flash_attention_vjp).parameters
# The keywords of each function as its library documents them, in the order of the table's columns.
SIGNATURES = {
    "torch": {"query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"},
    "FlexAttention": {
        *("query", "key", "value", "score_mod", "block_mask", "scale", "enable_gqa", "return_lse"),
        *("kernel_options", "return_aux"),
    },
    "flash-attn": {
        *("q", "k", "v", "dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes"),
        *("deterministic", "return_attn_probs"),
    },
    "JAX": {
        *("query", "key", "value", "bias", "mask", "scale", "is_causal", "query_seq_lengths"),
        *("key_value_seq_lengths", "local_window_size", "implementation", "return_residual"),
    },
}


def table():
    """Rows as lists of the words in backquotes of each column, and the first column's text."""
    section = README.partition("## Coming from another library")[2].partition("\n## ")[0]
    rows = [line[1:-1].split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return [([set(re.findall(r"`(\w+)`", cell)) for cell in row], row[0]) for row in rows]


def test_the_table_names_every_keyword_once():
    columns = list(zip(*(words for words, _ in table()), strict=True))
    for theirs, words in zip(SIGNATURES.values(), columns[1:], strict=True):
        assert sorted(name for cell in words for name in cell) == sorted(theirs)


def test_the_table_is_true():
    """What it calls ours is an argument, what it does not is refused, and the refusal says the same as the table."""
    for (ours, *theirs), text in table():
        assert all(name in FORWARD or name in VJP for name in ours)
        for name in set().union(*theirs) - set(VJP) - set(FORWARD):
            with pytest.raises(TypeError) as error:
                cupy_flash.flash_attention(X, X, X, **{name: None})
            answer = str(error.value)
            assert answer.startswith(f"flash_attention() got an unexpected keyword argument {name!r}: ")
            assert ("not supported yet" in answer) == ("not yet" in text)
            words = answer.partition("not supported yet: ")[2].split()
            assert all(word.rstrip("s") in text for word in words if word != "and"), f"{answer}; the table: {text}"
            if ours:
                assert any(f"called {our!r} here" in answer for our in ours)


@pytest.mark.parametrize("name", cupy_flash.__all__)
def test_an_unknown_keyword_is_answered_everywhere(name):
    function = getattr(cupy_flash, name)
    accepted = ", ".join(inspect.signature(function).parameters)
    with pytest.raises(
        TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'casual': expected {accepted}$"
    ):
        function(casual=True)


def test_a_name_is_not_explained_by_one_that_this_function_lacks():
    with pytest.raises(TypeError, match="'return_residual': expected dout, q, k, v"):
        cupy_flash.flash_attention_backward(X, X, X, X, X, X, return_residual=True)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("attn_bias", "bias"), ("learnable_sink", "sinks"), ("s_aux", "sinks"), ("sink", "sinks")]
)
def test_names_of_other_kernels_are_known(theirs, ours):
    with pytest.raises(TypeError, match=f"{theirs!r}: it is called {ours!r} here"):
        cupy_flash.flash_attention(X, X, X, **{theirs: X})


def test_what_belongs_to_the_gradients_is_told():
    with pytest.raises(TypeError, match=r"'deterministic': .* flash_attention_vjp and .*_backward take it"):
        cupy_flash.flash_attention(X, X, X, deterministic=True)


def test_what_python_refuses_is_refused_as_ever():
    with pytest.raises(TypeError, match="3 positional arguments but 4 were given"):
        cupy_flash.flash_attention(X, X, X, X)
    assert not set(names.OURS) & set(names.NOT_YET) and not set(names.OURS) & set(FORWARD)
    assert set(names.OURS.values()) <= {*FORWARD, *VJP} and not set(names.NOT_YET) & {*FORWARD, *VJP}
