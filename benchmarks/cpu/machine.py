"""CPU, instruction sets, versions, and the most arithmetic that the CPU can do: a ratio means nothing without them."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cupy_flash._src.backends import native, threads
from cupy_flash._src.backends.cpu import CpuBackend
from cupy_flash._src.toolchain import compile_shared, feature_flags, find_compiler

_FMA_SOURCE = """
typedef float Vector __attribute__((vector_size({vector_bytes})));
typedef Vector Unaligned __attribute__((aligned(4)));

extern "C" void count(long n, float one, Unaligned *out) {{
    Vector x = one - Vector{{}}, {variables};
    for (long i = 0; i < n; ++i) {{
        {steps}
    }}
    {stores}
}}
"""
# The empty assembly keeps the compiler from doing several steps of a chain at once.
_FMA_STEP = 'c{i} = c{i} * x + x; asm volatile("" : "+{register}"(c{i}));'
_FMA_STEPS = 2**24  # that far float32 counts exactly, and some 30 ms
_FMA_REPEATS = 30


@dataclass(frozen=True)
class Machine:
    """Columns of the CSV, the same in every row."""

    cpu: str
    cupy_flash: str
    compiler: str
    torch_version: str
    mkl: str
    peak_gflops: float
    date: str

    def __str__(self) -> str:
        return (
            f"{self.cpu}\ncupy_flash: {self.cupy_flash}, {self.compiler}\ntorch {self.torch_version}; MKL: {self.mkl}\n"
            f"measured FMA peak, float32: {self.peak_gflops:.1f} GFLOP/s; {self.date}"
        )


def describe_machine() -> Machine:
    import torch

    torch_isa = torch.backends.cpu.get_cpu_capability()
    return Machine(
        cpu=_cpu(),
        cupy_flash=CpuBackend().status(),
        compiler=find_compiler().version,
        torch_version=f"{torch.__version__}, {torch_isa}, {torch.get_num_threads()} threads",
        mkl=_mkl(),
        peak_gflops=fma_peak(),
        date=datetime.date.today().isoformat(),
    )


def fma_peak() -> float:
    """GFLOP/s of float32 multiply-adds in registers, on as many threads as the CPU backend uses, at once.

    Raises
    ------
    ArithmeticError
        If the compiled loop did not do what is counted.
    """
    isa, number = native.isa("float32"), threads.num_threads()
    lanes = 16 if isa.startswith("AVX-512") else {"AVX2": 8}.get(isa, 4)
    # A chain waits some 4 cycles for its own last result. 12 chains keep two units busy and fit the 16 registers of
    # AVX2; ARM has up to four units, and 32 registers.
    chains, register = (24, "w") if platform.machine() in ("aarch64", "arm64") else (12, "x")
    source = _FMA_SOURCE.format(
        vector_bytes=4 * lanes,
        variables=", ".join(f"c{i} = {{}}" for i in range(chains)),
        steps="\n        ".join(_FMA_STEP.format(i=i, register=register) for i in range(chains)),
        stores=" ".join(f"out[{i}] = c{i};" for i in range(chains)),
    )
    flags = ("-std=c++17", "-O2", "-fPIC", "-ffp-contract=fast", *feature_flags(native.ISAS[isa]))
    library = ctypes.CDLL(str(compile_shared(source, "fma", flags=flags, folder="cpu")))
    library.count.argtypes = [ctypes.c_long, ctypes.c_float, ctypes.c_void_p]
    library.count.restype = None
    counts = np.zeros((number, chains, lanes), np.float32)
    best = 0.0
    with ThreadPoolExecutor(number) as pool:
        for _ in range(_FMA_REPEATS):
            counts[...] = 0
            start = time.perf_counter()
            list(pool.map(lambda out: library.count(_FMA_STEPS, 1.0, out.ctypes.data), counts))
            best = max(best, 2 * _FMA_STEPS * counts.size / (time.perf_counter() - start) / 1e9)
            if not (counts == _FMA_STEPS).all():
                raise ArithmeticError("the loop that measures the FMA peak counted wrong")
    return best


def load_average() -> float | None:
    """How many threads ran or wanted to, on average of the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has no such function
        return None


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine()
    info = dict(re.findall(r"^(.*?)\s*: (.*)$", text, flags=re.MULTILINE))
    if "model name" not in info:
        return f"{platform.machine()} {info.get('CPU part', '')}".strip()
    return f"{info['model name']}, family {info.get('cpu family')} model {info.get('model')}"


def _mkl() -> str:
    """What MKL says it runs on: on some CPUs less than they have."""
    answer = subprocess.run(
        [sys.executable, "-c", "import torch; x = torch.ones(64, 64); x @ x"],
        env={**os.environ, "MKL_VERBOSE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return parse_mkl(answer.stdout)


def parse_mkl(text: str) -> str:
    """Version and instruction set from the first line that MKL_VERBOSE=1 prints.

    >>> parse_mkl("MKL_VERBOSE oneMKL 2024.0 Product build 20240605 for Intel(R) 64 architecture Intel(R) "
    ...           "Architecture processors, Lnx 2.45GHz lp64 gnu_thread")
    'oneMKL 2024.0, Intel(R) Architecture processors'
    >>> parse_mkl("")
    'not MKL'
    """
    match = re.search(r"^MKL_VERBOSE (.*?) Product build .*? 64 architecture (.*?),", text, flags=re.MULTILINE)
    return f"{match[1]}, {match[2]}" if match else "not MKL"
