"""The C++ compiler that is there, and a cache of the shared libraries it made."""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cupy_flash._src import cache, forks, programs
from cupy_flash._src.notice import say
from cupy_flash._src.temporary import work_folder

# Flags of instruction sets by their names in `cpu_features`; g++ and clang++ spell them alike.
_FLAGS = {"sse42": "-msse4.2", "bmi1": "-mbmi"} | {
    name: f"-m{name}"
    for name in ("avx2", "fma", "f16c", "bmi2", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512bf16")
}
_COMMON_FEATURES = ("sse42", "avx2", "fma", "f16c", "bmi1", "bmi2")  # worth asking for in any code

# Where Linux and macOS tell them.
_CPUINFO = Path("/proc/cpuinfo")
_SYSCTL = ("/usr/sbin/sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features")

# Without -O2 zig links a debugging sanitizer runtime of its own.
_LINK_FLAGS = ("-shared", "-O2", "-lm")


class ToolchainError(RuntimeError):
    """No usable C++ compiler, or it refused the source."""


class NoCompilerError(ToolchainError):
    """There is no C++ compiler."""


class InterruptedCompilerError(ToolchainError):
    """The compiler did not come to its end, killed or for want of room. Another try may succeed."""


@dataclass(frozen=True)
class Compiler:
    """A C++17 compiler: the command that starts it, what it says it is, and whether it is a clang."""

    command: tuple[str, ...]
    version: str
    is_clang: bool


def find_compiler() -> Compiler:
    """The compiler of ``CXX``, else g++ or clang++ on PATH, else the ziglang package's.

    ``CXX`` may have arguments and a launcher before it, as in ``ccache g++ -m64``, quoted as in a shell; a path with
    spaces needs no quotes.

    Raises
    ------
    NoCompilerError
        If there is none.
    InterruptedCompilerError
        If it was killed before it told its version.
    """
    if os.name == "nt":
        raise NoCompilerError(f"compiling C++ is supported on Linux and macOS, not yet on {platform.system()}")
    return _find_compiler(os.environ.get("CXX", "").strip(), os.environ.get("PATH"))


@functools.cache
def _find_compiler(cxx: str, path: str | None) -> Compiler:
    candidates: list[tuple[str, ...]] = [_split(cxx, path)] if cxx else [("g++",), ("clang++",)]
    if not cxx and importlib.util.find_spec("ziglang"):
        candidates.append((sys.executable, "-m", "ziglang", "c++"))
    for command in candidates:
        if shutil.which(command[0], path=path):
            try:
                answer = _run([*command, "--version"])
            except InterruptedCompilerError:
                raise
            except ToolchainError:  # it cannot be started
                continue
            if answer.status == 0 and answer.out.strip():
                return Compiler(command, answer.out.split("\n")[0], "clang" in answer.out.lower())
    tried = f"CXX={cxx!r}" if cxx else "g++ and clang++"
    raise NoCompilerError(
        f'a C++ compiler is needed, and {tried} cannot be run: install one, or pip install "cupy-flash[emulator]"'
    )


def _split(cxx: str, path: str | None) -> tuple[str, ...]:
    """The words of CXX: as a shell reads them if it finds the first one then, else after the longest that it finds."""
    try:
        quoted = tuple(shlex.split(cxx))
    except ValueError:  # a quote that does not end
        quoted = ("",)
    words = cxx.split(" ")
    heads = (" ".join(words[:n]) for n in range(len(words), 0, -1))
    if not shutil.which(quoted[0], path=path):
        for head in heads:
            if shutil.which(head, path=path):
                try:
                    return (head, *shlex.split(cxx[len(head) :]))
                except ValueError:
                    break
    return quoted


def is_x86() -> bool:
    """Whether this is a 64-bit x86 machine."""
    return platform.machine() in ("x86_64", "AMD64")


@functools.cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of this x86 CPU, in lower case without "_" and ".": Linux has avx512_bf16, macOS SSE4.2.

    Empty where they are not known: on Windows, where nothing is compiled yet, and on ARM, where compilers take NEON
    for granted.
    """
    if not is_x86():
        return frozenset()
    reported = _reported_by_macos() if sys.platform == "darwin" else _reported_by_linux()
    return frozenset(reported.lower().replace("_", "").replace(".", "").split())


def _reported_by_linux() -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")


def _reported_by_macos() -> str:
    try:
        return programs.run(_SYSCTL).out
    except OSError:
        return ""


def feature_flags(features: Iterable[str]) -> tuple[str, ...]:
    """Compiler flags for instruction sets named as in `cpu_features`."""
    return tuple(_FLAGS[feature] for feature in features)


def cpu_flags() -> tuple[str, ...]:
    """Flags for the common instruction sets of this CPU; empty where they are not known."""
    return feature_flags(feature for feature in _COMMON_FEATURES if feature in cpu_features())


def compile_shared(
    source: str,
    name: str,
    *,
    flags: Sequence[str] = (),
    include: Sequence[Path] = (),
    libraries: Sequence[Path] = (),
    depends: str = "",
    soname: bool = False,
    freestanding: bool = False,
    folder: str = "emulator",
    notice: str = "",
) -> Path:
    """Compile C++ text to a shared library, or find it in the cache.

    The cache key covers the text, the flags, the compiler's version and `depends`. Processes may ask for the
    same library at the same time: one compiles, the others wait, where the file system has locks. What is damaged on
    disk, or could be another user's work, is compiled again.

    Parameters
    ----------
    source : str
        One translation unit.
    name : str
        Begins the library's file name.
    flags : sequence of str
        Compiler flags.
    include : sequence of Path
        Folders for ``#include``; `depends` must stand for what is in them.
    libraries : sequence of Path
        Shared libraries to link with.
    depends : str
        Digest of everything else that the result depends on.
    soname : bool
        Give the library its file name as soname: others linked with it then find it by this name once it is
        loaded.
    freestanding : bool
        The source uses nothing of the C++ library, and what any compiler makes of it will do: the compiler is not
        in the cache key, and not needed where the library is there.
    folder : str
        Subfolder of the cache.
    notice : str
        A line for stderr when there is something to compile.

    Returns
    -------
    Path

    Raises
    ------
    ToolchainError
        If there is no compiler or it refuses the source; the message has its words.
    InterruptedCompilerError
        If the compiler was killed, or the system had no room for it.
    """
    by = () if freestanding else (*find_compiler().command, find_compiler().version)
    linked = [path.name for path in libraries]  # which have digests of what they are in their names
    parts = [source, name, *flags, *_LINK_FLAGS, *linked, depends, *by]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    file = f"{folder}/{name}-{key}.so"
    found = cache.find(file, _intact)
    if found is not None:
        return found
    with cache.lock(file):
        found = cache.find(file, _intact)  # another process may have made it meanwhile
        if found is not None:
            return found
        compiler = find_compiler()
        # ziglang would first build its C++ library, for minutes.
        link = ("-nostdlib++",) if freestanding and compiler.is_clang else ()
        if notice:
            say(notice)
        with work_folder() as work:
            target = Path(file).name if soname else None
            built = _build(compiler, source, work, target, flags, include, libraries, link)
            return cache.store(file, _seal(built.read_bytes()))


def _build(
    compiler: Compiler,
    source: str,
    work: Path,
    soname: str | None,
    flags: Sequence[str],
    include: Sequence[Path],
    libraries: Sequence[Path],
    link: Sequence[str],
) -> Path:
    text, object_file, library = work / "source.cpp", work / "source.o", work / "library.so"
    text.write_text(source, encoding="utf-8")
    folders = [f"-I{folder}" for folder in include]
    # Two steps: with one, -fsanitize would also link a sanitizer's runtime.
    _compile([*compiler.command, *flags, *folders, "-c", str(text), "-o", str(object_file)])
    names = [f"-Wl,-soname,{soname}"] if soname else []
    inputs = [str(object_file), *map(str, libraries)]
    _compile([*compiler.command, *names, *inputs, *_LINK_FLAGS, *link, "-o", str(library)])
    return library


def _compile(command: list[str]) -> None:
    answer = _run(command)
    if answer.status:
        said = answer.err.strip()[-6000:] or "nothing on standard error"
        raise ToolchainError(f"{' '.join(command)} failed with status {answer.status}:\n{said}")


# What ends a compiler from outside; a crash is its answer to the source.
_ENDED = {"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGPIPE", "SIGXCPU"}
# A compiler's driver ends as usual when the compiler proper is killed, and says so: "Killed signal terminated program
# cc1plus" or "Killed (program cc1plus)" (g++), "unable to execute command: Killed" (clang++). So it does where memory,
# processes or disk space give out.
_SIGNALS = "(Killed|Terminated|Interrupt|Hangup)"
_KEPT = re.compile(
    rf"{_SIGNALS} (signal terminated program|\(program)|unable to execute command: {_SIGNALS}"
    r"|memory exhausted|Cannot allocate memory|out of memory|Resource temporarily unavailable|No space left on device"
    r"|Disk quota exceeded"
)
_NO_ROOM = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}  # for another process


def _run(command: list[str]) -> programs.Outcome:
    """Run a compiler, and raise InterruptedCompilerError if it was kept from its end."""
    try:
        answer = programs.run(command)
    except OSError as error:
        kind = InterruptedCompilerError if error.errno in _NO_ROOM else ToolchainError
        raise kind(f"{' '.join(command)} cannot be started: {error}") from None
    if answer.status and (answer.signal in _ENDED or _KEPT.search(answer.err)):
        ending = f"ended by {answer.signal}" if answer.signal else f"kept from its end: {answer.err.strip()[-600:]}"
        raise InterruptedCompilerError(f"{' '.join(command)} was {ending}")
    return answer


def load(path: Path) -> ctypes.CDLL:
    """A shared library in this process."""
    with forks.whole():
        return ctypes.CDLL(str(path))


# Loading a library that was cut short kills the process, so each file ends with the digest of the rest.
def _seal(library: bytes) -> bytes:
    return library + hashlib.sha256(library).digest()


def _intact(path: Path) -> Path | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return path if len(data) > 32 and hashlib.sha256(data[:-32]).digest() == data[-32:] else None
