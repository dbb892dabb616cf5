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
    """A copy made on the stream is seen by the kernel launched after it, with nothing else to order them."""
    q, k, v, *_ = arrays_on(cupy, Case(heads_k=4, sq=300, sk=300))
    expected = flash_attention(q, k, v)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        source = cupy.zeros_like(q)
        source[...] = q  # ordered before the kernel only if both are on this stream
        out = flash_attention(source, k, v)
    stream.synchronize()
    assert (out == expected).all()


def test_forward_and_backward_are_captured_into_a_graph(cupy):
    """Capture fails on any synchronisation or host transfer; the replay reads the inputs anew."""
    q, k, v, dout, _ = arrays_on(cupy, Case(dtype="float16", heads_k=2, sq=200, sk=200, causal=True))

    def step():
        out, lse = flash_attention(q, k, v, causal=True, return_lse=True)
        return out, *flash_attention_backward(dout, q, k, v, out, lse, causal=True, deterministic=True)

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        step()  # compiles, and fills the memory pool
        stream.begin_capture()
        captured = step()
        graph = stream.end_capture()
        q *= 2
        graph.launch(stream)
    stream.synchronize()
    for x, y in zip(captured, step(), strict=True):
        assert (x == y).all()


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
