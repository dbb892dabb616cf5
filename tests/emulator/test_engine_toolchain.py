"""The compiler, the cache of what it made, and the line tables in it."""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cupy_flash._src import programs
from cupy_flash._src.emulator.lines import find_site
from cupy_flash._src.toolchain import (
    InterruptedCompilerError,
    NoCompilerError,
    compile_shared,
    cpu_flags,
    find_compiler,
)
from cupy_flash.emulator import ToolchainError

ANSWER = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def call(path, name="answer"):
    return getattr(ctypes.CDLL(str(path)), name)()


def test_a_library_is_compiled_once(cache):
    path = compile_shared(ANSWER, "answer", flags=("-O1", "-fPIC"))
    assert call(path) == 42
    assert path.is_relative_to(cache)
    made = path.stat().st_mtime_ns
    assert compile_shared(ANSWER, "answer", flags=("-O1", "-fPIC")) == path
    assert path.stat().st_mtime_ns == made


@pytest.mark.parametrize(
    "changes", [{"source": ANSWER + "\n"}, {"flags": ("-O0", "-fPIC")}, {"depends": "another header"}]
)
def test_the_key_covers_everything_that_matters(cache, changes):
    given = {"source": ANSWER, "name": "answer", "flags": ("-O1", "-fPIC"), "depends": ""}
    assert compile_shared(**given) != compile_shared(**(given | changes))


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-5], lambda data: data[:1000] + b"x" + data[1001:]]
)
def test_a_damaged_library_is_compiled_again(cache, damage):
    path = compile_shared(ANSWER, "answer", flags=("-O1", "-fPIC"))
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert compile_shared(ANSWER, "answer", flags=("-O1", "-fPIC")) == path
    assert call(path) == 42


def test_processes_compile_the_same_library_at_the_same_time(cache, tmp_path):
    source = (
        "from cupy_flash._src.toolchain import compile_shared\n"
        f"print(compile_shared({ANSWER!r}, 'answer', flags=('-O1', '-fPIC')))"
    )
    starts = [
        subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(3)
    ]
    paths = {process.communicate()[0].strip() for process in starts}
    assert all(process.returncode == 0 for process in starts)
    (path,) = paths
    assert call(path) == 42
    assert [p.suffix for p in (cache / "emulator").iterdir()] == [".so"]


def test_the_compiler_says_what_is_wrong(cache):
    with pytest.raises(ToolchainError, match="nonsense"):
        compile_shared("nonsense;", "broken")
    assert not list(cache.rglob("*.so"))


def test_without_a_compiler_the_message_tells_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ToolchainError, match=r'no-such-compiler.* pip install "cupy-flash\[emulator\]"'):
        find_compiler()


@pytest.fixture
def script(tmp_path):
    """A function that makes a program of the lines of a shell's script, in a folder with spaces in its name."""

    def make(*lines, name="my compiler"):
        path = tmp_path / "of  mine" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return path

    return make


SPELLED = ["{} --extra", "'{}' --extra", '"{}"   --extra', "  {}  --extra ", "env X=1 '{}' --extra"]


@pytest.mark.parametrize("cxx", SPELLED)
def test_the_compiler_of_cxx_comes_first(monkeypatch, script, cxx):
    """Arguments after it, a launcher before it, spaces in its path: quoted as in a shell, or not."""
    path = script("echo clang of mine 1.0")
    monkeypatch.setenv("CXX", cxx.format(path))
    compiler = find_compiler()
    assert compiler.command[-2:] == (str(path), "--extra")
    assert (compiler.version, compiler.is_clang) == ("clang of mine 1.0", True)


@pytest.mark.parametrize("cxx", ["", " ", "\t"])
def test_an_empty_cxx_is_none(monkeypatch, cxx):
    monkeypatch.delenv("CXX", raising=False)
    usual = find_compiler()
    monkeypatch.setenv("CXX", cxx)
    assert find_compiler() == usual


