"""Bugs in the kernels on CUDA cores."""

from bugs import Bug

REACH = "tests/test_values.py::test_nan_reaches_what_it_must_and_nothing_else[emulator-float32-24-33-{}]"
UNSEEN = "tests/test_values.py::test_what_nobody_sees_may_be_nan[emulator-float32-24-33--30]"
SPANS = "tests/test_kernels.py::test_spans_of_keys_change_nothing_beyond_rounding[float32-64-230]"
SPANS_NONE = "tests/test_kernels.py::test_spans_of_keys_change_nothing_beyond_rounding[float32-64--2]"
WIDE = "tests/test_merge.py::test_kernels_on_cuda_cores[emulator-float16-264-{}]"
MANY_KEYS = "tests/test_extremes.py::test_gradients_of_many_equal_keys_add_up[emulator-{}-10240]"
CHECKED = "tests/test_kernels.py::test_checked_mode_finds_nothing[float32-64-64-{}-None]"

BUGS = [
    # forward.cu
    Bug(
        "cuda_src/simt/forward.cu", "the last span writes nothing where it has no keys",
        "if (!span.is_first && !span.is_last && n_begin", "if (!span.is_first && n_begin", (SPANS_NONE,),
    ),
    Bug(
        "cuda_src/simt/forward.cu", "spans begin within blocks",
        "const int keys = ceil_div(ceil_div(seqlen_k, kBlockN), schedule.num_spans) * kBlockN;",
        "const int keys = ceil_div(seqlen_k, schedule.num_spans);", (SPANS,),
    ),
    Bug(
        "cuda_src/simt/forward.cu", "the output of earlier spans keeps its reference",
        "own * acc_o[slice][i][j] + earlier * *g.out.at(row, col)", "own * acc_o[slice][i][j] + *g.out.at(row, col)",
        (SPANS,),
    ),
    Bug(
        "cuda_src/simt/forward.cu", "keys that none of the block's queries sees are read",
        "mask.keys(m0, min(m0 + kBlockM, shape.seqlen_q) - 1)", "mask.keys(m0, m0 + kBlockM - 1)", (UNSEEN,),
    ),
    Bug(
        "cuda_src/simt/forward.cu", "values have as many slices as keys",
        "if (slice * kSliceD < shape.head_dim_v) {", "if (slice * kSliceD < shape.head_dim) {",
        ("tests/test_contract.py::test_head_dims[emulator-1-512-float32]",),
    ),
    Bug(
        "cuda_src/simt/forward.cu", "the blocks' sums are one",
        "if (kFewDigits) {\n          add_part", "if (!kFewDigits) {\n          add_part",
        ("tests/test_extremes.py::test_many_equal_keys_add_up[emulator-10240]",),
    ),
    # backward_dkdv.cu
    Bug(
        "cuda_src/simt/backward_dkdv.cu", "query heads of a group lie a group apart",
        "int head_q = place.head + member;", "int head_q = member * shape.num_heads_k + head_k;",
        (REACH.format(25),),
    ),
    Bug(
        "cuda_src/simt/backward_dkdv.cu", "K and V are held where they share a tile",
        "key_held = kResident;", "key_held = true;", (WIDE.format(False),),
    ),
    Bug(
        "cuda_src/simt/backward_dkdv.cu", "dQ is added beyond its columns",
        "if (row < gDq.rows && col < gDq.cols) atomicAdd", "if (row < gDq.rows) atomicAdd",
        (REACH.format(None),),
    ),
    Bug(
        "cuda_src/simt/backward_dkdv.cu", "keys that nobody sees are read",
        "const Interval seen = mask.keys(0, shape.seqlen_q - 1);", "const Interval seen{0, shape.seqlen_k};", (UNSEEN,),
    ),
    Bug(
        "cuda_src/simt/backward_dkdv.cu", "the blocks of queries are summed up as one",
        "add_part(acc_dv[slice], [&](auto& part) { matmul_tn<kBlockM>(part, shared.p, shared.dout()); });",
        "matmul_tn<kBlockM>(acc_dv[slice], shared.p, shared.dout());",
        ("tests/test_extremes.py::test_gradients_of_many_queries_add_up[emulator-10240]",),
    ),
    # backward_dq.cu
    Bug(
        "cuda_src/simt/backward_dq.cu", "stretches before the last are lost",
        "if (kFewDigits) end_stretch(acc_dq, total_dq);", "", (MANY_KEYS.format(True),),
    ),
    Bug(
        "cuda_src/simt/backward_dq.cu", "K is held where it shares a tile with V",
        "kResident && n0 > first_met, n0", "n0 > first_met, n0", (WIDE.format(True),),
    ),
    Bug(
        "cuda_src/simt/backward_dq.cu", "dQ is rounded where it is wanted as summed",
        "unrounded = params.dq_acc.data != nullptr;", "unrounded = params.dq_acc.data == nullptr;",
        (WIDE.format(True),),
    ),
    Bug(
        "cuda_src/simt/backward_dq.cu", "keys that none of the block's queries sees are read",
        "mask.keys(m0, min(m0 + kBlockM, shape.seqlen_q) - 1)", "mask.keys(m0, m0 + kBlockM - 1)", (UNSEEN,),
    ),
    # backward_tiles.cuh
    Bug(
        "cuda_src/simt/backward_tiles.cuh", "V is taken of the query's head",
        "head_matrix<Element>(params.v, shape, batch, head_k, keys",
        "head_matrix<Element>(params.v, shape, batch, head, keys",
        (REACH.format(25),),
    ),
    Bug(
        "cuda_src/simt/backward_tiles.cuh", "hidden keys have a gradient of 0 times what they hold",
        "ds[i][j] = seen ? scored.template gradient<kTerm>(p[i][j] * (ds[i][j] - delta), s, j) : Accumulator(0);",
        "ds[i][j] = scored.template gradient<kTerm>(p[i][j] * (ds[i][j] - delta), s, j);", (REACH.format(25),),
    ),
    Bug(
        "cuda_src/simt/backward_tiles.cuh", "queries before the first that sees the keys are read",
        "shape.head_dim_v, queries.begin),", "shape.head_dim_v),", (UNSEEN,),
    ),
    Bug(
        "cuda_src/simt/backward_tiles.cuh", "slices are as deep as the head, not as what is left",
        "add_slice_nt(acc, sA, sB, min(kSliceD, gA.cols - col0));",
        "add_slice_nt(acc, sA, sB, min(kSliceD, gA.cols) - 8);",
        (WIDE.format(True),),
    ),
    # matmul.cuh
    Bug(
        "cuda_src/simt/matmul.cuh", "a stretch is counted again with the next", "    set_zero(acc[slice]);\n", "",
        (MANY_KEYS.format(True),),
    ),
    Bug(
        "cuda_src/simt/matmul.cuh", "the last step of a depth that is no multiple of it is dropped",
        "for (int k0 = 0; k0 < depth; k0 += kUnroll) {", "for (int k0 = 0; k0 + kUnroll <= depth; k0 += kUnroll) {",
        ("tests/test_contract.py::test_head_dims[emulator-1-512-float32]",),
    ),
    Bug(
        "cuda_src/simt/matmul.cuh", "odd columns are written past the row",
        "if (col + u < g.cols) *g.at(row, col + u)", "if (col < g.cols) *g.at(row, col + u)", (REACH.format(25),),
    ),
    # tile.cuh
    Bug(
        "cuda_src/simt/tile.cuh", "what lies outside is what the last row holds",
        "const bool inside = g.holds(row0 + row, col0 + col);", "const bool inside = row0 + row < g.rows;",
        (REACH.format(25),),
    ),
    Bug(
        "cuda_src/simt/tile.cuh", "rows are vectors wherever columns are next to one another",
        "g.vector_bytes >= kVec * static_cast<int>(sizeof(Element))", "g.col_stride == 1", (REACH.format(25),),
    ),
    Bug(
        "cuda_src/simt/tile.cuh", "rows outside are read where vectors are",
        "if (g.holds(row0 + row, col0 + col)) x =", "if (col0 + col < g.cols) x =", (CHECKED.format(True),),
    ),
]  # fmt: skip
