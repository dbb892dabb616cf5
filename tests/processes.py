"""Scripts in processes of their own, and what surrounds a process: its user, its interrupts."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent

ATTEND = """
import numpy as np
from cupy_flash import flash_attention
from cupy_flash._src.backends import get
x = np.ones((2, 8, 16), np.float32)
for _ in range(2):
    assert np.allclose(flash_attention(x, x, x), 1)
print(get("cpu").status())
"""

# Root may write where nobody may; a script that begins with this is like that of another user.
AS_A_USER = """
import ctypes, os
if os.getuid() == 0:
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    for word in (0, 1):
        data[word] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH of the effective and the permitted
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())
"""


def environment(changes):
    """The variables of this process with changes, None to remove one; scripts find the checkout and its tests."""
    path = os.pathsep.join(map(str, (ROOT, TESTS)))
    changed = os.environ | {"PYTHONPATH": path, "CUPY_FLASH_COMPILE": "lazy", "CUPY_FLASH_CPU_TIER": None} | changes
    return {name: str(value) for name, value in changed.items() if value is not None}


def python(code, *arguments, interpreter=sys.executable, cwd=None, timeout=300, **changes):
    """What a script writes to standard output and to standard error; its error, should it fail, is the test's."""
    done = subprocess.run(
        [interpreter, "-c", code, *map(str, arguments)],
        cwd=cwd, env=environment(changes), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def script(path, *arguments, **changes):
    """As `python`, of a file run as a program."""
    run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    return python(run, path, *arguments, **changes)


def start(code, *arguments, **changes):
    """A script at work, its standard input and output open."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(changes), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextlib.contextmanager
def interruptible():
    """SIGINT raises KeyboardInterrupt here; a process started in the background ignores it, as all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
