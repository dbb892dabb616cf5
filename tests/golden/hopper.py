"""Hopper's other primitives in small kernels: mbarrier, elect, setmaxnreg, bulk copies and TMA tiles."""

from __future__ import annotations

import numpy as np
from golden.layouts import swizzled
from golden.pipeline import PIPELINE
from golden.primitive import Arrays, Primitive, TensorMap, rng_of
from golden.wgmma import WGMMA


def _mbarrier() -> Primitive:
    body = """\
  // Warps 0 and 1 produce for warps 2 and 3 through one buffer: `full` and `empty` alternate.
  float* shared = &shared_storage<float>();
  const uint32_t full = ptx::shared_address(shared + 64), empty = full + 8;
  if (t == 0) {
    ptx::mbarrier_init(full, 64);
    ptx::mbarrier_init(empty, 64);
    ptx::mbarrier_fence_init();
    params.ended[0] = ptx::mbarrier_test_wait(full, 0);
    params.ended[1] = ptx::mbarrier_test_wait(full, 1);
  }
  __syncthreads();
  for (int round = 0; round < 5; ++round) {
    const int parity = round % 2;
    if (t < 64) {
      ptx::mbarrier_wait(empty, parity ^ 1);
      shared[t] = params.x[64 * round + t];
      ptx::mbarrier_arrive(full);
    } else {
      ptx::mbarrier_wait(full, parity);
      params.y[64 * round + t - 64] = shared[127 - t];
      ptx::mbarrier_arrive(empty);
    }
  }
  __syncthreads();
  if (t == 0) {
    params.ended[2] = ptx::mbarrier_test_wait(full, 0);  // five phases have ended: the last had parity 0
    params.ended[3] = ptx::mbarrier_try_wait(full, 0);
    params.ended[4] = ptx::mbarrier_test_wait(full, 1);
    ptx::mbarrier_inval(full);
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_arrive(full);
    params.ended[5] = ptx::mbarrier_test_wait(full, 0);
  }"""
    x = rng_of("mbarrier").standard_normal((5, 64)).astype(np.float32)

    def expected(inputs: Arrays) -> Arrays:
        return {"y": inputs["x"][:, ::-1], "ended": np.array([0, 1, 1, 1, 0, 1], np.int32)}

    outputs = {"y": np.zeros_like(x), "ended": np.full(6, -1, np.int32)}
    headers = ("mbarrier", "shared")
    return Primitive("mbarrier", body, {"x": x}, outputs, expected, threads=128, min_arch=90, headers=headers)


def _elect() -> Primitive:
    body = """\
  const bool mine = ptx::elect_one();
  const bool again = ptx::elect_one();
  const uint32_t lanes = ptx::ballot(mine);
  params.lanes[t] = __popc(lanes);
  params.same[t] = mine == again;"""

    def expected(_: Arrays) -> Arrays:
        return {"lanes": np.ones(64, np.int32), "same": np.ones(64, np.int32)}

    outputs = {"lanes": np.zeros(64, np.int32), "same": np.zeros(64, np.int32)}
    return Primitive("elect", body, {}, outputs, expected, threads=64, min_arch=90, headers=("elect", "warp"))


def _setmaxnreg() -> Primitive:
    body = """\
  // Three warpgroups start with 168 registers a thread: the first gives some up, so that the others can hold 200
  // values at once.
  if (t < 128) {
    ptx::setmaxnreg_dec<24>();
    params.y[t] = -params.x[t];
  } else {
    ptx::setmaxnreg_inc<240>();
    float value[200];
    for (int i = 0; i < 200; ++i) value[i] = params.x[(t + i) % 384];
    ptx::wgmma_pin(value);
    float sum = 0;
    for (int i = 0; i < 200; ++i) sum += value[i] * static_cast<float>(i % 7);
    params.y[t] = sum;
  }"""
    x = rng_of("setmaxnreg").integers(-50, 50, 384).astype(np.float32)

    def expected(inputs: Arrays) -> Arrays:
        x, t, i = inputs["x"], np.arange(384), np.arange(200)
        sums = (x[(t[:, None] + i) % 384] * (i % 7)).sum(1)
        return {"y": np.where(t < 128, -x, sums).astype(np.float32)}

    outputs = {"y": np.zeros_like(x)}
    settings = {"threads": 384, "min_arch": 90, "max_arch": 90, "headers": ("setmaxnreg", "wgmma")}
    return Primitive("setmaxnreg", body, {"x": x}, outputs, expected, **settings)


