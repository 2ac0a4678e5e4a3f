"""Whose turn it is when only a share of a run is read: the next one after the last time.

The number is kept in the run, where it can be written; elsewhere it is drawn, so that
repeated calls still read different shares.
"""

import random
from contextlib import suppress

from streamfluence.errors import StreamfluenceError
from streamfluence.layout import TURN
from streamfluence.run.opened import OpenRun
from streamfluence.store.documents import seal, unseal

_MOST = 1 << 30


def next_turn(run: OpenRun) -> int:
    """Return the turn of this call, and note that it was taken."""
    turn = random.randrange(_MOST)
    with suppress(FileNotFoundError, StreamfluenceError):
        kept = unseal(run.storage.read(TURN, 1024), TURN).get("next")
        turn = kept if type(kept) is int and 0 <= kept < _MOST else turn
    with suppress(StreamfluenceError):  # a run that cannot be written to is verified all the same
        run.storage.write(TURN, seal({"next": (turn + 1) % _MOST}))
    return turn
