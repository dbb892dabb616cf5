"""Jobs in a process of their own, which is started again after one that crashed, hung or lost the device."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

PATIENCE = {"start": 120.0, "compile": 600.0, "values": 120.0}  # seconds for what is not the device's work
_STOP_SECONDS = 20.0  # for the driver to let go of a kernel that hangs

_stage = "start"
_parent: Connection | None = None


class Failed(Exception):
    """A job that ran, with a wrong result."""


class Answer(NamedTuple):
    """What a job returned, or the stage in which it failed and why."""

    value: Any = None
    failure: str = ""


def stage(name: str, what: str = "") -> None:
    """Say what the running job goes on with: failures from here on carry this name, and the clock starts anew."""
    global _stage
    _stage = f"{name}: {what}" if what else name
    if _parent is not None:
        _parent.send(_stage)


def attempt(function: Callable[..., Any], *arguments: Any) -> Answer:
    """Run a job in this process."""
    stage("start")
    try:
        return Answer(function(*arguments))
    except Failed as error:
        return Answer(failure=f"{_stage}: {error}")
    except Exception as error:
        return Answer(failure=f"{_stage}: {type(error).__name__}: {error}")


def never() -> bool:
    return False


class Worker:
    """A process that runs jobs; a context manager that ends it.

    Jobs and `survives` are functions of a module, found by their names in the other process.

    Parameters
    ----------
    limit : float
        Seconds for one stage of a job. Those in `PATIENCE` have their own.
    survives : callable
        Asked in the process after a job that raised: whether it can run others. A fault leaves a CUDA context
        unusable, so by default it cannot.
    """

    def __init__(self, limit: float, survives: Callable[[], bool] = never) -> None:
        self._limit, self._survives = limit, survives
        self._process: BaseProcess | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Answer:
        """Run a job in the process; its failure is "<stage>: why", "hang: ..." or "crash: ..."."""
        stage = "start"
        try:
            if self._process is None or not self._process.is_alive():
                self._start()
            self._connection.send((function, arguments))
            while isinstance(message := self._receive(stage), str):
                stage = message
            answer, usable = message
        except TimeoutError as error:
            answer, usable = Answer(failure=f"hang: {error} ({stage})"), False
        except (EOFError, OSError):
            answer, usable = Answer(failure=f"crash: its process {self._ending()} ({stage})"), False
        if not usable:
            self._end()
        return answer

    def _start(self) -> None:
        self._end()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._survives), daemon=True)
        process.start()
        self._process = process
        theirs.close()  # the process holds the only other end, so that its death is heard

    def _receive(self, stage: str) -> Any:
        seconds = PATIENCE.get(stage.partition(":")[0], self._limit)
        if not self._connection.poll(seconds):
            raise TimeoutError(f"no answer within {seconds:g} s")
        return self._connection.recv()

    def _ending(self) -> str:
        if self._process is None:
            return "did not start"
        self._process.join(_STOP_SECONDS)
        code = self._process.exitcode
        return f"was ended by {signal.Signals(-code).name}" if code and code < 0 else f"ended with code {code}"

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join(_STOP_SECONDS)
            self._connection.close()
            self._process = None


def _serve(connection: Connection, survives: Callable[[], bool]) -> None:
    """Run jobs until the other end closes."""
    global _parent
    _parent = connection
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, arguments = connection.recv()
            answer = attempt(function, *arguments)
            connection.send((answer, not answer.failure or survives()))
