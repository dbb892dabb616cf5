"""Programs that the package runs, folders that it makes for a while, what it says, and what its import does."""

import contextlib
import ctypes
import functools
import importlib.util
import io
import multiprocessing.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from pathlib import Path

import pytest
from processes import interruptible, python

import cupy_flash
from cupy_flash._src import notice, programs, source, startup, temporary
from cupy_flash._src.backends import cupy_

ROOT = Path(__file__).parents[1]

# --- programs ---


@pytest.mark.parametrize(("status", "name"), [
    (0, None), (1, None), (127, None), (128, None), (255, None),
    *((status, name) for name in ("SIGHUP", "SIGINT", "SIGKILL", "SIGSEGV", "SIGTERM")
      for status in (-getattr(signal, name), 128 + getattr(signal, name))),
])  # fmt: skip
def test_a_status_names_the_signal(status, name):
    assert programs.Outcome(status, "", "").signal == name


def test_what_a_program_writes_is_kept_apart_and_whole(monkeypatch):
    """More than a pipe holds, on both; what is no text too. It has nothing to read, and English messages."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    code = (
        "import os, sys; os.write(2, b'e' * 200000 + b'\\xff'); os.write(1, b'o' * 200000);"
        "print(repr(sys.stdin.read()), os.environ['LC_ALL'], os.environ['HOME']); sys.exit(3)"
    )
    monkeypatch.setenv("HOME", "/home of mine")
    outcome = programs.run([sys.executable, "-S", "-c", code])
    assert outcome == (3, "o" * 200000 + "'' C /home of mine\n", "e" * 200000 + "\ufffd")
    assert programs.run(["sh", "-c", "kill -TERM $$"]) == (-signal.SIGTERM, "", "")
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        programs.run(["no-such-program"])


def test_an_interrupt_ends_the_program_too(monkeypatch, tmp_path):
    begun, waiting, wait = tmp_path / "begun", threading.Event(), subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", lambda *args: waiting.set() or wait(*args))

    def interrupt():
        while not begun.exists() or not begun.read_text().strip():
            time.sleep(0.01)
        waiting.wait()  # while Popen is at it, nobody knows the program yet
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with interruptible(), pytest.raises(KeyboardInterrupt):
        programs.run(["sh", "-c", f"trap '' INT; echo $$ > {begun}; exec sleep 60"])
    number = int(begun.read_text())
    with pytest.raises(ProcessLookupError):  # ended, and waited for
        os.kill(number, 0)


# --- folders for a while ---


def test_a_work_folder_goes_whatever_ends_its_block():
    for error in (None, ValueError, KeyboardInterrupt):
        with contextlib.suppress(ValueError, KeyboardInterrupt), temporary.work_folder() as folder:
            assert folder.is_dir() and folder.name.startswith("cupy_flash-") and folder.stat().st_mode & 0o077 == 0
            (folder / "below").mkdir()
            (folder / "below" / "file").touch()
            if os.fork() == 0:  # a child that ends takes nothing along
                try:
                    multiprocessing.util._exit_function()
                finally:
                    os._exit(0)
            os.wait()
            assert (folder / "below" / "file").is_file()
            if error:
                raise error
        assert not folder.exists()


def own_folder(queue):
    folder = temporary.own_folder()
    (folder / "file").touch()
    queue.put(str(folder))


def test_a_process_of_multiprocessing_removes_its_own_folder():
    """Which ends without the functions of atexit."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=own_folder, args=(queue,))
    process.start()
    folder = Path(queue.get())
    process.join()
    assert process.exitcode == 0 and not folder.exists()


# --- notices ---


def module(name, code):
    """A module of this name, its lines counted from 1 in a file of the same name."""
    made = types.ModuleType(name)
    exec(compile(code, f"{name}.py", "exec"), vars(made))
    return made


INNER = module("cupy_flash._src.inner", "from cupy_flash._src.notice import warn\ndef inner(text): warn(text)\n")
OUTER = module("cupy_flash.outer", "def outer(function, *args):\n    return function(*args)\n")
OTHER = module("cupy_flash_other", "def call(outer, *args):\n    'not the package'\n    return outer(*args)\n")


def test_a_warning_points_to_the_line_that_called_the_package():
    """However deep inside, and if the package is called by what it has called; a name that begins alike is another."""
    line = sys._getframe().f_lineno

    def callback(text):
        OUTER.outer(INNER.inner, text)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        INNER.inner("0")
        OUTER.outer(INNER.inner, "1")
        OUTER.outer(callback, "2")
        OTHER.call(OUTER.outer, INNER.inner, "3")
    places = [(str(x.message), x.filename, x.lineno, x.category) for x in told]
    here = [(str(n), __file__, line + 7 + n, RuntimeWarning) for n in range(4)]
    here[3] = ("3", "cupy_flash_other.py", 3, RuntimeWarning)
    assert places == here


def test_a_warning_is_an_error_only_if_a_filter_says_so(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="as an error"):
            INNER.inner("as an error")
    for failure in (BrokenPipeError(), ValueError("I/O operation on closed file")):

        def fail(*args, failure=failure, **options):
            raise failure

        monkeypatch.setattr(warnings, "warn", fail)
        INNER.inner("nobody reads it")


