"""The ways to compute attention that are compared, each behind one adapter, all on the same memory.

An adapter's `load` raises where its library cannot be had; `bind` gives one case's calls. A library's tensors are views
of CuPy's arrays, through DLPack. Those of PyTorch run on CuPy's current stream; JAX has its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cupy_flash import __version__, flash_attention, flash_attention_backward
from cupy_flash._src.cli.bench.cases import Case, Inputs
from cupy_flash._src.cli.bench.machine import Machine
from cupy_flash._src.cli.bench.timing import HostTimer, Timer
from cupy_flash._src.problem import DTYPES

FROM_SOURCE = "build it from the folder hopper/ of github.com/Dao-AILab/flash-attention"
LEFT_OUT = {
    "FlashInfer": "it serves inference: no gradients, and for the forward the kernels of FlashAttention-2 and -3"
}
FAST, COMPILED, SLOW = range(3)  # turns: what compiles for each case waits for the others, what is slow for all


@dataclass
class Bound:
    """One case in one library.

    Attributes
    ----------
    forward : callable
        The output, as the library has it.
    saved : callable
        What a backward needs: the result of a forward that keeps it.
    backward : callable
        From `saved()` and a gradient of the output, as the library has it, to those of q, k and v.
    take, give : callable
        A CuPy array (B, H, S, D) as the library's tensor, and back; views both.
    """

    forward: Callable[[], Any]
    saved: Callable[[], Any]
    backward: Callable[[Any, Any], tuple[Any, Any, Any]]
    take: Callable[[Any], Any]
    give: Callable[[Any], Any]


class Method:
    """Base: the machine's own memory and stream.

    Attributes
    ----------
    name : str
        In the results.
    module, distribution : str
        What it imports, and what that is installed as; without the latter the module tells its version.
    install : str
        How to get it.
    turn : int
        When it is measured: `FAST`, `COMPILED` or `SLOW`.
    """

    name = ""
    module = ""
    distribution = ""
    install = ""
    turn = FAST

    def load(self) -> None:
        """Import what is needed, or raise."""

    @property
    def version(self) -> str:
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return "unknown"

    def on_stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context in which the library, too, launches on this CuPy stream."""
        return nullcontext()

    def bind(self, case: Case, x: Inputs) -> Bound:
        raise NotImplementedError

    def timer(self, machine: Machine) -> Timer:
        """What times its calls."""
        return machine.timer

    def peak_bytes(self, machine: Machine, call: Callable[[], Any]) -> int | None:
        """As `Machine.peak_bytes`, of what the library allocates."""
        return machine.peak_bytes(call)

    def release(self) -> None:
        """Give back the memory that the library caches, where it has a cache of its own."""


class Flash(Method):
    """This package."""

    name = "cupy_flash"
    install = 'pip install "cupy-flash[cuda13]"'

    def __init__(self, backend: str | None = None) -> None:
        self.backend, self.module = backend, "numpy" if backend else "cupy"

    @property
    def version(self) -> str:
        return __version__

    def bind(self, case: Case, x: Inputs) -> Bound:
        q, k, v, _ = x
        options: dict[str, Any] = {"causal": case.causal, "backend": self.backend}
        return Bound(
            forward=lambda: flash_attention(q, k, v, **options),
            saved=lambda: flash_attention(q, k, v, return_lse=True, **options),
            backward=lambda saved, dout: flash_attention_backward(dout, q, k, v, *saved, **options),
            take=lambda a: a,
            give=lambda a: a,
        )


class Standard(Method):
    """Standard attention by CuPy or NumPy: products in the storage type, the score matrix in memory."""

    turn = SLOW

    def __init__(self, library: str = "CuPy") -> None:
        self.name, self.module = f"standard ({library})", library.lower()
        self.install = 'pip install "cupy-flash[cuda13]"'

    def load(self) -> None:
        xp = import_module(self.module)
        xp.matmul(*xp.ones((2, 16, 16), xp.float16))  # CuPy needs cuBLAS

    @property
    def version(self) -> str:
        return import_module(self.module).__version__

    def bind(self, case: Case, x: Inputs) -> Bound:
        return standard(import_module(self.module), case, x)


