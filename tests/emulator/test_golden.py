"""The primitives on hardware: the recorder, and what it recorded against the oracles and the emulator."""

import functools
import itertools
import json
import os
import re
import sys
import time

import numpy as np
import pytest
from conftest import require_gpu
from cupy.cuda import nvrtc
from emulator.both_paths import assert_same_bits, run_path
from golden import tensor_map
from golden.hopper import HOPPER
from golden.layouts import accumulator_places, operand_places, swizzled, tiles
from golden.primitive import TensorMap, check
from golden.primitives import PRIMITIVES
from golden.record import ALL, FILE, SUMMARY, Device, available, judge, parameters, record, run_on_emulator
from golden.wgmma import WGMMA

from cupy_flash._src import source
from cupy_flash._src.cli.worker import stage

# ex2, lg2 and their like are approximate on a GPU: 2 ulp, and the float64 library's 1 to 2 ulp.
APPROXIMATE = 4.0
H200 = Device("a Hopper GPU", 90)

# The assembler's remarks C75xx say that wgmmas were serialized or waited for, C7508 that setmaxnreg was ignored.
COMPLAINTS = r"(?i)warning|\(C7\d+\)"

named = pytest.mark.parametrize("primitive", HOPPER, ids=lambda primitive: primitive.name)


def compile_with_log(text, arch):
    """PTX and the assembler's log."""
    program = nvrtc.createProgram(text, "primitive.cu", (), ())
    nvrtc.compileProgram(program, ("-std=c++17", "-default-device", f"-arch={arch}", "--ptxas-options=-v"))
    return nvrtc.getPTX(program), nvrtc.getProgramLog(program)


def text_of(primitive):
    return source.flatten("primitive.cu", virtual={"primitive.cu": primitive.source})


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_oracle(tmp_path):
    require_gpu()
    outcomes = record(tmp_path / "primitives.npz")
    assert outcomes
    assert not {name: outcome.message for name, outcome in outcomes.items() if outcome.status != "passed"}


@pytest.mark.skipif(not FILE.exists(), reason="no golden vectors: run tests/golden/record.py on a GPU")
@pytest.mark.parametrize("primitive", ALL.values(), ids=ALL)
def test_the_oracle_and_the_emulator_agree_with_recorded_hardware(primitive):
    with np.load(FILE) as golden:
        outcome = json.loads(str(golden[SUMMARY]))["outcomes"].get(primitive.name)
        if outcome is None:
            pytest.skip("recorded on a device without this primitive")
        assert outcome["status"] != "failed", outcome["message"]
        inputs = {name: golden[f"{primitive.name}/in/{name}"] for name in primitive.inputs}
        recorded = {name: golden[f"{primitive.name}/{name}"] for name in primitive.outputs}
    assert_same_bits(inputs, primitive.inputs)
    check(primitive, recorded)
    if primitive in PRIMITIVES:
        outputs = run_on_emulator(primitive, "sm_90a")
        for name, value in recorded.items():
            rtol, atol = APPROXIMATE * primitive.rtol, APPROXIMATE * primitive.atol
            np.testing.assert_allclose(outputs[name], value, rtol=rtol, atol=atol, err_msg=name)


@named
def test_hopper_primitives_assemble_without_warnings_or_spills(primitive):
    ptx, log = compile_with_log(text_of(primitive), "sm_90a")
    assert not re.search(COMPLAINTS, log), log
    assert " 0 bytes spill stores" in log
    # The parameters as Python packs them are as long as the kernel's.
    size = int(re.search(r"primitive_param_0\[(\d+)\]", ptx if isinstance(ptx, str) else ptx.decode())[1])
    maps = {name: np.zeros(16, np.uint64) for name in primitive.maps}
    assert parameters(maps, dict.fromkeys(primitive.arrays, 0)).nbytes == size


@pytest.mark.parametrize(
    "primitive",
    [primitive for primitive in HOPPER if primitive not in WGMMA] + WGMMA[-1:],
    ids=lambda primitive: primitive.name,
)
def test_instructions_of_sm_90a_alone_are_marked(primitive):
    if primitive.max_arch == 90:
        with pytest.raises(nvrtc.NVRTCError):
            compile_with_log(text_of(primitive), "sm_120")
    else:
        compile_with_log(text_of(primitive), "sm_120")
    with pytest.raises(nvrtc.NVRTCError):
        compile_with_log(text_of(primitive), "sm_80")


