"""Options of calls that are compared: what they are for us, and what their definition is for those that take others.

A case names one of them, with its size: "window1024". Beside `causal`, which is a field of a case.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cupy_flash import mods
from cupy_flash._src.components import INPUTS
from cupy_flash._src.problem import DTYPES

if TYPE_CHECKING:
    from cupy_flash._src.cli.bench.cases import Case

Array = Any  # of NumPy, CuPy or PyTorch


@dataclass(frozen=True)
class Option:
    """No option, and what those have in common.

    Attributes
    ----------
    size : int
        The number in its name.
    takes : tuple of str
        Keywords of our calls that are arrays.
    """

    size: int = 0
    takes: ClassVar[tuple[str, ...]] = ()

    @property
    def kind(self) -> str:
        """Its name without the size."""
        return self.__class__.__name__.lower() if self.__class__ is not Option else ""

    @property
    def definition(self) -> str:
        """The kind that has the same definition: of functions that of built-in options."""
        return self.kind.removesuffix("mod")

    def __str__(self) -> str:
        return f"{self.kind}{self.size or ''}"

    def values(self) -> dict[str, Any]:
        """Keywords of our calls with what is no array."""
        return {}

    def arrays(self, case: Case) -> dict[str, np.ndarray]:
        """Those of `takes`."""
        return {}

    def functions(self, case: Case) -> dict[str, Any]:
        """Keywords of our calls with functions, what these capture, and what they stand for."""
        return {}

    def learned(self, case: Case) -> dict[str, tuple[int, ...]]:
        """Shapes of those that a backward gives gradients of, too, in the type of the inputs."""
        return {}

    def sees(self, case: Case, arrays: dict[str, Array], b: Array, i: Array, j: Array) -> Array | None:
        """Whether query i of batch element b sees key j; None where each does."""
        return None

    def shown(self, case: Case, arrays: dict[str, Array], b: Array, i: Array, j: Array) -> Array | None:
        """The same with `causal`."""
        found = self.sees(case, arrays, b, i, j)
        if not case.causal:
            return found
        before = j <= i + (case.seqlen_k - case.seqlen_q)
        return before if found is None else found & before

    def bias(self, case: Case, arrays: dict[str, Array], h: Array, i: Array, j: Array) -> Array | None:
        """What is added to the score of query i and key j in head h; None for nothing."""
        return None

    def score(self, s: Array) -> Array:
        """What it makes of a scaled score, apart from `bias`."""
        return s

    def slope(self, score: Array) -> Array | None:
        """Derivative of `score` with respect to what it was made of; None for 1."""
        return None

    def pairs(self, case: Case) -> float:
        """Pairs of a query and a key that it sees, of one head of the whole batch; causal is half of all, as papers
        count.
        """
        return case.batch * case.seqlen_q * case.seqlen_k / (2 if case.causal else 1)

    def keys(self, case: Case) -> int:
        """Keys that exist, of one head of the whole batch."""
        return case.batch * case.seqlen_k

    def shortened(self, times: int) -> Option:
        """Of sequences so many times shorter."""
        return self


class Window(Option):
    """So many keys before its own position, and no later ones."""

    def values(self) -> dict[str, Any]:
        return {"window": (self.size, 0)}

    def sees(self, case: Case, arrays: dict[str, Array], b: Array, i: Array, j: Array) -> Array:
        distance = i + (case.seqlen_k - case.seqlen_q) - j
        return (distance >= 0) & (distance <= self.size)

    def pairs(self, case: Case) -> float:
        positions = np.arange(case.seqlen_k - case.seqlen_q, case.seqlen_k)
        return float(case.batch * (np.minimum(positions, self.size) + 1).sum())

    def shortened(self, times: int) -> Option:
        return replace(self, size=max(1, self.size // times))


class Softcap(Option):
    """As in Gemma 2, which has 50."""

    def values(self) -> dict[str, Any]:
        return {"softcap": float(self.size)}

    def score(self, s: Array) -> Array:
        scaled = s / self.size
        return self.size * (scaled.tanh() if hasattr(scaled, "tanh") else np.tanh(scaled))

    def slope(self, score: Array) -> Array:
        return 1 - (score / self.size) ** 2


class SoftcapMod(Softcap):
    """The same and `causal`, which the case has, as functions; of as many queries as keys."""

    def values(self) -> dict[str, Any]:
        return {}

    def functions(self, case: Case) -> dict[str, Any]:
        masks = {"mask_mod": mods.causal} if case.causal else {}
        return {"causal": False, "score_mod": mods.softcap, "score_args": (float(self.size),), **masks}


class Alibi(Option):
    """The slopes of the paper, where the number of heads is a power of 2: 2^(-8 (h + 1) / heads)."""

    takes = ("alibi_slopes",)

    def arrays(self, case: Case) -> dict[str, np.ndarray]:
        return {"alibi_slopes": np.exp2(-8 * np.arange(1, case.heads_q + 1) / case.heads_q).astype(np.float32)}

    def bias(self, case: Case, arrays: dict[str, Array], h: Array, i: Array, j: Array) -> Array:
        return -arrays["alibi_slopes"][h] * abs(i + (case.seqlen_k - case.seqlen_q) - j)


class Documents(Option):
    """So many documents of the same length in a sequence: each sees itself."""

    takes: ClassVar[tuple[str, ...]] = ("mask",)

    def arrays(self, case: Case) -> dict[str, np.ndarray]:
        i, j = np.arange(case.seqlen_q)[:, None], np.arange(case.seqlen_k)
        return {"mask": self.sees(case, {}, 0, i, j)}

    def sees(self, case: Case, arrays: dict[str, Array], b: Array, i: Array, j: Array) -> Array:
        return i // (case.seqlen_q // self.size) == j // (case.seqlen_k // self.size)

    def pairs(self, case: Case) -> float:
        return super().pairs(case) / self.size


class DocumentsMod(Documents):
    """The same as a function, of the numbers of the documents that queries and keys belong to."""

    takes = ()

    def arrays(self, case: Case) -> dict[str, np.ndarray]:
        return {}

    def functions(self, case: Case) -> dict[str, Any]:
        numbers = tuple(np.arange(n, dtype=np.int32) // (n // self.size) for n in (case.seqlen_q, case.seqlen_k))
        return {
            "mask_mod": mods.documents,
            "mask_args": tuple(np.broadcast_to(x, (case.batch, x.size)).copy() for x in numbers),
        }


class Lengths(Option):
    """Batch elements of different lengths, padded: from a part of the sequence, in even steps, half on average.

    Not with `causal`, where our calls let the last query stand at the last key that exists, and others elsewhere.
    """

    takes = ("k_lengths",)

    def arrays(self, case: Case) -> dict[str, np.ndarray]:
        return {"k_lengths": case.seqlen_k * np.arange(1, case.batch + 1) // (case.batch + 1)}

    def sees(self, case: Case, arrays: dict[str, Array], b: Array, i: Array, j: Array) -> Array:
        return j < arrays["k_lengths"][b]

    def pairs(self, case: Case) -> float:
        return float(case.seqlen_q * self.keys(case))

    def keys(self, case: Case) -> int:
        return int(self.arrays(case)["k_lengths"].sum())


class Bias(Option):
    """Numbers of N(0, 1) for each head, that all batch elements share, as AlphaFold's rows share those of pairs.

    Not with `causal`: PyTorch has one mask for both, of which it would not be the gradient alone.
    """

    takes = ("bias",)

    def learned(self, case: Case) -> dict[str, tuple[int, ...]]:
        return {"bias": (1, case.heads_q, case.seqlen_q, case.seqlen_k)}

    def arrays(self, case: Case) -> dict[str, np.ndarray]:
        numbers = np.random.default_rng(0).standard_normal(self.learned(case)["bias"], np.float32)
        return {"bias": numbers.astype(DTYPES[case.dtype])}

    def bias(self, case: Case, arrays: dict[str, Array], h: Array, i: Array, j: Array) -> Array:
        return arrays["bias"][0, h, i, j]


class Sinks(Option):
    """Logits from 1 to 8, which have a share in rows of some thousand keys, and which all types hold exactly."""

    takes = ("sinks",)

    def learned(self, case: Case) -> dict[str, tuple[int, ...]]:
        return {"sinks": (case.heads_q,)}

    def arrays(self, case: Case) -> dict[str, np.ndarray]:
        return {"sinks": (1 + np.arange(case.heads_q) % 8).astype(DTYPES[case.dtype])}


KINDS: dict[str, type[Option]] = {
    "": Option, "window": Window, "softcap": Softcap, "alibi": Alibi, "documents": Documents, "lengths": Lengths,
    "bias": Bias, "sinks": Sinks, "softcapmod": SoftcapMod, "documentsmod": DocumentsMod,
}  # fmt: skip


@functools.lru_cache
def named(text: str) -> Option:
    """The option that a case names."""
    kind, size = re.fullmatch(r"([a-z]*)(\d*)", text).groups()  # type: ignore[union-attr]
    return KINDS[kind](int(size or 0))


@functools.lru_cache(maxsize=1)  # all methods of a turn measure a case before the next
def arrays_of(case: Case, xp: Any) -> dict[str, Array]:
    """Arrays among the options of a case's calls, on the device of `xp`."""
    return {name: xp.asarray(x) for name, x in named(case.option).arrays(case).items()}


