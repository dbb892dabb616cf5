"""Seeded bugs: a kernel, a change that breaks it, the proof that the change was compiled and caught."""

import pytest

from cupy_flash._src.emulator.module import load
from cupy_flash.emulator import EmulatorError, current


def mutate(source, old, new):
    """The source with `old`, which stands in it exactly once, replaced."""
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in the source, not once"
    return source.replace(old, new)


def caught(launch, source, old, new, *, kinds, flattened=lambda text: text):
    """Run a kernel and its mutant; return the error that the mutant raises.

    Parameters
    ----------
    launch : callable
        Runs a source. It must succeed on `source` and raise `EmulatorError` on the mutant.
    source, old, new : str
        The kernel's text and the replacement.
    kinds : set of str
        What the error's kind may be.
    flattened : callable
        Makes of `source` the text that `launch` compiles.
    """
    mutant = mutate(source, old, new)
    launch(source)
    with pytest.raises(EmulatorError) as raised:
        launch(mutant)
    libraries = [load(flattened(text), current().mode).path for text in (source, mutant)]
    assert libraries[0].read_bytes() != libraries[1].read_bytes(), "the mutant was not compiled"

    error = raised.value
    assert error.kind in kinds, error
    assert error.kernel in str(error)
    assert error.sites and all(site.line > 0 and str(site) in str(error) for site in error.sites), error
    assert error.threads
    return error


def line_of(source, text):
    """The number of the only line that contains `text`."""
    (number,) = (i for i, line in enumerate(source.splitlines(), 1) if text in line)
    return number
