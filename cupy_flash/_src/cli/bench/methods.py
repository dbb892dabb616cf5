"""The ways to compute attention that are compared, each behind one adapter, all on the same memory.

An adapter's `load` raises where its library cannot be had; `bind` gives one case's calls. A library's tensors are views
of CuPy's arrays, through DLPack. Those of PyTorch run on CuPy's current stream; JAX has its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cupy_flash import __version__, flash_attention, flash_attention_backward
from cupy_flash._src.cli.bench import options
from cupy_flash._src.cli.bench.cases import Case, Inputs
from cupy_flash._src.cli.bench.machine import Machine
from cupy_flash._src.cli.bench.timing import HostTimer, Timer
from cupy_flash._src.problem import DTYPES

FROM_SOURCE = "build it from the folder hopper/ of github.com/Dao-AILab/flash-attention"
LEFT_OUT = {
    "FlashInfer": "it serves inference: no gradients, and for the forward the kernels of FlashAttention-2 and -3"
}
MASKS = ("", "window", "documents", "alibi", "lengths", "bias")  # options that are masks, or numbers added to scores
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
        From `saved()` and a gradient of the output, as the library has it, to those of `options.wrt`.
    take, give : callable
        A CuPy array (B, H, S, D) as the library's tensor, and back; views both.
    give_option : callable, optional
        The same as `give` of gradients of options, where these lie otherwise.
    """

    forward: Callable[[], Any]
    saved: Callable[[], Any]
    backward: Callable[[Any, Any], Sequence[Any]]
    take: Callable[[Any], Any]
    give: Callable[[Any], Any]
    give_option: Callable[[Any], Any] | None = None


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
    kinds : collection of str
        Of `options.KINDS` those that it has.
    """

    name = ""
    module = ""
    distribution = ""
    install = ""
    turn = FAST
    kinds: Collection[str] = tuple(options.KINDS)

    def takes(self, case: Case) -> bool:
        """Whether it has the case's option."""
        return options.named(case.option).kind in self.kinds

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


