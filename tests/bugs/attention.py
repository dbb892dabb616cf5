"""Bugs in what all kernel families share: masks, softmax, schedules, row-wise kernels, numbers and parameters."""

from bugs import Bug

REACH_FULL = "tests/test_values.py::test_nan_reaches_what_it_must_and_nothing_else[emulator-float32-24-33-None]"
UNSEEN = "tests/test_values.py::test_what_nobody_sees_may_be_nan[emulator-float32-24-33--30]"
_ROWS = "tests/test_kernels.py::test_rows_that_do_not_fill_the_last_block_of_row_wise_kernels"
ROWS, VECTORS = f"{_ROWS}[5-7-24-33]", f"{_ROWS}[70-200-33-40]"
SPLITS = "tests/test_values.py::test_more_splits_than_a_warp_has_lanes[emulator-float16-None]"
SECTIONS = "tests/test_values.py::test_key_heads_need_not_divide_into_sections"
OFFSET = "tests/test_values.py::test_every_offset_around_the_edge_of_a_block[emulator-{}]"
PADDING = "tests/test_values.py::test_padding_never_wins_the_maximum[emulator-False-{}]"
LAYOUT = "tests/test_kernels.py::test_params_have_the_layout_of_the_kernels[host]"
COMPOSED = "tests/test_composition.py::test_steps_follow_one_another_and_masks_hide_together[below-host]"
WINDOW = "tests/test_composition.py::test_a_component_does_on_a_gpu_what_its_python_says[window {}-host]"
PLATFORM = "tests/test_kernels.py::test_the_platform_has_what_its_names_say[ptx]"
LAGGING = "tests/test_online_softmax.py::test_a_reference_that_follows_the_maximum_late[{}]"
EDGE = "tests/test_online_softmax.py::test_rows_that_become_far_or_near_again[bfloat16-38]"
DIVIDE = "tests/test_packing.py::test_kernels_divide_by_it[host]"
SPOILT = "tests/test_vjp.py::test_on_a_gpu_gradients_become_nan[float32]"


def change(name):
    return f"tests/test_vjp.py::test_a_change_is_named[emulator-float64-{name}]"


