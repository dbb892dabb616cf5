"""Kernels compiled for the CPU, and their launch."""

from __future__ import annotations

import ctypes
import functools
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cupy_flash._src import toolchain
from cupy_flash._src.emulator import engine
from cupy_flash._src.emulator.errors import EmulatorError, Site
from cupy_flash._src.emulator.layout import member
from cupy_flash._src.emulator.lines import find_site, named_site
from cupy_flash._src.emulator.report import Bytes, Conflicts, LaunchReport
from cupy_flash._src.emulator.settings import ARITHMETICS, Settings
from cupy_flash._src.toolchain import compile_shared, cpu_flags, find_compiler

MAX_SHARED_BYTES = 227 * 1024  # the most that any supported GPU gives one block (sm_90, sm_100)
MAX_THREADS = 1024

_ENTRY = re.compile(
    r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\((?:[^()]|\([^()]*\))*\)\s*)?(\w+)\s*\('
)
_COMMON_FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-w",
)
# Attention forward and backward, float32, d = 64: -O2 takes 0.4 of -O1's run time for 1.5 times its compile
# time (0.2 to 0.7 s a kernel); -O3 compiles half as long again and gains nothing.
_FAST_FLAGS = ("-O2",)
# -O1, and nothing that merges neighbouring accesses: each access of the source is to be seen as it stands.
_INSTRUMENTED_FLAGS = (
    "-O1",
    "-g2",
    "-gdwarf-4",  # the version that dwarf.py reads
    "-DEMULATOR_INSTRUMENTED",
    "-fsanitize=thread,undefined",
    "-fno-sanitize=vptr,object-size,return,null",
    "-fno-sanitize-recover=undefined",
    "-fno-tree-vectorize",
    "-fno-tree-slp-vectorize",
)
# Lines, inlined calls and types are wanted of debug information: following variables takes a third of the compile time.
_GCC_FLAGS = ("-fno-store-merging", "-fno-var-tracking", "--param=tsan-instrument-func-entry-exit=0")
_CLANG_FLAGS = (
    "-fno-sanitize=function",
    *("-mllvm", "-tsan-instrument-read-before-write=1"),
    *("-mllvm", "-tsan-instrument-func-entry-exit=0"),
    # Instructions of two lines made one have the line of neither.
    *("-mllvm", "-simplifycfg-sink-common=false"),
    *("-mllvm", "-enable-tail-merge=false"),
)


@dataclass(frozen=True)
class Buffer:
    """Global memory that a launch may touch: the byte extent of an array, holes of a view included."""

    name: str
    address: int
    nbytes: int
    writable: bool


