"""What stands between a checked call and its kernels: the choice of a backend, CuPy's side on a stand-in, buffers."""

import contextlib
import sys
import types

import numpy as np
import pytest
from cases import Case

from cupy_flash import emulator, flash_attention, flash_attention_backward, flash_attention_vjp, merge_attention
from cupy_flash._src import backends, compile, forks
from cupy_flash._src import emulator as emulation
from cupy_flash._src.backends import cpu, cupy_
from cupy_flash._src.backends import emulator as emulator_backend
from cupy_flash._src.device import ATTRIBUTES, NAMED, Device
from cupy_flash._src.emulator import ptx
from cupy_flash._src.launch import Scratch
from cupy_flash._src.plan import Launch, core_specializations, plan_backward, plan_forward
from cupy_flash._src.problem import AttentionProblem
from cupy_flash._src.specialization import Specialization

as_strided = np.lib.stride_tricks.as_strided

# --- the choice ---


class OnGpu:
    """What the choice takes for a CuPy array."""

    __module__, strides = "cupy", (4,)


class Exported:
    """An array of another library, on a device of a DLPack type."""

    def __init__(self, device):
        self.device = device

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, **options):
        raise AssertionError("only CuPy takes it")


class Interfaced:
    __cuda_array_interface__ = None


@pytest.fixture
def gpu(monkeypatch):
    """A backend "cuda" that computes nothing, and a CuPy that tells how it was given an array."""

    def took(how):
        array = OnGpu()
        array.how = how
        return array

    cupy = types.SimpleNamespace(from_dlpack=lambda x: took("from_dlpack"), asarray=lambda x: took("asarray"))
    monkeypatch.setattr(backends, "_cupy", lambda: cupy)
    monkeypatch.setitem(backends._instances, "cuda", types.SimpleNamespace(namespace=cupy))


def test_the_first_array_chooses_the_backend(gpu):
    x, y = np.ones((2, 3)), OnGpu()
    for name in (None, "cpu"):
        backend, arrays = backends.select(name, q=x, k=x.view(np.recarray))
        assert isinstance(backend, cpu.CpuBackend) and arrays[0] is x and type(arrays[1]) is np.ndarray
        assert np.shares_memory(arrays[1], x)
    for name in (None, "cuda"):
        backend, arrays = backends.select(name, q=y, k=y)
        assert backend is backends._instances["cuda"] and arrays == [y, y]
    with pytest.raises(TypeError, match=r"^k is a CuPy array: backend 'cpu' takes NumPy arrays only$"):
        backends.select(None, q=x, k=y)
    with pytest.raises(TypeError, match=r"^k is a NumPy array: backend 'cuda' takes CuPy arrays only$"):
        backends.select(None, q=y, k=x)


def test_a_backend_is_made_once():
    x = np.ones((2, 3))
    for name in ("cpu", "emulator", "emulator:sm_90"):
        assert backends.select(name, q=x)[0] is backends.select(name, q=x)[0]
    assert backends.select("emulator", q=x)[0].device is NAMED["sm_80"]
    assert backends.select("emulator:sm_90", q=x)[0].device is NAMED["sm_90a"]


@pytest.mark.parametrize("device", [2, 13])
def test_arrays_of_other_libraries_on_a_gpu_go_to_cupy(gpu, device):
    """kDLCUDA and kDLCUDAManaged of dlpack.h; DLPack before __cuda_array_interface__, which knows no bfloat16."""
    both = type("Both", (Exported, Interfaced), {})(device)
    for x, how in ((Exported(device), "from_dlpack"), (both, "from_dlpack"), (Interfaced(), "asarray")):
        _, (array,) = backends.select(None, q=x)
        assert array.how == how
        with pytest.raises(TypeError, match=r"^q is a CuPy array: backend 'cpu' takes NumPy arrays only$"):
            backends.select("cpu", q=x)


def test_cupy_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r"^arrays on a GPU need CuPy: pip install \"cupy-flash\[cuda13\]\""):
        backends.select(None, q=Interfaced())
    with pytest.raises(RuntimeError, match=r'^backend "cuda" needs CuPy: pip install'):
        backends.get("cuda")


