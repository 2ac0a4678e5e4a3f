"""Let readouts prepare: show each a seeded sample of rows, and commit what it returns.

Where scores are not made of rows, their source prepares instead.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from streamfluence.codecs.base import Encoded
from streamfluence.columns import FLAGS, ROWS, SCALE
from streamfluence.errors import IncompleteError
from streamfluence.execution import Execution, Progress
from streamfluence.layout import prepared_stage
from streamfluence.readouts.base import Arrays, Readout, Sample
from streamfluence.run.decision import load_codec
from streamfluence.run.opened import OpenRun
from streamfluence.run.prepared import prepared_bases, prepared_receipt, prepares
from streamfluence.run.readouts import open_readouts
from streamfluence.run.rows import StoredRows, stored_rows
from streamfluence.run.source import of_rows
from streamfluence.scoring.source import open_source

_STREAM = 1  # beside the seed: not the sample that the curvature is sketched from


def prepare(
    run: OpenRun, label: str, spec: Mapping[str, Any], execution: Execution, progress: Progress
) -> None:
    """Commit what readouts or the source of a score prepare, unless there is nothing to or it is there."""
    if not prepares(spec) or run.receipt(prepared_stage(label), 0) is not None:
        return
    if not of_rows(spec):
        source = open_source(run, execution.resolved_device(), label, spec)
        arrays, facts = source.prepare(execution, progress)
        facts |= prepared_bases(run, spec)
        run.commit(prepared_stage(label), 0, arrays, {"score": label}, facts)
        return
    bases = prepared_bases(run, spec)
    readouts = open_readouts(spec["readouts"], run.place.root)
    arrays = {
        f"{name}.{key}": array
        for name, readout in readouts.items()
        if readout.sample_examples
        for key, array in readout.prepare(sample(run, spec, readout.sample_examples)).items()
    }
    run.commit(prepared_stage(label), 0, arrays, {"score": label}, bases)


def load_prepared(
    run: OpenRun, label: str, spec: Mapping[str, Any], readouts: Mapping[str, Readout]
) -> None:
    """Hand readouts what they prepared."""
    if not prepares(spec) or not of_rows(spec):
        return
    found: dict[str, Arrays] = {name: {} for name in readouts}
    for key, array in run.read_all(prepared_receipt(run, label)).items():
        name, _, rest = key.partition(".")
        found[name][rest] = array
    for name, readout in readouts.items():
        if readout.sample_examples:
            readout.load(found[name])


def sample(run: OpenRun, spec: Mapping[str, Any], wanted: int) -> Sample:
    """Return rows of a sample of the partitions that are scored, less those that are no good."""
    rows = _drawn(run, spec, wanted)
    if not len(rows):
        raise IncompleteError(
            f"{run.url} has no row yet that a readout could prepare from; run `streamfluence collect` first"
        )
    found = [_read(stored, rows) for stored in stored_rows(run, "train")]
    good = np.all([flags == 0 for flags, _ in found], axis=0)
    for _, decoded in found:
        good &= np.isfinite(decoded).all(axis=1)
    seed = run.method.sketch.seed
    return Sample(tuple(decoded[good] for _, decoded in found), rows[good], seed)


def _drawn(run: OpenRun, spec: Mapping[str, Any], wanted: int) -> np.ndarray:
    """Return sorted global rows; where no partition is missing, whatever the partitions are."""
    present = sorted(partition for task in spec["tasks"] for partition in task)
    spans = [run.train.spans[partition] for partition in present]
    ends = np.cumsum([len(span) for span in spans])
    count = int(ends[-1]) if spans else 0
    random = np.random.default_rng([run.method.sketch.seed, _STREAM])
    places = np.arange(count)
    if wanted < count:
        places = np.sort(random.choice(count, wanted, replace=False, shuffle=False))
    owner = np.searchsorted(ends, places, side="right")
    starts = np.array([span.start for span in spans], np.int64)
    lengths = np.array([len(span) for span in spans], np.int64)
    return places - (ends - lengths)[owner] + starts[owner] if count else places


def _read(stored: StoredRows, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return flags and decoded rows at one checkpoint; all are decoded at once, however they are cut."""
    run = stored.run
    pieces: dict[str, list[np.ndarray]] = {FLAGS: [], SCALE: [], ROWS: []}
    for receipt, inside in stored.holding(rows):
        mine = rows[inside] - receipt.start
        for name in (FLAGS, SCALE):
            pieces[name].append(run.read(receipt, name)[mine])
        with run.reader(receipt, ROWS) as reader:  # a sample of a large partition is a few chunks
            codes = np.empty((len(mine), *reader.shape[1:]), reader.dtype)
            for place, row in enumerate(mine.tolist()):
                reader.read(row, row + 1, codes[place : place + 1])
            pieces[ROWS].append(codes)
    flags, scale, codes = (np.concatenate(pieces[name]) for name in (FLAGS, SCALE, ROWS))
    codec, _ = load_codec(run, stored.checkpoint)
    return flags, codec.decode(Encoded(torch.from_numpy(codes), torch.from_numpy(scale))).numpy()