def test_the_assembler_remarks_on_registers_touched_too_early():
    primitive = ALL["wgmma_f16_a_kK_b_kMN"]
    touched = primitive.source.replace("  ptx::wgmma_commit();", "  d[0] += 1.0f;\n  ptx::wgmma_commit();")
    assert touched != primitive.source
    _, log = compile_with_log(source.flatten("primitive.cu", virtual={"primitive.cu": touched}), "sm_90a")
    assert "gmma" in re.search(COMPLAINTS + ".*", log)[0].lower()


@pytest.mark.parametrize("primitive", HOPPER, ids=lambda primitive: primitive.name)
def test_a_wrong_bit_is_seen(primitive):
    right = {name: value.astype(primitive.outputs[name].dtype) for name, value in expected_of(primitive).items()}
    assert right.keys() == primitive.outputs.keys()
    assert {name: value.shape for name, value in right.items()} == {n: v.shape for n, v in primitive.outputs.items()}
    assert judge(primitive, right, "").status == "passed"
    assert judge(primitive, primitive.outputs, "").status == "differs"
    for name in right:
        wrong = right | {name: np.ascontiguousarray(right[name])}
        wrong[name] = wrong[name].copy()
        wrong[name].view(np.uint8).reshape(-1)[-1] ^= 1
        assert judge(primitive, wrong, "").status == "differs"