BUGS = [
    # backward_rows.cu
    Bug(
        "cuda_src/attention/backward_rows.cu", "dlse is added to delta",
        "lanes.own(sums) - dlse;", "lanes.own(sums) + dlse;", (ROWS,),
    ),
    Bug(
        "cuda_src/attention/backward_rows.cu", "delta sums the first element of every vector",
        "for (int j = 0; j < lanes.kCount; ++j) {\n#pragma unroll\n        for (int i = 0; i < lanes.kRows; ++i) sums",
        "for (int j = 0; j < 1; ++j) {\n#pragma unroll\n        for (int i = 0; i < lanes.kRows; ++i) sums", (VECTORS,),
    ),
    Bug(
        "cuda_src/attention/backward_rows.cu", "dv is converted as far as dk has columns",
        "params.dv_acc, params.shape, block, params.shape.head_dim_v);",
        "params.dv_acc, params.shape, block, params.shape.head_dim);", (ROWS,),
    ),
    Bug(
        "cuda_src/attention/backward_rows.cu", "gradients of keys are converted by query rows",
        "const RowBlock block = block_of_keys(params.shape);", "const RowBlock block = block_of_queries(params.shape);",
        (ROWS,),
    ),
    # combine.cu
    Bug(
        "cuda_src/attention/combine.cu", "the maximum is of the first 32 splits",
        "for (int split = lane + 32; split < num_splits;", "for (int split = lane + 32; split < 32;", (SPLITS,),
    ),
    Bug(
        "cuda_src/attention/combine.cu", "the sum is of the first 32 splits",
        "for (int first = 0; first < num_splits; first += 32)", "for (int first = 0; first < 1; first += 32)",
        (SPLITS,),
    ),
    Bug(
        "cuda_src/attention/combine.cu", "the output leaves out the splits after those under way at first",
        "for (int split = 0; split < num_splits; split += kUnderWay) {",
        "for (int split = 0; split < min(num_splits, kUnderWay); split += kUnderWay) {", (SPLITS,),
    ),
    Bug(
        "cuda_src/attention/combine.cu", "all splits have the weights of the first",
        "weight(split + lane % kUnderWay);", "weight(lane % kUnderWay);", (SPLITS,),
    ),
    Bug(
        "cuda_src/attention/combine.cu", "columns after the last are stored",
        "    if (col >= g.cols) continue;\n", "", (ROWS,),
    ),
    # mask.cuh
    Bug(
        "cuda_src/attention/mask.cuh", "a block is whole that hides its last key from its first query",
        "all = col0 + cols <= Part::key_end(first);", "all = col0 + cols <= Part::key_end(first) + 1;",
        (OFFSET.format(62), OFFSET.format(126)),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "a causal block is whole though keys end within it",
        "return ((col0 + cols <= seqlen_k) && ...", "return (true && ...", (OFFSET.format(128),),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "a block of one key too few is whole",
        "((col0 + cols <= seqlen_k) && ...", "((col0 + cols <= seqlen_k + 1) && ...",
        (PADDING.format("float32"),),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "keys end before the last that the last query sees",
        "seen.lower_end(Part::key_end(last));", "seen.lower_end(Part::key_end(last) - 1);", (OFFSET.format(0),),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "keys meet queries that do not see them",
        "seeing.raise_begin(Part::query_begin(first));", "{}", (UNSEEN,),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "what one part shows another does not hide",
        "return key < Part::key_end(query);", "return key < Part::key_end(query) || query == 7;",
        (COMPOSED.replace("below", "above"),),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "a block is whole that hides its first key from its last query",
        "Part::key_begin(ptx::opaque(last))", "Part::key_begin(first)", (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "keys meet queries beyond all that see them",
        "seeing.lower_end(Part::query_end(last));", "{}", (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "keys begin where the last query's do",
        "seen.raise_begin(Part::key_begin(first));", "seen.raise_begin(Part::key_begin(last));", (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "a query sees the first key behind its window",
        "< static_cast<unsigned>(seen.end - seen.begin);", "<= static_cast<unsigned>(seen.end - seen.begin);",
        (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "a query sees keys before its window",
        "return static_cast<unsigned>(key - seen.begin) < static_cast<unsigned>(seen.end - seen.begin);",
        "return key < seen.end;", (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "the last part's end is the mask's",
        "end = max(begin, min(position, end));", "end = max(begin, position);", (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "the last part's begin is the mask's",
        "begin = max(begin, min(position, end));", "begin = min(position, end);", (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "of no keys the end lies before the begin",
        "void lower_end(int position) { end = max(begin, min(position, end)); }",
        "void lower_end(int position) { end = min(position, end); }", (WINDOW.format("(3, 2), q_offset -5"),),
    ),
    Bug(
        "cuda_src/attention/mask.cuh", "of no keys the begin lies behind them all",
        "begin = max(begin, min(position, end));", "begin = max(begin, position);",
        (WINDOW.format("(3, 2), q_offset 30"),),
    ),
    # mask/window.cuh
    Bug(
        "cuda_src/attention/mask/window.cuh", "a window stands where its query would without an offset",
        "left(min(params.left - place.q_offset,", "left(min(params.left,", (WINDOW.format("(3, 2), q_offset -5"),),
    ),
    Bug(
        "cuda_src/attention/mask/window.cuh", "a query does not see the last key on its right",
        "return query + right + 1;", "return query + right;", (WINDOW.format("(None, 4)"),),
    ),
    Bug(
        "cuda_src/attention/mask/window.cuh", "queries of a key end one too soon",
        "return key + left + 1;", "return key + left;", (WINDOW.format("(5, None)"),),
    ),
    # matrix.cuh
    Bug(
        "cuda_src/attention/matrix.cuh", "rows before the first that takes part are read",
        "return row >= row_begin && row < rows;", "return row < rows;", (UNSEEN,),
    ),
    Bug(
        "cuda_src/attention/matrix.cuh", "all batch dimensions lie as the innermost",
        "tensor.batch_strides[dim]", "tensor.batch_strides[kBatchDims - 1]",
        ("tests/test_vjp.py::test_more_batch_dimensions_than_the_kernels_stride[emulator]",),
    ),
    Bug(
        "cuda_src/attention/matrix.cuh", "the outermost batch dimension is not counted",
        "for (int dim = 0; dim < kBatchDims; ++dim) size", "for (int dim = 1; dim < kBatchDims; ++dim) size",
        ("tests/test_vjp.py::test_more_batch_dimensions_than_the_kernels_stride[emulator]",),
    ),
    Bug(
        "cuda_src/attention/matrix.cuh", "rows are counted from one batch",
        "return num_batches(shape) * shape.num_heads_q * shape.seqlen_q;",
        "return static_cast<int64_t>(shape.num_heads_q) * shape.seqlen_q;", (SECTIONS,),
    ),
    # merge.cu
    Bug(
        "cuda_src/attention/merge.cu", "a row is empty where the first result is",
        "lse_a == -infinity<Accumulator>() && lse_b", "lse_a == -infinity<Accumulator>() || lse_b",
        ("tests/test_merge.py::test_rows_without_keys[emulator]",),
    ),
    Bug(
        "cuda_src/attention/merge.cu", "rows empty in both give NaN",
        "base = empty ? Accumulator(0) : high;", "base = high;",
        ("tests/test_merge.py::test_rows_without_keys[emulator]",),
    ),
    Bug(
        "cuda_src/attention/merge.cu", "the log-sum-exp in log2 units",
        "high + ptx::lg2(sum) * static_cast<Accumulator>(kLn2);", "high + ptx::lg2(sum);", (ROWS,),
    ),
    # online_softmax.cuh
    Bug(
        "cuda_src/attention/online_softmax.cuh", "the maximum misses half of a row's lanes",
        "for (int lane_mask = kLanes / 2; lane_mask > 0; lane_mask /= 2) m = max",
        "for (int lane_mask = kLanes / 4; lane_mask > 0; lane_mask /= 2) m = max", (OFFSET.format(0),),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "rows without keys subtract -inf",
        "Accumulator base_of(Accumulator m) { return m == -infinity<Accumulator>() ? Accumulator(0) : m; }",
        "Accumulator base_of(Accumulator m) { return m; }", (UNSEEN,),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "the log-sum-exp of exact rows lacks the headroom",
        "fma(m, unit, ptx::lg2(sum) + static_cast<Accumulator>(kHeadroom));",
        "fma(m, unit, ptx::lg2(sum));",
        ("tests/test_merge.py::test_kernels_on_cuda_cores[emulator-bfloat16-264-False]",),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "rows are taken for near far too long",
        "kFar = sizeof(Accumulator) == 4 ? 0x1p24", "kFar = sizeof(Accumulator) == 4 ? 0x1p60",
        ("tests/test_extremes.py::test_one_key_gives_its_value[emulator-bfloat16-133120]",),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "the reference follows later than the slack allows",
        "> kSlack - kRoom) | is_far", "> 64 * kSlack - kRoom) | is_far",
        (LAGGING.format("float16-leaping"),),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "a row is far as its first block is",
        "> kSlack - kRoom) | is_far(base[i]);", "> kSlack - kRoom) | (base[i] == -infinity<Accumulator>());",
        (LAGGING.format("float16-rising"), LAGGING.format("float16-down and up")),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "sums of a row keep their reference",
        "        row_sum[i] *= factor;\n", "", (LAGGING.format("float16-rising"),),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "headroom is taken twice where rows come from afar",
        "fma(from, unit, -after) + kRoom", "fma(from, unit, -after)",
        (EDGE,),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "headroom is added to a number near 2^24",
        "fma(from, unit, -after) + kRoom", "fma(from, unit, kRoom - after)", (EDGE,),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "headroom is taken twice where rows become far",
        "fma(to, -unit, before - kRoom)", "fma(to, -unit, before)", (EDGE,),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "only the first row of a lane lets its warp move",
        "moves |= (fma", "moves = i > 0 ? moves : (fma",
        (LAGGING.format("float16-rising"), LAGGING.format("float16-leaping")),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "what a far row owes is 2^(to - from)",
        "is_far(after) ? (from - to) * unit", "is_far(after) ? (to - from) * unit",
        ("tests/test_extremes.py::test_large_scores_give_what_standard_attention_gives[emulator-False-3-400-float16]",),
    ),
    Bug(
        "cuda_src/attention/online_softmax.cuh", "a probability of NaN becomes 1",
        "return ptx::ex2(ptx::min_nan(x, Accumulator(0)));", "return ptx::ex2(min(x, Accumulator(0)));", (REACH_FULL,),
    ),
    # row.cuh
    Bug(
        "cuda_src/attention/row.cuh", "rows after the last are read",
        "kCount && i * kStep < rows_left; j += V::kVec) {\n          x", "kCount; j += V::kVec) {\n          x",
        (ROWS,),
    ),
    Bug(
        "cuda_src/attention/row.cuh", "rows after the last are written",
        "kCount && i * kStep < rows_left; j += V::kVec) {\n          ptx", "kCount; j += V::kVec) {\n          ptx",
        (ROWS,),
    ),
    Bug(
        "cuda_src/attention/row.cuh", "heads of keys are counted as those of queries",
        "return block_of_rows(shape, shape.num_heads_k, shape.seqlen_k, block);",
        "return block_of_rows(shape, shape.num_heads_q, shape.seqlen_k, block);",
        ("tests/test_vjp.py::test_what_lies_between_the_elements_does_not_matter[emulator-bshd]",),
    ),
    Bug(
        "cuda_src/attention/row.cuh", "the outermost batch dimension is not counted",
        "rows.batch[0] = rest;", "rows.batch[0] = 0;",
        ("tests/test_vjp.py::test_more_batch_dimensions_than_the_kernels_stride[emulator]",),
    ),
    Bug(
        "cuda_src/attention/row.cuh", "a lane has the number of the row before its own",
        "mine = lane == i ? numbers[i] : mine;", "mine = lane == i ? numbers[i - 1] : mine;", (ROWS,),
    ),
    Bug(
        "cuda_src/attention/row.cuh", "all rows have the number of the first",
        "return ptx::shfl(own, i, kLanes);", "return ptx::shfl(own, 0, kLanes);",
        ("tests/test_merge.py::test_kernels_on_cuda_cores[emulator-float32-24-False]",),
    ),
    Bug(
        "cuda_src/attention/row.cuh", "sums without those of neighbouring lanes",
        "for (int lane_mask = kLanes / 2; lane_mask > 0; lane_mask /= 2) x +=",
        "for (int lane_mask = kLanes / 2; lane_mask > 1; lane_mask /= 2) x +=", (ROWS,),
    ),
    Bug(
        "cuda_src/attention/row.cuh", "only the first rows of a block are anyone's",
        "row < block.end; row += Lanes::kRows", "row < min(block.begin + 16, block.end); row += Lanes::kRows",
        (VECTORS,),
    ),
    # schedule.cuh
    Bug(
        "cuda_src/attention/schedule.cuh", "the last section has as many heads as the others",
        "section == schedule.last_section ? schedule.last_section_heads : schedule.section_heads",
        "schedule.section_heads", (SECTIONS,),
    ),
    Bug(
        "cuda_src/attention/schedule.cuh", "the head within a batch is that within a section",
        "head_k = key_head % shape.num_heads_k;", "head_k = rest % heads % shape.num_heads_k;", (SECTIONS,),
    ),
    Bug(
        "cuda_src/attention/schedule.cuh", "members of a group lie a group apart",
        "(head_k * schedule.members + tile % schedule.members) * schedule.packed_heads",
        "(tile % schedule.members * shape.num_heads_k + head_k) * schedule.packed_heads",
        (SECTIONS,),
    ),
    Bug(
        "cuda_src/attention/schedule.cuh", "shares of a group come before the heads of its keys",
        "part % schedule.num_splits, head % shape.num_heads_k,",
        "head % schedule.num_splits, part % shape.num_heads_k,",
        ("tests/test_mma.py::test_heads_of_a_group_in_unequal_shares",),
    ),
    Bug(
        "cuda_src/attention/schedule.cuh", "the first query rows come first from the last block's on",
        "(schedule.query_blocks - 1 - block % schedule.query_blocks) * kBlockM",
        "(schedule.query_blocks - block % schedule.query_blocks) * kBlockM",
        (OFFSET.format(0),),
    ),
    # score.cuh
    Bug(
        "cuda_src/attention/score/scale.cuh", "doubles are scaled by a float", "params.unit_f32 : params.unit)",
        "params.unit_f32 : params.unit_f32)",
        ("tests/test_kernels.py::test_a_maximum_that_stays_costs_no_accuracy",),
    ),
    Bug(
        "cuda_src/attention/score/scale.cuh", "gradients in log2 units", "return ds * scale;", "return ds * log2_unit;",
        (OFFSET.format(0),),
    ),
    Bug(
        "cuda_src/attention/score/scale.cuh", "gradients of a negative scale have the sign of a positive one",
        "? params.scale_f32 : params.scale),", "? fabs(params.scale_f32) : params.scale),",
        ("tests/test_contract.py::test_scales_above_1[emulator--3.7-float32]",),
    ),
    Bug(
        "cuda_src/attention/score/scale.cuh", "a negative scale turns no score around", "return -s;", "return s;",
        ("tests/test_contract.py::test_scales_above_1[emulator--3.7-float32]",),
    ),
    Bug(
        "cuda_src/attention/score/uniform.cuh", "a step leaves scores alone", "return step.forward(s);", "return s;",
        ("tests/test_contract.py::test_scales_above_1[emulator--3.7-float32]", COMPOSED),
    ),
    Bug(
        "cuda_src/attention/score/uniform.cuh", "a step leaves gradients alone", "return step.backward(ds, s);",
        "return ds;", (OFFSET.format(0),),
    ),
    Bug(
        "cuda_src/attention/score.cuh", "all steps but the first go by the unit of q . k",
        "rest(params, place, first.unit()) {}", "rest(params, place) {}", (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/score.cuh", "scores have the unit of the first step",
        "Accumulator unit() const { return rest.unit(); }", "Accumulator unit() const { return first.unit(); }",
        (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/score.cuh", "the gradient of a step is taken where the step before began",
        "return first.backward(rest.backward(dscore, first.forward(s, j), j), s, j);",
        "return first.backward(rest.backward(dscore, s, j), s, j);", (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/score.cuh", "what a step learns has no part of the steps behind it",
        "first.term(rest.backward(dscore, first.forward(s, j), j), j)", "first.term(dscore, j)", (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/score.cuh", "a step is told of head 0",
        "rest(score.rest, query, head, columns) {}", "rest(score.rest, query, 0, columns) {}", (COMPOSED,),
    ),
    # mask/causal.cuh
    Bug(
        "cuda_src/attention/mask/causal.cuh", "a query does not see the key on its diagonal",
        "return query + q_offset + 1;", "return query + q_offset;", (OFFSET.format(0),),
    ),
    Bug(
        "cuda_src/attention/mask/causal.cuh", "queries begin after the first that sees the key",
        "return key - q_offset;", "return key - q_offset + 1;", (COMPOSED,),
    ),
    # place.cuh, composed.cuh
    Bug(
        "cuda_src/attention/place.cuh", "as many keys as queries", "seqlen_k(shape.seqlen_k)",
        "seqlen_k(shape.seqlen_q)", (PADDING.format("float32"), COMPOSED),
    ),
    Bug(
        "cuda_src/attention/place.cuh", "the first query stands at the first key", "q_offset(shape.q_offset)",
        "q_offset(0)", (OFFSET.format(62),),
    ),
    Bug(
        "cuda_src/attention/place.cuh", "components are told of head 0", "        head(head),", "        head(0),",
        (COMPOSED,),
    ),
    Bug(
        "cuda_src/attention/composed.cuh", "a number stands before what components are told",
        "  Components components;", "  int64_t number;\n  Components components;", (LAYOUT,),
    ),
    Bug(
        "cuda_src/attention/composed.cuh", "what components are told is aligned to a cache line",
        "  Components components;", "  alignas(128) Components components;", (LAYOUT,),
    ),
    # seal.cu
    Bug(
        "cuda_src/attention/seal.cu", "all lanes begin alike: elements may change places",
        "x[i] = mix(0, lanes.lane);", "x[i] = mix(0, 0);",
        ("tests/test_vjp.py::test_a_change_is_named[emulator-float32-swap_halves]",),
    ),
    Bug(
        "cuda_src/attention/seal.cu", "the upper halves of doubles are left out",
        "return bytes > 4 ? mix", "return bytes > 8 ? mix", (change("double"),),
    ),
    Bug(
        "cuda_src/attention/seal.cu", "no shift: changed signs cancel each other",
        "x = (x ^ x >> 15) * 0x85ebca77u;\n  return x ^ x >> 13;", "return x * 0x85ebca77u;",
        ("tests/test_vjp.py::test_changed_signs_of_one_short_row_are_noticed[emulator]",),
    ),
    Bug(
        "cuda_src/attention/seal.cu", "a change of q spoils nothing",
        "for (int array = 0; array < kArrays; ++array) any", "for (int array = 1; array < kArrays; ++array) any",
        (SPOILT,),
    ),
    Bug(
        "cuda_src/attention/seal.cu", "dv is spoilt as far as dk has columns",
        "spoil(params.dv, block, shape.head_dim_v);", "spoil(params.dv, block, shape.head_dim);", (SPOILT,),
    ),
    Bug(
        "cuda_src/attention/seal.cu", "v is sealed where k is",
        "rows(kV, params.v, shape.head_dim_v, block, digests, 1);",
        "rows(kV, params.v, shape.head_dim_v, block, digests, 0);", (change("add"),),
    ),
    Bug(
        "cuda_src/attention/seal.cu", "of two halves in a word the second is left out",
        "bits_of(y.at(i, j + kTogether - 1)) << 16", "bits_of(y.at(i, j)) << 16",
        ("tests/test_vjp.py::test_what_lies_between_the_elements_does_not_matter[emulator-contiguous]",),
    ),
    Bug(
        "cuda_src/attention/seal.cu", "the first block of keys takes one of queries",
        "if (blockIdx.x < query_blocks) {", "if (blockIdx.x <= query_blocks) {", (ROWS,),
    ),
    # numeric.cuh
    Bug(
        "cuda_src/numeric.cuh", "no headroom in bfloat16", "constexpr int kHeadroom<BFloat16> = 30 + kSlack;",
        "constexpr int kHeadroom<BFloat16> = 0;",
        ("tests/test_extremes.py::test_equal_keys_give_their_value_however_large[emulator-bfloat16-256-40]",),
    ),
    Bug(
        "cuda_src/numeric.cuh", "log2(e) with a float's digits", "kLog2E = 1.4426950408889634074;",
        "kLog2E = 1.44269504f;", ("tests/test_contract.py::test_head_dims[emulator-16-16-float64]",),
    ),
    Bug(
        "cuda_src/numeric.cuh", "infinity is the largest number", "__int_as_float(0x7f800000)",
        "__int_as_float(0x7f7fffff)",
        (UNSEEN,),
    ),
    # params.cuh
    Bug("cuda_src/params.cuh", "a member that Python does not read", "  int64_t vector_bytes;",
        "  bool vectors;\n  int64_t vector_bytes;", (LAYOUT,)),
    Bug("cuda_src/params.cuh", "one batch dimension less than Python packs", "kBatchDims = 4;", "kBatchDims = 3;",
        ("tests/test_vjp.py::test_more_batch_dimensions_than_the_kernels_stride[emulator]",)),
    Bug("cuda_src/params.cuh", "blocks that are not whole are left out",
        "ceil_div(int a, int b) { return (a + b - 1) / b; }", "ceil_div(int a, int b) { return a / b; }",
        ("tests/test_mma.py::test_heads_of_a_group_in_unequal_shares",)),
    Bug("cuda_src/params.cuh", "the other half of the product", "static_cast<uint32_t>(product >> 32)",
        "static_cast<uint32_t>(product)", (DIVIDE,)),
    Bug("cuda_src/params.cuh", "a product of 32 bits", "static_cast<uint64_t>(2u * n) * divisor.multiplier",
        "2u * n * divisor.multiplier", (DIVIDE,)),
    Bug("cuda_src/params.cuh", "the rest is the quotient's", "n - n / divisor * divisor.value;",
        "n / divisor % divisor.value;", (DIVIDE,)),
    # platform.cuh
    Bug("cuda_src/platform.cuh", "shared memory is aligned to vectors only", "__align__(1024) unsigned char",
        "__align__(16) unsigned char", (PLATFORM,)),
    Bug("cuda_src/platform.cuh", "64 bits are 32", "using uint64_t = unsigned long long;",
        "using uint64_t = unsigned int;",
        (PLATFORM,)),
    Bug("cuda_src/platform.cuh", "16 unsigned bits have a sign", "using uint16_t = unsigned short;",
        "using uint16_t = short;",
        (PLATFORM,)),
    Bug("cuda_src/platform.cuh", "any alignment is accepted", "static_assert(alignof(T) <= 1024,",
        "static_assert(alignof(T) >= 1,", (PLATFORM,)),
]  # fmt: skip
