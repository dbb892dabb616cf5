"""Bugs of options that are arrays in cuda_src/cpu: what they hold for a head, and how tiles are hidden by them."""

from bugs import Bug

CPU = "cuda_src/cpu"
ARRAYS = "tests/test_option_arrays_cpu.py"
LENGTHS = "tests/test_lengths.py"
ALIBI = "tests/test_alibi.py"
ALL = f"{ARRAYS}::test_all_at_once_and_each_alone"
TILES = f"{ARRAYS}::test_masks_with_full_and_empty_tiles"
PADDING = f"{ARRAYS}::test_padding_may_be_nan"

BUGS = [
    Bug(
        f"{CPU}/backward_block.h",
        "lengths of the first head hold for all",
        "const Place place = place_of(call_, head);",
        "const Place place = place_of(call_, 0);",
        (f"{ALL}[blocks of keys-float32]",),
    ),
    Bug(
        f"{CPU}/backward_block.h",
        "a tile that hides some keys within the bounds is not cut for dK and dV",
        "cut = cut || part.share != kAll || part.keys < keys;",
        "",
        (f"{ARRAYS}::test_hidden_numbers_of_queries_do_not_matter",),
    ),
    Bug(
        f"{CPU}/backward_block.h",
        "P and dS of panels that see nothing are what they were before",
        "return clear(i, 0, whole);",
        "return;",
        (f"{TILES}[panels-as it is]",),
    ),
    Bug(
        f"{CPU}/backward_block.h",
        "panels behind the first that is empty give nothing to dK and dV",
        "shown_end = clamp(i + kPanel, 0, end);",
        "shown_end = clamp(first + kPanel, 0, end);",
        (f"{TILES}[panels-as it is]",),
    ),
    Bug(
        f"{CPU}/backward_block.h",
        "columns behind the last query read rows of the mask that are not there",
        "Integer<T>(i0 + clamp(i, 0, queries - 1));",
        "Integer<T>(i0 + i);",
        (f"{ARRAYS}::test_what_is_not_there_is_not_read[behind a mask]",),
    ),
    Bug(
        f"{CPU}/forward_panels.h",
        "lengths of the first head hold for all",
        "const Place place = place_of(call_, plan_.head(unit, 0));",
        "const Place place = place_of(call_, 0);",
        (f"{ALL}[panels-float32]",),
    ),
    Bug(
        f"{CPU}/forward_panels.h",
        "a tile that hides some keys within the bounds is not cut",
        "cut = !within || share == kSome;",
        "cut = !within;",
        (f"{TILES}[panels-as it is]",),
    ),
    Bug(
        f"{CPU}/forward_plan.h",
        "heads that share keys but have masks of their own lie side by side",
        "packed = s.heads_alike && group",
        "packed = group",
        (f"{ALL}[packed heads-float32]",),
    ),
    Bug(
        f"{CPU}/forward_rows.h",
        "values of hidden keys count, 0 times nan too",
        "if (shown && !shown[j]) continue;",
        "",
        (f"{ARRAYS}::test_hidden_numbers_do_not_matter[rows-float32-nan]",),
    ),
    Bug(
        f"{CPU}/forward_rows.h",
        "the mask hides no score of a row",
        "p_[j] = shown[j] ? p_[j] : -kInfinity<T>;",
        "",
        (f"{ALL}[rows-float32]",),
    ),
    # --- layout.h, place.h, place ---
    Bug(
        f"{CPU}/layout.h",
        "all heads lie where the first does",
        "return data + layout.heads[head] +",
        "return data + layout.heads[0] +",
        (f"{ALL}[panels-float32]",),
    ),
    Bug(
        f"{CPU}/place.h",
        "all heads have what the first has",
        "array + layout.heads[head] : nullptr;",
        "array + layout.heads[0] : nullptr;",
        (f"{ALL}[panels-float32]",),
    ),
    Bug(
        f"{CPU}/place.h",
        "the first query stands at the first key",
        "q_offset(shape.q_offset) {",
        "q_offset(0) {",
        ("tests/test_cpu_backend.py::test_the_causal_mask_may_cut_blocks_anywhere[native]",),
    ),
    Bug(
        f"{CPU}/place/offsets.h",
        "the first query stands at the first key",
        "arrays.q_offset, last_key - last_query);",
        "arrays.q_offset, int64_t(0));",
        (f"{LENGTHS}::test_positions_are_by_default_those_of_the_last",),
    ),
    Bug(
        f"{CPU}/place/offsets.h",
        "blocks are planned as if all lengths were the whole sequence's",
        "place.knows_offset = arrays.q_offset || arrays.k_lengths || arrays.q_lengths;",
        "",
        (f"{ARRAYS}::test_chunks_are_for_any_position",),
    ),
    Bug(
        f"{CPU}/shape.h",
        "all heads stand where the first does",
        "return {*call.shape, call.arrays, head}; }",
        "return {*call.shape, call.arrays, 0}; }",
        (f"{ALL}[panels-float32]",),
    ),
    # --- panel_mask.h ---
    Bug(
        f"{CPU}/panel_mask.h",
        "keys of a word are all as its first",
        "(words >> 8 * (j % kWord) & 0xff)",
        "(words & 0xff)",
        (f"{TILES}[panels-as it is]",),
    ),
    # --- mask, score ---
    Bug(
        f"{CPU}/mask/boolean.h",
        "what a tile shows is looked for in its first row only",
        "rows, row_ ? queries : 1, keys);",
        "rows, 1, keys);",
        (f"{TILES}[panels-as it is]",),
    ),
    Bug(
        f"{CPU}/mask/boolean.h",
        "the last bytes of a row are not looked at",
        "for (; j < keys; ++j) all &=",
        "for (; j < keys - 1; ++j) all &=",
        (f"{ARRAYS}::test_one_byte_may_differ[panels]",),
    ),
    Bug(
        f"{CPU}/mask/boolean.h",
        "columns of a mask lie side by side",
        "data[rows[n] * row_ + j * col_];",
        "data[rows[n] * row_ + j];",
        (f"{TILES}[panels-columns apart]",),
    ),
    Bug(
        f"{CPU}/mask/boolean.h",
        "tiles are read past the end of the mask",
        "if (bytes < kVectorBytes) row",
        "if (bytes < 0) row",
        (f"{ARRAYS}::test_what_is_not_there_is_not_read[behind a mask]",),
    ),
    Bug(
        f"{CPU}/mask/key_lengths.h",
        "the key behind the last exists",
        "key_end(int64_t) const { return length_; }",
        "key_end(int64_t) const { return length_ < INT64_MAX ? length_ + 1 : length_; }",
        (f"{PADDING}[panels-float32]",),
    ),
    Bug(
        f"{CPU}/mask/key_lengths.h",
        "the backward ends a block of keys early",
        "return key < length_ ? 0 : INT64_MAX;",
        "return key + 1 < length_ ? 0 : INT64_MAX;",
        (f"{ARRAYS}::test_lengths_may_end_with_a_block",),
    ),
    Bug(
        f"{CPU}/mask/query_lengths.h",
        "the query behind the last exists",
        "return query < length_ ? 0 : INT64_MAX;",
        "return query <= length_ ? 0 : INT64_MAX;",
        (f"{PADDING}[panels-float32]",),
    ),
    Bug(
        f"{CPU}/mask/query_lengths.h",
        "the last query gives nothing to the gradients of keys",
        "query_end(int64_t) const { return length_; }",
        "query_end(int64_t) const { return length_ - 1; }",
        (f"{ALL}[blocks of keys-float32]",),
    ),
    Bug(
        f"{CPU}/mask/key_starts.h",
        "the first key does not exist",
        "key_begin(int64_t) const { return start_; }",
        "key_begin(int64_t) const { return start_ ? start_ + 1 : 0; }",
        (f"{ALL}[panels-float32]",),
    ),
    Bug(
        f"{CPU}/mask/key_starts.h",
        "no query sees the first key, which may be the last of a block",
        "return key < start_ ? 0 : INT64_MAX;",
        "return key <= start_ ? 0 : INT64_MAX;",
        (f"{ARRAYS}::test_lengths_may_end_with_a_block",),
    ),
    Bug(
        f"{CPU}/score/alibi.h",
        "distances of keys behind a query are negative",
        "apart < 0 ? -apart : apart, Vector<T>",
        "apart, Vector<T>",
        (f"{ALL}[panels-float32]",),
    ),
    Bug(
        f"{CPU}/score/alibi.h",
        "distances are taken from the number of a query, not from its position",
        "narrow(rows) + Integer<T>(offset_) -",
        "narrow(rows) -",
        (f"{ALIBI}::test_a_query_far_away_sees_the_nearest_keys",),
    ),
    # --- native.py ---
    Bug(
        "cupy_flash/_src/backends/native.py",
        "numbers of 32 bits are read as of 64",
        "x.astype(np.int64, copy=False) if",
        "x if",
        (f"{ALL}[panels-float32]",),
    ),
    Bug(
        "cupy_flash/_src/backends/native.py",
        "a description does not tell how options' arrays lie",
        "tuple([(keyword, x.strides) for keyword, x in options.items()])",
        "tuple([(keyword, (8,) * x.ndim) for keyword, x in options.items()])",
        (f"{ARRAYS}::test_the_same_problem_with_arrays_that_lie_otherwise",),
    ),
]