def standard(xp: Any, case: Case, x: Inputs) -> Bound:
    """Attention by its definition with `xp`, cupy or numpy."""
    scale = case.head_dim**-0.5
    dtype = DTYPES[case.dtype]

    def grouped(a: Any) -> Any:
        return a.reshape(case.batch, case.heads_k, -1, *a.shape[2:])

    def ungrouped(a: Any) -> Any:
        return a.reshape(case.batch, -1, *a.shape[3:])

    q, k, v = grouped(x.q), grouped(x.k), grouped(x.v)
    if case.causal:
        i, j = xp.arange(case.seqlen_q)[:, None], xp.arange(case.seqlen_k)
        mask = xp.where(j > i + (case.seqlen_k - case.seqlen_q), dtype.type(-xp.inf), dtype.type(0))

    def probabilities() -> Any:
        s = xp.matmul(q, k.swapaxes(-1, -2))
        s *= dtype.type(scale)
        if case.causal:
            s += mask
        s -= s.max(-1, keepdims=True)
        xp.exp(s, out=s)
        s /= s.sum(-1, keepdims=True, dtype=xp.float32).astype(dtype)
        return s

    def backward(p: Any, dout: Any) -> tuple[Any, Any, Any]:
        do = grouped(dout)
        dv = xp.matmul(p.swapaxes(-1, -2), do)
        ds = xp.matmul(do, v.swapaxes(-1, -2))
        ds -= (p * ds).sum(-1, keepdims=True, dtype=xp.float32).astype(dtype)
        ds *= p
        ds *= dtype.type(scale)
        dk = xp.matmul(ds.swapaxes(-1, -2), q)
        if case.group > 1:
            dk, dv = (g.sum(2, keepdims=True) for g in (dk, dv))
        return tuple(ungrouped(g) for g in (xp.matmul(ds, k), dk, dv))

    return Bound(
        forward=lambda: ungrouped(xp.matmul(probabilities(), v)),
        saved=probabilities,
        backward=backward,
        take=lambda a: a,
        give=lambda a: a,
    )


def autograd_bound(
    attend: Callable[..., Any],
    x: Inputs,
    take: Callable[[Any], Any],
    give: Callable[[Any], Any],
    *,
    retain_graph: bool = False,
) -> Bound:
    """A PyTorch function of q, k, v; its graph serves one backward, or with `retain_graph` many."""
    torch = import_module("torch")
    plain = [take(a) for a in x[:3]]
    leaves = [t.detach().requires_grad_() for t in plain]

    def forward() -> Any:
        with torch.no_grad():
            return attend(*plain)

    return Bound(
        forward=forward,
        saved=lambda: attend(*leaves),
        backward=lambda out, dout: torch.autograd.grad(out, leaves, dout, retain_graph=retain_graph),
        take=take,
        give=give,
    )


class Torch(Method):
    """What all PyTorch methods share: DLPack, the stream, autograd, the memory statistics."""

    module, distribution, install = "torch", "torch", "pip install torch"

    def load(self) -> None:
        torch = import_module("torch")
        if not torch.cuda.is_available():
            raise RuntimeError("this PyTorch has no CUDA, or not for this driver")

    def on_stream(self, stream: Any) -> AbstractContextManager[Any]:
        torch = import_module("torch")
        return torch.cuda.stream(torch.cuda.ExternalStream(stream.ptr))

    def attend(self, case: Case, q: Any, k: Any, v: Any) -> Any:
        """The output of tensors (B, H, S, D)."""
        raise NotImplementedError

    def bind(self, case: Case, x: Inputs) -> Bound:
        torch = import_module("torch")
        half = {"float16": torch.float16, "bfloat16": torch.bfloat16}[case.dtype]

        def take(a: Any) -> Any:  # through int16: not every pair of versions passes bfloat16
            return torch.from_dlpack(a.view("int16")).view(half)

        def give(t: Any) -> Any:
            import cupy

            return cupy.from_dlpack(t.detach().view(torch.int16)).view(DTYPES[case.dtype])

        return autograd_bound(self.prepare(case), x, take, give, retain_graph=True)

    def prepare(self, case: Case) -> Callable[..., Any]:
        """The function of (q, k, v) for one case."""
        return lambda q, k, v: self.attend(case, q, k, v)

    def peak_bytes(self, machine: Machine, call: Callable[[], Any]) -> int | None:
        cuda = import_module("torch").cuda
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
        before = cuda.memory_allocated()
        result = call()
        cuda.synchronize()
        peak = cuda.max_memory_allocated() - before
        del result
        return peak

    def release(self) -> None:
        import_module("torch").cuda.empty_cache()