def test_every_array_of_a_call_is_in_its_place(monkeypatch):
    """All are named to `placed`, which on GPUs refuses what lies on another."""
    seen = []

    def placed(self, **arrays):
        seen.append(list(arrays))
        return np.errstate(all="ignore")

    monkeypatch.setattr(cpu.CpuBackend, "placed", placed)
    q, k, v, dout, dlse = Case(sq=4, sk=5, d=8).arrays()
    out, lse = flash_attention(q, k, v, return_lse=True)
    flash_attention(q, k, v, out=out.copy())
    flash_attention_backward(dout, q, k, v, out, lse)
    flash_attention_backward(dout, q, k, v, out, lse, dlse=dlse)
    merge_attention(out, lse, out, lse)
    all_of_it = ["q", "k", "v", "dout", "out", "lse"]
    merged = ["out_a", "lse_a", "out_b", "lse_b"]
    assert seen == [["q", "k", "v"], ["q", "k", "v", "out"], all_of_it, [*all_of_it, "dlse"], merged]
    seen.clear()
    vjp = flash_attention_vjp(q, k, v)[1]
    vjp(dout, dlse)
    vjp.changed()
    assert seen == [["q", "k", "v"], ["q"], [*all_of_it, "dlse"], ["q"]]


def test_options_reach_the_backend(monkeypatch):
    """What each call was given, in the problem that a backend gets."""
    seen = []

    def watch(name):
        function = getattr(cpu.CpuBackend, name)

        def watched(self, problem, *arguments):
            masks = [mask.keyword for mask in problem.masks]
            seen.append((name, masks, problem.scale, problem.q_offset, problem.deterministic))
            return function(self, problem, *arguments)

        monkeypatch.setattr(cpu.CpuBackend, name, watched)

    watch("forward")
    watch("backward")
    q, k, v, dout, _ = Case(sq=4, sk=5, d=8).arrays()
    for options in ({}, {"causal": True}, {"causal": True, "scale": -0.5, "q_offset": -2}):
        scale = pytest.approx(options.get("scale", 8**-0.5), rel=1e-15)
        found = ["causal"] * options.get("causal", False), scale, options.get("q_offset", 1 if options else 0)
        out, lse = flash_attention(q, k, v, return_lse=True, **options)
        expected = [("forward", *found, False)]
        for chosen in ({}, {"deterministic": True}):
            deterministic = bool(chosen)
            flash_attention_backward(dout, q, k, v, out, lse, **options, **chosen)
            flash_attention_vjp(q, k, v, **options, **chosen)[1](dout)
            expected += [(name, *found, deterministic) for name in ("backward", "forward", "backward")]
        assert seen == expected
        seen.clear()


# --- CuPy, a stand-in ---

KERNEL = Specialization("mma/forward.cu", "attention_forward", (), (("kNWarps", 4), ("kSharedBytes", 70000)))


class CUDARuntimeError(RuntimeError):
    pass