@functools.lru_cache(maxsize=1)
def _functions_of(case: Case, xp: Any) -> dict[str, Any]:
    """Functions among them, with what they capture there."""
    found = named(case.option).functions(case)
    return {name: tuple(map(xp.asarray, x)) if name == "mask_args" else x for name, x in found.items()}


def given(case: Case, xp: Any) -> dict[str, Any]:
    """All options of a case, by the keywords of our calls."""
    return {
        "causal": case.causal, **named(case.option).values(), **arrays_of(case, xp), **_functions_of(case, xp),
    }  # fmt: skip


def learned(case: Case, xp: Any) -> dict[str, Array]:
    """Those of these that a backward gives gradients of."""
    return {name: arrays_of(case, xp)[name] for name in named(case.option).learned(case)}


def wrt(case: Case) -> tuple[str, ...]:
    """What a backward gives gradients of."""
    return (*INPUTS, *named(case.option).learned(case))


def seen(xp: Any, case: Case) -> Array:
    """Whether queries see keys, broadcasting to scores (B, Hq, Sq, Sk), or None where all see all."""
    b, i, j = xp.arange(case.batch)[:, None, None, None], xp.arange(case.seqlen_q)[:, None], xp.arange(case.seqlen_k)
    return named(case.option).shown(case, arrays_of(case, xp), b, i, j)


def added(xp: Any, case: Case) -> Array:
    """What is added to scores, (Hq, Sq, Sk) in the type of the inputs, or None."""
    h, i, j = xp.arange(case.heads_q)[:, None, None], xp.arange(case.seqlen_q)[:, None], xp.arange(case.seqlen_k)
    found = named(case.option).bias(case, arrays_of(case, xp), h, i, j)
    return None if found is None else found.astype(DTYPES[case.dtype])


def attn_mask(xp: Any, case: Case) -> Array:
    """What calls take that have one mask for all, of four axes: bools where keys are seen, or numbers for scores."""
    shown, bias = seen(xp, case), added(xp, case)
    if bias is not None:
        shown = bias if shown is None else xp.where(shown, bias, bias.dtype.type(-xp.inf))
    return shown.reshape((1,) * (4 - shown.ndim) + shown.shape)
