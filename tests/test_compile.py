"""NVRTC without a GPU: every kernel for every architecture, and the disk cache."""

import errno
import hashlib
import json
import re
import struct
import subprocess
import sys
import threading

import machine_code
import numpy as np
import pytest
import sass

from cupy_flash import mods
from cupy_flash._src import compile, device, kernels, source, startup
from cupy_flash._src.device import named
from cupy_flash._src.plan import all_specializations, core_specializations
from cupy_flash._src.specialization import Specialization, Variant

pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason='needs CuPy and NVRTC: pip install "cupy-flash[cuda13]"')

# sm_70 is out of reach of NVRTC 13: CUDA 13 dropped it.


def check_machine_code(kernel: Specialization, arch: str) -> None:
    compiled = compile.to_cubin(kernel, arch)
    if spills_one_register(kernel, arch):
        assert compiled.spill_bytes <= 32 and compiled.stack_bytes <= 8
    else:
        assert compiled.spill_bytes == compiled.stack_bytes == 0, f"{kernel} spills"
    limits, constants = named(arch), dict(kernel.constants)
    registers = -(-compiled.registers // 8) * 8  # allocated in units of 8 a thread
    blocks = constants.get("kMinBlocks", 1)
    assert blocks * 32 * constants["kNWarps"] * registers <= limits.registers_per_sm
    assert compiled.path.read_bytes()[:4] == b"\x7fELF"
    if kernel.family == "mma":
        code = sass.disassemble(compiled.path, kernel.entry)
        check_main_loop(kernel, code, local=spills_one_register(kernel, arch))


def spills_one_register(kernel: Specialization, arch: str) -> bool:
    """With NVRTC 13.5 a sum of a row, in each step: neither other tiles nor less to keep in the loop helped."""
    masks = [part.type for part in kernel.parts if part.component.concept == "Mask"]
    constants = dict(kernel.constants)
    wanted = arch, kernel.entry, masks, constants.get("kHeadDim"), constants.get("kPacked")
    return wanted == ("sm_100", "attention_forward", ["Causal"], 128, 0)


def check_main_loop(kernel: Specialization, code: sass.Code, local: bool = False) -> None:
    """The main loop of a tensor-core kernel holds its matrix products, all of them, and nothing `local`."""
    assert local or code.count(sass.LOCAL) == 0, f"{kernel} uses local memory"
    step = machine_code.step_of(kernel)
    assert code.count(sass.MMA, code.main_loop) == code.count(sass.MMA) == step.products, kernel
    # Additions to dQ must know that they go to global memory: no test of the address, no loop.
    assert code.count(sass.ATOMIC) == 0, kernel


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [("sm_75", "float"), *(pytest.param(x, "Float16", marks=pytest.mark.slow) for x in ("sm_87", "sm_89", "sm_90a"))],
)
def test_kernels_compile_without_spills(arch, dtype):
    """One head dimension of a few; `test_all_kernels_compile_without_spills` has the others."""
    sample = [
        kernel
        for kernel in all_specializations(named(arch))
        if ("Element", dtype) in kernel.types
        and "Causal" in [part.type for part in kernel.parts]
        and kernel.constant("kHeadDim") == 64
    ]
    assert {kernel.entry for kernel in sample} == {"attention_forward", "attention_dkdv", "attention_dq"}
    for kernel in sample:
        check_machine_code(kernel, arch)


