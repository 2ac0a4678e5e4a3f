"""Wait for a state, never for a time: a machine may be as slow as it likes.

``HANG_SECONDS`` is no measurement. It ends a test that would otherwise never end, and is far above
what a machine with ten times as many processes as processors needs.
"""

import time

HANG_SECONDS = 900
FOREVER = 10**6  # seconds, for a task that only a signal may end


def wait_until(condition, process=None):
    """Return once ``condition()`` holds; fails if ``process`` ends before, or nothing moves."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert process is None or process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline, f"still not after {HANG_SECONDS} s"
        time.sleep(0.02)