def _bulk() -> Primitive:
    body = """\
  // In by a bulk copy, doubled by the threads, added to y by a bulk reduction; the copy's bytes are expected in two
  // parts, the first without an arrival.
  float* shared = &shared_storage<float>();
  const uint32_t address = ptx::shared_address(shared), barrier = address + 1024;
  if (t == 0) {
    ptx::mbarrier_init(barrier, 1);
    ptx::mbarrier_fence_init();
    ptx::mbarrier_expect_tx(barrier, 256);
    ptx::bulk_load(address, params.x, 1024, barrier);
    ptx::mbarrier_arrive_expect_tx(barrier, 768);
  }
  __syncthreads();
  ptx::mbarrier_wait(barrier, 0);
  shared[t] *= 2;
  ptx::fence_proxy_async();
  __syncthreads();
  if (t == 0) {
    ptx::bulk_add_f32(params.y, address, 512);
    ptx::bulk_commit();
    ptx::bulk_add_f32(params.y, address + 512, 512);
    ptx::bulk_commit();
    ptx::bulk_wait_read<1>();
    ptx::bulk_wait<0>();
  }"""
    rng = rng_of("bulk")
    x = rng.integers(-50, 50, 256).astype(np.float32)
    y = rng.integers(-50, 50, 128).astype(np.float32)

    def expected(inputs: Arrays) -> Arrays:
        return {"y": y + 2 * inputs["x"].reshape(2, 128).sum(0)}

    headers = ("fence", "mbarrier", "shared", "tma")
    return Primitive("bulk", body, {"x": x}, {"y": y}, expected, threads=256, min_arch=90, headers=headers)


def _inside(start: np.ndarray, box: tuple[int, ...], shape: tuple[int, ...]) -> tuple[tuple, tuple]:
    """Slices of the box and of the array where they overlap; dimensions in the array's order."""
    ends = [(max(-x, 0), max(min(size - x, b), 0)) for x, b, size in zip(start, box, shape, strict=True)]
    low_high = [(low, max(low, high)) for low, high in ends]
    in_box = tuple(slice(low, high) for low, high in low_high)
    in_array = tuple(slice(max(x + low, 0), max(x + high, 0)) for (low, high), x in zip(low_high, start, strict=True))
    return in_box, in_array


# Array, box, swizzle, and by the suffix of the name where boxes start (dimensions in the array's order). The innermost
# dimension of a swizzled box is at most as long as the swizzle; innermost starts are multiples of 16 bytes. A start
# that the hardware refuses ends its primitive, so each kind has one of its own: boxes inside and over the far edges,
# boxes that start before the array, and boxes wholly outside, after one inside by which a store can be seen.
_TILES: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, dict[str, list[tuple[int, ...]]]]] = {
    "2d": (
        (37, 72),
        (16, 64),
        128,
        {
            "_inside": [(0, 0), (8, 8), (21, 8)],
            "": [(0, 0), (8, 8), (30, 24), (36, 64)],
            "_before_rows": [(-5, 8)],
            "_before_columns": [(8, -8)],
            "_before": [(-5, -8)],
            "_outside_rows": [(8, 8), (40, 0)],
            "_outside_columns": [(8, 8), (0, 72)],
        },
    ),
    "3d": (
        (3, 37, 72),
        (2, 16, 64),
        128,
        {
            "": [(0, 0, 0), (1, 8, 8), (2, 30, 24)],
            "_before": [(-1, -5, -8)],
            "_outside": [(1, 8, 8), (3, 0, 0)],
        },
    ),
    "4d": (
        (2, 3, 37, 72),
        (1, 2, 16, 64),
        128,
        {"": [(0, 0, 0, 0), (1, 1, 8, 8), (1, 2, 30, 24)], "_before": [(0, -1, -5, -8)]},
    ),
    "2d_swizzle64": ((37, 40), (16, 32), 64, {"": [(0, 0), (8, 8), (30, 24)]}),
    "2d_dense": ((37, 40), (16, 24), 0, {"": [(0, 0), (8, 8), (30, 24)], "_before": [(-5, -8)]}),
}