# On tensor cores bfloat16 differs from float16 by the names of instructions and, in the forward, its headroom; sm_86
# to sm_89 from sm_80 and sm_120 by names only, as neighbours do on CUDA cores: some architectures stand for them.
ALL = [
    *((arch, "Float16") for arch in ("sm_75", "sm_80", "sm_90a", "sm_100", "sm_120")),
    *((arch, "BFloat16") for arch in ("sm_75", "sm_90a")),
    *((arch, "float") for arch in ("sm_75", "sm_90a", "sm_120")),
    *((arch, "double") for arch in ("sm_75", "sm_90a")),
]
# Of kernels whose text is that of older GPUs, in other tiles at most, those of the commonest head dimensions.
COMMON = {"sm_100": (64, 128), "sm_120": (64, 128, 256)}


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "dtype"), ALL)
def test_all_kernels_compile_without_spills(arch, dtype):
    failures = []
    for kernel in all_specializations(named(arch)):
        head_dim = dict(kernel.constants).get("kHeadDim")
        as_float16 = dtype == "BFloat16" and kernel.family == "mma" and kernel.entry != "attention_forward"
        rare = head_dim is not None and arch in COMMON and head_dim not in COMMON[arch]
        if ("Element", dtype) in kernel.types and not as_float16 and not rare:
            try:
                check_machine_code(kernel, arch)
            except AssertionError as error:
                failures.append(f"{kernel}: {error}")
    assert not failures


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "sides"), [("sm_80", (5, None)), ("sm_90a", (3, 2))])
def test_kernels_of_windows_compile_without_spills(arch, sides):
    """On tensor cores; a window that is open on the left cuts as causal masks do."""
    for kernel in all_specializations(named(arch), [{"window": sides}]):
        if kernel.family == "mma" and ("Element", "Float16") in kernel.types:
            check_machine_code(kernel, arch)


@pytest.mark.slow
def test_kernels_of_a_bias_and_sinks_compile_without_spills():
    """But for some bytes where kernels of 128 columns take all registers, by the version of NVRTC."""
    call = {"bias": np.zeros((1, 1), np.float32), "sinks": np.zeros(1, np.float32)}
    for kernel in all_specializations(named("sm_90a"), [call]):
        tensor_cores = kernel.family == "mma" and ("Element", "Float16") in kernel.types
        if tensor_cores and (head_dim := kernel.constant("kHeadDim")) in (64, 128):
            assert compile.to_cubin(kernel, "sm_90a").spill_bytes <= (64 if head_dim == 128 else 0), kernel


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward", "packed", "dkdv", "dq"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_masks_function_costs_little_more_than_the_mask_that_is_built_in(name, head_dim):
    """Instructions of a warp for a block that is seen whole, and no spills: what it costs to walk over a list."""
    found = []
    for options in ({"causal": True}, {"mask_mod": mods.causal}):
        kernel = machine_code.KERNELS[name](Variant.of("float16", head_dim, **options), named("sm_90a"))
        compiled = compile.to_cubin(kernel, "sm_90a")
        assert compiled.spill_bytes == 0
        found.append(len(machine_code.executed(kernel, sass.disassemble(compiled.path, kernel.entry))))
    assert found[1] <= 1.06 * found[0]


@pytest.mark.slow
@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(192, 128), (64, 256), (256, 32), (96, 64)])
def test_kernels_of_two_head_dimensions_compile_without_spills(head_dim, head_dim_v):
    device = named("sm_80")
    for causal in (False, True):
        variant = Variant.of("float16", head_dim, head_dim_v, causal=causal, scale=-0.2 if causal else None)
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
    """Whole, though CuPy cuts the last byte off: the program headers end it. What is damaged is made again."""
    assert compile.find(SMALL, "sm_80") is None
    first = compile.to_cubin(SMALL, "sm_80")
    assert compile.to_cubin(SMALL, "sm_80") == compile.find(SMALL, "sm_80") == first
    assert len(count) == 1
    code = first.path.read_bytes()
    offset, (size, number) = struct.unpack_from("<Q", code, 32)[0], struct.unpack_from("<2H", code, 54)
    assert len(code) >= offset + size * number
    first.path.write_bytes(code[:100])
    assert compile.to_cubin(SMALL, "sm_80") == first == compile.find(SMALL, "sm_80")
    assert first.path.read_bytes() == code and len(count) == 2