class EmulatorModule:
    """C++ text with CUDA entry points, compiled for the CPU.

    Parameters
    ----------
    source : str
        A flattened kernel with the host headers in it, or C++ made from PTX. Each entry point is declared as
        ``extern "C" __global__ void __launch_bounds__(n) name(const __grid_constant__ Params params)``.
    mode : {"fast", "counted", "checked"}
        The last two share one instrumented library.

    Raises
    ------
    ToolchainError
        If there is no C++ compiler or it refuses the source.
    ValueError
        If the source declares no entry point.
    """

    def __init__(self, source: str, *, mode: str = "fast") -> None:
        self.entries = tuple(_ENTRY.findall(source))
        if not self.entries:
            raise ValueError('source declares no extern "C" __global__ function: expected at least one')
        instrumented = mode != "fast"
        flags = (*_COMMON_FLAGS, *(_INSTRUMENTED_FLAGS if instrumented else _FAST_FLAGS), *cpu_flags())
        if instrumented:
            flags += _CLANG_FLAGS if find_compiler().is_clang else _GCC_FLAGS
        self.mode = mode
        self.path: Path = compile_shared(
            source + _export(self.entries),
            "checked" if instrumented else "fast",
            flags=flags,
            include=(engine.headers(),),
            libraries=(engine.library_path(),),
            depends=engine.header_digest(),
        )
        self._engine = engine.library()  # loaded first: the kernel's library finds it by its soname
        self._library = toolchain.load(self.path)

    def launch(
        self,
        entry: str,
        grid: Sequence[int],
        block: Sequence[int],
        params: bytes,
        shared_bytes: int,
        buffers: Sequence[Buffer],
        *,
        settings: Settings | None = None,
        shared_limit: int = MAX_SHARED_BYTES,
    ) -> LaunchReport:
        """Run one kernel to its end.

        Parameters
        ----------
        entry : str
            Name of the entry point.
        grid, block : sequence of 1 to 3 int
        params : bytes
            The value of its one argument; of a longer one it is given as much as it takes, as a driver does.
        shared_bytes : int
            Dynamic shared memory of a block.
        buffers : sequence of Buffer
            All global memory it may touch.
        settings : Settings, optional
            Seed, preemption and arithmetic; the mode is the module's.
        shared_limit : int
            What the emulated device has for `shared_bytes`.

        Returns
        -------
        LaunchReport

        Raises
        ------
        EmulatorError
            If the launch is one that a device refuses, or the kernel makes a mistake that this mode finds.
        """
        if entry not in self.entries:
            raise ValueError(f"entry is {entry!r}: expected one of {', '.join(self.entries)}")
        settings = settings or Settings(mode=self.mode)
        dims = _dimensions(grid), _dimensions(block)
        self._check_launch(entry, *dims, len(params), shared_bytes, shared_limit)
        aligned = _aligned(params)
        table = (engine.BufferStruct * len(buffers))(
            *(engine.BufferStruct(b.name.encode(), b.address, b.nbytes, b.writable) for b in buffers)
        )
        request = engine.LaunchStruct(
            entry=ctypes.cast(getattr(self._library, f"emulator_entry_{entry}"), ctypes.c_void_p),
            params=ctypes.addressof(aligned),
            params_bytes=len(params),
            buffers=table,
            buffer_count=len(buffers),
            shared_bytes=shared_bytes,
            seed=settings.seed or 0,
            grid=dims[0],
            block=dims[1],
            random_order=settings.seed is not None,
            preempt=settings.preempt,
            check=self.mode == "checked",
            count=self.mode != "fast",
            arithmetic=ARITHMETICS.index(settings.arithmetic),
        )
        result = engine.ResultStruct()
        start = time.perf_counter()
        self._engine.emulator_run(ctypes.byref(request), ctypes.byref(result))
        seconds = time.perf_counter() - start
        if result.kind:
            raise self._error(entry, result)
        return self._report(entry, dims, shared_bytes, seconds, buffers, result)

    def _check_launch(
        self,
        entry: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        params_bytes: int,
        shared_bytes: int,
        shared_limit: int,
    ) -> None:
        def refuse(text: str) -> EmulatorError:
            return EmulatorError("launch", entry, text)

        threads = block[0] * block[1] * block[2]
        if min(block) < 1 or threads > MAX_THREADS:
            raise refuse(f"block is {block}: expected 1 to {MAX_THREADS} threads")
        if min(grid) < 1 or grid[0] >= 2**31 or max(grid[1:]) >= 2**16:
            raise refuse(f"grid is {grid}: expected 1 to 2**31 - 1, 65535 and 65535 blocks")
        if not 0 <= shared_bytes <= shared_limit:
            raise refuse(f"shared_bytes is {shared_bytes}: the device has {shared_limit} for a block")
        expected = getattr(self._library, f"emulator_params_bytes_{entry}")()
        if params_bytes < expected:
            raise refuse(f"params has {params_bytes} bytes: the kernel's argument has {expected}")

    def _site(self, site: engine.SiteStruct) -> Site:
        if site.file:
            return named_site(self.path, site.file.decode(), site.line, site.offset)
        return find_site(self.path, site.offset)

    def _shared(self, place: re.Match[str]) -> str:
        """A place in shared memory with the name of what lies there."""
        name = member(self.path, int(place[1]))
        return f"{place[0]} ({name})" if name else place[0]

    def _error(self, entry: str, result: engine.ResultStruct) -> EmulatorError:
        sites = tuple(self._site(result.sites[i]) for i in range(result.site_count))
        text = re.sub(r"shared\+(\d+)", self._shared, result.message.decode())
        for i, site in enumerate(sites):
            text = text.replace(f"{{{i}}}", str(site))
        threads = tuple(result.threads[i] for i in range(result.thread_count))
        return EmulatorError(result.kind.decode(), entry, text, block=tuple(result.block), threads=threads, sites=sites)

    def _report(
        self,
        entry: str,
        dims: tuple[tuple[int, int, int], tuple[int, int, int]],
        shared_bytes: int,
        seconds: float,
        buffers: Sequence[Buffer],
        result: engine.ResultStruct,
    ) -> LaunchReport:
        counted = self.mode != "fast"
        moved = {b.name: Bytes(result.bytes[i].read, result.bytes[i].written) for i, b in enumerate(buffers)}
        return LaunchReport(
            kernel=entry,
            grid=dims[0],
            block=dims[1],
            shared_bytes=shared_bytes,
            mode=self.mode,
            seconds=seconds,
            **{name: getattr(result, name) for name in engine.WORK_COUNTS},
            buffers=moved if counted else None,
            bank_conflicts=result.bank_conflicts if counted else None,
            shared_accesses=result.shared_accesses if counted else None,
            conflicts=self._conflicts(result),
        )

    def _conflicts(self, result: engine.ResultStruct) -> tuple[Conflicts, ...]:
        by_line: dict[Site, list[int]] = defaultdict(lambda: [0, 0])
        for i in range(result.conflict_count):
            conflict = result.conflicts[i]
            total = by_line[self._site(conflict.site)]
            total[0] += conflict.instructions
            total[1] += conflict.wavefronts
        lines = (Conflicts(site, *total) for site, total in by_line.items())
        return tuple(sorted(lines, key=lambda c: (-c.wavefronts, c.site.file, c.site.line, str(c.site))))


