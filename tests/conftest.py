"""Backends as a fixture, and hypothesis without deadlines: the first call of a shape compiles."""

import os

import hypothesis
import numpy as np
import pytest

from cupy_flash import backends

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

GPU = pytest.param("cuda", marks=pytest.mark.gpu)


class On:
    """Runs a public call on a backend, NumPy arrays in and out."""

    def __init__(self, name):
        self.name = name

    def __call__(self, function, *arrays, **options):
        options = {"backend": self.name, **options}
        if self.name != "cuda":
            return function(*arrays, **options)
        import cupy

        def move(x):
            return cupy.asarray(x) if isinstance(x, np.ndarray) else x

        result = function(*map(move, arrays), **{key: move(x) for key, x in options.items()})
        return tuple(map(cupy.asnumpy, result)) if isinstance(result, tuple) else cupy.asnumpy(result)


@pytest.fixture(params=["cpu", "emulator", GPU])
def on(request):
    if request.param == "cuda":
        require_gpu()
    return On(request.param)


def require_gpu():
    try:
        backends.get("cuda")
    except RuntimeError as error:
        pytest.skip(str(error))
