"""What readouts keep of blocks of scores, and of the parts that different workers read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from streamfluence.readouts.base import Arrays, Readout, ScoreBlock


@dataclass
class Reading:
    """What was read out of some blocks.

    Attributes:
        states: Readout name to state; ``{}`` where there is none.
        examples: Rows that were read.
        invalid: Those of them that count nowhere because they are not finite.
    """

    states: dict[str, Arrays] = field(default_factory=dict)
    examples: int = 0
    invalid: int = 0


def read_out(
    blocks: Iterable[ScoreBlock],
    readouts: Mapping[str, Readout],
    keep: Callable[[str, int, Arrays], None],
) -> Reading:
    """Return the state of every readout over ``blocks``, which are in the order of examples.

    Args:
        readouts: Name to readout.
        keep: Called as ``keep(name, start, arrays)`` with what a readout stores for the examples
            from global row ``start`` on; once a block, in order, only when there is something.
    """
    reading = Reading({name: {} for name in readouts})
    for block in blocks:
        reading.examples += len(block.valid)
        reading.invalid += len(block.valid) - int(np.count_nonzero(block.valid))
        for name, readout in readouts.items():
            reading.states[name] = readout.fold(reading.states[name], block)
            if arrays := readout.per_example(block):
                keep(name, block.start, arrays)
    reading.states = {name: readouts[name].settle(s) for name, s in reading.states.items()}
    return reading


def merge(readouts: Mapping[str, Readout], readings: Iterable[Reading]) -> Reading:
    """Return what was read out of all blocks together; ``readings`` are in the order of examples."""
    return reduce(lambda a, b: _merge(readouts, a, b), readings, Reading())


def _merge(readouts: Mapping[str, Readout], a: Reading, b: Reading) -> Reading:
    states = {}
    for name, readout in readouts.items():
        left, right = a.states.get(name, {}), b.states.get(name, {})
        states[name] = readout.combine(left, right) if left and right else left or right
    return Reading(states, a.examples + b.examples, a.invalid + b.invalid)