@pytest.mark.parametrize("cxx", ["'", '"unfinished', "/no/such/one -x", "''", "/"])
def test_a_cxx_that_is_no_program_is_named(monkeypatch, cxx):
    monkeypatch.setenv("CXX", cxx)
    with pytest.raises(NoCompilerError) as raised:
        find_compiler()
    assert repr(cxx) in str(raised.value)


@pytest.mark.parametrize(
    ("ending", "signal"),
    [
        ("kill -KILL $$", "SIGKILL"),
        ("kill -TERM $$", "SIGTERM"),
        ("exit 137", "SIGKILL"),
        ("echo 'g++: fatal error: Killed signal terminated program cc1plus' >&2; exit 1", "Killed signal"),
        ("echo 'clang++: error: unable to execute command: Killed' >&2; exit 1", "Killed"),
    ],
)
def test_a_compiler_that_was_killed_refused_nothing(cache, monkeypatch, script, ending, signal):
    real = " ".join(find_compiler().command)
    path = script(f'if [ "$1" = --version ] || [ -e "$0.go" ]; then exec {real} "$@"; fi', ending)
    monkeypatch.setenv("CXX", str(path))
    with pytest.raises(InterruptedCompilerError, match=signal):
        compile_shared(ANSWER, "answer", flags=("-O1", "-fPIC"))
    path.with_name(path.name + ".go").touch()
    assert call(compile_shared(ANSWER, "answer", flags=("-O1", "-fPIC"))) == 42


def test_a_compiler_killed_before_its_version_is_asked_again(monkeypatch, script):
    path = script('[ -e "$0.go" ] || kill -KILL $$', "echo mine 1.0")
    monkeypatch.setenv("CXX", str(path))
    with pytest.raises(InterruptedCompilerError, match="SIGKILL"):
        find_compiler()
    path.with_name(path.name + ".go").touch()
    assert find_compiler().version == "mine 1.0"


def test_a_refusal_without_a_word_has_its_status(cache, monkeypatch, script):
    monkeypatch.setenv("CXX", str(script('[ "$1" = --version ] && echo mute 1 && exit', "exit 3")))
    with pytest.raises(ToolchainError, match=r"failed with status 3:\nnothing on standard error") as raised:
        compile_shared(ANSWER, "answer")
    assert not isinstance(raised.value, InterruptedCompilerError)


def test_a_compiler_that_cannot_be_started_for_now_is_tried_again(cache, monkeypatch):
    def refuse(command):
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(programs, "run", refuse)
    with pytest.raises(InterruptedCompilerError, match="cannot be started"):
        compile_shared(ANSWER, "answer")


def test_instructions_have_their_source_lines(cache):
    source = (
        '#line 1 "folder/first.cu"\n'
        'extern "C" long first(volatile int* p) {\n'
        "  *p = 1;\n"
        "  return (long)__builtin_return_address(0);\n"
        "}\n"
        '#line 40 "second.cu"\n'
        'extern "C" long second(volatile int* p) {\n'
        "  p[3] = 5;\n"
        "  return (long)__builtin_return_address(0);\n"
        "}\n"
    )
    path = compile_shared(source, "lines", flags=("-O0", "-g1", "-gdwarf-4", "-fPIC"))
    library = ctypes.CDLL(str(path))
    first, second = (ctypes.cast(getattr(library, n), ctypes.c_void_p).value for n in ("first", "second"))
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    base = min(int(line.split("-")[0], 16) for line in maps if str(path) in line)
    assert str(find_site(path, first - base)) == "folder/first.cu:1"
    assert str(find_site(path, second - base)) == "second.cu:40"
    lines_of_second = {find_site(path, second - base + i).line for i in range(16)}
    assert {40, 41} <= lines_of_second


def test_flags_name_instruction_sets_of_this_cpu():
    assert all(flag.startswith("-m") for flag in cpu_flags())
    compile_shared(ANSWER, "answer", flags=(*cpu_flags(), "-fPIC"))
