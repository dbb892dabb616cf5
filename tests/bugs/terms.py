"""Bugs of bias, sinks and what gradients of options are, in Python and in cuda_src/cpu."""

from bugs import Bug

COMPONENTS = "cupy_flash/_src/components"
BACKENDS = "cupy_flash/_src/backends"
CPU = "cuda_src/cpu"
BIAS = "tests/test_bias.py"
SINKS = "tests/test_sinks.py"
WRT = "tests/test_wrt.py"
DIFFERENCES = f"{WRT}::test_gradients_are_those_of_differences[cpu-numpy-1]"
ROWS = f"{SINKS}::test_every_backend_keeps_the_budget[cpu-{{'k_lengths': 'each', 'q_lengths': 'each32'}}-float16]"
AS_A_KEY = f"{SINKS}::test_a_sink_is_one_more_key_without_a_value"
OF_BROADCAST = f"{BIAS}::test_broadcast_axes_are_never_expanded_and_summed_in_the_gradient"
MEMORY = f"{BIAS}::test_any_memory"
NO_KEYS = f"{SINKS}::test_a_row_without_keys_has_the_sink_as_lse[cpu-numpy-{{'k_lengths': 0}}]"

BUGS = [
    # --- components ---
    Bug(
        f"{COMPONENTS}/bias.py",
        "booleans are numbers",
        "if value.dtype == np.bool_:",
        "if False:",
        (f"{BIAS}::test_a_bias_is_an_array_of_numbers_that_broadcasts",),
    ),
    Bug(
        f"{COMPONENTS}/bias.py",
        "it is taken away from scores",
        'return s + region.place.arrays["bias"]',
        'return s - region.place.arrays["bias"]',
        (f"{BIAS}::test_0_and_minus_infinity_are_a_mask[cpu-numpy-{{}}-float32]",),
    ),
    Bug(
        f"{COMPONENTS}/bias.py",
        "its dtype is always q's",
        'return "FloatBias" if self.wide else "Bias"',
        'return "Bias"',
        (f"{MEMORY}[emulator-float16]",),
    ),
    Bug(
        f"{COMPONENTS}/sinks.py",
        "rows that do not exist have one",
        "xp.where(query < length, sinks, -xp.inf)",
        "xp.where(query <= length, sinks, -xp.inf)",
        (NO_KEYS,),
    ),
    Bug(
        f"{COMPONENTS}/sinks.py",
        "their dtype is always q's",
        'return "FloatSinks" if self.wide else "Sinks"',
        'return "Sinks"',
        (f"{SINKS}::test_forms_of_the_same_sinks[emulator-float16]",),
    ),
    Bug(
        f"{COMPONENTS}/floats.py",
        "float64 passes with any q",
        "if given.dtype != np.float32:",
        "if given.dtype not in (np.float32, np.float64):",
        (f"{BIAS}::test_its_dtype_is_that_of_q_or_float32",),
    ),
    Bug(
        f"{COMPONENTS}/floats.py",
        "float32 beside a half type is read as that",
        "        return False\n    if given",
        "        return False\n    if given.dtype == np.float32:\n        return False\n    if given",
        (f"{BIAS}::test_0_and_minus_infinity_are_a_mask[cpu-{{}}-float16]",),
    ),
    Bug(
        f"{COMPONENTS}/alibi.py",
        "the gradient of slopes has the sign of the bias'",
        "return -ds * _distances",
        "return ds * _distances",
        (DIFFERENCES,),
    ),
    # --- wrt ---
    Bug(
        f"{COMPONENTS}/__init__.py",
        "a name may come twice",
        "if len(set(wrt)) < max(len(wrt), 1):",
        "if not wrt:",
        (f"{WRT}::test_names_that_are_none_are_refused",),
    ),
    Bug(
        f"{COMPONENTS}/__init__.py",
        "an option that was not passed has a gradient",
        "if name not in passed:",
        "if False:",
        (f"{WRT}::test_names_that_are_none_are_refused",),
    ),
    Bug(
        "cupy_flash/_src/api.py",
        "numbers without axes are whole on a GPU",
        "xp.full((), x.item(), x.dtype)",
        "xp.full((), int(x), x.dtype)",
        ("tests/test_bias.py::test_one_without_axes_keeps_its_value_on_its_way_to_a_gpu",),
    ),
    Bug(
        "cupy_flash/_src/launch.py",
        "a changed output of rows without keys goes unnoticed",
        "if 0 not in problem.lse_shape:",
        "if 0 not in problem.lse_shape and problem.seqlen_k:",
        ("tests/test_sinks.py::test_a_changed_output_of_rows_without_keys_is_noticed[emulator]",),
    ),
    Bug(
        "cupy_flash/_src/api.py",
        "gradients come in the order of q, k and v",
        "for name in problem.wrt)",
        "for name in sorted(problem.wrt))",
        (f"{WRT}::test_any_of_them_in_any_order[cpu-float32]",),
    ),
    Bug(
        "cupy_flash/_src/api.py",
        "the gradient of an option is left in float32",
        "return gradient.reshape(shape).astype(x.dtype, copy=False)",
        "return gradient.reshape(shape)",
        (f"{MEMORY}[cpu-float16]",),
    ),
    Bug(
        "cupy_flash/_src/problem.py",
        "an array without heads lacks its last axes",
        "return (*[1] * (len(full) - lacks - len(shape)), *shape, *[1] * lacks)",
        "return (*shape, *[1] * (len(full) - lacks - len(shape)), *[1] * lacks)",
        (f"{OF_BROADCAST}[cpu-float32]",),
    ),
    # --- reference.py ---
    Bug(
        "cupy_flash/_src/reference.py",
        "the gradient of a bias has the factor of softcap",
        """                grads[step.keyword] = step.term(xp, ds, region)
""",
        """                grads[step.keyword] = step.term(xp, ds * (1 - xp.tanh(s) ** 2), region)
""",
        (DIFFERENCES,),
    ),
    Bug(
        "cupy_flash/_src/reference.py",
        "rows of a sink alone weigh nothing in its gradient",
        "xp.where(lse == -xp.inf, 0, share * delta)",
        "xp.where(p.sum(-1, keepdims=True) == 0, 0, share * delta)",
        (f"{SINKS}::test_no_rows_or_no_keys[cpu-5-0-batch1]",),
    ),
    Bug(
        "cupy_flash/_src/reference.py",
        "a sink is no largest score",
        "        m = xp.maximum(m, sinks)\n",
        "",
        (NO_KEYS,),
    ),
    # --- host_terms.py ---
    Bug(
        f"{BACKENDS}/host_terms.py",
        "an element belongs to the first of the heads that share it",
        "range(n) if own == 1",
        "range(1) if own == 1",
        (f"{OF_BROADCAST}[cpu-numpy-float32]",),
    ),
    Bug(
        f"{BACKENDS}/host_terms.py",
        "rows that see no key have lse -inf though there is a sink",
        "operands.lse[..., first:last] = sinks_of(problem, place, first, last)",
        "operands.lse[..., first:last] = -np.inf",
        (f"{SINKS}::test_rows_that_see_no_key_beside_others_that_do[cpu]",),
    ),
    Bug(
        f"{BACKENDS}/host_terms.py",
        "dlse does not reach the sinks",
        "delta -= cotangents.dlse[head][first:last]",
        "pass",
        (NO_KEYS,),
    ),
    Bug(
        f"{BACKENDS}/host_terms.py",
        "rows behind the first block of them have no part in it",
        "for first in range(0, problem.seqlen_q, ROWS):",
        "for first in range(0, min(ROWS, problem.seqlen_q), ROWS):",
        (f"{SINKS}::test_the_gradient_repeats_whatever_the_number_of_threads_and_blocks_of_rows",),
    ),
    # --- numpy_.py ---
    Bug(
        f"{BACKENDS}/numpy_.py",
        "a sink takes no weight from values",
        "o *= np.exp(m, out=m)[:, None]",
        "np.exp(m, out=m)",
        (f"{AS_A_KEY}[cpu-numpy-float32-{{}}]",),
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "a gradient summed over rows begins again with each block of them",
        "gradient[index][at] += ds.sum(axis=summed, keepdims=True)",
        "gradient[index][at] = ds.sum(axis=summed, keepdims=True)",
        (f"{OF_BROADCAST}[cpu-numpy-float32]",),
    ),
    Bug(
        f"{BACKENDS}/numpy_.py",
        "scores are computed once more though options alone are named",
        "    if problem.wants_inputs:\n        items",
        "    if True:\n        items",
        (f"{WRT}::test_products_that_the_numpy_tier_runs",),
    ),
    # --- native.py ---
    Bug(
        f"{BACKENDS}/native.py",
        "of two steps that learn the first is taken",
        '"step": steps.index(term.keyword) - 1,',
        '"step": 1,',
        (f"{BIAS}::test_alibi_is_a_bias_of_its_numbers[cpu-float16-{{}}]",),
    ),
    Bug(
        f"{BACKENDS}/native.py",
        "the gradient of a row of a bias is that of all",
        '"own_rows": term.shape[-2] > 1,',
        '"own_rows": True,',
        (f"{OF_BROADCAST}[cpu-float32]",),
    ),
    # --- budget.py ---
    Bug(
        "cupy_flash/_src/analysis/budget.py",
        "the size of a slope's gradient has no distances",
        "factor = np.abs(step.term(np, np.ones_like(dscore), region))",
        "factor = np.float64(1)",
        (f"{WRT}::test_the_budget_knows_sizes_at_least_those_of_gradients",),
    ),
    Bug(
        "cupy_flash/_src/analysis/budget.py",
        "a bias of -inf makes all errors small",
        "_largest(np.abs(s[np.isfinite(s)]))",
        "_largest(np.abs(s))",
        (f"{BIAS}::test_every_backend_keeps_the_budget[cpu-{{'causal': True, 'bias': (False, True, True)}}-float32]",),
    ),
    # --- cuda_src/cpu ---
    Bug(
        f"{CPU}/term.h",
        "queries of a panel that share a bias are added up to the last but one",
        "i < worker.pitch; ++i) of_key[0]",
        "i < queries - 1; ++i) of_key[0]",
        (f"{OF_BROADCAST}[cpu-float32]",),
    ),
    Bug(
        f"{CPU}/term.h",
        "sums of a thread's item before are not cleared",
        "    __builtin_memset(worker.sums, 0, plan_.keys * worker.pitch * sizeof(T));\n",
        "",
        (f"{OF_BROADCAST}[cpu-float32]",),
    ),
    Bug(
        f"{CPU}/term.h",
        "the gradient of the second block of keys lies over that of the first",
        "(term_.own_cols ? j0 : 0);",
        "0;",
        (f"{BIAS}::test_a_gradient_of_many_blocks[native-(2, 300, 1100)]",),
    ),
    Bug(
        f"{CPU}/sink.h",
        "a row that sees no key keeps its weights",
        "inverse *= T(keys / sum);",
        "",
        (f"{AS_A_KEY}[cpu-float32-{{}}]",),
    ),
    Bug(
        f"{CPU}/sink.h",
        "a sink above all scores overflows",
        "const double larger = lse > logit ? double(lse) : logit;",
        "const double larger = lse;",
        (f"{SINKS}::test_a_large_sink_takes_all_and_a_small_one_nothing[cpu]",),
    ),
    Bug(
        f"{CPU}/sink/sinks.h",
        "float32 sinks of half types are read as those",
        "params.wide ? kFloat32 : place.shape.dtype",
        "place.shape.dtype",
        (f"{SINKS}::test_forms_of_the_same_sinks[cpu-float16]",),
    ),
    Bug(
        f"{CPU}/sink/sinks.h",
        "rows that do not exist have one",
        "return query < queries_ ? sink_ : -kInfinity<double>;",
        "return sink_;",
        (ROWS,),
    ),
    Bug(
        f"{CPU}/score/bias.h",
        "numbers of keys far apart are read as neighbours",
        "if (col_ == sizeof(Element) && key + kStep <= seqlen_k_) {",
        "if (key + kStep <= seqlen_k_) {",
        (f"{MEMORY}[cpu-float32]",),
    ),
    Bug(
        f"{CPU}/score/bias.h",
        "what lies behind the last key is read",
        "clamp(seqlen_k_ - key, 0, kStep); ++i",
        "kStep; ++i",
        (f"{BIAS}::test_nothing_behind_the_last_key_is_read",),
    ),
    Bug(
        f"{CPU}/score/bias.h",
        "scores meet the bias in units of log2",
        "natural_(T(unit * kLn2)) {}",
        "natural_(T(unit)) {}",
        (f"{BIAS}::test_one_of_0_changes_little_and_one_constant_only_lse[cpu]",),
    ),
    Bug(
        f"{CPU}/score.h",
        "the distances do not reach the gradient of slopes",
        "if constexpr (First<T>::kMultiplies) {",
        "if constexpr (false) {",
        (f"{BIAS}::test_alibi_is_a_bias_of_its_numbers[cpu-float16-{{}}]",),
    ),
    Bug(
        f"{CPU}/dtype.h",
        "half types are taken for each other",
        "kFloat16, kBFloat16",
        "kBFloat16, kFloat16",
        (ROWS,),
    ),
    Bug(
        f"{CPU}/dtype.h",
        "float32 is taken for float64",
        "kFloat32, kFloat64",
        "kFloat64, kFloat32",
        (ROWS.replace("float16", "float32"),),
    ),
]
