"""What only a device can show; the contract and the primitives run there too (`pytest -m gpu`)."""

import numpy as np
import pytest
from cases import Case
from conftest import require_gpu

from cupy_flash import flash_attention, flash_attention_backward, flash_attention_vjp

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cupy():
    require_gpu()
    import cupy

    return cupy


def arrays_on(cupy, case):
    return [cupy.asarray(x) for x in case.arrays()]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_deterministic_over_100_repeats(cupy, dtype):
    q, k, v, dout, dlse = arrays_on(cupy, Case(dtype=dtype, heads_k=2, group=4, sq=777, sk=1000, causal=True))
    options = {"causal": True, "deterministic": True}
    (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, **options)
    first = [x.view(np.uint8).copy() for x in (out, lse, *vjp(dout, dlse))]
    for _ in range(99):
        (out, lse), vjp = flash_attention_vjp(q, k, v, return_lse=True, **options)
        for x, y in zip(first, (out, lse, *vjp(dout, dlse)), strict=True):
            assert (x == y.view(np.uint8)).all()


def test_launches_go_to_the_current_stream(cupy):
    """The kernel waits for a slow one before it on its stream, and sees what was copied in between."""
    wait = cupy.RawKernel(
        'extern "C" __global__ void wait(long long n) { for (long long t = clock64(); clock64() - t < n;); }', "wait"
    )
    q, k, v, *_ = arrays_on(cupy, Case(heads_k=4, sq=300, sk=300))
    expected = flash_attention(q, k, v)
    source = cupy.zeros_like(q)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        wait((1,), (1,), (np.int64(200_000_000),))
        source[...] = q
        out = flash_attention(source, k, v)
        assert not stream.done  # the call came back while the stream still waits: no synchronisation
    stream.synchronize()
    assert (out == expected).all()


@pytest.mark.parametrize("deterministic", [False, True])
def test_forward_and_backward_are_captured_into_a_graph(cupy, deterministic):
    """CuPy refuses to synchronise or to transfer while it captures; the replay reads the inputs anew."""
    q, k, v, dout, _ = arrays_on(cupy, Case(dtype="float16", heads_k=2, sq=200, sk=200, causal=True))

    def step():
        out, lse = flash_attention(q, k, v, causal=True, return_lse=True)
        return out, *flash_attention_backward(dout, q, k, v, out, lse, causal=True, deterministic=deterministic)

    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc), stream:
        step()  # compiles, and fills the memory pool
        stream.begin_capture()
        captured = step()
        graph = stream.end_capture()
        q *= 2
        graph.launch(stream)
        stream.synchronize()
        for x, y in zip(captured, step(), strict=True):
            cupy.testing.assert_allclose(x, y, rtol=0 if deterministic else 2e-3, atol=0 if deterministic else 2e-3)


def test_dlpack_arrays(cupy):
    class Foreign:
        def __init__(self, x):
            self.x = x

        def __dlpack__(self, **options):
            return self.x.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.x.__dlpack_device__()

    for dtype in ("float16", "bfloat16"):
        q, *_ = arrays_on(cupy, Case(dtype=dtype, sq=40, sk=40))
        out = flash_attention(Foreign(q), Foreign(q), Foreign(q))
        assert type(out) is cupy.ndarray
        assert (out == flash_attention(q, q, q)).all()


def test_out_is_a_view(cupy):
    q, k, v, *_ = arrays_on(cupy, Case(heads_k=2, sq=40, sk=50))
    packed = cupy.full((40, 2, 2, 64), cupy.nan, cupy.float32)
    out = packed[:, :, 0].swapaxes(0, 1)
    assert flash_attention(q, k, v, out=out) is out
    assert (out == flash_attention(q, k, v)).all()
    assert cupy.isnan(packed[:, :, 1]).all()
    with pytest.raises(ValueError, match="out overlaps q"):
        flash_attention(q, k, v, out=q[::-1, :, :])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_offsets_past_2_to_31_elements(cupy, dtype):
    free, _ = cupy.cuda.runtime.memGetInfo()
    stride = 2**31 + 64
    if free < (stride + 2**20) * np.dtype(dtype).itemsize:
        pytest.skip(f"needs {stride * np.dtype(dtype).itemsize / 2**30:.0f} GiB of device memory")
    memory = cupy.empty(stride + 2**20, dtype)
    view = cupy.lib.stride_tricks.as_strided(
        memory, (2, 100, 64), (stride * memory.itemsize, 64 * memory.itemsize, memory.itemsize)
    )
    view[...] = cupy.asarray(np.random.default_rng(0).standard_normal(view.shape))
    compact = view.copy()
    assert (flash_attention(view, view, view) == flash_attention(compact, compact, compact)).all()


def test_another_gpu_than_the_current_one(cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    case = Case(batch=(2,), batch_k=(1,), heads_k=2, sq=40, sk=50)
    with cupy.cuda.Device(1):
        q, k, v, dout, _ = arrays_on(cupy, case)
    out, vjp = flash_attention_vjp(q, k, v)
    assert out.device.id == 1 and {g.device.id for g in vjp(dout)} == {1}
    with pytest.raises(ValueError, match="k is on GPU 0, q on GPU 1"):
        flash_attention(q, cupy.zeros_like(cupy.asarray(np.asarray(k.get()))), v)


def test_arrays_with_the_cuda_array_interface(cupy):
    class Foreign:
        def __init__(self, x):
            self.__cuda_array_interface__ = x.__cuda_array_interface__

    q, *_ = arrays_on(cupy, Case(sq=40, sk=40))
    out = flash_attention(Foreign(q), Foreign(q), Foreign(q))
    assert type(out) is cupy.ndarray
    assert (out == flash_attention(q, q, q)).all()


def test_numpy_and_cupy_arrays_do_not_mix(cupy):
    x = np.ones((4, 8), np.float32)
    with pytest.raises(TypeError, match="k is a NumPy array: backend 'cuda' takes CuPy arrays only"):
        flash_attention(cupy.asarray(x), x, x)
    with pytest.raises(TypeError, match="q is a CuPy array: backend 'cpu' takes NumPy arrays only"):
        flash_attention(cupy.asarray(x), x, x, backend="cpu")
