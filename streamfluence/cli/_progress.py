"""Progress on stderr: a bar on a terminal, a plain line every 30 seconds in a log.

A stage calls ``start``, ``advance`` and ``finish``, in turn for each thing it
counts; ``message`` may come at any time. No carriage return ever reaches a log.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from streamfluence.cli._clean import clean, say
from streamfluence.cli._units import duration

LINE_SECONDS = 30.0


class LogProgress:
    """Progress as lines: one at the start, one every 30 s, one at the end of a stage."""

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        seconds: float = LINE_SECONDS,
    ) -> None:
        self._stream, self._clock, self._seconds = stream, clock, seconds
        self._running: threading.Event | None = None
        self._stage = self._unit = ""
        self._total: int | None = None
        self._done, self._started = 0, 0.0

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Begin to count ``total`` of ``unit``; None when nobody knows how many there will be."""
        self.finish()
        self._stage, self._total, self._unit = stage, total, unit
        self._done, self._started = 0, self._clock()
        self._line()
        self._running = threading.Event()
        threading.Thread(target=self._tick, args=(self._running,), daemon=True).start()

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more."""
        self._done += n

    def message(self, text: str) -> None:
        """Say something that a user should read."""
        say(text, self._stream)

    def finish(self) -> None:
        """End what is being counted; does nothing when nothing is."""
        if self._running is None:
            return
        self._running.set()
        self._running = None
        self._line()

    def __enter__(self) -> "LogProgress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.finish()

    def _tick(self, stopped: threading.Event) -> None:
        while not stopped.wait(self._seconds):
            self._line()

    def _line(self) -> None:
        elapsed = self._clock() - self._started
        words = [f"{self._stage}: {self._done:,}"]
        if self._total is not None:
            words.append(f"of {self._total:,}")
        words.append(self._unit)
        if elapsed >= 1:
            words.append(f"in {duration(elapsed)}")
        if self._total and 0 < self._done < self._total:
            left = elapsed / self._done * (self._total - self._done)
            words.append(f"({100 * self._done // self._total} %), about {duration(left)} left")
        self.message(" ".join(words))


class BarProgress:
    """Progress as one moving bar for each thing counted, by rich."""

    def __init__(self) -> None:
        # Imported here: only a terminal pays for it.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True, markup=False, highlight=False, emoji=False),
        )
        self._task: Any = None

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Begin to count ``total`` of ``unit``; None when nobody knows how many there will be."""
        self.finish()
        self._bars.start()
        self._task = self._bars.add_task(clean(stage), total=total, unit=clean(unit))

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more."""
        self._bars.advance(self._task, n)

    def message(self, text: str) -> None:
        """Say something that a user should read, above the bars."""
        self._bars.console.print(clean(text))

    def finish(self) -> None:
        """End what is being counted; its bar stays where it is."""
        if self._task is not None:
            self._bars.stop_task(self._task)
            self._task = None

    def __enter__(self) -> "BarProgress":
        return self

    def __exit__(self, *error: Any) -> None:
        self.finish()
        self._bars.stop()


def progress() -> LogProgress | BarProgress:
    """Return the progress that suits stderr."""
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return BarProgress()
    return LogProgress(sys.stderr)
