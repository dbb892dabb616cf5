"""Bugs in components, and in what tells kernels of them: structs, parameters, records of arrays."""

from bugs import Bug

_SRC = "cupy_flash/_src"
_COMPONENTS = f"{_SRC}/components"
_HOUSE = "tests/test_house.py"
_OPTIONS = "tests/test_options.py"
_PACKING = "tests/test_packing.py"
_STRUCTS = "tests/test_structs.py"
_VALIDATION = "tests/test_validation.py"
_ARRAYS = "tests/test_analysis.py::test_a_problems_work_and_bytes_are_those_of_its_arrays"
_BUDGET = "tests/test_contract.py::test_within_error_budget[emulator]"
_COMPOSED = "tests/test_composition.py::test_a_component_does_on_a_gpu_what_its_python_says"
_LAYOUT = "tests/test_kernels.py::test_params_have_the_layout_of_the_kernels[host]"
_REACH = "tests/test_backends.py::test_options_reach_the_backend"
_SPOILT = "tests/test_vjp.py::test_on_a_gpu_gradients_become_nan[float32]"

BUGS = [
    # --- components ---
    Bug(
        f"{_COMPONENTS}/__init__.py",
        "masks stand before scores",
        "    MaskMod,\n)",
        "    MaskMod,\n    Scale,\n)",
        (f"{_HOUSE}::test_components_stand_in_the_registry_as_they_apply",),
    ),
    Bug(
        f"{_COMPONENTS}/__init__.py",
        "what has no effect is in effect",
        "for component in found if component is not None)",
        "for component in found)",
        (_REACH,),
    ),
    Bug(
        f"{_COMPONENTS}/component.py",
        "every component needs to know where queries stand",
        "uses_offset: ClassVar[bool] = False",
        "uses_offset: ClassVar[bool] = True",
        (f"{_VALIDATION}",),
    ),
    Bug(
        f"{_COMPONENTS}/component.py",
        "an option that is not given is 0",
        "default: ClassVar[Any] = None",
        "default: ClassVar[Any] = 0",
        (f"{_HOUSE}::test_every_public_call_has_every_option_with_the_same_default",),
    ),
    Bug(
        f"{_COMPONENTS}/component.py",
        "masks are taken for scores",
        'concept = "Mask"',
        'concept = "Score"',
        (_BUDGET,),
    ),
    Bug(
        f"{_COMPONENTS}/causal.py",
        "a query does not see the key on its diagonal",
        "Interval(None, query + place.q_offset + 1)",
        "Interval(None, query + place.q_offset)",
        (_ARRAYS, "tests/test_cpu_backend.py::test_the_causal_mask_may_cut_blocks_anywhere[numpy]"),
    ),
    Bug(
        f"{_COMPONENTS}/causal.py",
        "queries begin after the first that sees the key",
        "Interval(key - place.q_offset, None)",
        "Interval(key - place.q_offset + 1, None)",
        (_ARRAYS, _COMPOSED),
    ),
    Bug(
        f"{_COMPONENTS}/causal.py",
        "causal=1 is True where True came before",
        'return boolean("causal", value)',
        "return value",
        (f"{_VALIDATION}::test_an_option_is_checked_each_time",),
    ),
    Bug(
        f"{_COMPONENTS}/scale.py",
        "the scale of float64 is held to float32",
        'np.float64 if sizes.dtype == "float64" else np.float32',
        "np.float32",
        (f"{_OPTIONS}::test_the_largest_scale",),
    ),
    Bug(
        f"{_COMPONENTS}/scale.py",
        "a scale of -0.0 is kept where 0.0 is found",
        "cls(value + 0.0)",
        "cls(value)",
        (f"{_OPTIONS}::test_a_negative_zero_does_not_depend_on_earlier_calls",),
    ),
    Bug(
        f"{_COMPONENTS}/scale.py",
        "a negative scale is taken for a positive one",
        '"NegatedScale" if self.scale < 0 else "Scale"',
        '"Scale" if self.scale < 0 else "NegatedScale"',
        (_BUDGET,),
    ),
    Bug(
        f"{_COMPONENTS}/scale.py",
        "a scale of 0 multiplies -inf",
        'max(told["unit_f32"], 1.2e-38)',
        'told["unit_f32"]',
        ("tests/test_values.py::test_zeros_of_either_sign_give_the_mean[emulator-1]",),
    ),
    Bug(
        f"{_COMPONENTS}/scale.py",
        "a scale that float32 has no room for raises as the caller wants errors raised",
        'np.errstate(all="ignore")',
        'np.errstate(over="ignore")',
        (f"{_PACKING}::test_a_scale_beyond_float32_raises_nothing_whatever_the_error_state",),
    ),
    Bug(
        f"{_COMPONENTS}/scale.py",
        "gradients are those by scores",
        "return ds * self.scale",
        "return ds",
        (_COMPOSED, "tests/test_reference.py"),
    ),
    # --- operands.py ---
    Bug(
        f"{_SRC}/operands.py",
        "the output and its log-sum-exp change places",
        "    out: Array\n    lse: Array\n    arrays",
        "    lse: Array\n    out: Array\n    arrays",
        (_REACH,),
    ),
    Bug(
        f"{_SRC}/operands.py",
        "gradients of k and v change places",
        "    dk: Array | None\n    dv: Array | None\n",
        "    dv: Array | None\n    dk: Array | None\n",
        (_SPOILT,),
    ),
    Bug(
        f"{_SRC}/operands.py",
        "both parts of a merge have the log-sum-exp of the other",
        "    out_a: Array\n    lse_a: Array\n    out_b: Array\n    lse_b: Array\n",
        "    out_a: Array\n    lse_b: Array\n    out_b: Array\n    lse_a: Array\n",
        ("tests/test_merge.py::test_rows_without_keys[emulator]",),
    ),
    # --- structs.py ---
    Bug(
        f"{_SRC}/structs.py",
        "members follow one another without gaps",
        "np.dtype(kept, align=True)",
        "np.dtype(kept)",
        (f"{_STRUCTS}::test_numbers_are_aligned_to_their_sizes",),
    ),
    Bug(
        f"{_SRC}/structs.py",
        "the second of two pointers in a line is a number",
        "_POINTER if pointer or star else",
        "_POINTER if pointer else",
        (f"{_STRUCTS}::test_members_follow_one_another_as_they_are_aligned",),
    ),
    Bug(
        f"{_SRC}/structs.py",
        "an empty base class is kept",
        "[field for field in fields if field[1].itemsize]",
        "fields",
        (f"{_STRUCTS}::test_base_classes_come_first_and_empty_ones_take_no_room",),
    ),
    Bug(
        f"{_SRC}/structs.py",
        "base classes come last",
        "            kept = ",
        "            fields = fields[1:] + fields[:1]\n            kept = ",
        (f"{_STRUCTS}::test_base_classes_come_first_and_empty_ones_take_no_room",),
    ),
    Bug(
        f"{_SRC}/structs.py",
        "numbers without a sign have one",
        '"uint32_t": np.uint32,',
        '"uint32_t": np.int32,',
        (f"{_STRUCTS}::test_members_follow_one_another_as_they_are_aligned",),
    ),
    # --- params.py ---
    Bug(
        f"{_SRC}/params.py",
        "what components are told comes first",
        '[*fields, ("components", structs["Components"])]',
        '[("components", structs["Components"]), *fields]',
        (_LAYOUT,),
    ),
    Bug(
        f"{_SRC}/params.py",
        "one batch dimension less than the kernels stride through",
        "BATCH_DIMS = 4",
        "BATCH_DIMS = 3",
        (f"{_STRUCTS}::test_the_kernels_structs_are_found",),
    ),
    # --- packing.py, specialization.py, launch.py ---
    Bug(
        f"{_COMPONENTS}/component.py",
        "components are told the first of their numbers for all",
        "struct[field] = told[field]",
        "struct[field] = next(iter(told.values()))",
        (f"{_PACKING}::test_kernels_are_told_of_the_components_that_they_are_made_of",),
    ),
    Bug(
        f"{_SRC}/specialization.py",
        "every score is a mask too",
        "[part.type for part in self.parts if part.component.concept == concept]",
        "[part.type for part in self.parts]",
        ("tests/test_plan.py", _BUDGET),
    ),
    Bug(
        f"{_SRC}/launch.py",
        "parameters are as long as the shortest of a call's kernels takes",
        "dtype = max((layout(",
        "dtype = min((layout(",
        (_BUDGET,),
    ),
    Bug(
        f"{_SRC}/emulator/module.py",
        "a kernel reads behind the parameters that it was given",
        "if params_bytes < expected:",
        "if params_bytes < 0:",
        ("tests/emulator/test_engine.py::test_parameters_of_the_wrong_size",),
    ),
]
