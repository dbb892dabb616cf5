"""Bugs of gradients of options in cuda_src/cpu and its caller: in what order heads come, and who adds up a bias."""

from bugs import Bug

CPU = "cuda_src/cpu"
NATIVE = "cupy_flash/_src/backends/native.py"
TESTS = "tests/test_cpu_terms.py"
BITS = f"{TESTS}::test_the_pass_of_other_gradients_gives_a_bias_the_bits_of_one_of_its_own"
CUTS = "tests/test_cpu_backend.py::test_heads_of_many_blocks_share_their_keys"

BUGS = [
    Bug(
        f"{CPU}/backward.h",
        "query heads of a group add to one bias",
        "shape_.term.group_of[h] * elements",
        "shape_.term.group_of[head * shape_.group()] * elements",
        (f"{BITS}[by the batch]",),
    ),
    Bug(
        f"{CPU}/backward_block.h",
        "a bias is added to from the first query on",
        "dbias_ + (i0_ + part.i + n) * shape_.seqlen_k",
        "dbias_ + (part.i + n) * shape_.seqlen_k",
        (f"{BITS}[by the batch]",),
    ),
    Bug(
        f"{CPU}/backward_block.h",
        "a bias has the factor of softcap",
        """      add_to_bias(part, ds);
    }
    score_.backward(tile, ds, kept_ + part.at, kBackwardTile * columns_);
""",
        """    }
    score_.backward(tile, ds, kept_ + part.at, kBackwardTile * columns_);
    if (dbias_) add_to_bias(part, ds);
""",
        (f"{BITS}[with all else]",),
    ),
    Bug(
        f"{CPU}/backward_block.h",
        "what is hidden gives a bias 0 times what it holds",
        "if (part.cut) hide(tile, *part.cut, ds);\n      add_to_bias",
        "add_to_bias",
        (f"{TESTS}::test_what_a_mask_hides_gives_a_bias_nothing",),
    ),
    Bug(
        f"{CPU}/backward_plan.h",
        "the last block of keys is left out",
        "key_blocks = ceil_div(s.seqlen_k, keys);",
        "key_blocks = clamp(s.seqlen_k / keys, 1, s.seqlen_k);",
        (CUTS,),
    ),
    Bug(
        f"{CPU}/backward_plan.h",
        "the last block of queries is left out",
        "query_blocks = ceil_div(s.queries, queries);",
        "query_blocks = clamp(s.queries / queries, 1, s.queries);",
        (CUTS,),
    ),
    Bug(
        f"{CPU}/forward_plan.h",
        "of heads that share a bias the first is taken for all",
        "order.heads[shared * order.members + member]",
        "order.heads[shared * order.members]",
        (f"{BITS}[shared by all]",),
    ),
    Bug(
        NATIVE,
        "heads that share a bias add to it in another order",
        "address(order))",
        "address(kept.append(order[:, ::-1].copy()) or kept[-1]))",
        (f"{BITS}[shared by all]",),
    ),
    Bug(
        NATIVE,
        "heads that have a bias of their own are one item's",
        "problem.num_heads_k if own[-1] > 1 else 1",
        "1",
        (f"{TESTS}::test_heads_that_share_a_bias_come_together",),
    ),
    Bug(
        NATIVE,
        "heads that are no multiple of the parts are left out",
        "lacking = -members.shape[1] % splits",
        "lacking = 0; members = members[:, : members.shape[1] // splits * splits]",
        (f"{TESTS}::test_few_slopes_are_shared_by_as_many_items_whatever_the_threads",),
    ),
    Bug(
        NATIVE,
        "parts of a gradient are not added up",
        "parts[term].sum(axis=0)",
        "parts[term][0]",
        (f"{TESTS}::test_few_slopes_are_shared_by_as_many_items_whatever_the_threads",),
    ),
]
