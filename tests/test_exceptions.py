"""Exceptions of the package travel between processes: a pool that cannot read one waits for ever."""

import copy
import importlib
import pickle
import pkgutil

import pytest

import cupy_flash
from cupy_flash._src.emulator.errors import Site
from cupy_flash.emulator import EmulatorError


def exceptions():
    found = set()
    for module in pkgutil.walk_packages(cupy_flash.__path__, "cupy_flash."):
        if not module.name.endswith("__main__"):
            names = vars(importlib.import_module(module.name)).values()
            found |= {x for x in names if isinstance(x, type) and issubclass(x, BaseException)}
    return sorted((x for x in found if x.__module__.startswith("cupy_flash.")), key=lambda x: x.__qualname__)


ARGUMENTS = {
    EmulatorError: ("shared_race", "attention_forward", "two threads", (1, 2, 3), (4, 5), (Site("a.cu", 6),)),
}


def test_all_are_found():
    assert {"EmulatorError", "CompileError", "NoCompilerError", "UserError"} <= {x.__name__ for x in exceptions()}


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("travel", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_each_arrives_as_it_left(kind, travel):
    error = kind(*ARGUMENTS.get(kind, ("what went wrong",)))
    arrived = travel(error)
    assert type(arrived) is kind
    assert (str(arrived), arrived.args, vars(arrived)) == (str(error), error.args, vars(error))
    assert "went wrong" in str(arrived) or kind in ARGUMENTS


def test_the_message_of_an_emulated_fault():
    error = EmulatorError("shared_race", "attention_forward", "two threads", block=(1, 2, 3))
    assert str(error) == "shared_race in attention_forward, block (1, 2, 3): two threads"
    assert str(EmulatorError("launch", "k", "too large")) == "launch in k: too large"
