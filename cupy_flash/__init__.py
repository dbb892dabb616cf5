"""FlashAttention for CuPy and NumPy: raw CUDA C kernels, JIT-compiled, with a manually derived backward."""

from cupy_flash.api import flash_attention, flash_attention_backward, flash_attention_vjp, merge_attention
from cupy_flash.reference import attention_reference, attention_reference_backward
from cupy_flash.startup import compile_core_kernels

__version__ = "0.1.0"
__all__ = [
    "attention_reference",
    "attention_reference_backward",
    "flash_attention",
    "flash_attention_backward",
    "flash_attention_vjp",
    "merge_attention",
]

compile_core_kernels()
