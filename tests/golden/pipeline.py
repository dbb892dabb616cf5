"""TMA, mbarrier and wgmma together: a forward pass without softmax, tiles wider than one swizzled block."""

from __future__ import annotations

import numpy as np
from golden.layouts import accumulator_places
from golden.primitive import Arrays, Primitive, TensorMap, rng_of

QUERIES, KEYS, DIM = 64, 96, 128
FIRST_QUERY, FIRST_KEY = 8, 30

_BODY = """\
  // O = (Q K^T) V for 64 queries and 96 keys, 128 columns in two blocks of 64.
  const uint32_t q = ptx::shared_address(&shared_storage<uint16_t>());
  const uint32_t k = q + 64 * 256, v = k + 96 * 256, barrier = v + 96 * 256;
  if (t < 32 && ptx::elect_one()) {
    ptx::mbarrier_init(barrier, 1);
    ptx::mbarrier_fence_init();
    ptx::mbarrier_arrive_expect_tx(barrier, (64 + 96 + 96) * 256);
    for (int block = 0; block < 2; ++block) {
      ptx::tma_load_2d(q + block * 64 * 128, params.q_map, barrier, 64 * block, 8);
      ptx::tma_load_2d(k + block * 96 * 128, params.k_map, barrier, 64 * block, 30);
      ptx::tma_load_2d(v + block * 96 * 128, params.v_map, barrier, 64 * block, 30);
    }
  }
  __syncthreads();
  ptx::mbarrier_wait(barrier, 0);

  using ptx::Major;
  float s[48];
  ptx::wgmma_fence();
  for (int step = 0; step < 8; ++step) {
    const uint32_t along = step % 4 * ptx::kWgmmaStep<Major::kK>;
    const uint64_t q_step = ptx::wgmma_descriptor(q + step / 4 * 64 * 128 + along, 0);
    const uint64_t k_step = ptx::wgmma_descriptor(k + step / 4 * 96 * 128 + along, 0);
    ptx::wgmma_f16<Major::kK, Major::kK>(s, q_step, k_step, step > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::wgmma_pin(s);

  uint32_t p[6][4];
  for (int i = 0; i < 24; ++i) p[i / 4][i % 4] = ptx::f16x2_from_f32(s[2 * i], s[2 * i + 1]);
  for (int step = 0; step < 6; ++step) ptx::wgmma_pin(p[step]);
  float o[64];
  ptx::wgmma_fence();
  for (int step = 0; step < 6; ++step) {
    const uint64_t v_step = ptx::wgmma_descriptor(v + step * ptx::kWgmmaStep<Major::kMN>, 96 * 128);
    ptx::wgmma_f16<Major::kMN>(o, p[step], v_step, step > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::wgmma_pin(o);
  for (int i = 0; i < 64; ++i) params.o[128 * i + t] = o[i];"""


def _pipeline() -> Primitive:
    rng = rng_of("pipeline")
    # Small integers: |Q K^T| <= 128 is exact in float16, the sums of O in float32. The last rows of both boxes lie
    # outside the arrays.
    q = rng.integers(-1, 2, (70, DIM)).astype(np.float16)
    k, v = (rng.integers(-low, low + 1, (120, DIM)).astype(np.float16) for low in (1, 3))

    def rows(x: np.ndarray, first: int, count: int) -> np.ndarray:
        inside = x[first : first + count].astype(np.float32)
        return np.pad(inside, ((0, count - len(inside)), (0, 0)))

    def expected(inputs: Arrays) -> Arrays:
        s = rows(inputs["q"], FIRST_QUERY, QUERIES) @ rows(inputs["k"], FIRST_KEY, KEYS).T
        o = s @ rows(inputs["v"], FIRST_KEY, KEYS)
        return {"o": o[accumulator_places(DIM)]}

    return Primitive(
        "pipeline",
        _BODY,
        {"q": q, "k": k, "v": v},
        {"o": np.zeros((DIM // 2, 128), np.float32)},
        expected,
        threads=128,
        min_arch=90,
        max_arch=90,
        headers=("convert", "elect", "mbarrier", "shared", "tma", "wgmma"),
        maps={
            "q_map": TensorMap("q", (QUERIES, 64)),
            "k_map": TensorMap("k", (KEYS, 64)),
            "v_map": TensorMap("v", (KEYS, 64)),
        },
        shared_bytes=(QUERIES + 2 * KEYS) * DIM * 2 + 8,
    )


PIPELINE = _pipeline()
