"""NVRTC without a GPU: every kernel for every architecture, and the disk cache."""

import shutil
import struct
import subprocess
import sys

import pytest
from sass import check_main_loop

from cupy_flash._src import compile, device, kernels, source, startup
from cupy_flash._src.device import named
from cupy_flash._src.plan import all_specializations, core_specializations
from cupy_flash._src.specialization import Specialization, Variant

pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason='needs CuPy and NVRTC: pip install "cupy-flash[cuda13]"')

# sm_70 is out of reach of NVRTC 13: CUDA 13 dropped it.


def check_machine_code(kernel: Specialization, arch: str) -> None:
    compiled = compile.to_cubin(kernel, arch)
    if (arch, kernel.entry, dict(kernel.types)["Element"]) == ("sm_100", "attention_forward", "double"):
        assert compiled.spill_bytes <= 16, f"{kernel} spills"  # NVRTC 13.5, head dimension 64, causal: 2 registers
    else:
        assert compiled.spill_bytes == compiled.stack_bytes == 0, f"{kernel} spills"
    limits, constants = named(arch), dict(kernel.constants)
    registers = -(-compiled.registers // 8) * 8  # allocated in units of 8 a thread
    blocks = constants.get("kMinBlocks", 1)
    assert blocks * 32 * constants["kNWarps"] * registers <= limits.registers_per_sm
    assert compiled.path.read_bytes()[:4] == b"\x7fELF"
    if kernel.family == "mma":
        check_main_loop(kernel, compiled.path)


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [("sm_75", "float"), *(pytest.param(x, "Float16", marks=pytest.mark.slow) for x in ("sm_87", "sm_89", "sm_90a"))],
)
def test_kernels_compile_without_spills(arch, dtype):
    """One head dimension of a few; `test_all_kernels_compile_without_spills` has them all."""
    sample = [
        kernel
        for kernel in all_specializations(named(arch))
        if ("Element", dtype) in kernel.types
        and ("Mask", "CausalMask") in kernel.types
        and kernel.constant("kHeadDim") == 64
    ]
    assert {kernel.entry for kernel in sample} == {"attention_forward", "attention_dkdv", "attention_dq"}
    for kernel in sample:
        check_machine_code(kernel, arch)


# On tensor cores bfloat16 differs from float16 by the names of instructions and, in the forward, its headroom; sm_87
# and sm_89 from sm_86 by names only, as neighbours do on CUDA cores: one or two architectures stand for them.
ALL = [
    *((arch, "Float16") for arch in ("sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "sm_120")),
    *((arch, "BFloat16") for arch in ("sm_75", "sm_90a")),
    *((arch, "float") for arch in ("sm_75", "sm_80", "sm_90a", "sm_100", "sm_120")),
    *((arch, "double") for arch in ("sm_75", "sm_90a", "sm_100", "sm_120")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "dtype"), ALL)
def test_all_kernels_compile_without_spills(arch, dtype):
    failures = []
    for kernel in all_specializations(named(arch)):
        as_float16 = dtype == "BFloat16" and kernel.family == "mma" and kernel.entry != "attention_forward"
        if ("Element", dtype) in kernel.types and not as_float16:
            try:
                check_machine_code(kernel, arch)
            except AssertionError as error:
                failures.append(f"{kernel}: {error}")
    assert not failures


@pytest.mark.slow
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (64, 256), (256, 32), (96, 64)])
def test_kernels_of_two_head_dimensions_compile_without_spills(head_dim, head_dim_v):
    device = named("sm_80")
    for causal in (False, True):
        variant = Variant("float16", causal, head_dim, head_dim_v, negative_scale=causal)
        for kernel in (
            kernels.forward(variant, device),
            kernels.forward(variant, device, packed=True),
            kernels.dkdv(variant, device, atomic_dq=True),
            kernels.dq(variant, device),
        ):
            check_machine_code(kernel, device.arch)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def count(monkeypatch):
    """How often NVRTC was asked to compile."""
    calls = []
    original = compile._nvrtc_compile
    monkeypatch.setattr(compile, "_nvrtc_compile", lambda *args: calls.append(args) or original(*args))
    return calls


SMALL = next(core_specializations(named("sm_80")))


def test_a_second_compilation_comes_from_the_cache(cache, count):
    assert compile.find(SMALL, "sm_80") is None
    first = compile.to_cubin(SMALL, "sm_80")
    assert compile.to_cubin(SMALL, "sm_80") == compile.find(SMALL, "sm_80") == first
    assert len(count) == 1
    assert compile.to_cubin(SMALL, "sm_90a").path != first.path


@pytest.mark.parametrize("damage", ["truncated cubin", "other cubin", "no cubin", "broken record", "wrong record"])
def test_a_damaged_cache_is_compiled_again(cache, count, damage):
    first = compile.to_cubin(SMALL, "sm_80")
    content, record = first.path.read_bytes(), first.path.with_suffix(".json")
    if damage == "truncated cubin":
        first.path.write_bytes(content[:100])
    elif damage == "other cubin":
        first.path.write_bytes(bytes(len(content)))
    elif damage == "no cubin":
        first.path.unlink()
    elif damage == "broken record":
        record.write_text("{")
    else:
        record.write_text('{"sha256": 3}')
    assert compile.to_cubin(SMALL, "sm_80") == first
    assert first.path.read_bytes()[:4] == b"\x7fELF"
    assert len(count) == 2


def test_an_edited_header_is_never_served_stale(cache, count, monkeypatch, tmp_path):
    folder = shutil.copytree(source.root(), tmp_path / "cuda_src")
    monkeypatch.setattr(source, "root", lambda: folder)
    first = compile.to_cubin(SMALL, "sm_80")
    header = folder / "attention" / "matrix.cuh"
    header.write_text(header.read_text() + "\n// edited\n")
    assert compile.to_cubin(SMALL, "sm_80").path != first.path
    assert len(count) == 2