def _tma(tile: str, suffix: str, store: bool) -> Primitive:
    shape, box, swizzle, starts_of = _TILES[tile]
    name = f"tma_{'store' if store else 'load'}_{tile}{suffix}"
    rng, rank, elements = rng_of(name), len(shape), int(np.prod(box))
    starts = np.array(starts_of[suffix], np.int32)
    coordinates = ", ".join(f"params.at[{rank} * i + {j}]" for j in reversed(range(rank)))
    boxes = (len(starts), *box)
    load_body = f"""\
    if (t == 0) {{
      ptx::mbarrier_arrive_expect_tx(barrier, {2 * elements});
      ptx::tma_load_{rank}d(tile, params.map, barrier, {coordinates});
    }}
    ptx::mbarrier_wait(barrier, i % 2);
    for (int j = t; j < {elements}; j += 32) params.y[{elements} * i + j] = shared[j];
    for (int j = t; j < {elements}; j += 32) shared[j] = 0xffff;"""
    store_body = f"""\
    for (int j = t; j < {elements}; j += 32) shared[j] = params.x[{elements} * i + j];
    ptx::fence_proxy_async();
    __syncthreads();
    if (t == 0) {{
      ptx::tma_store_{rank}d(params.map, tile, {coordinates});
      ptx::bulk_commit();
      ptx::bulk_wait<0>();
    }}"""
    body = f"""\
  uint16_t* shared = &shared_storage<uint16_t>();
  const uint32_t tile = ptx::shared_address(shared), barrier = tile + {2 * elements};
  if (t == 0) {{
    ptx::tma_prefetch_map(params.map);
    ptx::mbarrier_init(barrier, 1);
    ptx::mbarrier_fence_init();
  }}
  __syncthreads();
  for (int i = 0; i < {len(starts)}; ++i) {{
{store_body if store else load_body}
    ptx::fence_proxy_async();
    __syncthreads();
  }}"""
    # float16 values are finite and nonzero: a zero is a fill.
    x = rng.integers(1, 0x7C00, boxes if store else shape).astype(np.uint16).view(np.float16)

    def loaded(inputs: Arrays) -> Arrays:
        y = np.zeros(boxes, np.float16)
        for i, start in enumerate(starts):
            in_box, in_array = _inside(start, box, shape)
            y[i][in_box] = inputs["x"][in_array]
            y[i] = swizzled(y[i], swizzle)
        return {"y": y}

    def stored(inputs: Arrays) -> Arrays:
        y = np.zeros(shape, np.float16)
        for i, start in enumerate(starts):
            in_box, in_array = _inside(start, box, shape)
            y[in_array] = swizzled(inputs["x"][i], swizzle)[in_box]
        return {"y": y}

    return Primitive(
        name,
        body,
        {"x": x, "at": starts},
        {"y": np.zeros(shape if store else boxes, np.float16)},
        stored if store else loaded,
        min_arch=90,
        headers=("fence", "mbarrier", "shared", "tma"),
        maps={"map": TensorMap("y" if store else "x", box, swizzle)},
        shared_bytes=2 * elements + 8,
    )


HOPPER = [
    _mbarrier(),
    _elect(),
    _setmaxnreg(),
    _bulk(),
    *(_tma(tile, suffix, store) for store in (False, True) for tile in _TILES for suffix in _TILES[tile][3]),
    *WGMMA,
    PIPELINE,
]
