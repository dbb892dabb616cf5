"""The bound that a GPU's arithmetic and memory set: S. Williams, A. Waterman, D. Patterson, "Roofline", 2009.

Rates are the vendor's datasheets', for the card that `device.NAMED` has of each architecture; no card was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from cupy_flash._src.analysis.rounding import captured_floats
from cupy_flash._src.components import GATHERED
from cupy_flash._src.problem import DTYPES, AttentionProblem


@dataclass(frozen=True)
class Rates:
    """Dense rates in TFLOP/s, of the half types with float32 sums, and memory bandwidth in GB/s."""

    card: str
    half: float
    single: float
    double: float
    bandwidth: float

    def peak(self, dtype: str, tensor_cores: bool) -> float:
        """TFLOP/s of the units that compute: CUDA cores take the half types as float32."""
        if dtype == "float64":
            return self.double
        return self.half if tensor_cores else self.single


@dataclass(frozen=True)
class Bound:
    """The least time that a problem takes on a card: seconds of its arithmetic, and of its compulsory bytes."""

    arithmetic: float
    memory: float

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.memory)

    @property
    def by(self) -> str:
        return "arithmetic" if self.arithmetic >= self.memory else "memory"


DATASHEET = {
    "sm_70": Rates("V100 SXM2", 125, 15.7, 7.8, 900),
    "sm_75": Rates("T4", 65, 8.1, 0.25, 320),
    "sm_80": Rates("A100 SXM 40 GB", 312, 19.5, 9.7, 1555),
    "sm_86": Rates("RTX A6000", 154.8, 38.7, 0.6, 768),
    "sm_89": Rates("RTX 4090", 165.2, 82.6, 1.3, 1008),
    "sm_90a": Rates("H100 SXM", 989.4, 66.9, 33.5, 3350),
    "sm_100": Rates("B200", 2250, 80, 40, 8000),
    "sm_120": Rates("RTX 5090", 209.5, 104.8, 1.6, 1792),
}


def visible_pairs(problem: AttentionProblem) -> int:
    """Pairs of a query and a key that it sees, over all heads; what only the call's arrays tell hides none.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.zeros((2, 4, 8))
    >>> visible_pairs(AttentionProblem.from_arrays(x, x, x, causal=True))
    20
    """
    sq, step = problem.seqlen_q, 2**20  # all queries at once may be too many to hold
    rows = (np.arange(i, min(i + step, sq), dtype=np.int64) for i in range(0, sq, step))
    keys = map(problem.keys, rows)
    seen = sum(int((x.end - x.begin).sum()) for x in keys) if problem.masks else sq * problem.seqlen_k
    return problem.num_heads_q * prod(problem.batch) * seen


def flops(problem: AttentionProblem, *, backward: bool) -> int:
    """Floating-point operations that the visible pairs need: two matrix products forward, five backward.

    Backward these are S = Q K^T and dP = dO V^T, and of what is wanted dV = P^T dO, dQ = dS K and dK = dS^T Q. The
    gradient of a bias is dS itself, that of slopes a sum of it; that of sinks takes no product.
    """
    d, dv = problem.head_dim, problem.head_dim_v
    if not backward:
        return 2 * visible_pairs(problem) * (d + dv)
    scores, dscores = _needs(problem)
    columns = d * scores + dv * dscores + sum({"q": d, "k": d, "v": dv}.get(name, 0) for name in problem.wrt)
    return 2 * visible_pairs(problem) * columns


def _needs(problem: AttentionProblem) -> tuple[bool, bool]:
    """Whether the backward needs P, and whether dS: the gradient of v does without that, of sinks without both."""
    wanted = set(problem.wrt) - {"sinks"}
    return bool(wanted), bool(wanted - {"v"})


def compulsory_bytes(problem: AttentionProblem, *, backward: bool) -> int:
    """Bytes of the arrays that no kernel comes without: what is seen of each input read once, each result written once.

    Forward: q, k, v; the output and lse. Backward: these, dout, and the gradients, as far as what is wanted needs them.
    An input that is broadcast over leading dimensions counts for each entry. Options that are arrays do not count, and
    hide nothing; their gradients count. A kernel that reads an array again finds it in the L2 cache as far as that
    holds it, so that this, not the traffic of all reads, bounds the time that memory takes.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.zeros((2, 4, 8), np.float16)
    >>> problem = AttentionProblem.from_arrays(x, x, x)
    >>> compulsory_bytes(problem, backward=False) == 4 * x.nbytes + 2 * 4 * 4  # lse is float32
    True
    """
    d, dv, itemsize, out = problem.head_dim, problem.head_dim_v, problem.storage.itemsize, problem.out_storage.itemsize
    # Queries that see no key, and keys that none sees, are not read.
    first, end = problem.seeing
    begin_keys, end_keys = problem.keys(first, end - 1) if first < end else (0, 0)
    seeing, seen = int(end - first), int(end_keys - begin_keys)
    heads_q, heads_k = (prod(problem.batch) * heads for heads in (problem.num_heads_q, problem.num_heads_k))
    all_rows, all_keys = heads_q * problem.seqlen_q, heads_k * problem.seqlen_k
    scores, dscores = _needs(problem) if backward else (True, True)
    read = ((heads_q * seeing + heads_k * seen) * d * scores + heads_k * seen * dv * dscores) * itemsize
    lse = all_rows * problem.accumulator.itemsize
    if not backward:
        return read + all_rows * dv * itemsize + lse
    out_read = out * (problem.wrt != ("v",))  # for delta
    cotangents = heads_q * seeing * dv * (itemsize + out_read) + lse
    sizes = {"q": all_rows * d * out, "k": all_keys * d * itemsize, "v": all_keys * dv * itemsize}
    sizes |= {term.keyword: prod(term.shape) * DTYPES[term.dtype].itemsize for term in problem.terms}
    sizes |= {keyword: _captured_bytes(problem, keyword) for keyword in GATHERED}
    return read + cotangents + sum(sizes[name] for name in problem.wrt)


def _captured_bytes(problem: AttentionProblem, keyword: str) -> int:
    """Of the arrays of floats that a function captures."""
    arrays = captured_floats(problem.captured(keyword)).values()
    return sum(prod(x.shape) * x.dtype.itemsize for x in arrays)


def standard_bytes(problem: AttentionProblem, *, backward: bool) -> int:
    """Global traffic of standard attention, which writes its score matrices out in the storage type.

    Forward: S written and read by the softmax, P written and read by the second product, beside q, k, v and out.
    Backward: P read for dV, dP written, both read and dS written, and dS read for dQ and for dK: seven times the
    size of S, beside q, k, v, dout and the gradients.
    """
    batch = prod(problem.batch)
    scores = batch * problem.num_heads_q * problem.seqlen_q * problem.seqlen_k
    q = batch * problem.num_heads_q * problem.seqlen_q * problem.head_dim
    out = batch * problem.num_heads_q * problem.seqlen_q * problem.head_dim_v
    kv = batch * problem.num_heads_k * problem.seqlen_k * (problem.head_dim + problem.head_dim_v)
    elements = 7 * scores + 2 * q + out + 2 * kv if backward else 4 * scores + q + out + kv
    return elements * problem.storage.itemsize


def bound(problem: AttentionProblem, rates: Rates, *, tensor_cores: bool, backward: bool) -> Bound:
    """The bound that a card's arithmetic and memory set on a problem, whatever the kernel."""
    peak = rates.peak(problem.dtype, tensor_cores)
    memory = compulsory_bytes(problem, backward=backward) / (rates.bandwidth * 1e9)
    return Bound(flops(problem, backward=backward) / (peak * 1e12), memory)
