"""What other tests ask of compiled kernels, asked again with the oldest NVRTC of the extra cuda13."""

import re
import subprocess
import sys

import processes
import pytest

pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason='needs CuPy: pip install "cupy-flash[cuda13]"')

MAJOR = re.search(r'"nvidia-cuda-nvrtc>=(\d+)"', (processes.ROOT / "pyproject.toml").read_text())[1]


@pytest.fixture(scope="module")
def oldest_nvrtc(tmp_path_factory):
    """What LD_PRELOAD needs for CuPy to find this NVRTC rather than another; the cache tells versions apart."""
    folder = tmp_path_factory.mktemp("nvrtc")
    install = ["install", "--quiet", "--no-deps", f"--target={folder}", f"nvidia-cuda-nvrtc=={MAJOR}.0.*"]
    done = subprocess.run([sys.executable, "-m", "pip", *install], capture_output=True, text=True, check=False)
    if "No matching distribution" in done.stderr:
        pytest.skip(f"pip finds no NVRTC {MAJOR}.0: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    libraries = [*folder.glob(f"nvidia/*/lib/libnvrtc.so.{MAJOR}"), *folder.glob("nvidia/*/lib/libnvrtc-builtins.so.*")]
    assert len(libraries) == 2, libraries
    preload = ":".join(map(str, libraries))
    version = "from cupy_flash._src.compile import nvrtc_version; print(*nvrtc_version())"
    assert processes.python(version, LD_PRELOAD=preload)[0].split() == [MAJOR, "0"]
    return preload


# Kernels of tensor cores for Hopper, and what is recorded of others. Those of all architectures are compiled with the
# NVRTC that is installed.
SPILLS = "test_compile.py::test_all_kernels_compile_without_spills"
RECORDED = "test_machine_code.py::test_registers_spills_and_main_loops_are_as_recorded"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
@pytest.mark.parametrize("test", [
    f"{SPILLS}[sm_90a-Float16]", f"{RECORDED}[64]", f"{RECORDED}[128]", f"{RECORDED}[256]",
])  # fmt: skip
def test_it_holds_with_the_oldest_nvrtc(test, oldest_nvrtc):
    pytest_ = [sys.executable, "-m", "pytest", "-n", "0", "-m", "slow", "-p", "no:cacheprovider", f"tests/{test}"]
    environment = processes.environment({"LD_PRELOAD": oldest_nvrtc, "PYTEST_XDIST_WORKER": None})
    done = subprocess.run(
        pytest_, cwd=processes.ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0 and re.search(r"\b1 passed", done.stdout), done.stdout[-5000:] + done.stderr
