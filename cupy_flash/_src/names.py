"""What other libraries call the arguments of attention, for whoever brings their names.

They are torch's scaled_dot_product_attention and flex_attention, flash_attn_func of flash-attn, JAX's
dot_product_attention and Triton's tutorial, of which README's table "Coming from another library" says the same; and
what xFormers, FlashAttention-4 and transformers call biases and sinks.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

OURS = {
    "query": "q",
    "key": "k",
    "value": "v",
    "is_causal": "causal",
    "softmax_scale": "scale",
    "sm_scale": "scale",
    "window_size": "window",
    "local_window_size": "window",
    "return_attn_probs": "return_lse",
    "return_aux": "return_lse",
    "return_residual": "return_lse",
    "return_softmax_lse": "return_lse",
    "implementation": "backend",
    "attn_mask": "mask",
    "block_mask": "mask_mod",
    "attn_bias": "bias",
    "learnable_sink": "sinks",
    "s_aux": "sinks",
    "sink": "sinks",
    "query_seq_lengths": "q_lengths",
    "key_value_seq_lengths": "k_lengths",
    "cache_seqlens": "k_lengths",
    "cache_leftpad": "k_starts",
    "nonpad_kv_seqlen": "k_lengths",
}
NEEDLESS = {
    "enable_gqa": "for fewer heads in k and v than in q are grouped-query attention",
    "kernel_options": "for tiles are chosen by the problem, or set by cupy_flash.tuning",
    "deterministic": "for a forward always is; flash_attention_vjp and flash_attention_backward take it",
}
NOT_YET = {
    "dropout_p": "dropout",
}


def answered(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose TypeError for an unknown keyword says what to write instead."""
    known = tuple(inspect.signature(function).parameters)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TypeError:
            name = next((name for name in kwargs if name not in known), None)
            if name is None:
                raise
            unexpected = f"{function.__name__}() got an unexpected keyword argument {name!r}"
            raise TypeError(f"{unexpected}: {_advice(name, known)}") from None

    return call


def _advice(name: str, known: tuple[str, ...]) -> str:
    if OURS.get(name) in known:
        return f"it is called {OURS[name]!r} here"
    if name in NEEDLESS:
        return f"it needs no word here, {NEEDLESS[name]}"
    if name in NOT_YET:
        return f"not supported yet: {NOT_YET[name]}"
    return f"expected {', '.join(known)}"
