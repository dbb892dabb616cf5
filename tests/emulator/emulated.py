"""Runs small kernels in the emulator."""

import ctypes

import numpy as np

from cupy_flash import emulator
from cupy_flash._src.source import flatten, root


def host_source(kernel, name="kernel.cu"):
    """The kernel's text with the host headers it includes in it."""
    return flatten(name, virtual={name: kernel}, search=[root() / "emulator", root()])


def line_of(source, text):
    """The number of the only line that contains `text`."""
    (number,) = (i for i, line in enumerate(source.splitlines(), 1) if text in line)
    return number


def pack(arguments):
    """The bytes of a parameter structure with these members in order; an array becomes a pointer."""
    values = {
        name: np.uint64(value.ctypes.data) if isinstance(value, np.ndarray) else np.asarray(value)[()]
        for name, value in arguments.items()
    }
    layout = np.dtype([(name, value.dtype) for name, value in values.items()], align=True)
    return np.array(tuple(values.values()), layout).tobytes()


def run(kernel, arguments, *, entry="kernel", outputs=("out",), grid=(1,), block=(32,), shared=0, **settings):
    """Run a kernel whose ``Params`` has the members `arguments`; arrays not in `outputs` are read-only."""
    buffers = [
        emulator.Buffer(name, value.ctypes.data, value.nbytes, name in outputs)
        for name, value in arguments.items()
        if isinstance(value, np.ndarray)
    ]
    with emulator.settings(**settings):
        return emulator.launch(host_source(kernel), entry, grid, block, pack(arguments), shared, buffers)


def aligned(shape, dtype, alignment=64):
    """Zeros at an aligned address, as a GPU's allocator gives it."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(count + alignment, np.uint8)
    offset = -memory.ctypes.data % alignment
    return memory[offset : offset + count].view(dtype).reshape(shape)


def reserve(nbytes):
    """The address of so many bytes of address space; only what is touched takes memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    private_anonymous_noreserve = 0x4022
    return libc.mmap(None, nbytes, 3, private_anonymous_noreserve, -1, 0)
