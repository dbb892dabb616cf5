"""Specialization to machine code through NVRTC, on disk where the next process finds it. Needs no GPU.

Kernels are compiled to a cubin for one architecture and loaded with ``cupy.RawModule(path=...)``: CuPy's own cache
does not hash included headers, and CuPy cannot target ``sm_90a`` with every NVRTC.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cupy_flash._src import cache, forks, source, workers
from cupy_flash._src.notice import say
from cupy_flash._src.specialization import Specialization

_OPTIONS = ("-std=c++17", "-default-device", "-lineinfo", "-ftz=true", "--ptxas-options=-v")


class CompileError(RuntimeError):
    """NVRTC refused a kernel; the message holds its log."""


@dataclass(frozen=True)
class CompiledKernel:
    """A cubin on disk and what the assembler reported of its entry point (None if it did not)."""

    path: Path
    registers: int | None
    stack_bytes: int | None
    spill_bytes: int | None


def flatten(kernel: Specialization) -> str:
    """The whole CUDA source of one specialisation."""
    return source.flatten(kernel.source, virtual={"specialization.cuh": kernel.prelude()})


def to_cubin(kernel: Specialization, arch: str) -> CompiledKernel:
    """Compile for `arch`, or find the result of an earlier compilation.

    Parameters
    ----------
    kernel : Specialization
        What to compile.
    arch : str
        ``"sm_75"``, ``"sm_90a"``, ...

    Returns
    -------
    CompiledKernel

    Raises
    ------
    CompileError
        If NVRTC reports an error.
    RuntimeError
        If CuPy or NVRTC is not installed, or does not know the architecture.

    Notes
    -----
    The key covers the flattened source, the options, the architecture and NVRTC's version. A cubin whose digest
    does not match its record is compiled again. Files appear whole, by a rename, so concurrent processes are safe.
    """
    return text_to_cubin(flatten(kernel), kernel.source, kernel.entry, arch)


def text_to_cubin(text: str, name: str, entry: str, arch: str) -> CompiledKernel:
    """As `to_cubin`, for the entry point `entry` of a flattened source; `name` stands for it in messages."""
    cubin = _cubin(text, entry, arch)
    found = cache.find(cubin, _load)
    if found is None:
        code, log = _nvrtc_compile(text, name, (f"-arch={arch}",), "getCUBIN")
        code = _whole_elf(code)
        found = CompiledKernel(cache.store(cubin, code), *_resources(log, entry))
        record = asdict(found) | {"path": found.path.name, "sha256": hashlib.sha256(code).hexdigest()}
        with contextlib.suppress(OSError):  # of a full disk: the next process compiles again
            cache.write_atomically(found.path.with_suffix(".json"), json.dumps(record).encode())
    return found


def find(kernel: Specialization, arch: str) -> CompiledKernel | None:
    """Return what `to_cubin` would without compiling, or None."""
    return cache.find(_cubin(flatten(kernel), kernel.entry, arch), _load)


def prepare(kernels: Iterable[Specialization], arch: str) -> None:
    """Compile what is not in the cache, announced by one line on standard error."""
    missing = [kernel for kernel in kernels if find(kernel, arch) is None]
    if missing:
        say(
            f"cupy_flash: compiling {len(missing)} kernels for {arch}, once, into {cache.folder(f'cubin/{arch}')} "
            "(CUPY_FLASH_COMPILE=lazy leaves this to their first call)"
        )
        compile_all(missing, arch)


def to_ptx(kernel: Specialization, arch: str) -> str:
    """PTX for the virtual architecture of `arch`, with source lines; not cached."""
    return text_to_ptx(flatten(kernel), kernel.source, arch)


def text_to_ptx(text: str, name: str, arch: str) -> str:
    """PTX of a flattened source; `name` stands for it in messages."""
    code, _ = _nvrtc_compile(text, name, (f"-arch={arch.replace('sm_', 'compute_')}",), "getPTX")
    return (code if isinstance(code, str) else code.decode()).rstrip("\0")


def compile_all(
    kernels: Iterable[Specialization],
    arch: str,
    done: Callable[[Specialization, CompiledKernel], Any] | None = None,
) -> list[CompiledKernel]:
    """Compile many kernels on all CPUs; `done` is called with each as it finishes, on the caller's thread.

    The first error is raised when the kernels that were begun have ended, and so is an interrupt; others are dropped.
    """
    kernels = list(kernels)
    compiled: dict[Specialization, CompiledKernel] = {}
    ended: SimpleQueue[Specialization | None] = SimpleQueue()  # kernels, and None for each thread

    def compile_one(kernel: Specialization) -> None:
        compiled[kernel] = to_cubin(kernel, arch)
        ended.put(kernel)

    def take_part(work: Callable[[], None]) -> None:
        work()
        ended.put(None)

    job = workers.Job(compile_one, kernels)
    with job:
        helpers = sum(workers.start_thread(lambda: take_part(job.help)) for _ in kernels[: workers.cpus()])
        if not helpers:
            take_part(job.work)
        for _ in range(helpers or 1):
            for kernel in iter(ended.get, None):
                if done:
                    done(kernel, compiled[kernel])
    return [compiled[kernel] for kernel in kernels]


@functools.cache
def nvrtc_version() -> tuple[int, int]:
    """Version of NVRTC.

    Raises
    ------
    RuntimeError
        If CuPy or NVRTC is not installed.
    """
    major, minor = _nvrtc().getVersion()
    return major, minor


def target_of(compute_capability: int) -> str:
    """Name of the newest architecture that NVRTC knows and a GPU of this compute capability (90 for 9.0) runs.

    Raises
    ------
    RuntimeError
        If NVRTC is too old or too new for the GPU.
    """
    known = _nvrtc().getSupportedArchs()
    usable = [arch for arch in known if arch // 10 == compute_capability // 10 and arch <= compute_capability]
    if not usable:
        raise _unknown(f"compute capability {compute_capability / 10}")
    return f"sm_{max(usable)}" + ("a" if max(usable) == 90 else "")


def _unknown(wanted: str) -> RuntimeError:
    known = ", ".join(map(str, _nvrtc().getSupportedArchs()))
    return RuntimeError(
        f"NVRTC {'.'.join(map(str, nvrtc_version()))} cannot compile for {wanted} (it knows {known}): install another, "
        "by the extra cuda12 or cuda13"
    )


# CuPy loads NVRTC, then the library of builtins that NVRTC asks for by name (13.0 does not say where it is): a thread
# that compiled in between was told that there is none.
_loading = threading.Lock()


def _nvrtc() -> Any:
    try:
        with forks.whole(), _loading:
            from cupy.cuda import nvrtc

            nvrtc.getVersion()  # loads the library
    except ImportError:
        raise RuntimeError(
            'compiling CUDA kernels needs CuPy and NVRTC: pip install "cupy-flash[cuda13]" (or [cuda12])'
        ) from None
    return nvrtc


def _nvrtc_compile(text: str, name: str, options: tuple[str, ...], result: str) -> tuple[bytes, str]:
    nvrtc = _nvrtc()
    program = nvrtc.createProgram(text, name, (), ())
    try:
        try:
            with forks.whole():
                nvrtc.compileProgram(program, (*options, *_OPTIONS))
        except nvrtc.NVRTCError as error:
            target = options[0].rpartition("_")[2]
            if int(target.removesuffix("a")) not in nvrtc.getSupportedArchs():
                raise _unknown(f"sm_{target}") from None
            raise CompileError(f"{name} {' '.join(options)}: {error}\n{nvrtc.getProgramLog(program)}") from None
        return getattr(nvrtc, result)(program), nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


def _resources(log: str, entry: str) -> tuple[int | None, int | None, int | None]:
    """(registers, stack bytes, spilled bytes) of an entry point, from ptxas' verbose log."""
    found = re.search(
        rf"entry function '{entry}'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        log,
        re.S,
    )
    if not found:
        return None, None, None
    stack, stores, loads, registers = map(int, found.groups())
    return registers, stack, stores + loads


def _cubin(text: str, entry: str, arch: str) -> str:
    """Name of the cubin in the cache."""
    covered = (text, entry, arch, *_OPTIONS, repr(nvrtc_version()))
    key = hashlib.sha256("\0".join(covered).encode()).hexdigest()
    return f"cubin/{arch}/{entry}-{key[:32]}.cubin"


def _load(cubin: Path) -> CompiledKernel | None:
    try:
        record = json.loads(cubin.with_suffix(".json").read_text())
        if hashlib.sha256(cubin.read_bytes()).hexdigest() != record.pop("sha256"):
            return None
        return CompiledKernel(**record | {"path": cubin})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _whole_elf(code: bytes) -> bytes:
    """The cubin with its last byte: CuPy (14.2 at least) drops it, taking the file for a string that ends in NUL."""
    offset, size, count = *struct.unpack_from("<Q", code, 32), *struct.unpack_from("<2H", code, 54)
    return code.ljust(offset + size * count, b"\0")
