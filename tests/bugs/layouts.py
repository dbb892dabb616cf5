"""Where elements lie: strides, offsets, alignment, broadcasting, in whatever file."""

from bugs import Bug

MANY = "tests/test_layouts.py::test_more_batch_dimensions_than_the_kernels_stride[{}]"
VJP = "tests/test_layouts.py::test_a_vjp_keeps_arrays_of_any_layout[{}]"
FAR = "tests/test_layouts.py::test_elements_past_2_to_31"
MERGE = "tests/test_layouts.py::test_merge_attention_takes_any_layout[{}]"


def any_of(backend):
    return [f"tests/test_layouts.py::test_layouts_of_any_kind[{backend}-{seed}]" for seed in range(24)]


BUGS = [
    Bug(
        "cupy_flash/_src/launch.py",
        "rows are vectors wherever heads begin",
        "offset, *batch, head, row, x.shape[-1]",
        "offset, *batch, row, x.shape[-1]",
        (*any_of("emulator"),),
    ),
    Bug(
        "cupy_flash/_src/launch.py",
        "rows are vectors though columns lie apart",
        "together % n == 0 and col == x.itemsize",
        "together % n == 0",
        (
            *any_of("emulator"),
            "tests/test_layouts.py::test_layouts_that_people_use[emulator-float16-strided_cols]",
        ),
    ),
    Bug(
        "cupy_flash/_src/launch.py",
        "batch dimensions merge if the last array strides through them as one",
        "all(x.strides[groups[-1][-1]] == x.strides[i] * batch[i] for x in layouts)",
        "all(x.strides[groups[-1][-1]] == x.strides[i] * batch[i] for x in layouts[-1:])",
        (*any_of("emulator"), MANY.format("emulator")),
    ),
    Bug(
        "cupy_flash/_src/launch.py",
        "a row statistic's rows are taken to be next to each other",
        "strides=(*x.strides, x.itemsize))",
        "strides=(*x.strides[:-1], x.itemsize, x.itemsize))",
        (*any_of("emulator"),),
    ),
    Bug(
        "cuda_src/attention/matrix.cuh",
        "rows are multiplied by their stride in 32 bits",
        "data + row * row_stride + col * col_stride",
        "data + row * static_cast<int>(row_stride) + col * col_stride",
        (f"{FAR}[emulator-rows]",),
    ),
    Bug(
        "cuda_src/mma/packed.cuh",
        "packed rows are multiplied by their stride in 32 bits",
        "packing.query(row) * row_stride",
        "packing.query(row) * static_cast<int>(row_stride)",
        (f"{FAR}[emulator-rows]",),
    ),
    Bug(
        "cuda_src/attention/matrix.cuh",
        "heads are multiplied by their stride in 32 bits",
        "head * tensor.head_stride",
        "head * static_cast<int>(tensor.head_stride)",
        (f"{FAR}[emulator-heads]",),
    ),
    Bug(
        "cuda_src/mma/packed.cuh",
        "packed heads are apart as if each were a row's",
        "packing.head(row) * head_stride;",
        "packing.head(row) * row_stride;",
        (*any_of("emulator"),),
    ),
    Bug(
        "cuda_src/mma/backward_dkdv.cu",
        "lse lies as delta does",
        "next.distance(params.lse)",
        "next.distance(params.delta)",
        (*any_of("emulator"),),
    ),
    Bug(
        "cuda_src/attention/backward_rows.cu",
        "the output lies as its gradient does",
        "matrix_of<Out>(block, params.out,",
        "matrix_of<Out>(block, {params.out.data, {}, params.dout.head_stride, params.dout.row_stride, 1, 0},",
        (*any_of("emulator"),),
    ),
    Bug(
        "cuda_src/attention/merge.cu",
        "the second lse lies as the first does",
        "lse_b = *gLseB.at(lanes.own_row(), 0);",
        "lse_b = *(gLseB.data + (gLseA.at(lanes.own_row(), 0) - gLseA.data));",
        (MERGE.format("emulator"),),
    ),
    Bug(
        "cupy_flash/_src/backends/native.py",
        "heads of the last batch dimension come first",
        "begins = (begins[:, None] + np.arange(n) * stride).ravel()",
        "begins = (begins[None] + np.arange(n)[:, None] * stride).ravel()",
        (*any_of("cpu"),),
    ),
    Bug(
        "cupy_flash/_src/backends/native.py",
        "the gradients of lse and of the output are told apart by no stride",
        "tuple([None if x is None else x.strides for x in arrays])",
        "tuple([None if x is None else arrays[0].strides[: x.ndim] for x in arrays])",
        (*any_of("cpu"),),
    ),
    Bug(
        "cuda_src/cpu/convert.h",
        "columns that lie apart are stored next to each other",
        "__builtin_memcpy(y + e * stride, buffer + e - i, sizeof(Element));",
        "__builtin_memcpy(y + e * sizeof(Element), buffer + e - i, sizeof(Element));",
        (*any_of("cpu"),),
    ),
    Bug(
        "cuda_src/cpu/convert.h",
        "columns in the other direction are taken for contiguous",
        "void load_elements(T* y, const char* x, int64_t stride, int64_t count) {",
        "void load_elements(T* y, const char* x, int64_t stride, int64_t count) {\n  if (stride < 0) stride = -stride;",
        (*any_of("cpu"),),
    ),
]