def namespace(x: Inputs) -> Any:
    """numpy or cupy, of which the inputs are."""
    return import_module(type(x.q).__module__.partition(".")[0])


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
        given, wrt = options.given(case, namespace(x)) | {"backend": self.backend}, options.wrt(case)
        return Bound(
            forward=lambda: flash_attention(q, k, v, **given),
            saved=lambda: flash_attention(q, k, v, return_lse=True, **given),
            backward=lambda saved, dout: flash_attention_backward(dout, q, k, v, *saved, **given, wrt=wrt),
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
    scale, option = case.head_dim**-0.5, options.named(case.option)
    dtype = DTYPES[case.dtype]
    split = (case.heads_k, case.group)

    def grouped(a: Any) -> Any:
        return a.reshape(case.batch, case.heads_k, -1, *a.shape[2:])

    def ungrouped(a: Any) -> Any:
        return a.reshape(case.batch, -1, *a.shape[3:])

    q, k, v = grouped(x.q), grouped(x.k), grouped(x.v)
    shown, bias = options.seen(xp, case), options.added(xp, case)
    sinks = options.learned(case, xp).get("sinks")
    if shown is not None:
        hidden = xp.where(shown, dtype.type(0), dtype.type(-xp.inf))
        hidden = hidden[:, :, None] if hidden.ndim == 4 else hidden

    def probabilities(*, differentiated: bool) -> tuple[Any, Any, Any]:
        """And, for a backward, the slope of the scores that they are of, where it is not 1, and the sinks' share."""
        s = xp.matmul(q, k.swapaxes(-1, -2))
        s *= dtype.type(scale)
        s = option.score(s)
        slope = option.slope(s) if differentiated else None
        if bias is not None:
            s += bias.reshape(*split, *bias.shape[1:])
        if shown is not None:
            s += hidden
        largest = s.max(-1, keepdims=True)
        if sinks is not None:
            largest = xp.maximum(largest, sinks.reshape(*split, 1, 1))
        s -= largest
        xp.exp(s, out=s)
        total, share = s.sum(-1, keepdims=True, dtype=xp.float32), None
        if sinks is not None:
            share = xp.exp(sinks.reshape(*split, 1, 1) - largest)
            total += share
            share = share / total
        s /= total.astype(dtype)
        return s, slope, share

    def backward(saved: Any, dout: Any) -> list[Any]:
        (p, slope, share), do = saved, grouped(dout)
        dv = xp.matmul(p.swapaxes(-1, -2), do)
        ds = xp.matmul(do, v.swapaxes(-1, -2))
        delta = (p * ds).sum(-1, keepdims=True, dtype=xp.float32)
        ds -= delta.astype(dtype)
        ds *= p
        learned = []
        if option.kind == "bias":
            learned.append(ungrouped(ds).sum(0, keepdims=True, dtype=xp.float32).astype(dtype))
        if sinks is not None:
            learned.append(-(share * delta).sum((0, 3, 4)).reshape(-1).astype(dtype))
        if slope is not None:
            ds *= slope
        ds *= dtype.type(scale)
        dk = xp.matmul(ds.swapaxes(-1, -2), q)
        if case.group > 1:
            dk, dv = (g.sum(2, keepdims=True) for g in (dk, dv))
        return [*(ungrouped(g) for g in (xp.matmul(ds, k), dk, dv)), *learned]

    return Bound(
        forward=lambda: ungrouped(xp.matmul(probabilities(differentiated=False)[0], v)),
        saved=lambda: probabilities(differentiated=True),
        backward=backward,
        take=lambda a: a,
        give=lambda a: a,
    )


def autograd_bound(
    attend: Callable[..., Any],
    x: Inputs,
    take: Callable[[Any], Any],
    give: Callable[[Any], Any],
    learned: Iterable[Any] = (),
    *,
    retain_graph: bool = False,
) -> Bound:
    """A PyTorch function of q, k, v and what is learned; its graph serves one backward, or with `retain_graph` many."""
    torch = import_module("torch")
    plain = [take(a) for a in (*x[:3], *learned)]
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

    def bind(self, case: Case, x: Inputs) -> Bound:
        torch = import_module("torch")
        half = {"float16": torch.float16, "bfloat16": torch.bfloat16}[case.dtype]

        def take(a: Any) -> Any:  # through int16: not every pair of versions passes bfloat16
            return torch.from_dlpack(a.view("int16")).view(half)

        def give(t: Any) -> Any:
            import cupy

            return cupy.from_dlpack(t.detach().view(torch.int16)).view(DTYPES[case.dtype])

        xp = namespace(x)
        learned = options.learned(case, xp).values()
        return autograd_bound(self.prepare(case, xp, take), x, take, give, learned, retain_graph=True)

    def prepare(self, case: Case, xp: Any, take: Callable[[Any], Any]) -> Callable[..., Any]:
        """The function for one case, of tensors q, k, v (B, H, S, D) and of `options.learned`.

        `xp` makes arrays that PyTorch can `take`.
        """
        raise NotImplementedError

    @staticmethod
    def bools(a: Any) -> Any:
        """A CuPy array of bools as a tensor: not every version passes them."""
        torch = import_module("torch")
        return torch.from_dlpack(a.view("uint8")).view(torch.bool)

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
    """torch.nn.functional.scaled_dot_product_attention with one of its backends; all but flash take a mask."""

    def __init__(self, name: str, backend: str) -> None:
        self.name, self.backend = f"torch {name}", backend
        self.turn = SLOW if name == "math" else FAST
        self.kinds = ("",) if name == "flash" else MASKS

    def load(self) -> None:
        super().load()
        getattr(import_module("torch.nn.attention").SDPBackend, self.backend)

    def prepare(self, case: Case, xp: Any, take: Callable[[Any], Any]) -> Callable[..., Any]:
        attention, functional = import_module("torch.nn.attention"), import_module("torch.nn.functional")
        given: dict[str, Any] = {"enable_gqa": True} if case.group > 1 else {}
        if case.option and not options.named(case.option).learned(case):
            mask = options.attn_mask(xp, case)
            given["attn_mask"] = self.bools(mask) if mask.dtype == bool else take(mask)
        else:
            given["is_causal"] = case.causal

        def attend(q: Any, k: Any, v: Any, bias: Any = None) -> Any:
            mask = given if bias is None else given | {"attn_mask": bias}
            with attention.sdpa_kernel([getattr(attention.SDPBackend, self.backend)]):
                return functional.scaled_dot_product_attention(q, k, v, **mask)

        return attend


class Flex(Torch):
    """torch.nn.attention.flex_attention, compiled for each case."""

    name = "FlexAttention"
    turn = COMPILED

    def load(self) -> None:
        super().load()
        import_module("torch.nn.attention.flex_attention")

    def prepare(self, case: Case, xp: Any, take: Callable[[Any], Any]) -> Callable[..., Any]:
        torch, flex = import_module("torch"), import_module("torch.nn.attention.flex_attention")
        torch._dynamo.reset()  # else it stops compiling after a few shapes
        given: dict[str, Any] = {"enable_gqa": True} if case.group > 1 else {}
        option = options.named(case.option)
        names = tuple(option.learned(case))
        constant = [name for name in option.takes if name not in ("mask", *names)]
        arrays = {name: torch.from_dlpack(options.arrays_of(case, xp)[name]) for name in constant}
        if case.causal or option.definition in ("window", "documents", "lengths"):
            given["block_mask"] = flex.create_block_mask(
                lambda b, h, i, j: option.shown(case, arrays, b, i, j),
                case.batch if option.kind == "lengths" else None, None, case.seqlen_q, case.seqlen_k, device="cuda",
            )  # fmt: skip
        if option.kind == "sinks":
            given["return_aux"] = flex.AuxRequest(lse=True)

        def attend(q: Any, k: Any, v: Any, *learned: Any) -> Any:
            known = arrays | dict(zip(names, learned, strict=True))

            def score(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
                bias = option.bias(case, known, h, i, j)
                return option.score(s) if bias is None else s + bias

            scored = {"score_mod": score} if option.definition in ("softcap", "alibi", "bias") else {}
            out = flex.flex_attention(q, k, v, **given, **scored)
            if option.kind == "sinks":
                out, more = out
                share = torch.sigmoid(more.lse - known["sinks"][:, None])  # exp(lse) / (exp(lse) + exp(sink))
                out = out * share[..., None].to(out.dtype)
            return out

        return torch.compile(attend, dynamic=False)


class FlashAttentionFunc(Torch):
    """flash_attn_func of FlashAttention-3 or -4: tensors (B, S, H, D), which is how the memory lies."""

    def __init__(self, name: str, module: str, install: str, turn: int, *more: str) -> None:
        self.name = self.distribution = name
        self.module, self.install, self.turn = module, install, turn
        self.kinds = ("", "window", "softcap", *more)

    def load(self) -> None:
        super().load()
        import_module(self.module)

    def prepare(self, case: Case, xp: Any, take: Callable[[Any], Any]) -> Callable[..., Any]:
        torch, function = import_module("torch"), import_module(self.module).flash_attn_func
        names = {"window": "window_size", "softcap": "softcap"}
        given: dict[str, Any] = {names[name]: value for name, value in options.named(case.option).values().items()}
        given |= {"causal": case.causal, "num_splits": 0 if case.direction == "decode" else 1}  # 0: by its own rule

        def attend(q: Any, k: Any, v: Any, *sinks: Any) -> Any:
            learned = {"learnable_sink": sinks[0].to(torch.bfloat16)} if sinks else {}  # the only type that it takes
            out = function(*(t.transpose(1, 2) for t in (q, k, v)), **given, **learned)
            return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

        return attend


class Jax(Method):
    """jax.nn.dot_product_attention with cuDNN: arrays (B, S, H, D), which is how the memory lies."""

    name = "jax cudnn"
    module, distribution, install = "jax", "jax", "pip install 'jax[cuda13]'"
    kinds = MASKS

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

        fixed = {"is_causal": case.causal, "implementation": "cudnn"}
        option = options.named(case.option)
        if option.kind == "window":
            fixed["local_window_size"] = option.values()["window"]
        arrays, learned = self._arrays(case, namespace(x)), options.learned(case, namespace(x))

        def attend(arrays: dict[str, Any], q: Any, k: Any, v: Any, *more: Any) -> Any:
            return jax.nn.dot_product_attention(q, k, v, **fixed, **arrays, **dict(zip(learned, more, strict=True)))

        def differentiated(arrays: dict[str, Any], *inputs: Any) -> Any:
            return jax.vjp(partial(attend, arrays), *inputs)[1]

        inputs = [*map(take, x[:3]), *map(import_module("jax.dlpack").from_dlpack, learned.values())]
        forward, saved = jax.jit(attend), jax.jit(differentiated)  # arrays that they just saw would be constants
        backward = jax.jit(lambda vjp, dout: vjp(dout))
        return Bound(
            forward=lambda: forward(arrays, *inputs),
            saved=lambda: saved(arrays, *inputs),
            backward=backward,
            take=take,
            give=give,
            give_option=lambda a: give(a).swapaxes(1, 2),  # its axes are ours
        )

    def _arrays(self, case: Case, xp: Any) -> dict[str, Any]:
        """What the option is for it but a window: by cuDNN's own means where it has some, as for lengths."""
        take, kind = import_module("jax.dlpack").from_dlpack, options.named(case.option).kind
        if kind == "lengths":
            return {"key_value_seq_lengths": take(options.arrays_of(case, xp)["k_lengths"].astype("int32"))}
        if kind == "documents":
            return {"mask": take(options.attn_mask(xp, case).view("uint8")).astype(bool)}
        if kind == "alibi":
            return {"bias": take(options.added(xp, case)[None])}
        return {}

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
        FlashAttentionFunc("flash-attn-4", "flash_attn.cute", "pip install flash-attn-4", COMPILED, "sinks"),
        Flex(),
        Standard(),
    ]
