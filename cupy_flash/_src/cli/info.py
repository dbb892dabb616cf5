"""what is installed, what runs on this machine, and what to install for the rest"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import threadpoolctl

from cupy_flash import __version__
from cupy_flash._src import backends
from cupy_flash._src.cache import folder, folders, places, room
from cupy_flash._src.cli.units import format_bytes
from cupy_flash._src.toolchain import find_compiler

INSTALL_CUPY = 'pip install "cupy-flash[cuda13]", or [cuda12] for a driver of CUDA 12'

Row = tuple[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no arguments."""


def run(args: argparse.Namespace) -> None:
    """Print one fact a line. Whatever is missing is told, never an error."""
    for title, rows in (
        ("Installed", _installed()),
        ("CUDA", _cuda()),
        ("Compiled code", _compiled_code()),
        ("Backends", _backends()),
    ):
        print(title)
        for name, value in rows:
            print(f"  {name:12} {value}")


def _installed() -> Iterator[Row]:
    yield "cupy_flash", f"{__version__}, {Path(__file__).parents[2]}"
    yield "Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    for package in ("numpy", "ml_dtypes", "matplotlib", "tqdm"):
        yield package, _version(package)
    for library in threadpoolctl.threadpool_info():
        if library["user_api"] == "blas":
            name, threads = library["internal_api"], library["num_threads"]
            facts = [name, library["version"], library.get("architecture")]
            advice = f"; on a busy machine {name.upper()}_NUM_THREADS=1" if threads > 1 else ""
            yield "BLAS", f"{' '.join(filter(None, facts))}, {threads} threads{advice}"


def _cuda() -> Iterator[Row]:
    """CuPy, NVRTC, driver and devices, as far as they are there."""
    try:
        import cupy
        from cupy.cuda import nvrtc, runtime
    except ImportError:
        yield "CuPy", f"not installed: {INSTALL_CUPY}"
        return
    yield "CuPy", cupy.__version__
    try:
        yield "NVRTC", "{}.{}".format(*nvrtc.getVersion())
    except RuntimeError as error:
        yield "NVRTC", f"not found: {error}"
    driver = runtime.driverGetVersion()
    yield "driver", f"CUDA {driver // 1000}.{driver % 1000 // 10}" if driver else "none"
    try:
        count = runtime.getDeviceCount()
    except RuntimeError:
        count = 0
    if not count:
        yield "device", "none"
    for index in range(count):
        properties = runtime.getDeviceProperties(index)
        arch = f"sm_{properties['major']}{properties['minor']}"
        sms, memory = properties["multiProcessorCount"], format_bytes(properties["totalGlobalMem"])
        yield "device", f"{index}: {properties['name'].decode()}, {arch}, {sms} multiprocessors, {memory}"


def _compiled_code() -> Iterator[Row]:
    try:
        compiler = find_compiler()
        yield "compiler", f"{compiler.version} ({' '.join(compiler.command)})"
    except RuntimeError as error:
        yield "compiler", str(error)
    most = room.limit()
    at_most = "without limit" if most is None else f"at most {format_bytes(most)}"
    folder()  # there is one
    for place in folders():
        entries, found = room.entries(place), places.refusal(place)
        use = at_most if found is None else f"not used: {found.reason}" if found.distrusted else "only read"
        yield "cache", f"{place}, {format_bytes(sum(x.size for x in entries))} in {len(entries)} entries, {use}"
    lazy = os.environ.get("CUPY_FLASH_COMPILE") == "lazy"
    yield "at import", "nothing: CUPY_FLASH_COMPILE=lazy" if lazy else "the core kernels, if there is a GPU"


def _backends() -> Iterator[Row]:
    for name in backends.NAMES:
        try:
            yield name, backends.get(name).status()
        except (RuntimeError, ValueError) as error:  # ValueError: of a variable of the environment
            yield name, f"not available: {error}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return 'not installed, only commands use it: pip install "cupy-flash[demo]"'
