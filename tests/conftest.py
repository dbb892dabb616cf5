"""Backends as a fixture, and hypothesis, without deadlines: the first call of a shape compiles.

Plain `pytest` draws the same examples every time. `pytest -m "slow or hypothesis"` draws fresh ones, as any run that
asks for the slow tests; one that fails belongs beside its test, as an `example`.
"""

import contextlib
import ctypes
import os

import hypothesis
import numpy as np
import pytest

from cupy_flash._src import backends, launch, source, tuning
from cupy_flash._src.analysis.budget import approximate_on
from cupy_flash._src.backends import emulator as emulator_backend
from cupy_flash._src.backends.emulator import _extent
from cupy_flash._src.emulator import module as emulator_module

# With a variable CI in the environment Hypothesis has other defaults, and derandomizes: so each says what it draws by.
COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("repeatable", **COMMON, derandomize=True)
hypothesis.settings.register_profile("fresh", **COMMON, derandomize=False)
hypothesis.settings.register_profile("thorough", **COMMON, derandomize=False, max_examples=1000)
FOUND = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a failure is enough, whatever its size
hypothesis.settings.register_profile("unshrunk", **COMMON, derandomize=True, phases=FOUND)


def pytest_configure(config):
    """HYPOTHESIS_PROFILE, else fresh examples if slow tests are asked for.

    Of the others the emulator's kernels run for milliseconds: g++ compiles each for half a second with -O2, as users
    and slow tests have it, and for half of that with -Og.
    """
    asked = config.option.markexpr
    slow = "slow" in asked and "not slow" not in asked
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fresh" if slow else "repeatable"))
    if not slow:
        emulator_module._FAST_FLAGS = ("-Og",)


@pytest.hookimpl(tryfirst=True)  # before slow tests are deselected
def pytest_collection_modifyitems(items):
    """A hang ends a test, in pytest-timeout's hands; slow ones may take longer.

    A kernel of bfloat16 is that of float16, and one of float64 that of float32, but for the type: emulated with every
    option they are slow.
    """
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        has_twin = parameters.get("on") == "emulator" and parameters.get("dtype") in ("bfloat16", "float64")
        if has_twin and item.originalname == "test_every_backend_keeps_the_budget":
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(1800))


GPU = pytest.param("cuda", marks=pytest.mark.gpu)


class On:
    """Runs a public call on a backend, NumPy arrays in and out."""

    def __init__(self, name):
        self.name = name

    @property
    def approximate(self):
        """Whether results have a GPU's errors."""
        return approximate_on(self.name)

    def __call__(self, function, *arrays, **options):
        options = {"backend": self.name, **options}
        if self.name != "cuda":
            return function(*arrays, **options)
        import cupy

        result = function(*map(to_gpu, arrays), **{key: to_gpu(x) for key, x in options.items()})
        return tuple(map(cupy.asnumpy, result)) if isinstance(result, tuple) else cupy.asnumpy(result)


def to_gpu(x):
    """A copy on the GPU in the same layout: strides, holes and alignment within 16 bytes as they are."""
    import cupy

    if not isinstance(x, np.ndarray):
        return x
    if x.size == 0:
        return cupy.asarray(x)
    low, nbytes = _extent(x)
    start = low - low % 16
    host = np.frombuffer((ctypes.c_char * (low + nbytes - start)).from_address(start), np.uint8)
    memory = cupy.asarray(host)
    return cupy.ndarray(x.shape, x.dtype, memory.data + (x.ctypes.data - start), strides=x.strides)


@pytest.fixture(autouse=True, scope="session")
def nobodys_own_tiles():
    """Plans are the package's, whatever whoever runs the tests has tuned here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "own_tables", lambda arch: [])
        yield


@pytest.fixture(params=["cpu", "cpu-numpy", "emulator", GPU])
def on(request, monkeypatch):
    """Every backend, the CPU's in both tiers."""
    name, _, tier = request.param.partition("-")
    if name == "cpu":
        monkeypatch.setenv("CUPY_FLASH_CPU_TIER", tier or "native")
    if name == "cuda":
        require_gpu()
    return On(name)


@pytest.fixture(params=["native", "numpy"])
def tier(request, monkeypatch):
    """Every tier of the backend "cpu"."""
    monkeypatch.setenv("CUPY_FLASH_CPU_TIER", request.param)
    return request.param


def slow_among(names, slow):
    """Parameters `names`, those in `slow` marked so."""
    assert set(slow) <= set(names)
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


@pytest.fixture
def mutate(monkeypatch):
    """Replace text of a kernel's file, once and provably."""

    def replace(name, old, new):
        original = source._read

        def read(wanted, *args):
            text = original(wanted, *args)
            if wanted != name:
                return text
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}, not once"
            return text.replace(old, new)

        monkeypatch.setattr(source, "_read", read)
        emulator_backend._text.cache_clear()

    yield replace
    emulator_backend._text.cache_clear()


@pytest.fixture
def replan(monkeypatch):
    """Let launches follow other plans: a context manager that takes replacements of functions in `launch`."""

    def clear():
        for parts in (launch._forward_parts, launch._backward_parts):
            parts.cache_clear()

    @contextlib.contextmanager
    def replanned(**functions):
        with monkeypatch.context() as patch:
            for name, function in functions.items():
                patch.setattr(launch, name, function)
            clear()
            yield
        clear()

    return replanned


def require_gpu():
    try:
        backends.get("cuda")
    except RuntimeError as error:
        pytest.skip(str(error))
