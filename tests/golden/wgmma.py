"""wgmma in small kernels: each source of A, each major of A and B, each type; N from 16 to 256."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
from golden.layouts import accumulator_places, operand_places, tiles
from golden.primitive import Arrays, Primitive, rng_of

DEPTH = 64
COLUMNS = range(16, 257, 16)
FEW_COLUMNS = (64, 80, 128)
EVERY_N = {("f16", "kK", "kK"), ("f16", "registers", "kMN")}
TYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}

# Four k16 steps, as in a kernel. `b` holds 256 columns whatever N is.
_PRELUDE = """\
template <int kN> __device__ __forceinline__ void multiply(const Params& params, float* out, int t) {{
  const uint32_t b = ptx::shared_address(&shared_storage<uint16_t>());
  float d[kN / 2];
  for (int i = 0; i < kN / 2; ++i) d[i] = params.c[128 * i + t];
{load}
  ptx::wgmma_pin(d);
  ptx::wgmma_fence();
  for (int k = 0; k < 4; ++k) {{
    const uint64_t b_k = ptx::wgmma_descriptor(b + k * ptx::kWgmmaStep<ptx::Major::{b}>, 64 * 128);
    {call}
  }}
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::wgmma_pin(d);
  for (int i = 0; i < kN / 2; ++i) out[128 * i + t] = d[i];
  __syncthreads();  // one N at a time: their registers do not mix
}}
"""
_A_IN_SHARED = """\
const uint64_t a_k = ptx::wgmma_descriptor(b + 256 * 128 + k * ptx::kWgmmaStep<ptx::Major::{a}>, 0);
    ptx::wgmma_{type}<ptx::Major::{a}, ptx::Major::{b}>(d, a_k, b_k, k > 0);"""
_LOAD_A = """\
  uint32_t r[4][4];
  for (int k = 0; k < 4; ++k) {
    for (int i = 0; i < 4; ++i) r[k][i] = params.a[128 * (4 * k + i) + t];
    ptx::wgmma_pin(r[k]);
  }"""
_A_IN_REGISTERS = "ptx::wgmma_{type}<ptx::Major::{b}>(d, r[k], b_k, true);"


def _wgmma(type_: str, a_in: str, major_b: str) -> Primitive:
    """`a_in` is "registers" (D += A B) or the major of A in shared memory (D = A B)."""
    name = f"wgmma_{type_}_a_{a_in}_b_{major_b}"
    rng = rng_of(name)
    # Integers whose sums float32 holds exactly, in any order.
    a, b = (rng.integers(-8, 9, shape).astype(TYPES[type_]) for shape in ((64, DEPTH), (DEPTH, 256)))
    c = rng.integers(-100, 101, (64, 256)).astype(np.float32)
    in_registers = a_in == "registers"
    # Every N as attention multiplies, S = Q K^T and O += P V; a few in the other cases.
    columns = COLUMNS if (type_, a_in, major_b) in EVERY_N else FEW_COLUMNS
    if in_registers:
        a_image = np.ascontiguousarray(a[operand_places(DEPTH)]).view(np.uint32)[..., 0]
    else:
        a_image = tiles(a if a_in == "kK" else a.T).view(np.uint16)
    inputs = {
        "a": a_image,
        "b": tiles(b.T if major_b == "kK" else b).view(np.uint16),
        "c": c[accumulator_places(256)],
    }

    def expected(_: Arrays) -> Arrays:
        d = a.astype(np.float32) @ b.astype(np.float32) + (c if in_registers else 0)
        return {f"n{n}": d[accumulator_places(n)] for n in columns}

    call = (_A_IN_REGISTERS if in_registers else _A_IN_SHARED).format(type=type_, a=a_in, b=major_b)
    fill = (
        "  for (int i = 8 * t; i < {}; i += 1024)"
        " ptx::store_shared(shared + {} + i, ptx::load_global<8>(params.{} + i));"
    )
    body = [
        "  uint16_t* shared = &shared_storage<uint16_t>();",
        fill.format(256 * DEPTH, 0, "b"),
        *([] if in_registers else [fill.format(64 * DEPTH, 256 * DEPTH, "a")]),
        "  ptx::fence_proxy_async();",
        "  __syncthreads();",
        *(f"  multiply<{n}>(params, params.n{n}, t);" for n in columns),
    ]
    return Primitive(
        name,
        "\n".join(body),
        inputs,
        {f"n{n}": np.zeros((n // 2, 128), np.float32) for n in columns},
        expected,
        threads=128,
        min_arch=90,
        max_arch=90,
        headers=("fence", "memory", "shared", "wgmma"),
        prelude=_PRELUDE.format(load=_LOAD_A if in_registers else "", call=call, b=major_b),
        shared_bytes=(256 + 64) * DEPTH * 2,
    )


WGMMA = [_wgmma(*choice) for choice in itertools.product(TYPES, ("registers", "kK", "kMN"), ("kK", "kMN"))]
