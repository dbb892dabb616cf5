"""The compiler, the cache of what it made, and the line tables in it."""

import ctypes
import errno
import importlib.util
import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cupy_flash._src import programs, toolchain
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


def test_a_damaged_library_is_compiled_again(cache):
    path = compile_shared(ANSWER, "answer", flags=("-O1", "-fPIC"))
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + b"x" + whole[1001:])
    assert compile_shared(ANSWER, "answer", flags=("-O1", "-fPIC")) == path
    assert path.read_bytes() == whole and call(path) == 42


def test_any_damage_is_noticed(tmp_path):
    """Loading what was cut short would end the process: any length, any byte."""
    path = tmp_path / "library.so"
    path.write_bytes(whole := toolchain._seal(bytes(range(40))))
    assert toolchain._intact(path) == path and whole.startswith(bytes(range(40)))
    damaged = [whole[:n] for n in range(len(whole))] + [whole + b"\0", toolchain._seal(b""), bytes(len(whole))]
    damaged += [whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))]
    for data in damaged:
        path.write_bytes(data)
        assert toolchain._intact(path) is None, data
    path.unlink()
    assert toolchain._intact(path) is None and toolchain._intact(tmp_path) is None


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

    def make(*lines, name="my compiler", folder="of  mine"):
        path = tmp_path / folder / name
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
        ("kill -TERM $$", "SIGTERM"),
        ("echo 'g++: fatal error: Killed signal terminated program cc1plus' >&2; exit 1", "Killed signal"),
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


@pytest.mark.parametrize(("number", "kept"), [
    (errno.EAGAIN, True), (errno.ENOMEM, True), (errno.EMFILE, True), (errno.ENFILE, True),
    (errno.EACCES, False), (errno.ENOEXEC, False), (errno.E2BIG, False),
])  # fmt: skip
def test_a_compiler_that_cannot_be_started_for_now_is_tried_again(number, kept, monkeypatch):
    def refuse(command):
        raise OSError(number, "no more of them")

    monkeypatch.setattr(programs, "run", refuse)
    with pytest.raises(ToolchainError, match=r"^c\+\+ -x cannot be started: .*no more of them") as raised:
        toolchain._run(["c++", "-x"])
    assert (type(raised.value) is InterruptedCompilerError) == kept


@pytest.mark.parametrize(("status", "said", "kept"), [
    (-signal.SIGKILL, "", "SIGKILL"), (-signal.SIGXCPU, "", "SIGXCPU"), (128 + signal.SIGINT, "", "SIGINT"),
    (128 + signal.SIGPIPE, "", "SIGPIPE"), (-signal.SIGSEGV, "", None), (128 + signal.SIGABRT, "", None),
    (1, "x.cpp:1: error: Killed is not a type", None), (1, "", None), (4, "internal compiler error", None),
    (1, "g++: fatal error: Killed signal terminated program cc1plus", "Killed signal"),
    (1, "g++: internal compiler error: Terminated (program cc1plus)", "Terminated"),
    (1, "clang++: error: unable to execute command: Hangup", "Hangup"),
    (1, "cc1plus: out of memory allocating 65536 bytes", "out of memory"),
    (1, "virtual memory exhausted: Cannot allocate memory", "memory exhausted"),
    (1, "fatal error: error writing to /tmp/x.s: No space left on device", "No space left"),
    (1, "ld: final link failed: Disk quota exceeded", "Disk quota"),
    (1, "g++: fatal error: cannot execute cc1plus: vfork: Resource temporarily unavailable", "temporarily unavailable"),
    (0, "warning: out of memory", None),
])  # fmt: skip
def test_what_kept_a_compiler_from_its_end_is_no_answer(status, said, kept, monkeypatch):
    """A crash is its answer to the source, as an error is."""
    monkeypatch.setattr(programs, "run", lambda command: programs.Outcome(status, "", said))
    if kept is None:
        assert toolchain._run(["c++"]).status == status
    else:
        with pytest.raises(InterruptedCompilerError, match=rf"^c\+\+ was .*{kept}"):
            toolchain._run(["c++"])


