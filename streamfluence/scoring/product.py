"""Scores of stored rows, a block at a time: read, multiply, hand on, forget.

Nothing here grows with the number of examples. Knows codecs by their contract
and rows by ``RowSource``; knows nothing of a run directory.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamfluence.codecs.base import Codec, Encoded
from streamfluence.data._prefetch import prefetch
from streamfluence.errors import NonFiniteError
from streamfluence.readouts.base import DeviceBlock, ScoreBlock
from streamfluence.scales.base import Scale
from streamfluence.scoring.terms import RowBlock, Term

BLOCK_ROWS = 8192
GPU_BLOCK_ROWS = 1 << 16  # there a block costs some 80 kernels and a few waits
# Matrix products of fewer rows than this, or of an odd number, round differently on a CPU:
# padding makes a row's score the same bits wherever its partition or block ends.
PADDING_ROWS = 64


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


def blocks_of(
    terms: Sequence[Term],
    needs: Collection[str],
    scale: Scale | None = None,
    block_rows: int | None = None,
) -> Iterator[ScoreBlock]:
    """Yield what readouts need of all rows, in blocks as large as memory has room for by default."""
    queries, with_rows = terms[0].queries, "rows" in needs
    width = sum(term.codec.stored for term in terms) if with_rows else 0
    block_rows = block_rows or rows_per_block(len(queries) + width, queries.device)
    if "scores" not in needs:
        return plain_blocks(terms, block_rows, with_rows)
    return score_blocks(terms, block_rows, with_rows, scale)


def score_blocks(
    terms: Sequence[Term],
    block_rows: int = BLOCK_ROWS,
    with_rows: bool = False,
    scale: Scale | None = None,
) -> Iterator[ScoreBlock]:
    """Yield the scores of all rows, summed over checkpoints, in blocks whose arrays are reused.

    Args:
        terms: One a checkpoint, over the same examples and queries. ``self_influence`` of the
            result is their weighted sum, so it is in the unit of the scores; ``loss`` their mean.
        block_rows: Rows at once, see ``rows_per_block``.
        with_rows: Whether the decoded rows are in the blocks, too.
        scale: Multiplies the scores of an example at each checkpoint, but not ``self_influence``.

    Raises:
        NonFiniteError: If a query is not finite.
    """
    queries = [_weighted(term) for term in terms]
    if queries[0].device.type != "cpu":
        yield from _device_blocks(terms, queries, block_rows, with_rows, scale)
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
        rows = _decoded(terms, blocks) if with_rows else None
        yield _score_block(total[:length].cpu().numpy(), rows, _known(terms, blocks))


def _device_blocks(
    terms: Sequence[Term],
    queries: Sequence[Tensor],
    block_rows: int,
    with_rows: bool = False,
    scale: Scale | None = None,
) -> Iterator[ScoreBlock]:
    """Yield the scores of all rows on the device; a thread reads the next rows meanwhile."""
    device = queries[0].device
    for stored, known, multipliers in prefetch(_pinned(terms, block_rows, scale, device)):
        total: Tensor | None = None
        rows: list[np.ndarray] = []
        for index, (term, asked, arrays) in enumerate(zip(terms, queries, stored, strict=True)):
            encoded = Encoded(*(array.to(device, non_blocking=True) for array in arrays))
            part = term.codec.product(asked, encoded)
            if multipliers is not None:
                part *= torch.from_numpy(multipliers[index]).to(device)[:, None]
            total = part if total is None else total.add_(part)
            rows += [term.codec.decode(encoded).cpu().numpy()] if with_rows else []
        assert total is not None
        finite = torch.linalg.vector_norm(total, torch.inf, dim=1).isfinite()
        known["valid"] &= _finite(rows, len(known["valid"]))
        block = _device_block(total, finite, **known, rows=tuple(rows) if with_rows else None)
        yield _with_zeros(block)


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


def plain_blocks(
    terms: Sequence[Term], block_rows: int = BLOCK_ROWS, with_rows: bool = False
) -> Iterator[ScoreBlock]:
    """Yield what ``score_blocks`` does without any product, and so without scores.

    For readouts that need none; without rows the codes are not looked at either.
    """
    for blocks in zip(*(term.source.blocks(block_rows) for term in terms), strict=True):
        _common_length(blocks)
        rows = _decoded(terms, blocks) if with_rows else None
        yield _score_block(None, rows, _known(terms, blocks))


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


def _decoded(terms: Sequence[Term], blocks: Sequence[RowBlock]) -> tuple[np.ndarray, ...]:
    """Return the rows of one block at each checkpoint, in arrays of their own."""
    found = []
    for term, block in zip(terms, blocks, strict=True):
        arrays = (_tensor(array).to(term.queries.device) for array in (block.codes, block.scale))
        found.append(term.codec.decode(Encoded(*arrays))[: len(block.flags)].cpu().numpy())
    return tuple(found)


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
    scores: np.ndarray | None, rows: tuple[np.ndarray, ...] | None, known: dict[str, Any]
) -> ScoreBlock:
    """Return the block, with rows that are flagged or not finite at any checkpoint taken out."""
    valid = known["valid"]
    if scores is not None:
        if not np.isfinite(scores.max(initial=0)) or not np.isfinite(scores.min(initial=0)):
            valid &= np.isfinite(scores).all(axis=1)
        scores[~valid] = 0
    valid &= _finite(rows or (), len(valid))
    return _with_zeros(ScoreBlock(**{**known, "scores": scores, "rows": rows}))


def _with_zeros(block: ScoreBlock) -> ScoreBlock:
    """Return the block with zeros for the rows that are not valid; they may be anything."""
    if not block.valid.all():
        for rows in block.rows or ():
            rows[~block.valid] = 0
    return block


def _finite(rows: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return which of the ``count`` examples have finite rows at every checkpoint."""
    finite = [np.isfinite(each).all(axis=1) for each in rows]
    return np.asarray(np.all([np.ones(count, bool), *finite], axis=0))


def _known(terms: Sequence[Term], blocks: Sequence[RowBlock]) -> dict[str, Any]:
    """Return what a block holds beside scores and rows, in new arrays; ``valid`` as the flags say."""
    group = blocks[0].group
    return {
        "start": blocks[0].start,
        "valid": np.all([block.flags == 0 for block in blocks], axis=0),
        "self_influence": _own(terms, blocks),
        "loss": _mean([block.loss for block in blocks if block.loss is not None]),
        "group": None if group is None else group.copy(),
        "weights": tuple(term.weight for term in terms),
    }


def _own(terms: Sequence[Term], blocks: Sequence[RowBlock]) -> np.ndarray | None:
    """Return the weighted sum of self-influence over checkpoints, if it was read."""
    total: Any = None
    for term, block in zip(terms, blocks, strict=True):
        if block.self_influence is None:
            return None
        part = np.float32(term.weight) * block.self_influence
        total = part if total is None else total + part
    return np.asarray(total, np.float32)


def _mean(losses: Sequence[np.ndarray]) -> np.ndarray | None:
    return np.stack(losses).mean(axis=0, dtype=np.float32) if losses else None
