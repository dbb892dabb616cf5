"""Interrupts as a terminal sends them: a process started in the background ignores them, and so does all it starts."""

import contextlib
import signal


@contextlib.contextmanager
def interruptible():
    """SIGINT raises KeyboardInterrupt, whatever the process has inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
