"""What `bench` would measure: its cases, its methods as far as they are installed, and about how long it would take."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import ceil

from cupy_flash._src.cli.bench import options
from cupy_flash._src.cli.bench.cases import Case
from cupy_flash._src.cli.bench.methods import COMPILED, FAST, LEFT_OUT, SLOW, Method

# Of one measurement: verified against float64 on the host, compiled where need be, timed for a fifth of a second.
SECONDS = {FAST: 1.5, COMPILED: 15, SLOW: 3}


def show(cases: list[Case], methods: list[Method], most: float) -> None:
    """Print it, with at `most` so many minutes; nothing of it needs a GPU."""
    print(f"{len(cases)} cases; --only takes a part of a name:")
    for case in cases:
        print(f"  {case}")
    print(f"\n{len(methods)} methods; --methods takes a part of a name:")
    there = []
    for method in methods:
        found = installed(method)
        if found:
            there.append(method)
        print(f"  {method.name:<18} {f'installed, {found}' if found else f'missing: {method.install}'}{_lacks(method)}")
    for name, why in LEFT_OUT.items():
        print(f"  {name:<18} left out: {why}")
    measured = [method for method in there for case in cases if method.takes(case)]
    minutes = sum(SECONDS[method.turn] for method in measured) / 60
    print(f"\n{len(measured)} measurements with what is installed, about {ceil(min(minutes, most))} min")


def _lacks(method: Method) -> str:
    kinds = [kind for kind in options.KINDS if kind not in method.kinds]
    return f"; without {', '.join(kinds)}" if kinds else ""


def installed(method: Method) -> str | None:
    """The version of what a method needs, None where it is not there."""
    try:
        if method.distribution:
            return version(method.distribution)
        return method.version if find_spec(method.module) else None
    except (PackageNotFoundError, ImportError):  # the latter of one that is there and broken
        return None
