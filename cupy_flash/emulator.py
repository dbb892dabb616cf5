"""Executes the CUDA kernels on the CPU, each CUDA thread a fiber, with checks that no GPU gives.

Any call with ``backend="emulator"`` or, after the GPU to stand for, ``backend="emulator:sm_80"`` runs in it.
`settings` says how: ``mode="checked"`` finds races, uninitialised shared memory, accesses out of bounds, misaligned
vectors and barriers that not all threads reach, and raises an `EmulatorError` that names the line and the threads;
``path="ptx"`` executes the instructions that NVRTC makes; ``arithmetic="hardware"`` has errors as large as a GPU's may
be in ex2, lg2 and the sums of tensor cores. `last_run` tells what the kernels of the last call did: bytes by buffer and
line, bank conflicts, barriers, tensor-core instructions. `launch` runs any CUDA source.

Examples
--------
>>> import numpy as np
>>> from cupy_flash import emulator, flash_attention
>>> q = np.ones((1, 64, 64), np.float16)
>>> with emulator.settings(mode="checked"):
...     out = flash_attention(q, q, q, backend="emulator:sm_80")
>>> emulator.last_run().total("mma")
256
"""

from cupy_flash._src.emulator import *  # noqa: F403
from cupy_flash._src.emulator import __all__ as __all__
