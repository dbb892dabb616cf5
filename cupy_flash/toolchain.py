"""The C++ compiler that is there, and a cache of the shared libraries it made."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cupy_flash.cache import cache_dir

try:
    import fcntl
except ImportError:  # Windows: compiled code is not supported there yet
    fcntl = None  # type: ignore[assignment]

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


@dataclass(frozen=True)
class Compiler:
    """A C++17 compiler: the command that starts it, what it says it is, and whether it is a clang."""

    command: tuple[str, ...]
    version: str
    is_clang: bool


def find_compiler() -> Compiler:
    """The compiler of ``CXX``, else g++ or clang++ on PATH, else the ziglang package's.

    Raises
    ------
    NoCompilerError
        If there is none.
    """
    if fcntl is None:
        raise NoCompilerError(f"compiling C++ is supported on Linux and macOS, not yet on {platform.system()}")
    return _find_compiler(os.environ.get("CXX"), os.environ.get("PATH"))


@functools.cache
def _find_compiler(cxx: str | None, path: str | None) -> Compiler:
    candidates: list[tuple[str, ...]] = [tuple(cxx.split())] if cxx else [("g++",), ("clang++",)]
    if not cxx and importlib.util.find_spec("ziglang"):
        candidates.append((sys.executable, "-m", "ziglang", "c++"))
    for command in candidates:
        if not shutil.which(command[0], path=path):
            continue
        answer = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            version = answer.stdout.splitlines()[0]
            return Compiler(command, version, "clang" in answer.stdout.lower())
    tried = " ".join(candidates[0]) if cxx else "g++ and clang++"
    raise NoCompilerError(
        f'a C++ compiler is needed, and {tried} cannot be run: install one, or pip install "cupy-flash[emulator]"'
    )


@functools.cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of this x86 CPU, in lower case without "_" and ".": Linux has avx512_bf16, macOS SSE4.2.

    Empty where they are not known: on Windows, where nothing is compiled yet, and on ARM, where compilers take NEON
    for granted.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
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
        return subprocess.run(_SYSCTL, capture_output=True, text=True, check=False).stdout
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
    same library at the same time: one compiles, the others wait. A file damaged on disk is compiled again.

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
    """
    by = () if freestanding else (*find_compiler().command, find_compiler().version)
    parts = [source, name, *flags, *_LINK_FLAGS, *map(str, libraries), depends, *by]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    target = cache_dir() / folder / f"{name}-{key}.so"
    if _intact(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{name}-{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _intact(target):
            compiler = find_compiler()
            # ziglang would first build its C++ library, for minutes.
            link = ("-nostdlib++",) if freestanding and compiler.is_clang else ()
            if notice:
                print(notice, file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=target.parent) as work:
                built = _build(compiler, source, Path(work), target, flags, include, libraries, soname, link)
                built.write_bytes(_seal(built.read_bytes()))
                os.replace(built, target)
    return target


def _build(
    compiler: Compiler,
    source: str,
    work: Path,
    target: Path,
    flags: Sequence[str],
    include: Sequence[Path],
    libraries: Sequence[Path],
    soname: bool,
    link: Sequence[str],
) -> Path:
    text, object_file, library = work / "source.cpp", work / "source.o", work / "library.so"
    text.write_text(source, encoding="utf-8")
    folders = [f"-I{folder}" for folder in include]
    # Two steps: with one, -fsanitize would also link a sanitizer's runtime.
    _run([*compiler.command, *flags, *folders, "-c", str(text), "-o", str(object_file)])
    names = [f"-Wl,-soname,{target.name}"] if soname else []
    inputs = [str(object_file), *map(str, libraries)]
    _run([*compiler.command, *names, *inputs, *_LINK_FLAGS, *link, "-o", str(library)])
    return library


def _run(command: list[str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ToolchainError(f"{' '.join(command)} failed:\n{answer.stderr[-6000:]}")


# Loading a library that was cut short kills the process, so each file ends with the digest of the rest.
def _seal(library: bytes) -> bytes:
    return library + hashlib.sha256(library).digest()


def _intact(path: Path) -> bool:
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) > 32 and hashlib.sha256(data[:-32]).digest() == data[-32:]
