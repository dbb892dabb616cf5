"""The registry of components, which change a score or hide a key, in the order in which they apply; and all options."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

from cupy_flash._src.components.alibi import Alibi
from cupy_flash._src.components.bias import Bias
from cupy_flash._src.components.boolean import Boolean
from cupy_flash._src.components.causal import Causal
from cupy_flash._src.components.component import Component, Sizes
from cupy_flash._src.components.key_lengths import KeyLengths
from cupy_flash._src.components.key_starts import KeyStarts
from cupy_flash._src.components.mask_mod import MaskMod
from cupy_flash._src.components.mods import Mod, is_empty
from cupy_flash._src.components.offsets import Offsets
from cupy_flash._src.components.positions import fitted
from cupy_flash._src.components.query_lengths import QueryLengths
from cupy_flash._src.components.scale import Scale
from cupy_flash._src.components.score_mod import ScoreMod
from cupy_flash._src.components.sinks import Sinks
from cupy_flash._src.components.softcap import Softcap
from cupy_flash._src.components.window import Window
from cupy_flash._src.options import boolean

COMPONENTS: tuple[type[Component], ...] = (  # places, then scores, sinks, masks
    Offsets,
    Scale,
    Softcap,
    Alibi,
    Bias,
    ScoreMod,
    Sinks,
    Causal,
    Window,
    KeyLengths,
    QueryLengths,
    KeyStarts,
    Boolean,
    MaskMod,
)
CAPTURED = {component.captured: component for component in COMPONENTS if issubclass(component, Mod)}
KEYWORDS = (*(component.keyword for component in COMPONENTS), *CAPTURED, "deterministic", "wrt")
INPUTS = ("q", "k", "v")
LEARNING = tuple(component.keyword for component in COMPONENTS if component.learns)
GATHERED = (ScoreMod.captured,)
FLOATS = tuple(component.keyword for component in COMPONENTS if component.floats)
ARRAYS = {component.keyword: component for component in COMPONENTS if component.lacks is not None}
_DEFAULTS = {component.keyword: component.default for component in COMPONENTS}
_GIVEN = [(COMPONENTS.index(x), x.keyword, captured, x) for captured, x in CAPTURED.items()]
_ARRAYS = [(keyword, component.array) for keyword, component in ARRAYS.items()]


def arrays_among(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a call's options that are arrays, by their keywords; numbers where arrays may stand are NumPy's."""
    get = arguments.get
    found = [(keyword, array_of(value)) for keyword, array_of in _ARRAYS if (value := get(keyword)) is not None]
    arrays = {keyword: array for keyword, array in found if array is not None}
    for _, keyword, captured, component in _GIVEN:
        if get(keyword) is not None or not is_empty(get(captured, ())):
            arrays |= component.arrays_among(arguments)
    return arrays


class Options(NamedTuple):
    """Every option of a call, checked: plain values, by which a problem is found again.

    Attributes
    ----------
    values : tuple
        Of the components' keywords, in their order.
    deterministic, wrt
        As the public calls have them.
    """

    values: tuple[Any, ...]
    deterministic: bool
    wrt: tuple[str, ...]

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> Options:
        """Check those among the arguments of a call, whose signature shows their names and defaults.

        Those that only gradients have may be missing.
        """
        values = list(map(arguments.__getitem__, _DEFAULTS))
        for i, _, captured, component in _GIVEN:
            if values[i] is not None or not is_empty(arguments[captured]):
                values[i] = component.given(arguments)
        for i, usual in enumerate(map(operator.is_, values, _DEFAULTS.values())):
            if not usual:
                values[i] = COMPONENTS[i].check(values[i])
        deterministic, wrt = arguments.get("deterministic", False), arguments.get("wrt", INPUTS)
        if wrt is not INPUTS:
            wrt = _named(wrt, arguments)
        return cls(tuple(values), boolean("deterministic", deterministic), wrt)

    @classmethod
    def of(cls, arrays: Mapping[str, Any] | None = None, /, **options: Any) -> Options:
        """Check them, with arrays of `arrays_among` in their places; a TypeError too if one is unknown."""
        if not options.keys() <= set(KEYWORDS):
            raise TypeError(f"options are {', '.join(options)}: expected only {', '.join(KEYWORDS)}")
        return cls.among({**_DEFAULTS, **dict.fromkeys(CAPTURED, ()), **options, **(arrays or {})})

    @property
    def by_keyword(self) -> dict[str, Any]:
        """The components' values."""
        return {component.keyword: value for component, value in zip(COMPONENTS, self.values, strict=True)}

    def components(self, sizes: Sizes) -> tuple[Component, ...]:
        """What they put into effect in a problem."""
        options = self.by_keyword
        found = [component.of(options, sizes) for component in COMPONENTS]
        return tuple(component for component in found if component is not None)

    def offset(self, sizes: Sizes) -> int:
        """Position of the first query among the keys, as far as it is known, as it goes with these components."""
        return fitted(self.by_keyword, sizes)[1]


def _named(wrt: Any, arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """What `wrt` names, each of which is among the arguments."""
    possible = (*INPUTS, *LEARNING, *GATHERED)
    given = (name for name in (*LEARNING, *GATHERED) if arguments[name] is not None and not is_empty(arguments[name]))
    passed = (*INPUTS, *given)
    if not isinstance(wrt, (tuple, list)):
        raise TypeError(f"wrt is {wrt!r}: expected a tuple or list of names, of {', '.join(possible)}")
    for name in wrt:
        if not isinstance(name, str):
            raise TypeError(f"wrt has {name!r}: expected names, of {', '.join(possible)}")
        if name not in possible:
            raise ValueError(f"wrt has {name!r}: expected {', '.join(possible)}")
        if name not in passed:
            raise ValueError(f"wrt has {name!r}, which was not passed: expected {', '.join(passed)}")
    if len(set(wrt)) < max(len(wrt), 1):
        raise ValueError(f"wrt is {wrt!r}: expected at least one name, and each once")
    return tuple(wrt)
