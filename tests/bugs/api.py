"""The public calls, their checks, the reference, and the backends as far as arrays pass through them."""

from . import Bug

API, PROBLEM, OPTIONS, NAMES, REFERENCE, BROADCAST, DEVICE = (
    f"cupy_flash/_src/{name}.py" for name in ("api", "problem", "options", "names", "reference", "broadcast", "device")
)
SELECT, DLPACK, CUPY, SEAL, EMULATOR = (
    f"cupy_flash/_src/backends/{name}.py" for name in ("__init__", "dlpack", "cupy_", "device_seal", "emulator")
)
VALIDATION, MERGE, VJP, BACKENDS, BY_DLPACK, BY_NAME, BY_REFERENCE, OF_OPTIONS, ANALYSIS, SUMS = (
    f"tests/test_{name}.py"
    for name in (
        "validation", "merge", "vjp", "backends", "dlpack", "names", "reference", "options", "analysis",
        "broadcast",
    )
)  # fmt: skip
IN_TWO_DIMENSIONS = f"{VALIDATION}::test_leading_dimensions_broadcast_whichever_array_has_them"
INTERVALS = f"{OF_OPTIONS}::test_intervals_of_a_problem_hold_what_is_seen"
DTYPES_FIT = f"{VALIDATION}::test_dtypes_that_fit_together"
IN_PLACE = f"{BACKENDS}::test_every_array_of_a_call_is_in_its_place"
LAUNCHED = f"{BACKENDS}::test_a_kernel_is_loaded_once_on_each_gpu_and_launched_as_planned"

