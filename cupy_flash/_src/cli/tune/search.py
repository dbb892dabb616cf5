"""One kernel's tiles, tried on one problem: verified against float64, then timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from cupy_flash import flash_attention_backward
from cupy_flash._src.cli.bench.cases import DECODE_HEADS, HIDDEN, TOKENS, Case
from cupy_flash._src.cli.bench.machine import Machine
from cupy_flash._src.cli.bench.methods import Bound, Flash
from cupy_flash._src.cli.bench.verify import Expected
from cupy_flash._src.cli.tune.space import specialization
from cupy_flash._src.device import Device
from cupy_flash._src.tiles import MmaKeyTile, MmaTile
from cupy_flash._src.tuning import tiles

SEQLEN, DECODE_BATCH, DECODE_SEQLEN = 4096, 8, 16384
WORTHWHILE = 0.99  # of the time with the planner's tile: less is the noise of a measurement


class Group(NamedTuple):
    """What has a tile of its own; the fields of `tuning.Entry`."""

    kernel: str
    head_dim: int
    causal: bool

    def __str__(self) -> str:
        return f"{self.kernel} D {self.head_dim}{' causal' if self.causal else ''}"

    def case(self) -> Case:
        """The problem that its tiles are compared on; both half types share the outcome."""
        d = self.head_dim
        if self.kernel == "packed":
            heads_q, heads_k = DECODE_HEADS[-1]
            return Case("decode", "float16", DECODE_BATCH, heads_q, heads_k, 1, DECODE_SEQLEN, d, self.causal)
        direction, heads = "forward" if self.kernel == "forward" else "backward", HIDDEN // d
        return Case(direction, "float16", TOKENS // SEQLEN, heads, heads, SEQLEN, SEQLEN, d, self.causal)


@dataclass(frozen=True)
class Trial:
    """A tile and the time of one call with it, or why there is none."""

    tile: MmaTile
    seconds: float = float("inf")
    problem: str = ""


def planned_tile(group: Group, device: Device) -> MmaTile:
    """What the planner takes."""
    kernel = specialization(*group, None, device)
    constants = {
        "block_m": "kBlockM", "block_n": "kBlockN", "num_warps": "kNWarps", "stages": "kStages",
        "min_blocks": "kMinBlocks",
    }  # fmt: skip
    if group.kernel == "dkdv":
        constants |= {"warps_m": "kWarpsM", "warps_n": "kWarpsN"}
    kind = MmaKeyTile if group.kernel == "dkdv" else MmaTile
    return kind(**{field: kernel.constant(name) for field, name in constants.items()})


class Searcher:
    """Tries tiles of one group; what all its trials share is made once."""

    def __init__(self, group: Group, machine: Machine, backend: str) -> None:
        case = machine.fitted(group.case())
        self._kernel, self._timer = group.kernel, machine.timer
        self._inputs = machine.numbers.inputs(case)
        self._expected = Expected(case, self._inputs)
        self._bound = Flash(backend).bind(case, self._inputs)
        if group.kernel == "dq":  # which has a pass of its own where bits must repeat
            q, k, v, _ = self._inputs
            options: dict[str, Any] = {"causal": case.causal, "deterministic": True, "backend": backend}
            self._bound.backward = lambda saved, dout: flash_attention_backward(dout, q, k, v, *saved, **options)

    def trial(self, tile: MmaTile) -> Trial:
        """Raises ArithmeticError where the result is wrong, and whatever a launch raises."""
        role = "forward" if self._kernel == "packed" else self._kernel
        with tiles(**{role: tile}):
            self._expected.error(self._bound, self._inputs)
            return Trial(tile, self._timer.measure(self._call(self._bound)).median)

    def _call(self, bound: Bound) -> Callable[[], Any]:
        if self._kernel in ("forward", "packed"):
            return bound.forward
        saved = bound.saved()
        return lambda: bound.backward(saved, self._inputs.dout)


def winner(trials: list[Trial], planned: MmaTile) -> Trial:
    """The fastest, unless the planner's own is as fast."""
    own = next(trial for trial in trials if trial.tile == planned)
    fastest = min(trials, key=lambda trial: trial.seconds)
    return fastest if fastest.seconds < WORTHWHILE * own.seconds else own
