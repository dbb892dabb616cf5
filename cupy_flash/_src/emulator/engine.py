"""The engine's library and the structures of cuda_src/emulator/launch.h."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path

from cupy_flash._src import source
from cupy_flash._src.toolchain import compile_shared, cpu_flags, load

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fno-semantic-interposition", "-ffp-contract=off", "-w")


class BufferStruct(ctypes.Structure):
    """EmulatorBuffer."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("writable", ctypes.c_uint64),
    )


class LaunchStruct(ctypes.Structure):
    """EmulatorLaunch."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("params_bytes", ctypes.c_uint64),
        ("buffers", ctypes.POINTER(BufferStruct)),
        ("buffer_count", ctypes.c_uint64),
        ("shared_bytes", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("random_order", ctypes.c_uint32),
        ("preempt", ctypes.c_uint32),
        ("check", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("arithmetic", ctypes.c_uint32),
    )


class SiteStruct(ctypes.Structure):
    """EmulatorSite."""

    _fields_ = (("file", ctypes.c_char_p), ("line", ctypes.c_uint64), ("offset", ctypes.c_uint64))


class ConflictStruct(ctypes.Structure):
    """EmulatorConflict."""

    _fields_ = (("site", SiteStruct), ("instructions", ctypes.c_uint64), ("wavefronts", ctypes.c_uint64))


class BytesStruct(ctypes.Structure):
    """EmulatorBytes."""

    _fields_ = (("read", ctypes.c_uint64), ("written", ctypes.c_uint64))


WORK_COUNTS = (
    "switches",
    "mma",
    "ldmatrix",
    "shuffles",
    "votes",
    "syncwarps",
    "barriers",
    "cp_async",
    "atomics",
)


class ResultStruct(ctypes.Structure):
    """EmulatorResult."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in WORK_COUNTS),
        ("bank_conflicts", ctypes.c_uint64),
        ("shared_accesses", ctypes.c_uint64),
        ("bytes", ctypes.POINTER(BytesStruct)),
        ("conflicts", ctypes.POINTER(ConflictStruct)),
        ("conflict_count", ctypes.c_uint64),
        ("kind", ctypes.c_char_p),
        ("message", ctypes.c_char_p),
        ("sites", SiteStruct * 4),
        ("site_count", ctypes.c_uint64),
        ("threads", ctypes.POINTER(ctypes.c_int32)),
        ("thread_count", ctypes.c_uint64),
        ("block", ctypes.c_uint32 * 3),
    )


def headers() -> Path:
    """Folder of the engine and of the host headers."""
    return source.root() / "emulator"


def _digest(*patterns: str) -> str:
    content = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in headers().glob(pattern)):
        content.update(path.relative_to(headers()).as_posix().encode() + b"\0" + path.read_bytes())
    return content.hexdigest()


@functools.cache
def header_digest() -> str:
    """Digest of the host headers, which a compiled kernel depends on beside its own text."""
    return _digest("*.h", "*.cuh", "ptx/*.cuh")


def library_path() -> Path:
    """The engine's shared library, compiled when the cache lacks it, be that since the last call."""
    return compile_shared(
        '#include "engine.cpp"\n',
        "engine",
        flags=(*_FLAGS, *cpu_flags()),
        include=(headers(),),
        depends=_digest("engine.cpp", "engine/*.h", "engine.h", "launch.h", "half.h"),
        soname=True,
        notice="cupy_flash: compiling the emulator (once; a few seconds, minutes with ziglang)",
    )


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded engine."""
    engine = load(library_path())
    engine.emulator_run.argtypes = (ctypes.POINTER(LaunchStruct), ctypes.POINTER(ResultStruct))
    engine.emulator_run.restype = None
    return engine
