"""The primitives on hardware: against the oracle, and the emulator against what a GPU once answered."""

import numpy as np
import pytest
from conftest import require_gpu
from emulator.both_paths import run_path
from emulator.test_ptx_conformance import check, launch_arguments
from golden.primitives import PRIMITIVES
from golden.record import FILE, available, run_on_gpu

# ex2, lg2 and their like are approximate on a GPU: 2 ulp, and the float64 library's 1 to 2 ulp.
APPROXIMATE = 4.0


@pytest.mark.gpu
def test_the_gpu_agrees_with_the_oracle():
    require_gpu()
    import cupy

    for primitive in available(int(cupy.cuda.Device().compute_capability)):
        check(primitive, run_on_gpu(primitive))


@pytest.mark.skipif(not FILE.exists(), reason="no golden vectors: run tests/golden/record.py on a GPU")
@pytest.mark.parametrize("primitive", PRIMITIVES, ids=lambda primitive: primitive.name)
def test_the_emulator_agrees_with_recorded_hardware(primitive):
    with np.load(FILE) as golden:
        recorded = {name: golden.get(f"{primitive.name}/{name}") for name in primitive.outputs}
    if any(value is None for value in recorded.values()):
        pytest.skip("recorded on a device without this primitive")
    outputs = run_path("host", **launch_arguments(primitive, "sm_90a"))
    for name, value in recorded.items():
        tolerance = APPROXIMATE * primitive.rtol
        np.testing.assert_allclose(outputs[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
