"""mma.sync, ldmatrix and stmatrix in small kernels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from golden.primitive import Arrays, Primitive, rng_of


def _registers(matrix: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Registers [lane, register] that hold matrix[rows, cols]; rows and cols are [lane, register, half]."""
    return np.ascontiguousarray(matrix[rows, cols]).view(np.uint32)[..., 0]


def _mma(name: str, k: int, dtype: type, min_arch: int) -> Primitive:
    rng = rng_of(name)
    # Integers whose sums float32 holds exactly: no rounding, so the lane maps are tested bit by bit.
    a, b = (rng.integers(-8, 9, shape).astype(dtype) for shape in ((16, k), (k, 8)))
    c = rng.integers(-100, 101, (16, 8)).astype(np.float32)

    # PTX ISA 9.7.14.5, figures "fragment layout for matrix A, B, C/D": groupID and threadID_in_group.
    lane = np.arange(32)[:, None, None]
    group, thread = lane >> 2, lane % 4
    element = np.arange(2)
    register_a, register_b = np.arange(k // 4)[:, None], np.arange(k // 8)[:, None]
    rows_a = group + 8 * (register_a % 2) + 0 * element
    cols_a = 2 * thread + element + 8 * (register_a // 2)
    rows_b = 2 * thread + element + 8 * register_b
    item = np.arange(4)
    rows_c = np.arange(32)[:, None] // 4 + 8 * (item // 2)
    cols_c = np.arange(32)[:, None] % 4 * 2 + item % 2

    inputs = {
        "a": _registers(a, rows_a, cols_a),
        "b": _registers(b, rows_b, np.broadcast_to(group, rows_b.shape)),
        "c": c[rows_c, cols_c],
    }

    def expected(_: Arrays) -> Arrays:
        d = a.astype(np.float32) @ b.astype(np.float32) + c
        return {"d": d[rows_c, cols_c]}

    body = f"""\
  uint32_t a[{k // 4}], b[{k // 8}];
  float c[4], d[4];
  for (int i = 0; i < {k // 4}; ++i) a[i] = params.a[{k // 4} * t + i];
  for (int i = 0; i < {k // 8}; ++i) b[i] = params.b[{k // 8} * t + i];
  for (int i = 0; i < 4; ++i) c[i] = params.c[4 * t + i];
  ptx::{name}(d, a, b, c);
  for (int i = 0; i < 4; ++i) params.d[4 * t + i] = d[i];"""
    outputs = {"d": np.zeros((32, 4), np.float32)}
    return Primitive(name, body, inputs, outputs, expected, min_arch=min_arch, headers=("mma",))


def _ldmatrix() -> Primitive:
    rows = rng_of("ldmatrix").integers(0, 65536, (32, 8)).astype(np.uint16)
    order = rng_of("ldmatrix order").permutation(32).astype(np.int32)  # lane l's row lies at place order[l]
    calls, outputs = [], {}
    for count in (1, 2, 4):
        for suffix in ("", "_trans"):
            name = f"x{count}{suffix}"
            outputs[name] = np.zeros((32, count), np.uint32)
            calls.append(f"""\
  {{
    uint32_t r[{count}];
    ptx::ldmatrix_{name}(r, address);
    for (int i = 0; i < {count}; ++i) params.{name}[{count} * t + i] = r[i];
  }}""")
    body = "\n".join(
        [
            "  uint16_t* shared = &shared_storage<uint16_t>();",
            "  ptx::store_shared(shared + 8 * params.order[t], ptx::load_global<8>(params.rows + 8 * t));",
            "  __syncthreads();",
            "  const uint32_t address = ptx::shared_address(shared + 8 * params.order[t]);",
            *calls,
        ]
    )

    def expected(inputs: Arrays) -> Arrays:
        # PTX ISA 9.7.14, ldmatrix: lane 8i + j names row j of matrix i; lane T gets of it row T / 4, elements
        # 2 (T % 4) and the next.
        matrices = inputs["rows"].reshape(4, 8, 8)
        result = {}
        for count in (1, 2, 4):
            for suffix, source in (("", matrices), ("_trans", matrices.transpose(0, 2, 1))):
                pairs = np.ascontiguousarray(source[:count]).view(np.uint32).reshape(count, 32)
                result[f"x{count}{suffix}"] = np.ascontiguousarray(pairs.T)
        return result

    inputs = {"rows": rows, "order": order}
    headers = ("ldmatrix", "memory", "shared")
    return Primitive("ldmatrix", body, inputs, outputs, expected, headers=headers)


def _stmatrix() -> Primitive:
    registers = rng_of("stmatrix").integers(0, 2**32, (32, 4)).astype(np.uint32)
    order = rng_of("stmatrix order").permutation(32).astype(np.int32)  # lane l's row lies at place order[l]
    calls, outputs = [], {}
    for count in (1, 2, 4):
        for suffix in ("", "_trans"):
            name = f"x{count}{suffix}"
            outputs[name] = np.zeros((32, 8), np.uint16)
            values = ", ".join(f"params.r[4 * t + {i}]" for i in range(count))
            calls.append(f"""\
  {{
    const uint32_t r[{count}] = {{{values}}};
    for (int i = 0; i < 8; ++i) shared[8 * t + i] = 0xffff;
    __syncthreads();
    ptx::stmatrix_{name}(ptx::shared_address(shared + 8 * params.order[t]), r);
    __syncthreads();
    for (int i = 0; i < 8; ++i) params.{name}[8 * t + i] = shared[8 * params.order[t] + i];
    __syncthreads();
  }}""")
    body = "\n".join(["  uint16_t* shared = &shared_storage<uint16_t>();", *calls])

    def expected(inputs: Arrays) -> Arrays:
        # PTX ISA 9.7.14, stmatrix: lane T holds, of each matrix, row T / 4, elements 2 (T % 4) and the next; lane
        # 8i + j names row j of matrix i. Rows that no matrix fills keep 0xffff.
        halves = np.ascontiguousarray(inputs["r"].T).view(np.uint16).reshape(4, 8, 8)
        result = {}
        for count in (1, 2, 4):
            for suffix, source in (("", halves), ("_trans", halves.transpose(0, 2, 1))):
                result[f"x{count}{suffix}"] = np.full((32, 8), 0xFFFF, np.uint16)
                result[f"x{count}{suffix}"][: 8 * count] = source[:count].reshape(-1, 8)
        return result

    inputs = {"r": registers, "order": order}
    headers = ("shared", "stmatrix")
    return Primitive("stmatrix", body, inputs, outputs, expected, min_arch=90, headers=headers)


MATRICES = [
    _mma("mma_m16n8k16_f16", 16, np.float16, 80),
    _mma("mma_m16n8k16_bf16", 16, ml_dtypes.bfloat16, 80),
    _mma("mma_m16n8k8_f16", 8, np.float16, 75),
    _ldmatrix(),
    _stmatrix(),
]
