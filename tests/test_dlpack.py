"""bfloat16 of other libraries, on the CPU: a library of a few lines exports real capsules, as the DLPack header has it.

Its structures are written out again here: what the backends' `dlpack` believes of them must not be its own proof.
"""

import ctypes
import gc
import itertools

import ml_dtypes
import numpy as np
import pytest

from cupy_flash import flash_attention, flash_attention_backward, flash_attention_vjp, merge_attention
from cupy_flash._src.backends import select

I64P = ctypes.POINTER(ctypes.c_int64)
DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class DLDevice(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int), ("device_id", ctypes.c_int32))


class DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device", DLDevice), ("ndim", ctypes.c_int32), ("dtype", DLDataType),
        ("shape", I64P), ("strides", I64P), ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


class DLManagedTensor(ctypes.Structure):
    _fields_ = (("dl_tensor", DLTensor), ("manager_ctx", ctypes.c_void_p), ("deleter", DELETER))


EXPORTED = {}  # by the address of a DLManagedTensor: it and its memory, until it is deleted
DELETED = []


@DELETER
def delete(address):
    DELETED.append(EXPORTED.pop(address)[1])


@DESTRUCTOR
def destroy(capsule):
    if is_valid(capsule, b"dltensor"):
        managed = DLManagedTensor.from_address(pointer_of(capsule, b"dltensor"))
        managed.deleter(ctypes.addressof(managed))


class Foreign:
    """An array of the library: a NumPy array underneath, of which it tells `offset` bytes apart from the address."""

    def __init__(self, x, *, code=4, lanes=1, strides=True, offset=0, device=1, name=b"dltensor", destroy=destroy):
        self.x, self.dtype, self.strides, self.offset = x, DLDataType(code, 8 * x.itemsize, lanes), strides, offset
        self.device, self.name, self.destroy = DLDevice(device, 0), name, destroy

    def __dlpack_device__(self):
        return self.device.device_type, 0

    def __dlpack__(self, *, stream=None, **new):
        if new:  # as libraries before DLPack 1.0 do, and what NumPy then asks again without
            raise TypeError(f"unknown options {new}")
        x = self.x
        numbers = ctypes.c_int64 * max(x.ndim, 1)
        shape, strides = numbers(*x.shape), numbers(*(n // x.itemsize for n in x.strides))
        tensor = DLTensor(
            x.ctypes.data - self.offset, self.device, x.ndim, self.dtype, ctypes.cast(shape, I64P),
            ctypes.cast(strides, I64P) if self.strides else None, self.offset,
        )  # fmt: skip
        managed = DLManagedTensor(tensor, None, delete)
        EXPORTED[ctypes.addressof(managed)] = managed, x, shape, strides
        return new_capsule(ctypes.addressof(managed), self.name, ctypes.cast(self.destroy, ctypes.c_void_p))


@pytest.fixture(autouse=True)
def exports():
    gc.collect()
    assert not EXPORTED
    DELETED.clear()
    yield
    gc.collect()
    assert not EXPORTED, "a deleter was not called"


def bfloat16(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(ml_dtypes.bfloat16)


def taken(x, **how):
    return select("cpu", q=Foreign(x, **how))[1][0]


VIEWS = {
    "contiguous": np.s_[:],
    "a part of rows": np.s_[:, 2:, 3:9],
    "every second column": np.s_[:, :, 1::2],
    "backwards": np.s_[::-1, ::-1],
    "one row": np.s_[1:2, 3:4],
    "nothing": np.s_[:0],
    "one number": np.s_[1, 2, 3],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("offset", [0, 64])
def test_values_and_strides_are_the_exporters(view, offset):
    x = bfloat16(3, 8, 12)[VIEWS[view]]
    x = x if isinstance(x, np.ndarray) else np.array(x)
    array = taken(x, offset=offset)
    assert type(array) is np.ndarray and array.dtype == ml_dtypes.bfloat16
    assert array.shape == x.shape and (not x.size or array.strides == x.strides)
    np.testing.assert_array_equal(array, x)
    assert not x.size or array.ctypes.data == x.ctypes.data
    assert not array.flags.writeable


def test_no_strides_mean_rows_one_after_another():
    x = bfloat16(3, 8, 12)
    array = taken(x, strides=False, offset=24)
    assert array.strides == x.strides
    np.testing.assert_array_equal(array, x)


def test_the_memory_is_the_arrays_until_it_dies():
    x = bfloat16(4, 8)
    array = taken(x)
    part = array[1:, ::2]
    del array
    gc.collect()
    assert not DELETED
    np.testing.assert_array_equal(part, x[1:, ::2])
    del part
    gc.collect()
    assert len(DELETED) == 1 and DELETED[0] is x


def test_a_vjp_keeps_what_it_needs():
    x, dout = bfloat16(2, 4, 8), bfloat16(2, 4, 8, seed=1)
    expected = flash_attention_vjp(x, x, x)[1](dout)
    _, vjp = flash_attention_vjp(Foreign(x), Foreign(x), Foreign(x))
    gc.collect()
    for grad, exact in zip(vjp(Foreign(dout)), expected, strict=True):
        np.testing.assert_array_equal(grad, exact)


def test_every_call_takes_it(on):
    if on.name == "cuda":
        pytest.skip("on the CPU")
    q, k, v, dout = (bfloat16(2, n, 16, seed=n)[:, :, :] for n in (9, 30, 30, 9))
    options = {"causal": True, "backend": on.name}
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    foreign = [Foreign(x.swapaxes(0, 1).copy().swapaxes(0, 1), offset=2 * i) for i, x in enumerate((q, k, v))]
    results = flash_attention(*foreign, return_lse=True, **options)
    expected = flash_attention_backward(dout, q, k, v, out, lse, **options)
    grads = flash_attention_backward(Foreign(dout), *foreign, Foreign(out), lse, **options)
    merged = merge_attention(out, lse, out[:, ::-1], lse, backend=on.name)
    again = merge_attention(Foreign(out), lse, Foreign(out[:, ::-1]), lse, backend=on.name)
    for x, y in itertools.chain(
        zip(results, (out, lse), strict=True), zip(grads, expected, strict=True), zip(again, merged, strict=True)
    ):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_other_dtypes_go_by_numpy():
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    array = taken(x, code=2)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, x)


@pytest.mark.parametrize(("how", "message"), [
    ({"lanes": 2}, "q is a Foreign that NumPy cannot take: Unsupported"),
    ({"x": np.zeros((4, 8), np.float32)}, "q is a Foreign that NumPy cannot take: Unsupported"),  # a bfloat of 32 bits
    ({"code": 17}, "q is a Foreign that NumPy cannot take: Unsupported"),
    ({"name": b"tensor"}, "q is a Foreign that NumPy cannot take: "),
    ({"device": 8}, "q is on a device of DLPack type 8"),
])  # fmt: skip
def test_what_is_no_bfloat16_is_named(how, message):
    # Without destructors: NumPy calls them while its error is pending, which only those written in C survive.
    with pytest.raises(TypeError, match=message):
        taken(**{"x": bfloat16(4, 8), "destroy": None, **how})
    EXPORTED.clear()


def test_an_exporters_own_objection_is_told():
    class Stubborn(Foreign):
        def __dlpack__(self, **options):
            raise BufferError("detach it first")

    with pytest.raises(TypeError, match="q is a Stubborn that NumPy cannot take: detach it first"):
        select("cpu", q=Stubborn(bfloat16(4, 8)))
