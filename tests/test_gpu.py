"""What only a device can show; the contract and the primitives run there too (`pytest -m gpu`)."""

import numpy as np
import pytest
from cases import Case
from conftest import require_gpu

from cupy_flash import flash_attention, flash_attention_vjp
from cupy_flash._src.cli.check import suite

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cupy():
    require_gpu()
    import cupy

    return cupy


def arrays_on(cupy, case):
    return [cupy.asarray(x) for x in case.arrays()]


@pytest.mark.parametrize(
    "name", [name for name in suite.checks("cuda") if name.startswith(("repeats: ", "stream: ", "graph: "))]
)
def test_bits_repeat_and_streams_and_graphs_are_kept_to(cupy, name):
    """What `python -m cupy_flash check` asks a GPU for."""
    suite.perform("cuda", name)


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
