"""What a call hands to the driver through CuPy's own code, and `benchmarks/overhead.py`, on a machine without a GPU."""

import os

import processes
import pytest

pytest.importorskip("cupy", reason="CuPy comes with the extra cuda13")

PATH = os.pathsep.join(str(processes.ROOT / folder) for folder in ("", "benchmarks"))

HANDED_OVER = """
import ctypes
import driverless
import cupy, numpy as np
from cupy_flash import flash_attention, flash_attention_backward, flash_attention_vjp, merge_attention
from cupy_flash._src.backends.cupy_ import CupyBackend
from cupy_flash._src.params import layout

run, steps, seen = CupyBackend.run, [], []

def noted(self, step, params, tensors):
    steps.append((step, params, tensors))
    run(self, step, params, tensors)

def received(grid, block, shared_bytes, arguments):
    step, params, tensors = steps[-1]
    assert len(seen) == len(steps) - 1
    address = ctypes.c_void_p.from_address(arguments).value
    assert (grid, block, shared_bytes) == (step.grid, step.block, step.shared_bytes) and address % 8 == 0
    entry = step.kernel.entry
    if entry in ("attention_forward", "attention_combine"):
        struct = "ForwardParams"
    elif entry == "attention_merge":
        struct = "MergeParams"
    else:
        struct = "SealParams" if {"query_digests", "changed"} & set(tensors) else "BackwardParams"
    structure = layout(struct, step.kernel.parts)
    assert params.dtype.names is None and params.nbytes >= structure.itemsize  # another kernel's may be longer
    handed = ctypes.string_at(address, params.nbytes)
    assert handed == params.tobytes()
    found = np.frombuffer(handed, structure, 1)[0]
    for name in set(structure.names) - {"shape", "schedule", "components"}:
        memory = getattr(tensors.get(name), "data", tensors.get(name))  # of an array; scratch is no array
        assert found[name]["data"] == getattr(memory, "ptr", 0), (entry, name)
    seen.append((entry, found))

CupyBackend.run, driverless.on_launch = noted, received
large, q, k = (cupy.empty((2, heads, 300, 64), np.float16) for heads in (64, 4, 2))
ends = sorted((x.data.ptr, x.data.ptr + x.nbytes) for x in (large, q, k))
assert all(end <= begin for (_, end), (begin, _) in zip(ends, ends[1:]))
(out, lse), vjp = flash_attention_vjp(q, k, k, causal=True, return_lse=True)
vjp(q)
flash_attention_backward(q, q, k, k, out, lse, deterministic=True)
merge_attention(out, lse, out, lse)
flash_attention(q[:, :, :1], k, k, scale=0.5)
assert seen[-1][1]["components"]["ScaleParams"]["scale"] == 0.5
q, k = (cupy.empty((1, 1024, n, 32), np.float32) for n in (64, 70000))
seen.clear(), steps.clear()
flash_attention(q, k, k)
print([int(found["schedule"]["span"]) for entry, found in seen if entry == "attention_forward"])
"""

OVERHEAD = """
import itertools, sys
import overhead
overhead.perf_counter = itertools.count().__next__
sys.argv = ["overhead.py", "--repeat", "2", "--calls", "3"]
overhead.main()
"""


def test_cupy_takes_the_parameters_as_they_are_packed():
    """Each kernel's one argument is the structure that it declares, by value, with the addresses of CuPy's arrays."""
    spans, failures = processes.python(HANDED_OVER, PYTHONPATH=PATH)
    assert (spans, failures) == ("[0, 1, 2]\n", "")  # ctypes prints what fails where C calls Python, and goes on


def test_the_benchmark_counts_from_a_call_to_its_first_kernel_and_its_return():
    """By a clock that goes on by a second each time that it is read: at the beginning, the first kernel and the end."""
    table, _ = processes.python(OVERHEAD, PYTHONPATH=PATH)
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len(head) == len(rows[0])
    kernels = {label: int(count) for label, count, *_ in rows}
    expected = {"forward": 1, "merge": 1, "backward": 3, "backward, deterministic": 3}
    assert expected.items() <= kernels.items()
    assert {tuple(times) for _, _, *times in rows} == {("1000000.0", "1000000.0", "2000000.0", "2000000.0")}
