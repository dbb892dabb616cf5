"""Every primitive of cuda_src/ptx in a small kernel, with seeded inputs and a NumPy oracle of its own.

The oracles are written from the PTX ISA's figures and tables, not from the headers. The same kernels run in
the emulator (both paths) and on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
from golden.matrices import MATRICES
from golden.primitive import Arrays, Primitive, rng_of


def _empty(shape: int | tuple[int, ...], dtype: str) -> np.ndarray:
    return np.zeros(shape, dtype)


_REVERSE = """\
// Writes the values of thread t to thread (last - t)'s place, through vectors and shared memory.
template <int kCount, class T> __device__ __forceinline__ void reverse(const T* x, T* y, int t, int last) {
  T* shared = &shared_storage<T>();
  ptx::store_shared(shared + kCount * t, ptx::load_global<kCount>(x + kCount * t));
  __syncthreads();
  ptx::store_global(y + kCount * t, ptx::load_shared<kCount>(shared + kCount * (last - t)));
  __syncthreads();
}
"""


def _widths() -> Primitive:
    widths = [("float32", 1), ("float32", 2), ("float32", 4), ("float64", 1), ("float64", 2)]
    widths += [("uint16", 1), ("uint16", 2), ("uint16", 4), ("uint16", 8), ("uint32", 4), ("uint64", 2)]
    rng, body = rng_of("memory"), []
    inputs, outputs = {}, {}
    for dtype, count in widths:
        x, y = f"x_{dtype}_{count}", f"y_{dtype}_{count}"
        inputs[x] = rng.integers(0, 60000, (64, count)).astype(dtype)
        outputs[y] = np.zeros_like(inputs[x])
        body.append(f"  reverse<{count}>(params.{x}, params.{y}, t, 63);")

    def expected(inputs: Arrays) -> Arrays:
        return {"y" + name[1:]: x[::-1] for name, x in inputs.items()}

    return Primitive(
        "memory", "\n".join(body), inputs, outputs, expected, threads=64, headers=("memory",), prelude=_REVERSE
    )


def _special_values(dtype: str) -> np.ndarray:
    info = np.finfo(dtype)
    positive = [0.0, info.smallest_subnormal, info.tiny / 2, info.tiny, 1.0, 2.0, info.max, np.inf]
    return np.array([*positive, *(-value for value in positive), np.nan], dtype)


def _function(name: str, dtype: str, x: np.ndarray, reference: Callable, rtol: float) -> Primitive:
    def flush(v: np.ndarray) -> np.ndarray:
        """The float32 instructions but tanh read and write subnormals as zeros of the same sign."""
        return np.where(np.abs(v) < np.finfo(v.dtype).tiny, np.copysign(v.dtype.type(0), v), v)

    def expected(inputs: Arrays) -> Arrays:
        keep = flush if dtype == "float32" and name != "tanh_approx" else np.array
        with np.errstate(all="ignore"):
            return {"y": keep(reference(keep(inputs["x"]).astype(np.longdouble)).astype(dtype))}

    x = np.concatenate([_special_values(dtype), x.astype(dtype)])
    if (name, dtype) == ("lg2", "float64"):
        # Compiled with -ftz=true, the float64 log2 of CUDA's library takes negative subnormals for zero.
        x = x[~((x < 0) & (x > -np.finfo(dtype).tiny))]
    body = f"  for (int i = t; i < {x.size}; i += 32) params.y[i] = ptx::{name}(params.x[i]);"
    atol = rtol if name == "lg2" else 0.0  # log2 of what is about 1
    outputs = {"y": np.zeros_like(x)}
    return Primitive(f"{name}_{dtype}", body, {"x": x}, outputs, expected, rtol=rtol, atol=atol, headers=("math",))


def _functions() -> list[Primitive]:
    rng = rng_of("math")
    small, large = rng.uniform(-130, 130, 1000), rng.uniform(-1080, 1030, 1000)
    positive, wide = 2.0 ** rng.uniform(-125, 127, 1000), 2.0 ** rng.uniform(-1000, 1000, 1000)
    return [
        _function("ex2", "float32", small, np.exp2, 2.0**-21),
        _function("ex2", "float64", large, np.exp2, 2.0**-51),
        _function("lg2", "float32", positive, np.log2, 2.0**-21),
        _function("lg2", "float64", wide, np.log2, 2.0**-51),
        _function("tanh_approx", "float32", rng.uniform(-10, 10, 1000), np.tanh, 2.0**-10.9),
    ]


def _minimum() -> Primitive:
    """Of every pair, NaN where the first is; without zeros, whose signs compare equal, and what may become zero."""
    inputs, outputs, body = {}, {}, []
    for dtype in ("float32", "float64"):
        values = np.concatenate([_special_values(dtype), rng_of("min").standard_normal(8).astype(dtype)])
        values = values[~(np.abs(values) < np.finfo(dtype).tiny)]
        x, y = (pairs.reshape(-1) for pairs in np.meshgrid(values, values[~np.isnan(values)]))
        inputs |= {f"x_{dtype}": x, f"y_{dtype}": y}
        outputs[f"z_{dtype}"] = np.zeros_like(x)
        body.append(
            f"  for (int i = t; i < {x.size}; i += 32)"
            f" params.z_{dtype}[i] = ptx::min_nan(params.x_{dtype}[i], params.y_{dtype}[i]);"
        )

    def expected(inputs: Arrays) -> Arrays:
        return {
            f"z_{dtype}": np.minimum(inputs[f"x_{dtype}"], inputs[f"y_{dtype}"]) for dtype in ("float32", "float64")
        }

    return Primitive("min_nan", "\n".join(body), inputs, outputs, expected, headers=("math",))


def _widen() -> Primitive:
    body = """\
  for (int i = t; i < 65536; i += 128) {
    params.f16[i] = ptx::f32_from_f16(params.bits[i]);
    params.bf16[i] = ptx::f32_from_bf16(params.bits[i]);
  }"""

    def expected(inputs: Arrays) -> Arrays:
        bits = inputs["bits"]
        return {
            "f16": bits.view(np.float16).astype(np.float32),
            "bf16": bits.view(ml_dtypes.bfloat16).astype(np.float32),
        }

    inputs = {"bits": np.arange(65536, dtype=np.uint16)}
    outputs = {"f16": _empty(65536, "float32"), "bf16": _empty(65536, "float32")}
    return Primitive("widen", body, inputs, outputs, expected, threads=128, headers=("convert",))


def _narrow() -> Primitive:
    rng = rng_of("narrow")
    # All values of both formats, the midpoints to their neighbours and one float32 to either side of those.
    bits = np.arange(65536, dtype=np.uint16)
    midpoints = []
    for dtype in (np.float16, ml_dtypes.bfloat16):
        value = bits.view(dtype).astype(np.float32).view(np.uint32)
        half = 0x1000 if dtype is np.float16 else 0x8000
        midpoints += [value[::7], value[::5] + half, value[::5] + half - 1, value[::5] + half + 1]
    subnormal_ties = np.arange(-4096, 4096).astype(np.float32) * np.float32(2.0**-26)
    x = np.concatenate([*midpoints, subnormal_ties.view(np.uint32), rng.integers(0, 2**32, 20000, np.uint32)])
    x = x[: x.size // 2 * 2].view(np.float32)

    def narrowed(dtype: type) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            bits = x.astype(dtype).view(np.uint16)
        return np.where(np.isnan(x), np.uint16(0x7FFF), bits)

    def expected(inputs: Arrays) -> Arrays:
        f16, bf16 = narrowed(np.float16), narrowed(ml_dtypes.bfloat16)
        # Little-endian pairs: the first value in the lower half.
        return {"f16": f16, "bf16": bf16, "f16x2": f16.view(np.uint32), "bf16x2": bf16.view(np.uint32)}

    body = f"""\
  for (int i = t; i < {x.size // 2}; i += 128) {{
    for (int e = 2 * i; e < 2 * i + 2; ++e) {{
      params.f16[e] = ptx::f16_from_f32(params.x[e]);
      params.bf16[e] = ptx::bf16_from_f32(params.x[e]);
    }}
    params.f16x2[i] = ptx::f16x2_from_f32(params.x[2 * i], params.x[2 * i + 1]);
    params.bf16x2[i] = ptx::bf16x2_from_f32(params.x[2 * i], params.x[2 * i + 1]);
  }}"""
    outputs = {name: _empty(x.size, "uint16") for name in ("f16", "bf16")}
    outputs |= {name: _empty(x.size // 2, "uint32") for name in ("f16x2", "bf16x2")}
    return Primitive("narrow", body, {"x": x}, outputs, expected, threads=128, headers=("convert",))


def _shuffles() -> Primitive:
    rng, lane = rng_of("shuffle"), np.arange(32)
    # The source lane of each lane (PTX ISA 9.7.9, shfl.sync); outside the segment it is the lane itself.
    moves = {
        "shfl_xor({}, 5)": lane ^ 5,
        "shfl_xor({}, 3, 8)": lane ^ 3,
        "shfl({}, 7)": np.full(32, 7),
        "shfl({}, 9, 8)": lane // 8 * 8 + 9 % 8,
        "shfl({}, t * 3)": lane * 3 % 32,
        "shfl_up({}, 3)": np.where(lane >= 3, lane - 3, lane),
        "shfl_up({}, 1, 16)": np.where(lane % 16 >= 1, lane - 1, lane),
        "shfl_down({}, 2)": np.where(lane < 30, lane + 2, lane),
        "shfl_down({}, 5, 8)": np.where(lane % 8 + 5 < 8, lane + 5, lane),
    }
    inputs, outputs, body = {}, {}, []
    for dtype in ("float32", "float64", "int32", "uint32", "int64"):
        inputs[f"x_{dtype}"] = rng.integers(0, 2**31, 32).astype(dtype)
        outputs[f"y_{dtype}"] = _empty((len(moves), 32), dtype)
        for i, call in enumerate(moves):
            call = call.format(f"params.x_{dtype}[t]")
            body.append(f"  params.y_{dtype}[{32 * i} + t] = ptx::{call};")

    def expected(inputs: Arrays) -> Arrays:
        return {"y" + k[1:]: np.stack([x[source] for source in moves.values()]) for k, x in inputs.items()}

    return Primitive("shuffle", "\n".join(body), inputs, outputs, expected, headers=("warp",))


def _votes() -> Primitive:
    body = """\
  for (int i = 0; i < 6; ++i) {
    const bool bit = params.bits[64 * i + t] != 0;
    params.ballot[64 * i + t] = ptx::ballot(bit);
    params.any[64 * i + t] = ptx::any(bit);
    params.all[64 * i + t] = ptx::all(bit);
  }"""
    bits = rng_of("vote").integers(0, 2, (6, 2, 32)).astype(np.int32)
    bits[0, 0], bits[1, 0], bits[2, 1, 5:] = 0, 1, 0

    def expected(inputs: Arrays) -> Arrays:
        warps = inputs["bits"]
        ballot = (warps.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(-1, keepdims=True)
        spread = np.ones_like(warps)
        return {
            "ballot": (ballot * spread.astype(np.uint64)).astype(np.uint32),
            "any": warps.any(-1, keepdims=True) * spread,
            "all": warps.all(-1, keepdims=True) * spread,
        }

    outputs = {"ballot": _empty(bits.shape, "uint32")}
    outputs |= {name: _empty(bits.shape, "int32") for name in ("any", "all")}
    return Primitive("vote", body, {"bits": bits}, outputs, expected, threads=64, headers=("warp",))


def _named_barriers() -> Primitive:
    body = """\
  // Warps 0 and 1 produce for warps 2 and 3; barrier 1 says full, barrier 2 empty.
  float* shared = &shared_storage<float>();
  for (int round = 0; round < 3; ++round) {
    if (t < 64) {
      if (round > 0) ptx::barrier_sync(2, 128);
      shared[t] = params.x[64 * round + t];
      ptx::barrier_arrive(1, 128);
    } else {
      ptx::barrier_sync(1, 128);
      params.y[64 * round + t - 64] = shared[127 - t];
      if (round < 2) ptx::barrier_arrive(2, 128);
    }
  }
  // Who arrives goes on: the others meet the barriers the other way round.
  if (t < 64) {
    ptx::barrier_arrive(3, 128);
    ptx::barrier_arrive(4, 128);
  } else {
    ptx::barrier_sync(4, 128);
    ptx::barrier_sync(3, 128);
  }"""
    x = rng_of("barrier").standard_normal((3, 64)).astype(np.float32)

    def expected(inputs: Arrays) -> Arrays:
        return {"y": inputs["x"][:, ::-1]}

    outputs = {"y": np.zeros_like(x)}
    return Primitive("named_barrier", body, {"x": x}, outputs, expected, threads=128, headers=("barrier",))


def _cp_async() -> Primitive:
    sizes = (4, 8, 16)
    x = rng_of("cp_async").integers(0, 256, (3, 32, 16)).astype(np.uint8)
    counts = np.stack([rng_of("bytes").integers(0, size + 1, 32) for size in sizes]).astype(np.int32)
    copies = "\n".join(
        f"  ptx::cp_async_{size}(base + {512 * i} + 16 * t, params.x + {512 * i} + 16 * t,"
        f" params.counts[{32 * i} + t]);\n"
        f"  {'ptx::cp_async_commit();' if i < 2 else ''}"
        for i, size in enumerate(sizes)
    )
    body = f"""\
  uint8_t* shared = &shared_storage<uint8_t>();
  const uint32_t base = ptx::shared_address(shared);
  for (int i = 16 * t; i < 16 * t + 16; ++i) shared[i] = shared[512 + i] = shared[1024 + i] = 0xff;
{copies}
  ptx::cp_async_wait<1>();  // the first group: own copies are visible
  for (int i = 16 * t; i < 16 * t + 16; ++i) params.y[i] = shared[i];
  ptx::cp_async_wait_all();
  __syncthreads();
  for (int i = t; i < 1024; i += 32) params.y[512 + i] = shared[512 + i];"""

    def expected(inputs: Arrays) -> Arrays:
        y = np.full_like(inputs["x"], 0xFF)
        for i, size in enumerate(sizes):
            copied = np.arange(size) < inputs["counts"][i][:, None]
            y[i, :, :size] = np.where(copied, inputs["x"][i, :, :size], 0)
        return {"y": y}

    inputs = {"x": x, "counts": counts}
    outputs = {"y": np.zeros_like(x)}
    return Primitive("cp_async", body, inputs, outputs, expected, min_arch=80, headers=("cp_async", "shared"))


def _atomics() -> Primitive:
    body = """\
  atomicAdd(params.f32 + t % 5, params.x[t]);
  atomicAdd(params.f64 + t % 5, static_cast<double>(params.x[t]));
  atomicAdd(params.s32 + t % 5, static_cast<int>(params.x[t]));
  int* shared = &shared_storage<int>();
  if (t == 0) *shared = 7;
  __syncthreads();
  atomicAdd(shared, t);
  __syncthreads();
  params.total[t] = *shared;"""
    x = rng_of("atomic").integers(-50, 50, 64).astype(np.float32)  # integers: any order gives the same sum

    def expected(inputs: Arrays) -> Arrays:
        sums = np.zeros(5)
        np.add.at(sums, np.arange(64) % 5, inputs["x"])
        total = np.full(64, 7 + np.arange(64).sum(), np.int32)
        return {"f32": sums.astype("f4"), "f64": sums, "s32": sums.astype("i4"), "total": total}

    outputs = {"f32": _empty(5, "float32"), "f64": _empty(5, "float64"), "s32": _empty(5, "int32")}
    outputs |= {"total": _empty(64, "int32")}
    return Primitive("atomic", body, {"x": x}, outputs, expected, threads=64)


def _additions() -> list[Primitive]:
    """One at a time, and two neighbours at once."""
    x = rng_of("add_global").integers(-50, 50, (64, 2)).astype(np.float32)

    def expected(inputs: Arrays) -> Arrays:
        sums = np.zeros((5, 2))
        np.add.at(sums, np.arange(64) % 5, inputs["x"])
        return {"y": sums.astype("f4")}

    bodies = {
        "add_global": "  for (int e = 0; e < 2; ++e) ptx::add_global(params.y + t % 5 * 2 + e, params.x[2 * t + e]);",
        "add_global_pair": "  ptx::add_global(params.y + t % 5 * 2, params.x[2 * t], params.x[2 * t + 1]);",
    }
    return [
        Primitive(
            name, body, {"x": x}, {"y": _empty((5, 2), "float32")}, expected, threads=64, headers=("reduce",),
            min_arch=90 if name == "add_global_pair" else 75,
        )
        for name, body in bodies.items()
    ]  # fmt: skip


PRIMITIVES = [
    _widths(),
    *_functions(),
    _minimum(),
    _widen(),
    _narrow(),
    _shuffles(),
    _votes(),
    _named_barriers(),
    *MATRICES,
    _cp_async(),
    _atomics(),
    *_additions(),
]