BUGS = [
    # --- api.py ---
    Bug(
        API,
        "a 2-D q drops the batch of k and v",
        "return problem.out_shape[1:] if q.ndim == 2 and not problem.batch else problem.out_shape",
        "return problem.out_shape[1:] if q.ndim == 2 else problem.out_shape",
        (IN_TWO_DIMENSIONS,),
    ),
    Bug(
        API,
        "out may overlap v",
        "_check_out(xp, out, shape, problem, q=q, k=k, v=v, **arrays)",
        "_check_out(xp, out, shape, problem, q=q, k=k, **arrays)",
        (f"{VALIDATION}::test_out_may_not_share_memory_with_an_input",),
    ),
    Bug(
        API,
        "an overlap that is too hard to find is none",
        "        return True\n\n\ndef _shadow",
        "        return False\n\n\ndef _shadow",
        (f"{VALIDATION}::test_an_overlap_that_is_hard_to_find_is_refused",),
    ),
    Bug(
        API,
        "the extent of an axis counts its last step, which lies outside",
        "extent += (n - 1) * stride",
        "extent += n * stride",
        (f"{VALIDATION}::test_overlap_is_what_a_count_of_bytes_finds",),
    ),
    Bug(
        API,
        "negative strides are taken for small ones",
        "sorted((abs(stride), n) for stride",
        "sorted((max(stride, 0), n) for stride",
        (f"{VALIDATION}::test_overlap_is_what_a_count_of_bytes_finds",),
    ),
    Bug(
        API,
        "a wide out admits no dout of the type of q",
        'check_like("dout", dout, shape, problem.storage, problem.out_storage)',
        'check_like("dout", dout, shape, problem.out_storage)',
        (f"{MERGE}::test_a_wide_dout_is_rounded_and_every_dtype_has_its_plan", DTYPES_FIT),
    ),
    Bug(
        API,
        "dlse is not checked",
        "    if dlse is not None:\n        check_like",
        "    if False:\n        check_like",
        (f"{VALIDATION}::test_what_no_argument_may_be",),
    ),
    Bug(
        API,
        "dlse may lie on another GPU",
        "lse=lse, **rest, **arrays):",
        "lse=lse, **arrays):",
        (IN_PLACE,),
    ),
    Bug(
        API,
        "merging swaps outputs but not their log-sum-exps",
        "out_a, lse_a, out_b, lse_b = out_b, lse_b, out_a, lse_a",
        "out_a, out_b = out_b, out_a",
        (f"{MERGE}::test_merged_and_new_results_mix",),
    ),
    Bug(
        API,
        "a vjp forgets dlse",
        "cotangents = Cotangents(*given)\n",
        "cotangents = Cotangents(given[0])\n",
        ("tests/test_kernels.py::test_rows_that_do_not_fill_the_last_block_of_row_wise_kernels[5-7-24-33]",),
    ),
    # --- problem.py ---
    Bug(
        PROBLEM,
        "deterministic is forgotten",
        "        options.deterministic, wrt",
        "        False, wrt",
        (f"{BACKENDS}::test_options_reach_the_backend",),
    ),
    Bug(
        PROBLEM,
        "keys end before they begin for queries before all keys",
        "Interval(begin, np.maximum(begin, end))",
        "Interval(begin, end)",
        ("tests/test_analysis.py::test_a_problems_work_and_bytes_are_those_of_its_arrays",),
    ),
    Bug(
        PROBLEM,
        "queries begin behind the last for keys behind all queries",
        "    begin = np.minimum(begin, size)\n",
        "",
        (INTERVALS,),
    ),
    Bug(
        PROBLEM,
        "the first of the queries that see a key is skipped",
        "self.queries(0, self.seqlen_k - 1)",
        "self.queries(1, self.seqlen_k - 1)",
        (INTERVALS,),
    ),
    Bug(
        PROBLEM,
        "a block of queries sees what its first one sees",
        "mask.keys(last, place).end",
        "mask.keys(first, place).end",
        (INTERVALS,),
    ),
    Bug(
        PROBLEM,
        "a block of keys is seen by whom its last one is seen by",
        "(mask.queries(first, place).begin,",
        "(mask.queries(last, place).begin,",
        (INTERVALS,),
    ),
    Bug(
        PROBLEM,
        "the largest sequence length is refused",
        "if size > MAX_SEQLEN:",
        "if size >= MAX_SEQLEN:",
        (f"{VALIDATION}::test_sequences_up_to_2_to_29",),
    ),
    Bug(
        PROBLEM,
        "no key heads divide by zero",
        "if hk == 0 or hq % hk:",
        "if hq % hk:",
        (f"{VALIDATION}::test_problems_that_are_none",),
    ),
    Bug(
        PROBLEM,
        "a misaligned out_a is taken",
        '    check_aligned("out_a", out_a)\n',
        "",
        (f"{VALIDATION}::test_what_no_argument_may_be",),
    ),
    Bug(
        PROBLEM,
        "merging takes the wider type for that of the problem",
        "narrow = min(out_a.dtype, out_b.dtype",
        "narrow = max(out_a.dtype, out_b.dtype",
        (f"{VALIDATION}::test_the_facts_of_a_problem",),
    ),
    # --- options.py ---
    Bug(
        OPTIONS,
        "True is an offset of 1",
        "isinstance(number, (bool, np.bool_, complex, np.complexfloating))",
        "isinstance(number, (np.bool_, complex, np.complexfloating))",
        (f"{OF_OPTIONS}::test_what_is_no_number_is_refused",),
    ),
    Bug(
        OPTIONS,
        "an array of one element is a number",
        'getattr(value, "ndim", 0) != 0',
        'getattr(value, "size", 1) != 1',
        (f"{OF_OPTIONS}::test_what_is_no_number_is_refused",),
    ),
    Bug(
        OPTIONS,
        "a scale of infinity is taken",
        "if not math.isfinite(value):",
        "if math.isnan(value):",
        (f"{OF_OPTIONS}::test_a_scale_is_finite",),
    ),
    Bug(
        OPTIONS,
        "1 is a switch",
        "if not isinstance(value, np.bool_):",
        "if value not in (0, 1):",
        (f"{OF_OPTIONS}::test_a_switch_is_true_or_false",),
    ),
    # --- names.py ---
    Bug(
        NAMES,
        "a name is explained by one that the function lacks",
        "if OURS.get(name) in known:",
        "if name in OURS:",
        (f"{BY_NAME}::test_a_name_is_not_explained_by_one_that_this_function_lacks",),
    ),
    Bug(NAMES, "a bias is called a mask", '"attn_bias": "bias"', '"attn_bias": "mask"', (BY_NAME,)),
    # --- reference.py ---
    Bug(
        REFERENCE,
        "queries see all their keys or none",
        "s = xp.where(seen, s, -xp.inf)",
        "s = xp.where(seen.all(-1, keepdims=True), s, -xp.inf)",
        ("tests/test_window.py::test_the_reference_agrees_with_the_definition",),
    ),
    Bug(
        REFERENCE,
        "the gradient of lse has the wrong sign",
        "delta = math.round(delta - math.load(dlse)",
        "delta = math.round(delta + math.load(dlse)",
        (f"{BY_REFERENCE}::test_float64_inside_equals_the_oracle",),
    ),
    Bug(
        REFERENCE,
        "lse is in the type of the inputs",
        "self.lse_dtype = problem.accumulator",
        "self.lse_dtype = problem.storage",
        (f"{BY_REFERENCE}::test_naive_arithmetic_rounds_to_the_dtype_of_the_inputs",),
    ),
    Bug(
        REFERENCE,
        "probabilities are not rounded to the type of the inputs",
        "p = math.round(p / xp.where(total == 0, 1, total))",
        "p = p / xp.where(total == 0, 1, total)",
        (f"{BY_REFERENCE}::test_every_intermediate_is_rounded",),
    ),
    Bug(
        REFERENCE,
        "a dout of integers is taken",
        'check_like("dout", dout, shape, *DTYPES.values())',
        'check_like("dout", dout, shape, np.dtype(dout.dtype))',
        (f"{VALIDATION}::test_what_no_argument_may_be",),
    ),
    Bug(
        REFERENCE,
        "where v alone has a batch lse lacks it",
        "xp.broadcast_to(lse, (*out.shape[:-1], 1))",
        "lse",
        (f"{BY_REFERENCE}::test_float64_inside_equals_the_oracle",),
    ),
    # --- broadcast.py ---
    Bug(
        BROADCAST,
        "half types are summed in themselves",
        "dtype = np.dtype(np.float32) if x.dtype.itemsize < 4 else x.dtype",
        "dtype = x.dtype",
        (f"{SUMS}::test_many_terms_are_rounded_once", f"{SUMS}::test_gradients_over_a_batch_are_rounded_once"),
    ),
    Bug(
        BROADCAST,
        "float64 is summed in float32",
        "if x.dtype.itemsize < 4 else x.dtype",
        "if x.dtype.itemsize != 4 else x.dtype",
        (f"{VALIDATION}::test_leading_dimensions_broadcast_whichever_array_has_them",),
    ),
    Bug(
        BROADCAST,
        "axes are compared from the left",
        "if i < lead or x.shape[i] != shape[i - lead]",
        "if i < lead or x.shape[i] != shape[i - x.ndim]",
        (f"{SUMS}::test_sums_are_numpys_broadcast_turned_around",),
        equivalent="shape[i - x.ndim] and shape[i - lead] are the same element: x.ndim is lead plus shape's length",
    ),
    Bug(
        BROADCAST,
        "only the first axis is summed",
        "axes = tuple(i for i in range(x.ndim) if",
        "axes = tuple(i for i in range(1) if",
        (f"{SUMS}::test_sums_are_numpys_broadcast_turned_around",),
    ),
    # --- device.py ---
    Bug(
        DEVICE,
        "shared memory of a block is not rounded up to units",
        "return -(-(dynamic + reserved) // unit) * unit",
        "return dynamic + reserved",
        (f"{ANALYSIS}::test_occupancy_is_what_nvidia_computes",),
    ),
    Bug(
        DEVICE,
        "an RTX 4090 holds as many blocks as an RTX A6000",
        'Device("sm_89", 128, _kib(99), _kib(100), 1536, 24,',
        'Device("sm_89", 128, _kib(99), _kib(100), 1536, 16,',
        (f"{ANALYSIS}::test_every_named_gpu_is_as_nvidia_documents_it",),
    ),
    Bug(
        DEVICE,
        "attributes of a block and of a multiprocessor are swapped",
        '    "MaxSharedMemoryPerBlockOptin",\n    "MaxSharedMemoryPerMultiprocessor",\n',
        '    "MaxSharedMemoryPerMultiprocessor",\n    "MaxSharedMemoryPerBlockOptin",\n',
        (f"{ANALYSIS}::test_a_gpu_is_described_by_its_attributes",),
    ),
    # --- backends/__init__.py ---
    Bug(
        SELECT,
        "managed memory of CUDA is no CUDA device",
        "_DL_CPU, _DL_CUDA = 1, (2, 13)",
        "_DL_CPU, _DL_CUDA = 1, (2,)",
        (f"{BACKENDS}::test_arrays_of_other_libraries_on_a_gpu_go_to_cupy",),
    ),
    Bug(
        SELECT,
        "the last array chooses the backend",
        "isinstance(converted[0], np.ndarray)",
        "isinstance(converted[-1], np.ndarray)",
        (f"{BACKENDS}::test_the_first_array_chooses_the_backend",),
    ),
    Bug(
        SELECT,
        "an array on a GPU is asked for its interface before DLPack",
        '    if hasattr(x, "__dlpack__"):\n        return _from_dlpack(name, x)\n'
        '    if hasattr(x, "__cuda_array_interface__"):\n        return _cupy().asarray(x)\n',
        '    if hasattr(x, "__cuda_array_interface__"):\n        return _cupy().asarray(x)\n'
        '    if hasattr(x, "__dlpack__"):\n        return _from_dlpack(name, x)\n',
        (f"{BACKENDS}::test_arrays_of_other_libraries_on_a_gpu_go_to_cupy",),
    ),
    Bug(
        SELECT,
        "only the first array must be where the backend is",
        "for key, x in zip(arrays, converted, strict=True):",
        "for key, x in zip(arrays, converted[:1]):",
        (f"{VALIDATION}::test_an_array_on_the_wrong_backend_is_named",),
    ),
    # --- backends/dlpack.py ---
    Bug(
        DLPACK,
        "the offset of the first byte is forgotten",
        "(tensor.data or 0) + tensor.byte_offset",
        "tensor.data or 0",
        (f"{BY_DLPACK}::test_values_and_strides_are_the_exporters",),
    ),
    Bug(
        DLPACK,
        "strides count bytes",
        "tuple(n * itemsize for n in tensor.strides",
        "tuple(n for n in tensor.strides",
        (f"{BY_DLPACK}::test_values_and_strides_are_the_exporters",),
    ),
    Bug(
        DLPACK,
        "bfloats of any width are bfloat16",
        "if (tensor.code, tensor.bits, tensor.lanes) != (_BFLOAT, _BITS, _LANES):",
        "if (tensor.code, tensor.lanes) != (_BFLOAT, _LANES):",
        (f"{BY_DLPACK}::test_what_is_no_bfloat16_is_named",),
    ),
    Bug(
        DLPACK,
        "the exporter takes its memory back at once",
        "        self.capsule = capsule\n",
        "",
        (f"{BY_DLPACK}::test_the_memory_is_the_arrays_until_it_dies",),
    ),
    # --- backends/cupy_.py ---
    Bug(
        CUPY,
        "kernels that the cache has are compiled again",
        "if compile.find(kernel, device.arch) is None]\n    if len(missing)",
        "]\n    if len(missing)",
        ("tests/test_backends.py::test_kernels_of_a_call_are_compiled_together",),
    ),
    Bug(
        CUPY,
        "a vjp's gradients are compiled at their launches",
        "(plan_forward, plan_backward))",
        "(plan_forward,))",
        ("tests/test_backends.py::test_kernels_of_a_call_are_compiled_together",),
    ),
    Bug(
        API,
        "a vjp does not say what it will launch",
        "v, None, arrays, differentiated=True)",
        "v, None, arrays)",
        ("tests/test_backends.py::test_a_vjp_expects_its_gradients",),
    ),
    Bug(
        CUPY,
        "a kernel of one GPU is launched on another",
        "kernel = _kernel(step.kernel, self._current())",
        "kernel = _kernel(step.kernel, 0)",
        (LAUNCHED,),
    ),
    Bug(
        CUPY,
        "memory that kernels add to begins with what was there",
        "        if scratch.zeroed:\n            memory",
        "        if not scratch.zeroed:\n            memory",
        (f"{BACKENDS}::test_memory_that_kernels_add_to_is_zeroed",),
    ),
    Bug(
        CUPY,
        "no more than the usual shared memory is allowed",
        'function.max_dynamic_shared_size_bytes = dict(kernel.constants).get("kSharedBytes", 0)',
        "function.max_dynamic_shared_size_bytes = 49152",
        (LAUNCHED,),
    ),
    Bug(
        CUPY,
        "results are made on GPU 0",
        "return self.namespace.cuda.Device(index)",
        "return self.namespace.cuda.Device(0)",
        (f"{VALIDATION}::test_an_array_on_another_gpu_is_named",),
    ),
    Bug(
        CUPY,
        "the first array is compared with itself",
        "if x.data.device_id != index:",
        "if first.data.device_id != index:",
        (f"{VALIDATION}::test_an_array_on_another_gpu_is_named",),
    ),
    Bug(
        CUPY,
        "a machine without a GPU has the backend",
        "if count == 0:",
        "if count < 0:",
        (f"{BACKENDS}::test_without_a_driver_or_a_gpu_there_is_no_backend",),
    ),
    # --- backends/device_seal.py ---
    Bug(
        SEAL,
        "dk and dv are spoilt twice, dq never",
        "launch.spoil(self._runtime, self._problem, flags, gradients)",
        "launch.spoil(self._runtime, self._problem, flags, gradients._replace(dq=gradients.dk))",
        (f"{VJP}::test_on_a_gpu_gradients_become_nan",),
    ),
    Bug(
        SEAL,
        "changes of k are named q",
        "launch.seal(runtime, problem, operands)",
        "launch.seal(runtime, problem, operands._replace(q=operands.k, k=operands.q))",
        (f"{VJP}::test_a_change_is_named",),
    ),
    # --- backends/emulator.py ---
    Bug(
        EMULATOR,
        "a view backwards begins at its first element",
        "return x.ctypes.data + low, high - low + x.itemsize",
        "return x.ctypes.data, high - low + x.itemsize",
        (f"{BACKENDS}::test_a_buffer_is_what_its_view_spans",),
    ),
    Bug(
        EMULATOR,
        "a kernel's text is remembered for both paths",
        "text = _text(step.kernel, self.device.arch, emulator.current().path)",
        'text = _text(step.kernel, self.device.arch, "source")',
        (f"{BACKENDS}::test_a_kernels_text_is_that_of_its_path",),
    ),
    Bug(
        EMULATOR,
        "delta may write out",
        '"attention_delta": {"delta"}',
        '"attention_delta": {"delta", "out"}',
        (f"{BACKENDS}::test_only_results_may_be_written",),
    ),
    Bug(
        EMULATOR,
        "a block may have all of a multiprocessor's shared memory",
        "shared_limit=self.device.shared_per_block,",
        "shared_limit=self.device.shared_per_sm,",
        (f"{BACKENDS}::test_only_results_may_be_written",),
    ),
    Bug(
        EMULATOR,
        "NumPy warns of what overflows",
        'return np.errstate(all="ignore")',
        "return np.errstate()",
        ("tests/test_error_state.py::test_a_calm_caller_hears_nothing",),
    ),
]
