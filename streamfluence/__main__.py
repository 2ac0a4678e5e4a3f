"""``python -m streamfluence`` and the command ``streamfluence``: the program from its first moment on.

Importing what the commands need takes a while. A signal then ends the program as it does
later, with one line and exit code 75, instead of a traceback out of somebody's import.
"""

import os
import signal
import sys
from typing import Any


def main() -> None:
    """Run the command line; until it takes over, a signal ends the process at once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and shells in scripts ask for
            signal.signal(number, _stop)
    _open_streams()
    from streamfluence.cli import main as program

    program()


def _open_streams() -> None:
    """Send to nowhere what the program was started without, or the next file opened would get it."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for good)


def _stop(number: int, frame: Any) -> None:
    """End the process: nothing of a run is open yet, or any more."""
    from contextlib import suppress

    with suppress(OSError):
        os.write(
            2,
            f"error: stopped by {signal.Signals(number).name}; run the same command again\n".encode(),
        )
    os._exit(75)


if __name__ == "__main__":
    main()