@functools.lru_cache(maxsize=256)
def load(source: str, mode: str) -> EmulatorModule:
    """The module of a source, compiled and loaded once in this process."""
    return EmulatorModule(source, mode=mode)


def _export(entries: Sequence[str]) -> str:
    """Functions by which the engine enters a kernel, whatever the type of its argument."""
    lines = [
        '\n#line 1 "entries"',
        "template <class P> struct EmulatorEntry;",
        "template <class P> struct EmulatorEntry<void (*)(P)> { using Params = P; };",
        '#define EMULATOR_EXPORT extern "C" __attribute__((visibility("default")))',
    ]
    for name in entries:
        params = f"EmulatorEntry<decltype(&{name})>::Params"
        lines += [
            f"EMULATOR_EXPORT void emulator_entry_{name}(const void* params) "
            f"{{ {name}(*static_cast<const {params}*>(params)); }}",
            f"EMULATOR_EXPORT int emulator_params_bytes_{name}() {{ return sizeof({params}); }}",
        ]
    return "\n".join(lines) + "\n"


def _dimensions(sizes: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*map(int, sizes), 1, 1, 1)[:3]
    return x, y, z


def _aligned(params: bytes, alignment: int = 64) -> ctypes.Array[ctypes.c_char]:
    """A copy of the bytes at an aligned address, as a kernel's parameters are."""
    memory = (ctypes.c_char * (len(params) + alignment))()
    offset = -ctypes.addressof(memory) % alignment
    aligned = (ctypes.c_char * len(params)).from_buffer(memory, offset)
    ctypes.memmove(aligned, params, len(params))
    return aligned
