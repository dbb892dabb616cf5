"""Bugs of options that are arrays, in the kernels."""

from bugs import Bug

ATTENTION = "cuda_src/attention/"
TESTS = "tests/test_option_arrays_cuda.py::"
CLAMPED = f"{TESTS}test_lengths_out_of_range_are_clamped"
PADDING = f"{TESTS}test_padding_does_not_spread"
HEADS = f"{TESTS}test_rows_of_a_packed_tile_have_the_slopes_and_masks_of_their_heads"
SHARED = f"{TESTS}test_lanes_share_what_they_read_of_a_mask"
BYTES = f"{TESTS}test_any_byte_but_0_is_true"
ANY_MEMORY = "tests/test_mask.py::test_any_memory[emulator]"
EMPTY = f"{TESTS}test_tiles_that_show_nothing_are_not_computed"

BUGS = [
    Bug(
        f"{ATTENTION}number.cuh",
        "numbers of 64 bits are narrowed before they are clamped",
        "const int64_t number =",
        "const int number =",
        (f"{CLAMPED}[int64-float16]",),
    ),
    Bug(
        f"{ATTENTION}number.cuh",
        "all batch entries have the first's number",
        "batch_offset(numbers, place.shape, place.batch);",
        "batch_offset(numbers, place.shape, 0);",
        (f"{CLAMPED}[int32-float32]",),
    ),
    Bug(
        f"{ATTENTION}number.cuh",
        "a number below the least is not clamped",
        "number < low ? low : number > high",
        "number > high",
        (f"{TESTS}test_sums_of_far_offsets_and_wide_windows_do_not_overflow[(5, None)-given0-float16]",),
    ),
    Bug(
        f"{ATTENTION}place.cuh",
        "no part moves a place",
        "    (Parts::move(*this, params), ...);\n",
        "",
        (f"{TESTS}test_of_two_arrays_for_a_position_the_offset_counts",),
    ),
    Bug(
        f"{ATTENTION}place/offsets.cuh",
        "an array of offsets does not count beside lengths",
        "if (params.q_offset.data != nullptr) {",
        "if (params.k_lengths.data == nullptr) {",
        (f"{TESTS}test_of_two_arrays_for_a_position_the_offset_counts",),
    ),
    Bug(
        f"{ATTENTION}place/offsets.cuh",
        "the last query stands at the last key, whether or not it exists",
        "length_of(params.q_lengths, params.q_lengths_wide, place, place.seqlen_q);",
        "place.seqlen_q;",
        (f"{TESTS}test_the_last_query_that_exists_stands_at_the_last_such_key",),
    ),
    Bug(
        f"{ATTENTION}mask/key_lengths.cuh",
        "the first key that does not exist is seen",
        "return length;",
        "return length + 1;",
        (f"{PADDING}[nan-float32]",),
    ),
    Bug(
        f"{ATTENTION}mask/key_lengths.cuh",
        "keys meet the queries that they should not",
        "key < length ? 0 : seqlen_q;",
        "key < length ? seqlen_q : 0;",
        (f"{PADDING}[nan-float16]", f"{CLAMPED}[int32-float16]"),
    ),
    Bug(
        f"{ATTENTION}mask/query_lengths.cuh",
        "the first query that does not exist sees keys",
        "query < length ? 0",
        "query <= length ? 0",
        (f"{PADDING}[nan-float32]",),
    ),
    Bug(
        f"{ATTENTION}mask/query_lengths.cuh",
        "the last query is left out of the keys' gradients",
        "return length;",
        "return length - 1;",
        (f"{CLAMPED}[int32-float16]",),
    ),
    Bug(
        f"{ATTENTION}mask/key_starts.cuh",
        "the last key that does not exist is seen",
        "return start;",
        "return start - 1;",
        (f"{PADDING}[nan-float32]",),
    ),
    Bug(
        f"{ATTENTION}mask/key_starts.cuh",
        "keys meet the queries that they should not",
        "key < start ? 0 : seqlen_q;",
        "key < start ? seqlen_q : 0;",
        (f"{CLAMPED}[int32-float16]",),
    ),
    Bug(
        f"{ATTENTION}score/alibi.cuh",
        "all heads of a block have the first's slope",
        "head == 0 ? first_slope : load_slope(head);",
        "first_slope;",
        (HEADS,),
    ),
    Bug(
        f"{ATTENTION}score/alibi.cuh",
        "distances are from where a query would stand without an offset",
        "query + step.q_offset - columns(0)",
        "query - columns(0)",
        (HEADS,),
    ),
    Bug(
        f"{ATTENTION}score/alibi.cuh",
        "keys behind a query are rewarded",
        "fabs(apart - static_cast<Accumulator>(columns(j) - columns(0)));",
        "apart - static_cast<Accumulator>(columns(j) - columns(0));",
        (HEADS,),
    ),
    Bug(
        f"{ATTENTION}mask/boolean.cuh",
        "all heads of a block have the first's mask",
        " + head * head_stride,",
        ",",
        (HEADS,),
    ),
    Bug(
        f"{ATTENTION}mask/boolean.cuh",
        "all blocks have the first head's mask",
        "place.shape, place.batch, place.head,",
        "place.shape, place.batch, 0,",
        (HEADS,),
    ),
    Bug(
        f"{ATTENTION}flags.cuh",
        "only a byte's lowest bit counts",
        "(word & 0x7f7f7f7f) + 0x7f7f7f7f | word) & 0x80808080)",
        "word & 0x01010101) << 7)",
        (f"{BYTES}[float16]",),
    ),
    Bug(
        f"{ATTENTION}flags.cuh",
        "words that are read one by one lie over one another",
        "<< (first + 4 * j);",
        "<< 4 * j;",
        (f"{SHARED}[156-64x128]",),
    ),
    Bug(
        f"{ATTENTION}flags.cuh",
        "columns that lie apart are taken for neighbours",
        "data[col * col_stride] != 0",
        "data[col] != 0",
        (ANY_MEMORY,),
    ),
    Bug(
        "cuda_src/mma/columns.cuh",
        "the upper half of a quad has its own flags for the others'",
        "words_[i][word] = (t < 2 ? low : high) >> 2 * t;",
        "words_[i][word] = low >> 2 * t;",
        (f"{SHARED}[160-64x48]",),
    ),
    Bug(
        "cuda_src/mma/columns.cuh",
        "flags are all set where those of the first of two pieces are",
        "kOwn = kPieces == 1 ? 0x0303 : 0x03030303;",
        "kOwn = 0x0303;",
        (f"{TESTS}test_a_tile_with_one_hidden_key_is_not_whole",),
    ),
    Bug(
        "cuda_src/mma/forward.cu",
        "warps leave out tiles of which some rows show nothing",
        "!ptx::any(shown.any())",
        "!ptx::all(shown.any())",
        (EMPTY, HEADS),
    ),
    Bug(
        "cuda_src/mma/forward.cu",
        "tiles that show nothing are computed",
        "if (Mask::kElementwise && !ptx::any",
        "if (false && !ptx::any",
        (EMPTY,),
    ),
    Bug(
        "cuda_src/mma/scores.cuh",
        "what a mask hides has no p, but ds",
        "if (!shown.at(i, j)) p[i][j] = ds[i][j] = 0;",
        "if (!shown.at(i, j)) p[i][j] = 0;",
        (HEADS,),
    ),
    Bug(
        "cuda_src/simt/forward.cu",
        "masks of single keys hide nothing",
        " && shown.at(i, j);",
        ";",
        ("tests/test_mask.py::test_tiles_that_are_empty_or_full[emulator-float32]",),
    ),
    Bug(
        "cuda_src/simt/backward_tiles.cuh",
        "masks of single keys hide nothing",
        "seen = shown.at(i, j) && inside",
        "seen = inside",
        ("tests/test_mask.py::test_tiles_that_are_empty_or_full[emulator-float32]",),
    ),
]