def test_concurrent_processes_do_not_clobber_each_other(cache):
    code = (
        "from cupy_flash._src import compile; from cupy_flash._src.device import named;"
        "from cupy_flash._src.plan import core_specializations;"
        "k = next(core_specializations(named('sm_80'))); c = compile.to_cubin(k, 'sm_80');"
        "assert c.path.read_bytes()[:4] == b'\\x7fELF' and c.registers > 0"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [p.wait() for p in processes] == [0, 0, 0]
    assert compile.find(SMALL, "sm_80") is not None
    assert {path.suffix for path in (cache / "cubin" / "sm_80").iterdir()} == {".cubin", ".json"}


def test_threads_compile_together(cache):
    kernels = list(core_specializations(named("sm_80")))[:2]
    seen = []
    results = compile.compile_all(kernels, "sm_80", lambda kernel, compiled: seen.append(kernel))
    assert sorted(map(str, seen)) == sorted(map(str, kernels))
    assert [r.path for r in results] == [compile.to_cubin(k, "sm_80").path for k in kernels]


def test_a_cold_start_is_announced_once(cache, capsys):
    kernels = list(core_specializations(named("sm_80")))[:2]
    compile.prepare(kernels, "sm_80")
    assert capsys.readouterr().err.count("\n") == 1
    compile.prepare(kernels, "sm_80")
    assert capsys.readouterr().err == ""


def test_an_error_names_file_and_line(cache, monkeypatch):
    original = source._read
    monkeypatch.setattr(
        source, "_read", lambda name, *a: original(name, *a) + ("\nbroken;" if name == "params.cuh" else "")
    )
    with pytest.raises(compile.CompileError, match=r"params\.cuh\(\d+\): error"):
        compile.to_cubin(SMALL, "sm_80")


def test_startup_is_silent_where_there_is_a_driver_but_no_gpu(monkeypatch, recwarn):
    from cupy_flash._src.backends import cupy_

    def fail():
        raise RuntimeError("the driver shows none")

    monkeypatch.setenv("CUPY_FLASH_COMPILE", "")
    monkeypatch.setattr(startup, "_has_driver", lambda: True)
    monkeypatch.setattr(cupy_, "import_cupy", fail)
    startup.compile_core_kernels()
    assert not recwarn.list


def test_cubins_are_whole(cache):
    """CuPy cuts the last byte off; the program headers end the file."""
    code = compile.to_cubin(SMALL, "sm_80").path.read_bytes()
    offset, (size, count) = struct.unpack_from("<Q", code, 32)[0], struct.unpack_from("<2H", code, 54)
    assert len(code) >= offset + size * count


def test_the_attributes_of_a_device_are_those_that_cupy_has():
    import cupy

    for name in device.ATTRIBUTES:
        assert hasattr(cupy.cuda.runtime, f"cudaDevAttr{name}")


def test_targets_of_gpus(monkeypatch):
    monkeypatch.setattr(compile._nvrtc(), "getSupportedArchs", lambda: (75, 80, 86, 90, 100, 120))
    for capability, arch in [(75, "sm_75"), (87, "sm_86"), (89, "sm_86"), (90, "sm_90a"), (103, "sm_100")]:
        assert compile.target_of(capability) == arch
    with pytest.raises(RuntimeError, match=r"cannot compile for compute capability 7\.0 .* extra cuda12"):
        compile.target_of(70)


def test_ptx_keeps_source_lines():
    ptx = compile.to_ptx(SMALL, "sm_90a")
    assert ".target sm_90a" in ptx and "attention_delta" in ptx
    assert "backward_rows.cu" in ptx


def test_flatten_includes_each_file_once_and_keeps_line_numbers():
    text = source.flatten("a.cu", virtual={"a.cu": '#include "b.cuh"\n#include "b.cuh"\nx', "b.cuh": "#pragma once\ny"})
    assert text.splitlines() == [
        '#line 1 "a.cu"', '#line 1 "b.cuh"', "", "y", '#line 2 "a.cu"', '#line 3 "a.cu"', "x",
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"nowhere\.cuh is in none of"):
        source.flatten("a.cu", virtual={"a.cu": '#include "nowhere.cuh"'})


def test_startup_mode_is_checked(monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_COMPILE", "sometimes")
    with pytest.raises(ValueError, match="CUPY_FLASH_COMPILE is 'sometimes'"):
        startup.compile_core_kernels()


@pytest.mark.parametrize(("mode", "loads"), [("", 1), ("import", 1), ("lazy", 0)])
def test_startup_compiles_unless_lazy(monkeypatch, mode, loads):
    from cupy_flash._src.backends import cupy_

    calls = []
    monkeypatch.setenv("CUPY_FLASH_COMPILE", mode)
    monkeypatch.setattr(startup, "_has_driver", lambda: True)
    monkeypatch.setattr(cupy_, "import_cupy", lambda: None)
    monkeypatch.setattr(cupy_, "prepare_core", lambda: calls.append(1))
    startup.compile_core_kernels()
    assert len(calls) == loads


def test_startup_failure_is_a_warning(monkeypatch):
    from cupy_flash._src.backends import cupy_

    def fail():
        raise RuntimeError("no GPU")

    monkeypatch.setenv("CUPY_FLASH_COMPILE", "")
    monkeypatch.setattr(startup, "_has_driver", lambda: True)
    monkeypatch.setattr(cupy_, "import_cupy", lambda: None)
    monkeypatch.setattr(cupy_, "prepare_core", fail)
    with pytest.warns(RuntimeWarning, match="could not prepare its kernels: RuntimeError: no GPU"):
        startup.compile_core_kernels()
