"""ONNX's operator Attention (opset 25) as calls here: its node cases, of its shapes, on every backend."""

import numpy as np
import pytest

from cupy_flash import flash_attention

CASES = {  # shapes of q, k, v with heads in front; the operator's inputs and attributes
    "4d": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {}),
    "4d_diff_heads_sizes": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 10), {}),
    "4d_gqa": ((2, 9, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {}),
    "4d_scaled": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"scale": 1e-2}),
    "4d_causal": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"is_causal": True}),
    "4d_softcap": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"softcap": 2.0}),
    "4d_gqa_softcap": ((2, 9, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"softcap": 2.0, "is_causal": True}),
    "4d_attn_mask_bool": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"attn_mask": (4, 6)}),
    "4d_attn_mask_bool_4d": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"attn_mask": (2, 3, 4, 6)}),
    "4d_attn_mask_3d_causal": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"attn_mask": (3, 4, 6), "is_causal": True}),
    "4d_gqa_attn_mask": ((2, 9, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"attn_mask": (4, 6)}),
    "4d_with_past": ((2, 3, 4, 8), (2, 3, 18, 8), (2, 3, 18, 8), {"past": 12, "is_causal": True}),
    "4d_gqa_with_past": ((2, 9, 4, 8), (2, 3, 18, 8), (2, 3, 18, 8), {"past": 12, "attn_mask": (4, 18)}),
    "4d_mask4d_padded_kv": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 10), {"attn_mask": (2, 1, 4, 6), "nonpad": [3, 4]}),
    "4d_padded_kv_causal": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"nonpad": [5, 4], "is_causal": True}),
    "4d_window": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"windows": (1, 2)}),
    "4d_window_causal_past": ((2, 9, 4, 8), (2, 3, 18, 8), (2, 3, 18, 8),
                              {"past": 14, "windows": (3, None), "is_causal": True}),
    "4d_fully_masked": ((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 8), {"nonpad": [0, 6], "softcap": 1.0}),
}  # fmt: skip


def operator(q, k, v, *, scale, softcap, hidden):
    """As the operator's documentation has it: scale, cap, mask, softmax; rows that see nothing are 0."""
    k, v = (np.repeat(x, q.shape[1] // k.shape[1], axis=1) for x in (k, v))
    s = scale * q @ k.swapaxes(-1, -2)
    s = s if softcap is None else softcap * np.tanh(s / softcap)
    s = np.where(hidden, -np.inf, s)
    with np.errstate(invalid="ignore"):
        p = np.exp(s - s.max(axis=-1, keepdims=True))
        return np.nan_to_num(p / p.sum(axis=-1, keepdims=True)) @ v


@pytest.mark.parametrize("name", CASES)
def test_node_cases(on, name):
    *shapes, given = CASES[name]
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape) for shape in shapes)
    (sq, d), sk, past = q.shape[-2:], k.shape[-2], given.get("past", 0)
    options = {name: given[name] for name in ("scale", "softcap") if name in given}
    hidden, distance = np.zeros((2, 1, sq, sk), bool), np.arange(sk) - past - np.arange(sq)[:, None]
    left, right = given.get("windows", (None, None))
    if given.get("is_causal"):
        options["causal"] = True
        hidden |= distance > 0
    if left is not None or right is not None:
        options["window"] = left, right
        hidden |= (distance < (-sk if left is None else -left)) | (distance > (sk if right is None else right))
    if given.get("is_causal") or "window" in options:
        options["q_offset"] = past
    if "attn_mask" in given:
        options["mask"] = rng.random(given["attn_mask"]) < 0.6
        hidden = hidden | ~options["mask"]
    if "nonpad" in given:
        options["k_lengths"] = np.array(given["nonpad"])
        hidden = hidden | (np.arange(sk) >= options["k_lengths"][:, None, None, None])
    expected = operator(q, k, v, scale=given.get("scale", 1 / np.sqrt(d)), softcap=given.get("softcap"), hidden=hidden)
    np.testing.assert_allclose(on(flash_attention, q, k, v, **options), expected, atol=1e-12)
