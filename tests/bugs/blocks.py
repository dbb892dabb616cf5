"""Bugs of tables of blocks and of looks for indices that leave their arrays."""

from bugs import Bug

SRC = "cupy_flash/_src/"
MASKS = "tests/test_block_mask.py::"
GUARDS = "tests/test_guards.py::"

BUGS = [
    # --- block_mask.py ---
    Bug(
        f"{SRC}block_mask.py",
        "a table is of the heads of one batch element",
        'return Sizes("float32", 1, sq, sk, prod(batch), heads)',
        'return Sizes("float32", 1, sq, sk, 1, heads)',
        (f"{MASKS}test_a_table_says_of_blocks_what_the_mask_shows_of_them",),
    ),
    Bug(
        f"{SRC}block_mask.py",
        "sizes below 0 are taken",
        "len(numbers) < 2 or min(numbers) < 0",
        "len(numbers) < 2",
        (f"{MASKS}test_what_is_no_mask_is_refused",),
    ),
    # --- components/block_mask.py ---
    Bug(
        f"{SRC}components/block_mask.py",
        "the table of the caller is not looked at",
        "return arrays[TABLE] if mod.has_table else classified(np, mod, arrays)",
        "return classified(np, mod, arrays)",
        (f"{MASKS}test_the_numpy_tier_goes_by_it_too",),
    ),
    Bug(
        f"{SRC}components/block_mask.py",
        "a table has heads where the function depends on batch elements",
        'sizes.heads if "h" in known else 1',
        'sizes.heads if "b" in known else 1',
        (f"{MASKS}test_it_changes_no_bit",),
    ),
    Bug(
        f"{SRC}components/mask_mod.py",
        "a table of fewer queries is taken",
        " or (sq, sk) != (sizes.seqlen_q, sizes.seqlen_k)",
        "",
        (f"{MASKS}test_one_of_other_scores_is_refused",),
    ),
    Bug(
        "cuda_src/attention/block_lists.cuh",
        "a block is hidden with its last cell",
        "none &= share == 0, all &= share == 2;",
        "none = share == 0, all &= share == 2;",
        (f"{MASKS}test_it_changes_no_bit",),
    ),
    # --- guards.py ---
    Bug(
        f"{SRC}guards.py",
        "only the first batch element is looked at",
        "blocks[number // problem.num_heads_q, head[-1]]",
        "blocks[0, head[-1]]",
        (f"{GUARDS}test_one_score_whose_element_is_not_there_is_found",),
    ),
    Bug(
        f"{SRC}guards.py",
        "the last block of keys is not looked at",
        "min((columns[-1] + 1) * BLOCK, problem.seqlen_k)",
        "max(columns[-1], 1) * BLOCK",
        (f"{GUARDS}test_one_score_whose_element_is_not_there_is_found",),
    ),
    Bug(
        f"{SRC}guards.py",
        "what masks look up is not looked at alone",
        "if mod.outside is not None:",
        'if mod.outside is not None and mod.concept == "Score":',
        ("tests/test_mods.py::test_an_index_that_leaves_its_array_is_named_where_it_is_seen",),
    ),
]
