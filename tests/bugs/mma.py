"""Bugs of cuda_src/mma."""

from bugs import Bug

TESTS = "tests/test_mma.py::"
EDGES = tuple(f"{TESTS}test_the_diagonal_at_the_edges_of_tiles[sm_80-{q_offset}]" for q_offset in (62, 126))
HIDDEN = f"{TESTS}test_hidden_keys_and_queries_are_never_read"
NAN = f"{TESTS}test_nan_reaches_what_is_computed_from_it"
PAIRS = f"{TESTS}test_dq_added_in_pairs_for_every_head_dimension"
PACKED = (f"{TESTS}test_splits_and_sections_that_leave_a_rest[sm_80-5-9-2600]",)
SHARES = (f"{TESTS}test_heads_of_a_group_in_unequal_shares",)
TIES = f"{TESTS}test_ties_round_to_even"
TURING = (f"{TESTS}test_checked_mode_finds_nothing[sm_75-float16-33-128-False-None]",)
CHECKED = (f"{TESTS}test_the_unmutated_kernels_pass_the_same_run",)
COUNTS = (f"{TESTS}test_forward_does_exactly_what_the_schedule_says[True]",)

BUGS = [
    Bug(
        "cuda_src/mma/fragment.cuh",
        "a split's partial result is as wide as the tile",
        "if (g.holds(row, col_of(j))) dst[col_of(j)]",
        "if (g.holds(row, 0)) dst[col_of(j)]",
        PACKED,
    ),
    Bug(
        "cuda_src/mma/fragment.cuh",
        "B's registers of the other columns",
        "b[2 * half], b[2 * half + 1]",
        "b[half], b[half + 2]",
        EDGES,
    ),
    Bug(
        "cuda_src/mma/fragment.cuh",
        "Turing's halves of the depth take A's rows for its columns",
        "a_low[2] = {a[0], a[1]}, a_high[2] = {a[2], a[3]}",
        "a_low[2] = {a[0], a[2]}, a_high[2] = {a[1], a[3]}",
        TURING,
    ),
    Bug(
        "cuda_src/mma/fragment.cuh",
        "the halves of a bfloat16 pair change places",
        "return ptx::bf16x2_from_f32(lo, hi);",
        "return ptx::bf16x2_from_f32(hi, lo);",
        (f"{TIES}[bfloat16-False]",),
    ),
    Bug(
        "cuda_src/mma/fragment.cuh",
        "what is rounded is cut off first",
        "return ptx::f16x2_from_f32(lo, hi);",
        "return ptx::f16x2_from_f32(__uint_as_float(__float_as_uint(lo) & 0xfffff000u), hi);",
        (f"{TIES}[float16-False]",),
    ),
    Bug(
        "cuda_src/mma/tile.cuh",
        "columns beyond the head are the first ones again",
        "inside ? 16 : 0",
        "row < g.rows ? 16 : 0",
        EDGES,
    ),
    Bug(
        "cuda_src/mma/tile.cuh",
        "columns one by one lie side by side",
        "x.data[i] = *g.at(row, col + i);",
        "x.data[i] = g.vector_at(row, col)[i];",
        SHARES,
    ),
    Bug(
        "cuda_src/mma/tile.cuh",
        "a chunk is stored whole or not at all",
        "if (g.holds(row0 + row, col + i)) *g.at(row0 + row, col + i)",
        "if (g.holds(row0 + row, col)) *g.at(row0 + row, col + i)",
        CHECKED,
    ),
    Bug(
        "cuda_src/mma/tile.cuh",
        "Turing reads statistics of rows past the end",
        "column[i] = inside ? *g.at(row0 + i, 0) : 0.0f;",
        "column[i] = *g.at(row0 + i, 0);",
        TURING,
    ),
    Bug(
        "cuda_src/mma/ring.cuh",
        "a single slot is filled while it is read",
        "    __syncthreads();\n    fill(step);\n    if (kAsyncCopy) ptx::cp_async_wait_all();",
        "    fill(step);\n    if (kAsyncCopy) ptx::cp_async_wait_all();",
        TURING,
    ),
    Bug(
        "cuda_src/mma/ring.cuh",
        "one group of copies too few is waited for",
        "(kStages > 1 ? kStages - 2 : 0)",
        "(kStages > 1 ? kStages - 1 : 0)",
        CHECKED,
    ),
    Bug(
        "cuda_src/mma/ring.cuh",
        "one slot is left empty at the start",
        "step < kStages - 1; ++step",
        "step < kStages - 2; ++step",
        CHECKED,
    ),
    Bug(
        "cuda_src/mma/packed.cuh",
        "splits lie as far apart whatever a row holds",
        "work.split * query_rows(shape) * cols;",
        "work.split * query_rows(shape) * shape.head_dim_v;",
        PACKED,
    ),
    Bug(
        "cuda_src/mma/packed.cuh",
        "vectors of the first head for all",
        "return first.vector_at(packing.query(row), col) + packing.head(row) * head_stride;",
        "return first.vector_at(packing.query(row), col);",
        PACKED,
    ),
    Bug(
        "cuda_src/mma/packed.cuh",
        "as many packed rows as if heads were groups",
        "shape.seqlen_q * packing.heads, first",
        "shape.seqlen_q * (kPacked ? shape.num_heads_k : 1), first",
        PACKED,
    ),
    Bug(
        "cuda_src/mma/scores.cuh",
        "a tile whose last key is hidden counts as seen",
        "mask.covers(m0 + row0, n0, kBlockN)",
        "mask.covers(m0 + row0, n0, kBlockN - 1)",
        EDGES,
    ),
    Bug(
        "cuda_src/mma/scores.cuh",
        "dout is as wide as q",
        "params.dout, shape, batch, head, rows, shape.head_dim_v, query_begin",
        "params.dout, shape, batch, head, rows, shape.head_dim, query_begin",
        TURING,
    ),
    Bug(
        "cuda_src/mma/scores.cuh",
        "queries that see none of the keys are read",
        "rows, shape.head_dim, query_begin)",
        "rows, shape.head_dim, 0)",
        (f"{HIDDEN}[sm_80-False]",),
    ),
    Bug(
        "cuda_src/mma/scores.cuh",
        "the rows of the first warps' statistics for all",
        "const int row = row0 + row_of(i);\n      const bool inside",
        "const int row = row0 / kBlockM * kBlockM + row_of(i);\n      const bool inside",
        EDGES,
    ),
    Bug(
        "cuda_src/mma/forward.cu",
        "the mask takes a packed row for a query",
        "if (mask.covers(packing.query(first_row), n0, kBlockN)) return;",
        "if (mask.covers(first_row, n0, kBlockN)) return;",
        PACKED,
    ),
    Bug(
        "cuda_src/mma/forward.cu",
        "keys that no packed query sees are loaded",
        "mask.key_end(packing.query(min(m0 + kBlockM, total_rows) - 1));",
        "mask.key_end(min(m0 + kBlockM, total_rows) - 1);",
        PACKED,
    ),
    Bug(
        "cuda_src/mma/forward.cu",
        "a tile that begins where the warp's keys end is multiplied",
        "block * kBlockN >= warp_key_end",
        "block * kBlockN > warp_key_end",
        COUNTS,
    ),
    Bug(
        "cuda_src/mma/forward.cu",
        "O's tile is written while Q arrives",
        "  if (kAsyncCopy) ptx::cp_async_wait_all();\n  __syncthreads();  // O's tile",
        "  __syncthreads();  // O's tile",
        CHECKED,
    ),
    Bug(
        "cuda_src/mma/forward.cu",
        "lanes read rows of O before others have written them",
        "  __syncwarp();\n",
        "",
        CHECKED,
    ),
    Bug(
        "cuda_src/mma/backward_dkdv.cu",
        "additions in pairs to rows of any alignment",
        "if (kAddsPairs && g.vectorized) {",
        "if (kAddsPairs) {",
        (f"{PAIRS}[33]",),
    ),
    Bug(
        "cuda_src/mma/backward_dkdv.cu",
        "additions in pairs beyond the last column",
        "acc[i][j + 1], inside && col0 + step < g.cols);\n      } else",
        "acc[i][j + 1], inside);\n      } else",
        (f"{NAN}[sm_90a-False]",),
    ),
    Bug(
        "cuda_src/mma/backward_dkdv.cu",
        "the last share of a group runs into the next",
        "const int head_end = min(head_begin + per_split, (head_k + 1) * group_size);",
        "const int head_end = head_begin + per_split;",
        SHARES,
    ),
    Bug(
        "cuda_src/mma/backward_dkdv.cu",
        "heads of dout are as far apart as those of q",
        "member * params.dout.head_stride",
        "member * params.q.head_stride",
        SHARES,
    ),
    Bug(
        "cuda_src/mma/backward_dkdv.cu",
        "keys that no query sees are read",
        "key_end = mask.key_end(shape.seqlen_q - 1);",
        "key_end = shape.seqlen_k;",
        (f"{HIDDEN}[sm_80-False]",),
    ),
    Bug(
        "cuda_src/mma/backward_dq.cu",
        "key heads are dealt to query heads by turns",
        "head / (shape.num_heads_q / shape.num_heads_k)",
        "head % shape.num_heads_k",
        (f"{NAN}[sm_80-True]",),
    ),
    Bug(
        "cuda_src/mma/backward_dq.cu",
        "keys that the last queries do not see are read",
        "mask.key_end(min(m0 + kBlockM, shape.seqlen_q) - 1)",
        "mask.key_end(m0 + kBlockM - 1)",
        (f"{HIDDEN}[sm_80-True]",),
    ),
    Bug(
        "cuda_src/mma/backward_dq.cu",
        "unrounded sums of all warps go to the first rows",
        "m0 + row0,\n                    acc_dq);",
        "m0,\n                    acc_dq);",
        ("tests/test_merge.py::test_a_wide_dout_is_rounded_and_every_dtype_has_its_plan[emulator]",),
    ),
    Bug(
        "cuda_src/mma/backward_dq.cu",
        "dQ's tile is written while Q is read",
        "  if (kAsyncCopy) ptx::cp_async_wait_all();\n  __syncthreads();  // Q",
        "  __syncthreads();  // Q",
        CHECKED,
    ),
]
