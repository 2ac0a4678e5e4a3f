"""What readouts keep of blocks of scores, and of the parts that different workers read."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from streamfluence.readouts.base import Arrays, Readout, ScoreBlock


@dataclass
class ReadOut:
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
) -> ReadOut:
    """Return the state of every readout over ``blocks``, which are in the order of examples.

    Args:
        readouts: Name to readout.
        keep: Called as ``keep(name, start, arrays)`` with what a readout stores for the examples
            from global row ``start`` on; once a block, in order, only when there is something.
    """
    result = ReadOut({name: {} for name in readouts})
    for block in blocks:
        result.examples += len(block.valid)
        result.invalid += len(block.valid) - int(np.count_nonzero(block.valid))
        for name, readout in readouts.items():
            result.states[name] = readout.fold(result.states[name], block)
            if arrays := readout.per_example(block):
                keep(name, block.start, arrays)
    result.states = {name: readouts[name].settle(s) for name, s in result.states.items()}
    return result


def merge(readouts: Mapping[str, Readout], parts: Iterable[ReadOut]) -> ReadOut:
    """Return what was read out of all blocks together; ``parts`` are in the order of examples."""
    return reduce(lambda a, b: _merge(readouts, a, b), parts, ReadOut())


def _merge(readouts: Mapping[str, Readout], a: ReadOut, b: ReadOut) -> ReadOut:
    states = {}
    for name, readout in readouts.items():
        left, right = a.states.get(name, {}), b.states.get(name, {})
        states[name] = readout.combine(left, right) if left and right else left or right
    return ReadOut(states, a.examples + b.examples, a.invalid + b.invalid)