@pytest.mark.parametrize(("is_clang", "freestanding", "link"), [
    (False, False, ()), (False, True, ()), (True, False, ()), (True, True, ("-nostdlib++",)),
])  # fmt: skip
def test_what_the_compiler_is_asked_for(cache, is_clang, freestanding, link, monkeypatch, capsys):
    """Two commands: flags and headers for the first, libraries and a name for the second."""
    commands, texts = [], []

    def run(command):
        commands.append(command)
        texts.extend(Path(x).read_text(encoding="utf-8") for x in command if x.endswith(".cpp"))
        Path(command[-1]).write_bytes(b"made")
        return programs.Outcome(0, "", "")

    monkeypatch.setattr(programs, "run", run)
    monkeypatch.setattr(toolchain, "find_compiler", lambda: toolchain.Compiler(("c++", "-m64"), "1", is_clang))
    path = compile_shared(
        "// \u00e9\n", "lib", flags=("-O1", "-g"), include=(Path("/a"), Path("/b")), libraries=(Path("/c.so"),),
        soname=True, freestanding=freestanding, notice="a notice",
    )  # fmt: skip
    (first, second), work = commands, Path(commands[0][-1]).parent
    assert first == ["c++", "-m64", "-O1", "-g", "-I/a", "-I/b", "-c", f"{work}/source.cpp", "-o", f"{work}/source.o"]
    objects = [f"{work}/source.o", "/c.so", "-shared", "-O2", "-lm", *link]
    assert second == ["c++", "-m64", f"-Wl,-soname,{path.name}", *objects, "-o", f"{work}/library.so"]
    assert texts == ["// \u00e9\n"] and path.read_bytes() == toolchain._seal(b"made") and not work.exists()
    assert capsys.readouterr().err == "a notice\n"


def test_compilers_are_looked_for_in_order(script, monkeypatch, tmp_path):
    """g++, clang++, then ziglang's; one that fails at its version, or says nothing, is passed over."""
    monkeypatch.delenv("CXX", raising=False)

    numbers = itertools.count()

    def found(**answers):
        folder = f"bin {next(numbers)}"
        for name, line in answers.items():
            script(line, name=f"{name}++", folder=folder)
        monkeypatch.setenv("PATH", str(tmp_path / folder))
        return find_compiler()

    gnu, clang = "echo g++ 13; echo more", "echo Apple CLANG 15"
    assert found(g=gnu, clang=clang) == toolchain.Compiler(("g++",), "g++ 13", False)
    assert found(clang=clang) == toolchain.Compiler(("clang++",), "Apple CLANG 15", True)
    for failing in ("echo g++ 13; exit 1", "true", "echo g++ 13 >&2"):
        assert found(g=failing, clang=clang).command == ("clang++",)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoCompilerError, match=r"needed, and g\+\+ and clang\+\+ cannot be run: install one"):
        found()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ziglang")
    monkeypatch.setattr(shutil, "which", lambda name, path: name == sys.executable)
    monkeypatch.setattr(programs, "run", lambda command: programs.Outcome(0, "clang 20\n", ""))
    assert found() == toolchain.Compiler((sys.executable, "-m", "ziglang", "c++"), "clang 20", True)


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


MACROS = {
    "sse42": "SSE4_2", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi1": "BMI", "bmi2": "BMI2",
    "avx512f": "AVX512F", "avx512dq": "AVX512DQ", "avx512bw": "AVX512BW", "avx512vl": "AVX512VL",
    "avx512bf16": "AVX512BF16",
}  # fmt: skip


@pytest.mark.skipif(not toolchain.is_x86(), reason="the instruction sets of x86-64")
def test_flags_name_instruction_sets(monkeypatch):
    """The compiler says which; those of a CPU that are common are asked for."""
    assert set(MACROS) == set(toolchain._FLAGS)
    known = [name for name in MACROS if name != "avx512bf16"]  # by g++ 9 too
    command = [*find_compiler().command, *toolchain.feature_flags(known), "-dM", "-E", "-x", "c++", os.devnull]
    assert {f"__{MACROS[name]}__" for name in known} <= set(programs.run(command).out.split())
    for name, macro in MACROS.items():
        assert toolchain.feature_flags([name]) == (f"-m{macro.lower().replace('_', '.')}",)
    monkeypatch.setattr(toolchain, "cpu_features", lambda: {"bmi2", "avx512f", "sse42", "other"})
    assert cpu_flags() == ("-msse4.2", "-mbmi2")
