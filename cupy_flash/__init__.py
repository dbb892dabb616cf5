"""FlashAttention for CuPy and NumPy: raw CUDA C kernels, JIT-compiled, with a manually derived backward.

flash_attention             attention of arrays shaped (..., heads, sequence, head_dim)
flash_attention_vjp         the same, and a function that gives its gradients
flash_attention_backward    the gradients alone
merge_attention             attention over two sets of keys from the attention over each
attention_reference         the standard attention, with the whole score matrix, and attention_reference_backward
block_mask                  the blocks that a mask's function shows, found once for many calls
mods                        the module of ready functions for score_mod and mask_mod
emulator                    the module that runs the CUDA kernels on a CPU, checks them and counts what they do
tuning                      the module that sets the kernels' tiles by hand

On the command line: python -m cupy_flash --help. Environment variables: CUPY_FLASH_CACHE_DIR (where
compiled code is kept), CUPY_FLASH_CACHE_LIMIT (how much of it), CUPY_FLASH_COMPILE=lazy (nothing at import),
CUPY_FLASH_CPU_TIER (native or numpy), CUPY_FLASH_NUM_THREADS (of the CPU backend) and CXX (the C++ compiler).
"""

from cupy_flash import emulator as emulator
from cupy_flash import mods as mods
from cupy_flash import tuning as tuning
from cupy_flash._src.api import flash_attention, flash_attention_backward, flash_attention_vjp, merge_attention
from cupy_flash._src.block_mask import block_mask
from cupy_flash._src.reference import attention_reference, attention_reference_backward
from cupy_flash._src.startup import compile_core_kernels

__version__ = "0.1.0"
__all__ = [
    "attention_reference",
    "attention_reference_backward",
    "block_mask",
    "flash_attention",
    "flash_attention_backward",
    "flash_attention_vjp",
    "merge_attention",
]

compile_core_kernels()
