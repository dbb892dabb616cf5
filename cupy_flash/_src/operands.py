"""The arrays of a call as records. Beside a problem they are all that a backend is given.

Arrays have the shapes of `AttentionProblem`: (*batch, heads, sequence, head_dim), broadcast axes with stride 0, any
strides; statistics of rows lack the last axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Array = Any  # numpy.ndarray or cupy.ndarray


class Operands(NamedTuple):
    """The inputs of attention and its results, which the forward writes and the backward reads.

    Attributes
    ----------
    q, k, v : array
        Of dtype `AttentionProblem.storage`.
    out : array
        Of dtype `AttentionProblem.out_storage`.
    lse : array
        Natural log-sum-exp of each row, of dtype `AttentionProblem.accumulator`.
    arrays : mapping
        Options that are arrays, by their keywords, as `AttentionProblem.expanded` has them.
    """

    q: Array
    k: Array
    v: Array
    out: Array
    lse: Array
    arrays: Mapping[str, Array] = {}

    @property
    def kept(self) -> dict[str, Array]:
        """All but the options, by name."""
        q, k, v, out, lse, _ = self
        return {"q": q, "k": k, "v": v, "out": out, "lse": lse}


class Cotangents(NamedTuple):
    """Gradients of the loss with respect to `out` and, where not None, to `lse`."""

    dout: Array
    dlse: Array | None = None


class Gradients(NamedTuple):
    """New arrays, as far as `AttentionProblem.wrt` names them.

    Attributes
    ----------
    dq, dk, dv : array or None
        Of the shapes of q, k and v, broadcast axes not yet summed; dq is of the dtype of `out`.
    terms : mapping
        Of options, by their keywords, in the shapes of `AttentionProblem.terms`; of their dtype or the accumulator's.
    captured : mapping
        Of what functions capture, by the keywords of their arguments: for each of these an array of the accumulator's
        dtype, or None.
    """

    dq: Array | None
    dk: Array | None
    dv: Array | None
    terms: Mapping[str, Array] = {}
    captured: Mapping[str, tuple[Array | None, ...]] = {}

    def of(self, name: str) -> Any:
        """What `wrt` calls so."""
        options = {**self.terms, **self.captured}
        return options[name] if name in options else getattr(self, f"d{name}")


class Merge(NamedTuple):
    """Attention over two sets of keys, and over both: what a merge reads, and what it writes.

    Attributes
    ----------
    out_a, lse_a, out_b, lse_b : array
        `out_a` is of dtype `AttentionProblem.out_storage`, `out_b` of `AttentionProblem.storage`.
    out, lse : array
        Of dtype `AttentionProblem.accumulator`, as all log-sum-exps.
    """

    out_a: Array
    lse_a: Array
    out_b: Array
    lse_b: Array
    out: Array
    lse: Array


KEPT = Operands._fields[:5]
BACKWARD = (*KEPT, *Cotangents._fields, *Gradients._fields[:3])
