"""NumPy structured dtypes that mirror cuda_src/params.cuh field by field."""

from __future__ import annotations

import numpy as np

BATCH_DIMS = 4

TENSOR = np.dtype(
    [
        ("data", np.uint64),
        ("batch_strides", np.int64, BATCH_DIMS),
        ("head_stride", np.int64),
        ("row_stride", np.int64),
        ("col_stride", np.int64),
        ("vector_bytes", np.int64),
    ]
)
DIVISOR = np.dtype([("value", np.int32), ("multiplier", np.uint32), ("shift", np.uint32)])
SHAPE = np.dtype(
    [
        ("batch", DIVISOR, BATCH_DIMS),
        *((name, DIVISOR) for name in ("num_heads_q", "num_heads_k", "group_size")),
        *((name, np.int32) for name in ("seqlen_q", "seqlen_k", "head_dim", "head_dim_v", "q_offset")),
        *((name, np.float64) for name in ("scale", "multiplier")),
        *((name, np.float32) for name in ("scale_f32", "multiplier_f32")),
    ]
)
SCHEDULE = np.dtype(
    [
        *((name, DIVISOR) for name in ("query_blocks", "key_blocks", "num_splits", "packed_heads", "members")),
        *((name, DIVISOR) for name in ("section_heads", "last_section_heads", "section_blocks")),
        *((name, np.int32) for name in ("last_section", "num_spans", "span", "padding")),
    ]
)
FORWARD_TENSORS = ("q", "k", "v", "out", "lse", "partial_out", "partial_rows")
GRADIENT_TENSORS = ("dq", "dq_acc", "dk", "dv", "dk_acc", "dv_acc")
BACKWARD_TENSORS = ("q", "k", "v", "out", "dout", "lse", "dlse", "delta", *GRADIENT_TENSORS)
MERGE_TENSORS = ("out_a", "lse_a", "out_b", "lse_b", "out", "lse")
SEAL_TENSORS = ("q", "k", "v", "out", "lse", "query_digests", "key_digests", "changed", "dq", "dk", "dv")
FORWARD_PARAMS = np.dtype([("shape", SHAPE), ("schedule", SCHEDULE), *((name, TENSOR) for name in FORWARD_TENSORS)])
BACKWARD_PARAMS = np.dtype([("shape", SHAPE), ("schedule", SCHEDULE), *((name, TENSOR) for name in BACKWARD_TENSORS)])
MERGE_PARAMS = np.dtype([("shape", SHAPE), *((name, TENSOR) for name in MERGE_TENSORS)])
SEAL_PARAMS = np.dtype([("shape", SHAPE), *((name, TENSOR) for name in SEAL_TENSORS)])