def test_only_a_whole_cubin_of_its_record_is_loaded(tmp_path):
    """Any length, any byte of it, any record that is none."""
    path, code = tmp_path / "k.cubin", bytes(range(50))
    whole = {"path": "other.cubin", "registers": 7, "stack_bytes": 8, "spill_bytes": 9}
    whole["sha256"] = hashlib.sha256(code).hexdigest()

    def load(code, record):
        path.write_bytes(code)
        path.with_suffix(".json").write_bytes(record if isinstance(record, bytes) else json.dumps(record).encode())
        return compile._load(path)

    assert load(code, whole) == compile.CompiledKernel(path, 7, 8, 9)
    for n in range(len(code)):
        assert load(code[:n], whole) is None
        assert load(code[:n] + bytes([code[n] ^ 1 << n % 8]) + code[n + 1 :], whole) is None
    assert load(code + b"\0", whole) is None
    lacking = [{name: value for name, value in whole.items() if name != lost} for lost in whole if lost != "path"]
    text = json.dumps(whole).encode()
    for record in (*lacking, whole | {"more": 1}, [], None, 3, b"", b"\xff", text[:-1], text + b"}"):
        assert load(code, record) is None, record
    path.with_suffix(".json").unlink()
    assert compile._load(path) is None


def test_a_record_that_cannot_be_written_costs_only_the_next_process(cache, monkeypatch, count):
    """Nor does another version, which reads none of this one's records, fail for it."""
    monkeypatch.setattr(compile, "_nvrtc_compile", lambda *args: count.append(args) or (ELF, LOG))
    write = compile.cache.write_atomically

    def refuse(path, content):
        if path.suffix == ".json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(compile.cache, "write_atomically", refuse)
    made = compile.text_to_cubin("text", "k.cu", "second", "sm_80")
    assert made == compile.CompiledKernel(made.path, 64, 424, 1236) and made.path.read_bytes() == ELF
    monkeypatch.setattr(compile.cache, "write_atomically", write)
    assert compile.text_to_cubin("text", "k.cu", "second", "sm_80") == made and len(count) == 2
    assert compile.text_to_cubin("text", "k.cu", "second", "sm_80") == made and len(count) == 2


LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
ptxas         .     424 bytes stack frame, 616 bytes spill stores, 620 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 424 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compile time = 80.790 ms
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
ptxas         .     256 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 256 bytes cumulative stack size, 360 bytes cmem[0]
"""
# A header of 64 bytes that says where two program headers of 56 begin, and these at the end.
ELF = b"\x7fELF" + bytes(28) + struct.pack("<Q", 64) + bytes(14) + struct.pack("<2H", 56, 2) + bytes(6 + 2 * 56)


def test_what_the_assembler_reports_is_that_of_the_entry_point():
    assert compile._resources(LOG, "second") == (64, 424, 616 + 620)
    assert compile._resources(LOG, "first") == (40, 256, 0)
    for log, entry in ((LOG, "firs"), (LOG, "third"), ("", "first"), (LOG.partition(" registers")[0], "second")):
        assert compile._resources(log, entry) == (None, None, None)


def test_the_last_byte_that_cupy_drops_is_put_back():
    assert len(ELF) == 64 + 2 * 56
    for code in (ELF, ELF[:-1], ELF + b"more"):
        assert compile._whole_elf(code) == (ELF if code == ELF[:-1] else code)


class Nvrtc:
    """Stands for cupy.cuda.nvrtc: tells what it was asked for."""

    class NVRTCError(Exception):
        pass

    def __init__(self, refuses):
        self.refuses, self.asked, self.programs = refuses, [], []

    def createProgram(self, *args):
        self.asked.append(args)
        self.programs.append("program")
        return "program"

    def compileProgram(self, program, options):
        self.asked.append(options)
        if self.refuses:
            raise self.NVRTCError("NVRTC_ERROR_COMPILATION (6)")

    def getSupportedArchs(self):
        return [75, 80, 90]

    def getProgramLog(self, program):
        return LOG

    def getCUBIN(self, program):
        return ELF[:-1]

    def getPTX(self, program):
        return ".target\0"

    def destroyProgram(self, program):
        self.programs.remove(program)


def test_what_nvrtc_is_asked_for_and_its_programs_go(cache, monkeypatch):
    """Whatever it answers; who asks for an architecture that it does not know is told so."""

    def use(nvrtc):
        monkeypatch.setattr(compile, "_nvrtc", lambda: nvrtc)
        return nvrtc

    monkeypatch.setattr(compile, "nvrtc_version", lambda: (13, 1))
    for arch, virtual in (("sm_80", "compute_80"), ("sm_90a", "compute_90a")):
        nvrtc = use(Nvrtc(refuses=False))
        made = compile.text_to_cubin("text", "k.cu", "first", arch)
        assert made == compile.CompiledKernel(made.path, 40, 256, 0) and made.path.read_bytes() == ELF
        assert compile.text_to_ptx("text", "k.cu", arch) == ".target"
        program = ("text", "k.cu", (), ())
        assert nvrtc.asked == [
            program, (f"-arch={arch}", *compile._OPTIONS), program, (f"-arch={virtual}", *compile._OPTIONS),
        ]  # fmt: skip
        assert not nvrtc.programs
        nvrtc = use(Nvrtc(refuses=True))
        with pytest.raises(compile.CompileError, match=rf"^k\.cu -arch={arch}: NVRTC_ERROR_COMPILATION \(6\)\nptxas"):
            compile.text_to_cubin("other", "k.cu", "first", arch)
        for function in (compile.text_to_cubin, lambda text, name, entry, arch: compile.text_to_ptx(text, name, arch)):
            with pytest.raises(
                RuntimeError, match=r"^NVRTC 13\.1 cannot compile for sm_70 \(it knows 75, 80, 90\)"
            ) as raised:
                function("text", "k.cu", "first", "sm_70")
            assert not isinstance(raised.value, compile.CompileError)
        assert not nvrtc.programs


def test_concurrent_processes_do_not_clobber_each_other(cache):
    code = (
        "from cupy_flash._src import compile; from cupy_flash._src.device import named;"
        "from cupy_flash._src.plan import core_specializations;"
        "k = next(core_specializations(named('sm_80'))); c = compile.to_cubin(k, 'sm_80');"
        "assert c.path.read_bytes()[:4] == b'\\x7fELF' and c.registers > 0"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [p.wait() for p in processes] == [0, 0]
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
    compile.to_cubin(kernels[0], "sm_80")
    assert capsys.readouterr().err == ""
    compile.prepare(kernels, "sm_80")
    told = f"cupy_flash: compiling 1 kernels for sm_80, once, into {cache} (CUPY_FLASH_COMPILE=lazy "
    assert re.fullmatch(rf"{re.escape(told)}[^\n]+\)\n", capsys.readouterr().err)
    compile.prepare(kernels, "sm_80")
    assert capsys.readouterr().err == ""
    assert None not in [compile.find(kernel, "sm_80") for kernel in kernels]


def test_one_thread_at_a_time_loads_nvrtc(monkeypatch):
    """CuPy loads the library, then that of its builtins: a thread that compiled in between was told of none."""
    loading, came, threads, steps = compile._loading, threading.Event(), [], []

    class Noted:
        def __enter__(self):
            came.set()
            loading.acquire()

        def __exit__(self, *_):
            loading.release()

    class Loads:
        """Stands for cupy.cuda.nvrtc: another thread comes while the first loads."""

        @staticmethod
        def getVersion():
            steps.append("begins")
            if threads:
                came.set()
            else:
                came.clear()
                threads.append(threading.Thread(target=compile._nvrtc))
                threads[0].start()
                assert came.wait(60)
            steps.append("ends")

    monkeypatch.setattr("cupy.cuda.nvrtc", Loads)
    monkeypatch.setattr(compile, "_loading", Noted())
    compile._nvrtc()
    threads[0].join()
    assert steps == ["begins", "ends"] * 2


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
