"""The registry of components, which change a score or hide a key, in the order in which they apply; and all options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cupy_flash._src.components.causal import Causal
from cupy_flash._src.components.component import Component, Sizes
from cupy_flash._src.components.positions import fitted
from cupy_flash._src.components.scale import Scale
from cupy_flash._src.components.softcap import Softcap
from cupy_flash._src.components.window import Window
from cupy_flash._src.options import boolean, integer

COMPONENTS: tuple[type[Component], ...] = (  # scores, then masks
    Scale,
    Softcap,
    Causal,
    Window,
)
KEYWORDS = (*(component.keyword for component in COMPONENTS), "q_offset", "deterministic")
_CHECKS = [(component.keyword, component.default, component.check) for component in COMPONENTS]


class Options(NamedTuple):
    """Every option of a call, checked: plain values, by which a problem is found again.

    Attributes
    ----------
    values : tuple
        Of the components' keywords, in their order.
    q_offset, deterministic
        As the public calls have them.
    """

    values: tuple[Any, ...]
    q_offset: int | None
    deterministic: bool

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> Options:
        """Check those among the arguments of a call, whose signature shows their names and defaults."""
        get, q_offset = arguments.get, arguments.get("q_offset")
        values = [
            default if (value := get(keyword, default)) is default else check(value)
            for keyword, default, check in _CHECKS
        ]
        deterministic = boolean("deterministic", get("deterministic", False))
        return cls(tuple(values), None if q_offset is None else integer("q_offset", q_offset), deterministic)

    @classmethod
    def of(cls, **options: Any) -> Options:
        """Check them; a TypeError too if one is unknown."""
        if not options.keys() <= set(KEYWORDS):
            raise TypeError(f"options are {', '.join(options)}: expected only {', '.join(KEYWORDS)}")
        return cls.among(options)

    def components(self, sizes: Sizes) -> tuple[Component, ...]:
        """What they put into effect in a problem."""
        options = self._by_keyword()
        found = [component.of(options, sizes) for component in COMPONENTS]
        return tuple(component for component in found if component is not None)

    def offset(self, sizes: Sizes) -> int:
        """`Sizes.q_offset` as it goes with these components."""
        return fitted(self._by_keyword(), sizes)[1]

    def _by_keyword(self) -> dict[str, Any]:
        return {component.keyword: value for component, value in zip(COMPONENTS, self.values, strict=True)}
