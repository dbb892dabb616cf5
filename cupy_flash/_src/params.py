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
        ("vectorized", np.int64),
    ]
)
SHAPE = np.dtype(
    [
        ("batch", np.int32, BATCH_DIMS),
        ("num_heads_q", np.int32),
        ("num_heads_k", np.int32),
        ("seqlen_q", np.int32),
        ("seqlen_k", np.int32),
        ("head_dim", np.int32),
        ("head_dim_v", np.int32),
        ("q_offset", np.int32),
        ("padding", np.int32),
        ("scale", np.float64),
    ]
)
SCHEDULE_FIELDS = ("num_splits", "packed_heads", "section_heads", "num_spans", "span", "padding")
SCHEDULE = np.dtype([(name, np.int32) for name in SCHEDULE_FIELDS])
FORWARD_TENSORS = ("q", "k", "v", "out", "lse", "partial_out", "partial_rows")
GRADIENT_TENSORS = ("dq", "dq_acc", "dk", "dv", "dk_acc", "dv_acc")
BACKWARD_TENSORS = ("q", "k", "v", "out", "dout", "lse", "dlse", "delta", *GRADIENT_TENSORS)
MERGE_TENSORS = ("out_a", "lse_a", "out_b", "lse_b", "out", "lse")
SEAL_TENSORS = ("q", "k", "v", "out", "lse", "query_digests", "key_digests", "changed", "dq", "dk", "dv")
FORWARD_PARAMS = np.dtype([("shape", SHAPE), ("schedule", SCHEDULE), *((name, TENSOR) for name in FORWARD_TENSORS)])
BACKWARD_PARAMS = np.dtype([("shape", SHAPE), ("schedule", SCHEDULE), *((name, TENSOR) for name in BACKWARD_TENSORS)])
MERGE_PARAMS = np.dtype([("shape", SHAPE), *((name, TENSOR) for name in MERGE_TENSORS)])
SEAL_PARAMS = np.dtype([("shape", SHAPE), *((name, TENSOR) for name in SEAL_TENSORS)])
