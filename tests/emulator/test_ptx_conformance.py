"""Inline PTX and the host headers do the same, and what an oracle of the PTX ISA's tables says."""

import pytest
from cupy.cuda import nvrtc
from emulator.both_paths import assert_same_bits, run_both, run_path
from golden.primitive import Primitive, check
from golden.primitives import PRIMITIVES

from cupy_flash._src import source

ARCHITECTURES = ("sm_75", "sm_80", "sm_90a")
CASES = [
    pytest.param(primitive, arch, id=f"{primitive.name}-{arch}")
    for primitive in PRIMITIVES
    for arch in ARCHITECTURES
    if int(arch[3:].rstrip("a")) >= primitive.min_arch
]


def launch_arguments(primitive: Primitive, arch: str) -> dict:
    return {
        "name": "primitive.cu",
        "entry": "primitive",
        "arrays": primitive.arrays,
        "outputs": list(primitive.outputs),
        "virtual": {"primitive.cu": primitive.source},
        "arch": arch,
        "block": (primitive.threads,),
        "shared_bytes": primitive.shared_bytes,
    }


def assemble(primitive: Primitive, arch: str) -> None:
    """Compile to machine code: ptxas checks the inline PTX, which NVRTC itself does not."""
    text = source.flatten("primitive.cu", virtual={"primitive.cu": primitive.source})
    program = nvrtc.createProgram(text, "primitive.cu", (), ())
    nvrtc.compileProgram(program, ("-std=c++17", f"-arch={arch}"))


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a", "sm_120"])
def test_device_headers_assemble_wherever_an_instruction_exists(arch):
    for primitive in PRIMITIVES:
        if primitive.min_arch <= int(arch[3:].rstrip("a")):
            assemble(primitive, arch)
        else:
            with pytest.raises(nvrtc.NVRTCError):
                assemble(primitive, arch)


@pytest.mark.parametrize(("primitive", "arch"), CASES)
def test_paths_agree_with_the_oracle_and_each_other(primitive, arch):
    host, ptx = run_both(**launch_arguments(primitive, arch))
    check(primitive, host)
    check(primitive, ptx)
    if primitive.rtol == 0:
        assert_same_bits(host, ptx)


@pytest.mark.parametrize("path", ["host", "ptx"])
@pytest.mark.parametrize("primitive", PRIMITIVES, ids=lambda primitive: primitive.name)
def test_checked_mode_finds_no_fault_in_any_order(primitive, path):
    outputs = run_path(
        path, **launch_arguments(primitive, f"sm_{max(primitive.min_arch, 80)}"), mode="checked", seed=1, preempt=5
    )
    check(primitive, outputs)
