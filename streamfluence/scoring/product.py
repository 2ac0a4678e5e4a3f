"""Scores of stored rows, a block at a time: read, multiply, read out, forget.

Nothing here grows with the number of examples. Knows codecs and readouts by
their contracts and rows by ``RowSource``; knows nothing of a run directory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from streamfluence.codecs.base import Codec, Encoded
from streamfluence.data._prefetch import prefetch
from streamfluence.errors import NonFiniteError
from streamfluence.readouts.base import Arrays, DeviceBlock, Readout, ScoreBlock
from streamfluence.scales.base import Scale

BLOCK_ROWS = 8192
GPU_BLOCK_ROWS = 1 << 16  # there a block costs some 80 kernels and a few waits
# Matrix products of fewer rows than this, or of an odd number, round differently on a CPU:
# padding makes a row's score the same bits wherever its partition or block ends.
PADDING_ROWS = 64


@dataclass(frozen=True)
class RowBlock:
    """Stored rows of consecutive examples at one checkpoint; arrays may be reused for the next block.

    Attributes:
        start: Global row of the first example.
        codes, scale: As the codec encoded them; None when only the rest was asked for.
        flags: Shape ``(example,)``, uint8; 0 for a good row.
        self_influence, loss: Shape ``(example,)``, float32.
        group: Shape ``(example,)``, int64, or None.
        columns: What a scale looks at, by name, each ``(example,)``, float32.
    """

    start: int
    codes: np.ndarray | None
    scale: np.ndarray | None
    flags: np.ndarray
    self_influence: np.ndarray
    loss: np.ndarray
    group: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


class RowSource(Protocol):
    """Where the rows of one checkpoint come from."""

    def blocks(self, block_rows: int) -> Iterator[RowBlock]:
        """Yield the rows in order, at most ``block_rows`` at a time, the same cuts at every checkpoint."""
        ...


@dataclass(frozen=True)
class Term:
    """What one checkpoint adds to the scores: ``weight * decode(rows) @ queries.T``.

    Attributes:
        source: The checkpoint's stored rows.
        codec: What encoded them.
        queries: ``codec.query`` of the whitened queries, shape ``(query, stored)``, float32. The
            product runs on their device.
        weight: The checkpoint's weight, 1/n included.
    """

    source: RowSource
    codec: Codec
    queries: Tensor
    weight: float


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


def rows_per_block(
    n_queries: int, device: torch.device | str = "cpu", memory: int | None = None
) -> int:
    """Return how many rows to multiply at once, or fewer when their scores exceed ``memory`` bytes.

    Fewer rows, and not fewer queries at a time: rows are read and decoded once,
    and the scores stay smaller than the queries themselves.

    Args:
        device: Of the product: 8,192 rows and 64 MiB on a CPU, 65,536 rows and 1 GiB on a GPU.
        memory: Another bound than these.
    """
    on_gpu = torch.device(device).type != "cpu"
    memory = memory or (1 << 30 if on_gpu else 64 << 20)
    affordable = memory // (
        8 * max(n_queries, 1)
    )  # float32 scores, and a second buffer to add from
    most = GPU_BLOCK_ROWS if on_gpu else BLOCK_ROWS
    return min(most, max(affordable // PADDING_ROWS, 1) * PADDING_ROWS)


def score_blocks(
    terms: Sequence[Term], block_rows: int = BLOCK_ROWS, scale: Scale | None = None
) -> Iterator[ScoreBlock]:
    """Yield the scores of all rows, summed over checkpoints, in blocks whose arrays are reused.

    Args:
        terms: One a checkpoint, over the same examples and queries. ``self_influence`` of the
            result is their weighted sum, so it is in the unit of the scores; ``loss`` their mean.
        block_rows: Rows at once, see ``rows_per_block``.
        scale: Multiplies the scores of an example at each checkpoint, but not ``self_influence``.

    Raises:
        NonFiniteError: If a query is not finite.
    """
    queries = [_weighted(term) for term in terms]
    if queries[0].device.type != "cpu":
        yield from _device_blocks(terms, queries, block_rows, scale)
        return
    total, part = _buffers(block_rows, queries)
    for blocks in zip(*(term.source.blocks(block_rows) for term in terms), strict=True):
        length, multipliers = _common_length(blocks), _multipliers(scale, blocks)
        for index, (term, block) in enumerate(zip(terms, blocks, strict=True)):
            out = (total, part)[index > 0]
            _add_product(term.codec, queries[index], block, out)
            if multipliers is not None:
                out[:length] *= torch.from_numpy(multipliers[index])[:, None]
            if index > 0:
                total[:length] += part[:length]
        yield _score_block(total[:length].cpu().numpy(), terms, blocks)


def _device_blocks(
    terms: Sequence[Term],
    queries: Sequence[Tensor],
    block_rows: int,
    scale: Scale | None = None,
) -> Iterator[ScoreBlock]:
    """Yield the scores of all rows on the device; a thread reads the next rows meanwhile."""
    device = queries[0].device
    for stored, known, multipliers in prefetch(_pinned(terms, block_rows, scale, device)):
        total: Tensor | None = None
        for index, (term, asked, arrays) in enumerate(zip(terms, queries, stored, strict=True)):
            encoded = Encoded(*(array.to(device, non_blocking=True) for array in arrays))
            part = term.codec.product(asked, encoded)
            if multipliers is not None:
                part *= torch.from_numpy(multipliers[index]).to(device)[:, None]
            total = part if total is None else total.add_(part)
        assert total is not None
        finite = torch.linalg.vector_norm(total, torch.inf, dim=1).isfinite()
        yield _device_block(total, finite, **known)


def _pinned(
    terms: Sequence[Term], block_rows: int, scale: Scale | None, device: torch.device
) -> Iterator[tuple[list[tuple[Tensor, ...]], dict[str, Any], np.ndarray | None]]:
    """Yield codes and scales of every checkpoint, in memory of their own, what else is known, multipliers."""
    pin = device.type != "cpu"
    for blocks in zip(*(term.source.blocks(block_rows) for term in terms), strict=True):
        _common_length(blocks)
        arrays = [(torch.from_numpy(b.codes), torch.from_numpy(b.scale)) for b in blocks]
        copies = [tuple(a.pin_memory() if pin else a.clone() for a in pair) for pair in arrays]
        yield copies, _known(terms, blocks), _multipliers(scale, blocks)


def _device_block(tensor: Tensor, usable: Tensor, valid: np.ndarray, **known: Any) -> ScoreBlock:
    """Return a computed block, with bad rows taken out."""
    usable &= torch.from_numpy(valid).to(usable.device)
    valid = usable.cpu().numpy()
    if not valid.all():
        tensor.masked_fill_(~usable[:, None], 0.0)
    return DeviceBlock(tensor, usable, valid=valid, **known)


def plain_blocks(terms: Sequence[Term], block_rows: int = BLOCK_ROWS) -> Iterator[ScoreBlock]:
    """Yield what ``score_blocks`` does without any product, scores of shape ``(example, 0)``.

    For readouts that need no scores; the codes are not looked at.
    """
    for blocks in zip(*(term.source.blocks(block_rows) for term in terms), strict=True):
        yield _score_block(np.empty((_common_length(blocks), 0), np.float32), terms, blocks)


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


def _weighted(term: Term) -> Tensor:
    """Return the term's queries times its weight: cheaper than weighting every block of scores."""
    bad = (~torch.isfinite(term.queries).all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(
            f"queries {bad[:10]} are not finite; leave them out or mark them as bad rows"
        )
    return term.queries.to(torch.float32) * term.weight


def _buffers(block_rows: int, queries: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sum over checkpoints and room for one checkpoint's scores, if there are several."""
    total = queries[0].new_empty(_padded(block_rows), len(queries[0]))
    return total, torch.empty_like(total) if len(queries) > 1 else total


def _multipliers(scale: Scale | None, blocks: Sequence[RowBlock]) -> np.ndarray | None:
    """Return by what the scores of each row are multiplied, ``(checkpoint, example)``; None for 1.

    Raises:
        NonFiniteError: If the scale gives anything that is not positive and finite.
    """
    if scale is None:
        return None
    columns = {name: np.stack([block.columns[name] for block in blocks]) for name in scale.columns}
    found = np.asarray(scale.of(columns), np.float32)
    good = np.stack([block.flags == 0 for block in blocks])
    if not np.all((found > 0) & np.isfinite(found) | ~good):
        raise NonFiniteError(
            f"the scale {type(scale).__name__!r} multiplies rows {blocks[0].start:,} and on by numbers that "
            "are not positive and finite, so their scores would mean nothing; choose another score.scale"
        )
    return np.where(good, found, np.float32(1))


def _common_length(blocks: Sequence[RowBlock]) -> int:
    cuts = {(block.start, len(block.flags)) for block in blocks}
    assert len(cuts) == 1, f"checkpoints are cut into different blocks: {cuts}"
    return len(blocks[0].flags)


def _add_product(codec: Codec, queries: Tensor, block: RowBlock, out: Tensor) -> None:
    """Write one block's scores at one checkpoint into the first rows of ``out``."""
    encoded = Encoded(*(_tensor(array) for array in (block.codes, block.scale)))
    codec.product(queries, encoded, out=out[: len(encoded.codes)])


def _tensor(array: np.ndarray | None) -> Tensor:
    """Return ``array`` with zero rows up to a multiple of the padding."""
    assert array is not None, "scores need codes and scales"
    if len(array) % PADDING_ROWS:
        padded = np.zeros((_padded(len(array)), *array.shape[1:]), array.dtype)
        padded[: len(array)] = array
        array = padded
    return torch.from_numpy(array)


def _padded(rows: int) -> int:
    return -(-rows // PADDING_ROWS) * PADDING_ROWS


def _score_block(
    scores: np.ndarray, terms: Sequence[Term], blocks: Sequence[RowBlock]
) -> ScoreBlock:
    """Return the block, with rows that are flagged or not finite at any checkpoint taken out."""
    known = _known(terms, blocks)
    valid = known["valid"]
    if not np.isfinite(scores.max(initial=0)) or not np.isfinite(scores.min(initial=0)):
        valid &= np.isfinite(scores).all(axis=1)
    scores[~valid] = 0
    return ScoreBlock(scores=scores, **known)


def _known(terms: Sequence[Term], blocks: Sequence[RowBlock]) -> dict[str, Any]:
    """Return what a block of scores holds beside them, in new arrays; ``valid`` as the flags say."""
    weights = (np.float32(term.weight) for term in terms)
    own = sum(w * block.self_influence for w, block in zip(weights, blocks, strict=True))
    group = blocks[0].group
    return {
        "start": blocks[0].start,
        "valid": np.all([block.flags == 0 for block in blocks], axis=0),
        "self_influence": np.asarray(own, np.float32),
        "loss": np.stack([block.loss for block in blocks]).mean(axis=0, dtype=np.float32),
        "group": None if group is None else group.copy(),
    }