def expected_of(primitive):
    return {name: np.ascontiguousarray(value) for name, value in primitive.expected(primitive.inputs).items()}


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_the_swizzle_permutes_within_its_rows(swizzle):
    memory = np.arange(4096, dtype=np.uint16)
    image = swizzled(memory, swizzle)
    np.testing.assert_array_equal(np.sort(image), memory)
    np.testing.assert_array_equal(swizzled(image, swizzle), memory)
    span = max(swizzle, 16) // 2
    np.testing.assert_array_equal(image // span, memory // span)
    np.testing.assert_array_equal(image % 8, memory % 8)


@pytest.mark.parametrize(("columns", "swizzle"), [(64, 128), (32, 64)])
def test_the_swizzle_is_that_of_the_projects_tiles(columns, swizzle):
    # cuda_src/mma/tile.cuh: element (row, col) lies at row * columns + (col ^ 8 (row % 8)), or 8 (row / 2 % 4) where
    # a row has 32 columns.
    row, col = np.ogrid[:48, :columns]
    matrix = row * columns + col
    place = row * columns + (col ^ 8 * (row % 8 if columns == 64 else row // 2 % 4))
    np.testing.assert_array_equal(swizzled(matrix.astype(np.uint16), swizzle).reshape(-1)[place], matrix)


def test_eight_rows_of_a_tile_lie_in_different_banks():
    matrix = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    places = np.argsort(tiles(matrix).reshape(-1)).reshape(64, 8, 8)[:, :, 0]  # of each 16-byte chunk
    for first, chunk in itertools.product(range(0, 64, 8), range(8)):
        assert len(set(places[first : first + 8, chunk] * 2 % 128)) == 8


@pytest.mark.parametrize("columns", [16, 80, 256])
def test_a_warpgroup_holds_each_element_once(columns):
    places = np.stack(accumulator_places(columns), -1).reshape(-1, 2)
    assert len(np.unique(places, axis=0)) == 64 * columns
    assert places.max(0).tolist() == [63, columns - 1]
    operand = np.stack(operand_places(64), -1).reshape(-1, 2)
    assert len(np.unique(operand, axis=0)) == 64 * 64


def test_accumulators_become_operands_as_they_are():
    """P = softmax(S) is A of the next product with no exchange: pairs of S's registers are its registers."""
    rows, cols = (place.reshape(-1, 2, 128).transpose(0, 2, 1) for place in accumulator_places(64))
    a_rows, a_cols = operand_places(64)
    np.testing.assert_array_equal(rows, a_rows)
    np.testing.assert_array_equal(cols, a_cols)


DESCRIPTORS = """\
#include "platform.cuh"
#include "ptx/wgmma.cuh"
struct Params { uint64_t* out; };
extern "C" __global__ void __launch_bounds__(4) kernel(const __grid_constant__ Params params) {
  const uint32_t step = threadIdx.x;
  params.out[step] = ptx::wgmma_descriptor(0x3000 + step * ptx::kWgmmaStep<ptx::Major::MAJOR>, 64 * 128);
}
"""


@pytest.mark.parametrize("major", ["kK", "kMN"])
def test_descriptors_lead_to_every_element(major):
    """What the header says of B[64, 256], followed by PTX ISA 9.7.15's canonical layouts through a kernel's image."""
    out = np.zeros(4, np.uint64)
    text = {"kernel.cu": DESCRIPTORS.replace("MAJOR", major)}
    words = run_path("ptx", "kernel.cu", "kernel", {"out": out}, ["out"], virtual=text, arch="sm_90a", block=(4,))[
        "out"
    ]
    start, leading, stride = (((words >> np.uint64(shift)).astype(int) & 0x3FFF) * 16 for shift in (0, 16, 32))
    assert (words >> np.uint64(62) == 1).all()
    assert (words >> np.uint64(46) & np.uint64(0xFFFF) == 0).all()

    b = np.arange(64 * 256, dtype=np.uint16).reshape(64, 256)
    image = tiles(b.T if major == "kK" else b).reshape(-1)
    k, n = np.ogrid[:64, :256]
    step, k_in = np.divmod(k, 16)
    if major == "kK":
        offset = n // 8 * stride[step] + n % 8 * 128 + k_in * 2
    else:
        offset = n // 64 * leading[step] + k_in // 8 * stride[step] + k_in % 8 * 128 + n % 64 * 2
    address = start[step] + offset
    address ^= (address >> 7 & 7) << 4
    np.testing.assert_array_equal(image[(address - 0x3000) // 2], b)


@pytest.mark.parametrize("name", [primitive.name for primitive in HOPPER if primitive.name.startswith("tma_load")])
def test_loaded_boxes_are_zero_outside_the_array(name):
    primitive = ALL[name]
    x, starts = primitive.inputs["x"], primitive.inputs["at"]
    view = primitive.maps["map"]
    for start, image in zip(starts, expected_of(primitive)["y"], strict=True):
        box = swizzled(image, view.swizzle)
        for place in np.ndindex(*view.box):
            at = tuple(np.add(start, place))
            inside = all(0 <= i < size for i, size in zip(at, x.shape, strict=True))
            assert box[place] == (x[at] if inside else 0)


@pytest.mark.parametrize("name", [primitive.name for primitive in HOPPER if primitive.name.startswith("tma_store")])
def test_stored_boxes_leave_out_what_is_outside_the_array(name):
    primitive = ALL[name]
    view, y = primitive.maps["map"], primitive.outputs["y"].copy()
    for start, image in zip(primitive.inputs["at"], primitive.inputs["x"], strict=True):
        box = swizzled(image, view.swizzle)
        for place in np.ndindex(*view.box):
            at = tuple(np.add(start, place))
            if all(0 <= i < size for i, size in zip(at, y.shape, strict=True)):
                y[at] = box[place]
    np.testing.assert_array_equal(expected_of(primitive)["y"], y)


def test_maps_are_described_innermost_first():
    found = tensor_map.geometry(TensorMap("x", (1, 2, 16, 64)), (2, 3, 37, 72), 2)
    assert found == ([72, 37, 3, 2], [144, 5328, 15984], [64, 16, 2, 1])


@pytest.mark.parametrize(
    ("box", "swizzle", "shape", "message"),
    [
        ((16, 72), 128, (37, 72), "box rows of 144 bytes"),
        ((16, 12), 0, (37, 72), "box rows of 24 bytes"),
        ((16, 64), 128, (37, 70), "strides"),
        ((16,), 128, (37, 72), "one side"),
        ((257, 64), 128, (500, 72), "1..256"),
    ],
)
def test_maps_that_the_hardware_has_not_are_refused(box, swizzle, shape, message):
    with pytest.raises(ValueError, match=message):
        tensor_map.geometry(TensorMap("x", box, swizzle), shape, 2)


def test_the_driver_is_asked_for_what_the_map_says(monkeypatch):
    driver = pytest.importorskip("cuda.bindings.driver")
    asked = []

    def answer(*arguments):
        asked.append([[int(value) for value in x] if isinstance(x, list) else x for x in arguments])
        return driver.CUresult.CUDA_SUCCESS, driver.CUtensorMap()

    monkeypatch.setattr(driver, "cuTensorMapEncodeTiled", answer)
    encoded = tensor_map.encode(TensorMap("x", (16, 64)), 4096, (37, 72), np.dtype(np.float16))
    assert (encoded.shape, encoded.dtype) == ((16,), np.uint64)
    type_, rank, pointer, dims, strides, box, steps, _, swizzle, *_ = asked[0]
    assert type_ == driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT16
    assert swizzle == driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B
    assert (rank, pointer, dims, strides, box, steps) == (2, 4096, [72, 37], [144], [64, 16], [1, 1])


def test_without_cuda_bindings_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(RuntimeError, match="pip install cuda-bindings"):
        tensor_map.encode(TensorMap("x", (16, 64)), 0, (37, 72), np.dtype(np.float16))


def test_a_gpu_gets_what_it_has():
    def names(compute_capability):
        return {primitive.name for primitive in available(compute_capability)}

    assert names(90) == ALL.keys()
    assert names(75) == names(80) - {"mma_m16n8k16_f16", "mma_m16n8k16_bf16", "cp_async"}
    assert names(90) - names(120) == {name for name in ALL if name.startswith(("wgmma", "setmaxnreg", "pipeline"))}


def test_boxes_of_one_kind_have_a_primitive_of_their_own():
    """What starts before the array, or lies outside it, can fault: it must not take the other answers along."""
    for name, primitive in ALL.items():
        if name.startswith("tma_"):
            view = primitive.maps["map"]
            starts, shape = primitive.inputs["at"], primitive.arrays[view.array].shape
            assert bool((starts < 0).any()) == ("_before" in name), name
            assert bool((starts >= shape).any()) == ("_outside" in name), name
            assert bool((starts + view.box > shape).any()) or any(x in name for x in ("_inside", "_before")), name
            assert not (starts[:, -1] * 2 % 16).any(), name


def faulty(primitive):
    """Stands for a GPU on which some primitives go wrong, each in its own way."""
    stage("launch")
    if primitive.name == "mbarrier":
        time.sleep(1000)
    if primitive.name == "elect":
        os._exit(7)
    if primitive.name == "bulk":
        raise ValueError("no such luck")
    return primitive.outputs if primitive.name == "vote" else expected_of(primitive)


@pytest.mark.slow
def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path):
    file, seen = tmp_path / "golden.npz", []
    names = ["vote", "mbarrier", "elect", "bulk", "tma_load_2d"]
    outcomes = record(file, names=names, timeout=5, device=H200, run=faulty, report=lambda name, _: seen.append(name))
    assert seen == names
    assert [outcomes[name].status for name in names] == ["differs", "failed", "failed", "failed", "passed"]
    assert outcomes["mbarrier"].message == "hang: no answer within 5 s (launch)"
    assert outcomes["elect"].message == "crash: its process ended with code 7 (launch)"
    assert outcomes["bulk"].message == "launch: ValueError: no such luck"
    with np.load(file) as golden:
        summary = json.loads(str(golden[SUMMARY]))
        assert summary["device"] == {"name": H200.name, "compute_capability": 90}
        assert summary["outcomes"]["bulk"] == {"status": "failed", "message": "launch: ValueError: no such luck"}
        assert "bulk/y" not in golden
        np.testing.assert_array_equal(golden["bulk/in/x"], ALL["bulk"].inputs["x"])
        np.testing.assert_array_equal(golden["tma_load_2d/y"], expected_of(ALL["tma_load_2d"])["y"])


def test_unknown_primitives_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no primitive is called"):
        record(tmp_path / "golden.npz", names=["wgmma_f64"], device=H200)


def test_the_emulator_answers_in_the_gpus_place(tmp_path):
    arch, names = "sm_90a", ["vote", "ldmatrix"]
    run = functools.partial(run_on_emulator, arch=arch)
    outcomes = record(tmp_path / "golden.npz", names=names, device=Device(f"emulator:{arch}", 90), run=run)
    assert {name: outcome.status for name, outcome in outcomes.items()} == dict.fromkeys(names, "passed")
    with np.load(tmp_path / "golden.npz") as golden:
        assert json.loads(str(golden[SUMMARY]))["device"]["name"] == "emulator:sm_90a"
        np.testing.assert_array_equal(golden["vote/any"], expected_of(ALL["vote"])["any"])