@pytest.fixture
def cupy(monkeypatch):
    """Two GPUs, of which number 1 is current; `loaded` and `launched` tell what was asked of them."""
    fake = types.ModuleType("cupy")
    fake.loaded, fake.launched, fake.current = [], [], 1

    class RawModule:
        def __init__(self, path):
            self.path = path

        def get_function(self, entry):
            def kernel(*arguments, **options):
                fake.launched.append((*arguments, options))

            fake.loaded.append(types.SimpleNamespace(path=self.path, entry=entry, kernel=kernel))
            return fake.loaded[-1]

    attributes = {name: 100 * i for i, name in enumerate(ATTRIBUTES, 1)}
    fake.RawModule = RawModule
    fake.cuda = types.SimpleNamespace(
        Device=lambda index: types.SimpleNamespace(
            compute_capability=("80", "90")[index], attributes={**attributes, "MultiProcessorCount": index}
        ),
        runtime=types.SimpleNamespace(
            driverGetVersion=lambda: 13000,
            getDeviceCount=lambda: 2,
            getDevice=lambda: fake.current,
            getDeviceProperties=lambda index: {"name": f"Card {index}".encode()},
            CUDARuntimeError=CUDARuntimeError,
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(compile, "target_of", {80: "sm_80", 90: "sm_90a"}.get)
    monkeypatch.setattr(compile, "to_cubin", lambda kernel, arch: types.SimpleNamespace(path=f"{arch}/{kernel.entry}"))
    remembered = cupy_._device, cupy_._kernel
    for function in remembered:
        function.cache_clear()
    yield fake
    for function in remembered:
        function.cache_clear()


def test_the_current_gpu_is_planned_for(cupy):
    backend = cupy_.CupyBackend()
    assert backend.namespace is cupy
    assert backend.device == Device("sm_90a", 1, 200, 300, 400, 500, 600, 700)
    assert backend.status() == "Card 1, sm_90a"
    cupy.current = 0
    assert backend.device == Device("sm_80", 0, 200, 300, 400, 500, 600, 700)
    assert backend.address(types.SimpleNamespace(data=types.SimpleNamespace(ptr=4096))) == 4096


def test_a_kernel_is_loaded_once_on_each_gpu_and_launched_as_planned(cupy):
    """With the shared memory that it was planned with, which a kernel must be allowed beforehand."""
    backend, params = cupy_.CupyBackend(), np.arange(3)
    small = Specialization("attention/merge.cu", "attention_merge", (), (("kNWarps", 4),))
    for index, arch in ((1, "sm_90a"), (0, "sm_80")):
        cupy.current = index
        for kernel, grid, shared in ((KERNEL, 7, 70000), (KERNEL, 5, 70000), (small, 2, 0)):
            backend.run(Launch(kernel, grid, 128, shared), params, {})
            assert cupy.launched[-1] == ((grid,), (128,), (params,), {"shared_mem": shared})
        forward, merge = cupy.loaded[-2:]
        assert (forward.path, forward.entry) == (f"{arch}/attention_forward", "attention_forward")
        assert (forward.max_dynamic_shared_size_bytes, merge.max_dynamic_shared_size_bytes) == (70000, 0)
    assert len(cupy.loaded) == 4


def test_kernels_of_a_call_are_compiled_together(cupy, monkeypatch):
    """Those of a forward, of a backward, or of both that a vjp will make; what the cache has is not compiled again."""
    cached, compiled = [], []
    monkeypatch.setattr(compile, "find", lambda kernel, arch: kernel if kernel in cached else None)
    monkeypatch.setattr(compile, "compile_all", lambda kernels, arch: compiled.append((arch, set(kernels))))
    monkeypatch.setattr(cupy_, "_device", lambda index: NAMED["sm_90a"])
    cupy_._compile_together.cache_clear()
    x = np.zeros((1, 4, 64), np.float16)
    problem = AttentionProblem.from_arrays(x, x, x, window=(3, 2), softcap=2.0)
    forward, backward = (
        {launch.kernel for launch in plan(problem, NAMED["sm_90a"]).launches} for plan in (plan_forward, plan_backward)
    )
    cupy_.CupyBackend().expect(problem)
    cupy_.CupyBackend().expect(problem)
    assert compiled == [("sm_90a", forward | backward)] and len(forward) == 1 < len(backward)
    cached += [*forward, next(iter(backward))]
    cupy_._compile_together.cache_clear()
    cupy_.CupyBackend().expect(problem)
    assert compiled[1:] == [("sm_90a", backward - set(cached))]
    cupy_.CupyBackend().expect(AttentionProblem.from_arrays(x, x[:, :0], x[:, :0]))
    assert len(compiled) == 2
    cupy_._compile_together.cache_clear()


def test_a_vjp_expects_its_gradients(monkeypatch):
    expected, x = [], np.ones((1, 4, 8), np.float32)
    monkeypatch.setattr(cpu.CpuBackend, "expect", lambda self, problem: expected.append(problem))
    flash_attention(x, x, x, causal=True)
    assert not expected
    flash_attention_vjp(x, x, x, causal=True)
    assert expected == [AttentionProblem.from_arrays(x, x, x, causal=True)]


def test_memory_that_kernels_add_to_is_zeroed(cupy):
    zeroed = []
    cupy.cuda.alloc = lambda nbytes: types.SimpleNamespace(
        ptr=nbytes + 1, memset_async=lambda *arguments: zeroed.append(arguments)
    )
    for adds in (False, True):
        memory, address = cupy_.CupyBackend().allocate(Scratch("delta", (2, 3, 5), np.dtype(np.float32), adds))
        assert memory.ptr == address == 121
        assert zeroed == [(0, 120)] * adds


def test_the_core_is_prepared_for_the_current_gpu(cupy, monkeypatch):
    prepared = []
    monkeypatch.setattr(compile, "prepare", lambda kernels, arch: prepared.append((list(kernels), arch)))
    monkeypatch.setattr(cupy_, "_device", lambda index: (NAMED["sm_86"], NAMED["sm_75"])[index])
    cupy_.prepare_core()
    assert prepared == [(list(core_specializations(NAMED["sm_75"])), "sm_75")]


def test_without_a_driver_or_a_gpu_there_is_no_backend(cupy, monkeypatch):
    def refused():
        raise CUDARuntimeError("cudaErrorInsufficientDriver")

    for change, message in (
        ({"driverGetVersion": lambda: 0}, "needs an NVIDIA GPU and its driver: there is no driver here"),
        ({"getDeviceCount": refused}, "needs a GPU and its driver: cudaErrorInsufficientDriver"),
        ({"getDeviceCount": lambda: 0}, "needs a GPU: the driver shows none"),
    ):
        with monkeypatch.context() as patch:
            for name, function in change.items():
                patch.setattr(cupy.cuda.runtime, name, function)
            with pytest.raises(RuntimeError) as error:
                backends.get("cuda")
        assert str(error.value) == f'backend "cuda" {message}'
    assert isinstance(backends.get("cuda"), cupy_.CupyBackend)


def test_cupy_is_imported_where_no_fork_can_tear_it(cupy, monkeypatch):
    entered = []
    monkeypatch.setattr(forks, "whole", lambda: entered.append(1) or contextlib.nullcontext())
    cupy_.import_cupy()
    assert entered and backends._cupy() is cupy and len(entered) == 2


# --- buffers of the emulator ---


def test_a_buffer_is_what_its_view_spans():
    """From the lowest to the highest byte of any element, whatever the signs of its strides."""
    rng, base = np.random.default_rng(0), np.zeros(4096, np.uint8)
    for dtype in (np.int8, np.float16, np.float64):
        for _ in range(200):
            shape, steps = rng.integers(0, 4, 3), rng.integers(-5, 6, 3)
            size = np.dtype(dtype).itemsize
            x = as_strided(base[2048:].view(dtype), shape, steps * size, writeable=False)
            offsets = [x.ctypes.data + np.dot(index, x.strides) for index in np.ndindex(*shape)]
            low, nbytes = emulator_backend._extent(x)
            assert nbytes == (max(offsets) - min(offsets) + size if offsets else 0)
            assert not offsets or low == min(offsets)


def test_only_results_may_be_written(monkeypatch):
    """What each kernel may write, by name; the rest the emulator keeps read-only."""
    given, launch = {}, emulator.launch

    def watched(text, entry, grid, block, params, shared, buffers, **options):
        given.setdefault(entry, set()).update(x.name for x in buffers if x.writable)
        assert [x.writable for x in buffers] == sorted((x.writable for x in buffers), reverse=True)
        assert options["shared_limit"] == NAMED["sm_80"].shared_per_block >= shared
        return launch(text, entry, grid, block, params, shared, buffers, **options)

    monkeypatch.setattr(emulator_backend.emulator, "launch", watched)
    q, k, v, dout, _ = Case(dtype="float16", sq=20, sk=30, d=16).arrays()
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, backend="emulator")
    vjp(dout)
    merge_attention(out, lse, out, lse, backend="emulator")
    assert given["attention_forward"] == {"out", "lse"} == given["attention_merge"]
    assert given["attention_delta"] == {"delta"}
    assert given["attention_seal"] == {"query_digests", "key_digests"}
    assert given["attention_find_changed"] == {"changed"} and given["attention_spoil"] == {"dq", "dk", "dv"}
    assert {"dk", "dv"} <= given["attention_dkdv"] <= {"dk", "dv", "dq_acc", "dk_acc", "dv_acc"}
    for entry, names in given.items():
        assert not names & {"q", "k", "v", "dout"}, entry


def test_a_kernels_text_is_that_of_its_path(monkeypatch):
    """Its own source, or the architecture's PTX translated: what is remembered of one is not taken for the other."""
    monkeypatch.setattr(compile, "to_ptx", lambda kernel, arch: f"PTX of {kernel.entry} for {arch}")
    monkeypatch.setattr(ptx, "translate", str.upper)
    kernel = Specialization("attention/merge.cu", "attention_merge", (), ())
    text = emulator_backend._text(kernel, "sm_80", "host")
    assert "attention_merge" in text
    for arch in ("sm_80", "sm_90a"):
        assert emulator_backend._text(kernel, arch, "ptx") == f"PTX OF ATTENTION_MERGE FOR {arch.upper()}"
    assert emulator_backend._text(kernel, "sm_80", "host") == text
    launched = []
    monkeypatch.setattr(emulation, "launch", lambda text, *arguments, **options: launched.append(text))
    for path in ("host", "ptx"):
        with emulator.settings(path=path):
            backends.get("emulator").run(Launch(kernel, 1, 128, 0), np.zeros(1), {})
    assert launched == [text, "PTX OF ATTENTION_MERGE FOR SM_80"]
    emulator_backend._text.cache_clear()
