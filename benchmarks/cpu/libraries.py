"""The two libraries behind one interface, and the check of their results that comes before any measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cpu.cases import FORWARD, Case
from cupy_flash import flash_attention, flash_attention_vjp
from cupy_flash._src.cli.bench import options
from cupy_flash._src.cli.bench.cases import Inputs
from cupy_flash._src.cli.bench.methods import Bound, autograd_bound
from cupy_flash._src.cli.bench.verify import Expected
from cupy_flash._src.problem import DTYPES


def bind_ours(case: Case, x: Inputs) -> Bound:
    q, k, v, _ = x
    given, wrt = options.given(case.bench, np), options.wrt(case.bench)
    return Bound(
        forward=lambda: flash_attention(q, k, v, **given),
        saved=lambda: flash_attention_vjp(q, k, v, **given, wrt=wrt)[1],
        backward=lambda vjp, dout: vjp(dout),
        take=lambda a: a,
        give=lambda a: a,
    )


def bind_torch(case: Case, x: Inputs) -> Bound:
    """PyTorch's scaled_dot_product_attention, which chooses its own algorithm; options are masks for it."""
    import torch

    bits = f"int{8 * DTYPES[case.dtype].itemsize}"  # NumPy and PyTorch do not pass each other bfloat16

    def take(a: np.ndarray) -> Any:
        return torch.from_numpy(a.view(bits)).view(getattr(torch, case.dtype))

    def give(t: Any) -> np.ndarray:
        return t.detach().view(getattr(torch, bits)).numpy().view(DTYPES[case.dtype])

    given: dict[str, Any] = {"is_causal": case.causal}
    learned = options.learned(case.bench, np).values()
    if case.option and not learned:
        given = {"attn_mask": torch.from_numpy(options.attn_mask(np, case.bench))}

    def attend(q: Any, k: Any, v: Any, bias: Any = None) -> Any:
        mask = given if bias is None else {"attn_mask": bias}
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, enable_gqa=case.heads_q != case.heads_k, **mask
        )

    return autograd_bound(attend, x, take, give, learned)


LIBRARIES: dict[str, Callable[[Case, Inputs], Bound]] = {"ours": bind_ours, "torch": bind_torch}


def call_of(case: Case, bound: Bound, x: Inputs) -> Callable[[], Any]:
    """What is timed."""
    if case.what == FORWARD:
        return bound.forward
    dout = bound.take(x.dout)
    return lambda: bound.backward(bound.saved(), dout)


def verify(case: Case, x: Inputs, bounds: dict[str, Bound]) -> None:
    """Compare first and last rows of one head with float64, as `bench` does.

    How far a result may be off follows from what the standard attention loses with every step rounded to the same
    dtype: no fixed figure fits both 64 and 16384 keys, nor float32 and bfloat16.

    Raises
    ------
    ArithmeticError
        If a library is wrong.
    """
    expected = Expected(case.bench, x)
    for name, bound in bounds.items():
        try:
            expected.error(bound, x)
        except ArithmeticError as error:
            raise ArithmeticError(f"{name} is {error}") from None
