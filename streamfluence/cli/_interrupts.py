"""Stop within ten seconds of SIGTERM or SIGINT, whatever the main thread is doing.

The first signal raises ``Interrupted`` in the main thread, which unwinds and
ends with exit code 75; while something is imported it ends the process at once.
Python runs signal handlers between two bytecodes, so a long call into LAPACK
would delay that for a minute; a watching thread therefore ends the process when
it has not ended in time, or at the second signal. Nothing is lost by it: what is
committed is safe even from a power cut.
"""

import os
import select
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

from streamfluence.errors import Interrupted

GRACE_SECONDS = 8.0
STOPPING = (signal.SIGTERM, signal.SIGINT)
ADVICE = "what was committed is safe; run the same command again to go on"


class Interruptible:
    """A context in which the first SIGTERM or SIGINT raises ``Interrupted``, once.

    Does nothing outside the main thread, where Python allows no handlers.
    """

    def __enter__(self) -> "Interruptible":
        self._signalled = False
        self._active = threading.current_thread() is threading.main_thread()
        if not self._active:
            return self
        # The C part of Python writes a signal's number here at once, also during a long call.
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._old_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, self._handle) for number in STOPPING}
        threading.Thread(target=_watch, args=(reader,), daemon=True, name="interrupts").start()
        return self

    def __exit__(self, *error: Any) -> None:
        # After a signal the watch goes on: Python's own exit may wait for something, too.
        if self._signalled or not self._active:
            return
        signal.set_wakeup_fd(self._old_writer)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        os.close(self._writer)

    def leave(self) -> None:
        """After a signal, end the process now: taking torch and Dask down takes seconds more."""
        if self._signalled:
            with suppress(OSError):
                sys.stderr.flush()
            _end("")

    def _handle(self, number: int, frame: Any) -> None:
        if self._signalled:
            return
        self._signalled = True
        stopped = Interrupted(f"stopped by {signal.Signals(number).name}: {ADVICE}")
        if _importing(frame):
            _end(f"error: {stopped}\n")
        raise stopped


def _importing(frame: Any) -> bool:
    """Return whether a module is being imported, which cannot be left by an exception.

    What catches it there may be C, which aborts, or a module that goes on half made.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _watch(reader: int) -> None:
    """Wait for one signal, then for a second or for the end of the grace, then end the process."""
    arrived = _signals(reader, None)
    if arrived == 1:
        _signals(reader, GRACE_SECONDS)
    if arrived:
        _end(f"error: stopped at once: {ADVICE}\n")
    os.close(reader)


def _signals(reader: int, seconds: float | None) -> int:
    """Return how many stopping signals are read, 0 if ``seconds`` pass or the writer is closed first.

    Two may be read at once: on a busy machine the second comes before this thread has run.
    """
    while select.select([reader], [], [], seconds)[0]:
        received = os.read(reader, 64)
        if not received:
            return 0
        if stopping := sum(number in STOPPING for number in received):
            return stopping
    return 0


def _end(last_words: str) -> None:
    """End the process and the ones it started; never waits, not even for a lock of stderr."""
    multiprocessing = sys.modules.get("multiprocessing")
    for child in multiprocessing.active_children() if multiprocessing else ():
        child.kill()
    with suppress(OSError):  # nobody may be reading any more
        os.write(2, last_words.encode())
    os._exit(Interrupted.exit_code)
