"""The small columns beside rows: which examples are good at every checkpoint."""

import numpy as np
import torch
from small_job import write_job

from streamfluence.columns import FLAGS
from streamfluence.run.columns import columns
from streamfluence.run.opened import OpenRun
from streamfluence.stages.run import run

AFFECTED = 70


def test_an_example_is_good_where_it_is_finite_at_every_checkpoint(tmp_path):
    """At the second checkpoint two weights overflow, against each other, for one example alone."""
    job = write_job(tmp_path)
    start = 0
    for path in [*sorted(tmp_path.glob("train-*.npz")), tmp_path / "test.npz"]:
        arrays = dict(np.load(path))
        arrays["x"][:, 4:] = 0
        if path.stem != "test" and start <= AFFECTED < start + len(arrays["x"]):
            arrays["x"][AFFECTED - start, 4:] = 2
        start += len(arrays["x"])
        np.savez(path, **arrays)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    state["0.weight"][:, 4:] = torch.tensor([3e38, -3e38])
    torch.save(state, tmp_path / "other.pt")
    job.write_text(job.read_text().replace('"model.pt"', '"model.pt", "other.pt"'))
    run(job, str(tmp_path / "run"), {"rows.max_non_finite": 0.01})
    found = OpenRun.open(str(tmp_path / "run"))
    pieces = list(columns(found, [FLAGS]))
    flags = np.concatenate([piece.values[FLAGS] for piece in pieces], axis=1)
    assert flags[0].sum() == 0 and np.flatnonzero(flags[1]).tolist() == [AFFECTED]
    good = np.concatenate([piece.good for piece in pieces])
    assert np.flatnonzero(~good).tolist() == [AFFECTED]
