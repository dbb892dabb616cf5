"""Runs one kernel through both paths of the emulator: the host headers, and NVRTC's PTX translated."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cupy_flash import emulator
from cupy_flash._src import source
from cupy_flash._src.compile import text_to_ptx
from cupy_flash._src.emulator.ptx import translate

Arrays = dict[str, np.ndarray]


def pointers(arrays: Arrays) -> bytes:
    """A `Params` that holds one pointer per array, in order."""
    return np.array([array.ctypes.data for array in arrays.values()], np.uint64).tobytes()


def cpp_of(path: str, name: str, virtual: Mapping[str, str], arch: str) -> str:
    """The C++ that executes a kernel by the path "host" or "ptx"; name and virtual as in `source.flatten`."""
    if path == "host":
        return source.flatten(name, virtual=virtual, search=(source.root() / "emulator", source.root()))
    return translate(text_to_ptx(source.flatten(name, virtual=virtual), name, arch))


def run_path(
    path: str,
    name: str,
    entry: str,
    arrays: Arrays,
    outputs: Sequence[str],
    *,
    virtual: Mapping[str, str] | None = None,
    arch: str = "sm_80",
    grid: Sequence[int] = (1,),
    block: Sequence[int] = (32,),
    shared_bytes: int = 0,
    pack: Callable[[Arrays], bytes] = pointers,
    **settings: object,
) -> Arrays:
    """Launch a kernel on copies of `arrays` by one path; its outputs, by name."""
    memory = {key: np.array(value, order="C") for key, value in arrays.items()}
    buffers = [emulator.Buffer(key, value.ctypes.data, value.nbytes, key in outputs) for key, value in memory.items()]
    text = cpp_of(path, name, virtual or {}, arch)
    with emulator.settings(**settings):
        emulator.launch(text, entry, grid, block, pack(memory), shared_bytes, buffers)
    return {key: memory[key] for key in outputs}


def run_both(*args: object, **kwargs: object) -> tuple[Arrays, Arrays]:
    """`run_path` by the host headers and by translated PTX."""
    return run_path("host", *args, **kwargs), run_path("ptx", *args, **kwargs)


def assert_same_bits(a: Arrays, b: Arrays) -> None:
    """Equal in every bit, NaN payloads aside."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        differs = a[name].view(f"u{a[name].itemsize}") != b[name].view(f"u{b[name].itemsize}")
        if a[name].dtype.kind == "f":
            differs &= ~(np.isnan(a[name]) & np.isnan(b[name]))
        where = np.argwhere(differs)
        assert not len(where), f"{name}[{where[0]}]: {a[name][differs][0]!r} != {b[name][differs][0]!r}"