class Sdpa(Torch):
    """torch.nn.functional.scaled_dot_product_attention with one of its backends."""

    def __init__(self, name: str, backend: str) -> None:
        self.name, self.backend = f"torch {name}", backend
        self.turn = SLOW if name == "math" else FAST

    def load(self) -> None:
        super().load()
        getattr(import_module("torch.nn.attention").SDPBackend, self.backend)

    def attend(self, case: Case, q: Any, k: Any, v: Any) -> Any:
        attention, functional = import_module("torch.nn.attention"), import_module("torch.nn.functional")
        options = {"enable_gqa": True} if case.group > 1 else {}
        with attention.sdpa_kernel([getattr(attention.SDPBackend, self.backend)]):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=case.causal, **options)


class Flex(Torch):
    """torch.nn.attention.flex_attention, compiled for each case."""

    name = "FlexAttention"
    turn = COMPILED

    def load(self) -> None:
        super().load()
        import_module("torch.nn.attention.flex_attention")

    def prepare(self, case: Case) -> Callable[..., Any]:
        torch, flex = import_module("torch"), import_module("torch.nn.attention.flex_attention")
        torch._dynamo.reset()  # else it stops compiling after a few shapes
        compiled = torch.compile(flex.flex_attention, dynamic=False)
        options = {"enable_gqa": True} if case.group > 1 else {}
        if case.causal:
            options["block_mask"] = flex.create_block_mask(
                lambda b, h, i, j: i >= j, None, None, case.seqlen_q, case.seqlen_k, device="cuda"
            )
        return lambda q, k, v: compiled(q, k, v, **options)


class FlashAttentionFunc(Torch):
    """flash_attn_func of FlashAttention-3 or -4: tensors (B, S, H, D), which is how the memory lies."""

    def __init__(self, name: str, module: str, install: str, turn: int) -> None:
        self.name = self.distribution = name
        self.module, self.install, self.turn = module, install, turn

    def load(self) -> None:
        super().load()
        import_module(self.module)

    def attend(self, case: Case, q: Any, k: Any, v: Any) -> Any:
        out = import_module(self.module).flash_attn_func(
            *(t.transpose(1, 2) for t in (q, k, v)),
            causal=case.causal,
            num_splits=0 if case.direction == "decode" else 1,  # 0: by its own rule
        )
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)


class Jax(Method):
    """jax.nn.dot_product_attention with cuDNN: arrays (B, S, H, D), which is how the memory lies."""

    name = "jax cudnn"
    module, distribution, install = "jax", "jax", "pip install 'jax[cuda13]'"

    def load(self) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # it takes most of the GPU's memory otherwise
        jax = import_module("jax")
        if jax.default_backend() != "gpu":
            raise RuntimeError("this JAX has no CUDA")

    def bind(self, case: Case, x: Inputs) -> Bound:
        jax = import_module("jax")

        def take(a: Any) -> Any:
            return import_module("jax.dlpack").from_dlpack(a.swapaxes(1, 2))

        def give(a: Any) -> Any:
            import cupy

            return cupy.from_dlpack(jax.block_until_ready(a)).swapaxes(1, 2)

        def attend(q: Any, k: Any, v: Any) -> Any:
            return jax.nn.dot_product_attention(q, k, v, is_causal=case.causal, implementation="cudnn")

        q, k, v = (take(a) for a in x[:3])
        forward = jax.jit(attend)
        saved = jax.jit(lambda q, k, v: jax.vjp(attend, q, k, v)[1])
        backward = jax.jit(lambda vjp, dout: vjp(dout))
        return Bound(
            forward=lambda: forward(q, k, v),
            saved=lambda: saved(q, k, v),
            backward=backward,
            take=take,
            give=give,
        )

    def timer(self, machine: Machine) -> Timer:
        return HostTimer(import_module("jax").block_until_ready)

    def peak_bytes(self, machine: Machine, call: Callable[[], Any]) -> int | None:
        return None  # its statistics cannot be reset


def all_methods(backend: str) -> list[Method]:
    """Ours on this backend, and what it can be compared with there."""
    if backend != "cuda":
        return [Flash(backend), Standard("NumPy")]
    return [
        Flash(),
        Sdpa("flash", "FLASH_ATTENTION"),
        Sdpa("cudnn", "CUDNN_ATTENTION"),
        Sdpa("efficient", "EFFICIENT_ATTENTION"),
        Sdpa("math", "MATH"),
        Jax(),
        FlashAttentionFunc("flash-attn-3", "flash_attn_interface", FROM_SOURCE, FAST),
        FlashAttentionFunc("flash-attn-4", "flash_attn.cute", "pip install flash-attn-4", COMPILED),
        Flex(),
        Standard(),
    ]