class Gone(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def flush(self):
        raise self.error


def test_a_line_is_said_where_anybody_listens(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    notice.say("a line")
    assert stream.getvalue() == "a line\n"
    closed = io.StringIO()
    closed.close()
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for stream in (None, closed, ascii_only, Gone(BrokenPipeError()), Gone(OSError(28, "full"))):
        monkeypatch.setattr(sys, "stderr", stream)
        notice.say("\u00e9")
    monkeypatch.setattr(sys, "stderr", Gone(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        notice.say("x")


# --- the import ---


@pytest.mark.parametrize(("mode", "driver", "cupy", "imports"), [
    (None, True, True, True), ("", True, True, True), ("import", True, True, True),
    ("lazy", True, True, False), (None, False, True, False), (None, True, False, False),
])  # fmt: skip
def test_what_keeps_an_import_from_compiling(mode, driver, cupy, imports, monkeypatch):
    """Nothing is even looked at where it is asked for no more, or where there is no driver, or no CuPy."""

    def load(name):
        happened.append(name)
        if not driver:
            raise OSError(name)

    happened = []
    monkeypatch.delenv("CUPY_FLASH_COMPILE", raising=False)
    if mode is not None:
        monkeypatch.setenv("CUPY_FLASH_COMPILE", mode)
    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: happened.append(name) or (True if cupy else None))
    monkeypatch.setattr(cupy_, "import_cupy", lambda: happened.append("imported"))
    monkeypatch.setattr(cupy_, "prepare_core", lambda: happened.append("prepared"))
    startup.compile_core_kernels()
    steps = ["libcuda.so.1", "cupy", "imported", "prepared"]
    assert happened == steps[: 4 if imports else 0 if mode == "lazy" else 1 if not driver else 2]


@pytest.mark.parametrize("value", ["Lazy", "1", " import", "import lazy"])
def test_another_value_is_an_error_of_the_import(value, monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_COMPILE", value)
    with pytest.raises(ValueError, match=rf"^CUPY_FLASH_COMPILE is '{value}': expected one of import, lazy$"):
        startup.compile_core_kernels()


def test_importing_the_package_starts_it():
    code = "try: import cupy_flash\nexcept ValueError as error: print(error)"
    assert python(code, CUPY_FLASH_COMPILE="x")[0] == "CUPY_FLASH_COMPILE is 'x': expected one of import, lazy\n"


def test_public_names_are_of_the_functions_called_so():
    public = {name for name, x in vars(cupy_flash).items() if callable(x) and x.__module__.startswith("cupy_flash")}
    assert set(cupy_flash.__all__) == {name for name in public if name != "compile_core_kernels"}
    assert all(getattr(cupy_flash, name).__name__ == name for name in cupy_flash.__all__)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert cupy_flash.__version__ == re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1]


# --- the sources ---


def test_sources_are_found_again_when_what_was_unpacked_is_gone(tmp_path, monkeypatch):
    """Those of a zip file; it goes before the last functions of atexit run."""
    first, second = tmp_path / "first", tmp_path / "second"
    made = iter([first, second])

    @functools.cache
    def unpack(process):
        (folder := next(made)).mkdir()
        return folder

    monkeypatch.setattr(source, "_root", unpack)
    assert source.root() == first == source.root()
    first.rmdir()
    assert source.root() == second == source.root()


def test_flatten_takes_the_first_of_its_folders(tmp_path):
    """Texts given before files; an include may be indented and spaced, one of a system or in a comment stays."""
    for folder, names in {"one": "b", "two": "bc"}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.h").write_text(f"{name} of {folder}\n", encoding="utf-8")
    start = '  #  include   "b.h"  // why\n#include <c.h>\n// #include "c.h"\n#include "c.h"\n#include "d.h"\nend'
    search = (tmp_path / "one", tmp_path / "two")
    text = source.flatten("a.cu", virtual={"a.cu": start, "d.h": '\n#include "a.cu"\nd'}, search=search)
    assert text.splitlines() == [
        '#line 1 "a.cu"', '#line 1 "b.h"', "b of one", '#line 2 "a.cu"', "#include <c.h>", '// #include "c.h"',
        '#line 1 "c.h"', "c of two", '#line 5 "a.cu"', '#line 1 "d.h"', "", '#line 3 "d.h"', "d", '#line 6 "a.cu"',
        "end",
    ]  # fmt: skip
    assert source.flatten("b.h", search=search[::-1]) == '#line 1 "b.h"\nb of two\n'
    assert source.flatten("b.h", search=search, virtual={"b.h": "given"}) == '#line 1 "b.h"\ngiven\n'
    with pytest.raises(FileNotFoundError) as raised:
        source.flatten("x.h", search=search)
    assert str(raised.value) == f"x.h is in none of {search[0]}, {search[1]}"


def test_what_is_unpacked_is_the_whole_tree(tmp_path):
    (tmp_path / "from" / "a" / "b").mkdir(parents=True)
    content = {"top.h": b"\xff\r\n", "a/x.h": b"x", "a/b/y.cu": b""}
    for name, data in content.items():
        (tmp_path / "from" / name).write_bytes(data)
    (tmp_path / "to").mkdir()
    assert source._unpack(tmp_path / "from", tmp_path / "to") == tmp_path / "to"
    found = {path.relative_to(tmp_path / "to").as_posix(): path for path in (tmp_path / "to").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == content
