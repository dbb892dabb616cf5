"""The package as others get it: an installed wheel, and machines that lack CuPy."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).parents[1]

FROM_THE_WHEEL = """
import sys
import numpy as np
from cupy_flash import attention_reference, flash_attention
from cupy_flash._src import source

environment = sys.argv[1]
assert source.__file__.startswith(environment), source.__file__
assert str(source.root()).startswith(environment), source.root()

rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((2, 33, 16), dtype=np.float32) for _ in range(3))
exact = attention_reference(q, k, v, causal=True, compute_dtype=np.float64)
for backend in ("cpu", "emulator"):
    out = flash_attention(q, k, v, causal=True, backend=backend)
    assert np.abs(out - exact).max() < 1e-5, backend
"""

# Makes `import name` fail as if it were not installed.
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""

WITHOUT_CUPY = """
import numpy as np
import cupy_flash

x = np.ones((4, 8), np.float32)
assert np.allclose(cupy_flash.flash_attention(x, x, x), x)
try:
    cupy_flash.flash_attention(x, x, x, backend="cuda")
except RuntimeError as error:
    assert "pip install" in str(error), error
else:
    raise AssertionError("backend='cuda' works without CuPy")
"""

ON_NUMPY_ARRAYS = """
import sys
import numpy as np
import cupy_flash

x = np.ones((4, 8), np.float32)
out, vjp = cupy_flash.flash_attention_vjp(x, x, x, causal=True)
vjp(out)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def run_python(code, *args, python=sys.executable, cwd=ROOT, **environment):
    """Standard output of a script that finds the package where it is installed, or in `cwd`."""
    changes = {"PYTHONPATH": None, "CUPY_FLASH_COMPILE": None} | environment
    return processes.python(code, *args, interpreter=python, cwd=cwd, **changes)[0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    run_python(build, str(folder))
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_carries_every_source(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    python = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cupy_flash").rglob("*.py")}
    cuda = {f"cupy_flash/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "cuda_src").rglob("*.*")}
    others = {"cupy_flash/py.typed", "cupy_flash/data/attention.txt"}
    assert python | cuda | others <= packed
    assert {name.partition("/")[0].partition("-")[0] for name in packed} == {"cupy_flash"}


@pytest.mark.slow
def test_attention_runs_from_the_installed_wheel(wheel, tmp_path):
    """In a fresh environment that sees the dependencies of this one, but not its cupy_flash."""
    builder = venv.EnvBuilder(symlinks=os.name != "nt")
    builder.create(tmp_path / "venv")
    python = builder.ensure_directories(tmp_path / "venv").env_exe
    site = Path(run_python("import sysconfig; print(sysconfig.get_path('purelib'))", python=python).strip())
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, str(wheel)], check=True, stdin=subprocess.DEVNULL)
    dependencies = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(dependencies))  # their own .pth files are not followed
    environment = {"CUPY_FLASH_CACHE_DIR": str(tmp_path / "cache"), "CUPY_FLASH_COMPILE": "lazy"}
    run_python(FROM_THE_WHEEL, str(tmp_path / "venv"), python=python, cwd=tmp_path, **environment)


FROM_A_ZIP_FILE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from cupy_flash import attention_reference, flash_attention
from cupy_flash._src import backends, source, tuning
assert source.__file__.startswith(sys.argv[1]), source.__file__
x = np.random.default_rng(0).standard_normal((3, 2, 9, 16), dtype=np.float32)
exact = attention_reference(*x, compute_dtype=np.float64)
for backend in sys.argv[2:]:
    assert np.abs(flash_attention(*x, backend=backend) - exact).max() < 1e-5, backend
assert not tuning.read_table(tuning.package_table("sm_0"))
print(backends.get("cpu").status())
"""


def test_attention_runs_from_a_zip_file(wheel, tmp_path):
    """Its sources are unpacked while the process lives."""
    out = run_python(FROM_A_ZIP_FILE, str(wheel), "cpu", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert out.startswith("compiled C++")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_emulator_runs_from_a_zip_file(wheel, tmp_path):
    run_python(FROM_A_ZIP_FILE, str(wheel), "emulator", cwd=tmp_path)


def test_without_the_sources_numpy_serves_and_others_say_what_is_missing(wheel, tmp_path):
    """As in a program frozen without the package's data."""
    lacking = tmp_path / "lacking.zip"
    with zipfile.ZipFile(wheel) as packed, zipfile.ZipFile(lacking, "w") as rest:
        for name in packed.namelist():
            if "/cuda_src/" not in name:
                rest.writestr(name, packed.read(name))
    cold = {"CUPY_FLASH_CACHE_DIR": str(tmp_path / "cache")}
    assert run_python(FROM_A_ZIP_FILE, str(lacking), "cpu", cwd=tmp_path, **cold).startswith("NumPy")
    with pytest.raises(AssertionError, match=r"the folder cuda_src, are missing in .*lacking"):
        run_python(FROM_A_ZIP_FILE, str(lacking), "emulator", cwd=tmp_path, **cold)


def test_without_cupy_everything_else_works():
    run_python(BLOCK.format(blocked={"cupy", "cupy_backends", "cupyx"}) + WITHOUT_CUPY)


def test_without_the_demo_packages_attention_works():
    run_python(BLOCK.format(blocked={"matplotlib", "tqdm", "ziglang"}) + ON_NUMPY_ARRAYS)


def test_numpy_calls_load_neither_cupy_nor_plotting():
    loaded = set(run_python(ON_NUMPY_ARRAYS, CUPY_FLASH_COMPILE="lazy").split())
    assert {"numpy", "cupy_flash"} <= loaded
    assert not loaded & {"cupy", "cupy_backends", "matplotlib", "tqdm", "ziglang"}
