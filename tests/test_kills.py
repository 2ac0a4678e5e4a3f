"""kill -9 at random moments, then the same command again: the same bits, and little lost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from small_job import JOB, write_job

from streamfluence.layout import MANIFEST
from streamfluence.run.opened import OpenRun
from streamfluence.stages.run import run
from streamfluence.store import array_names

KILLS = 20


def committed(path):
    """Every committed array of a run, by stage, partition and name."""
    store = OpenRun.open(str(path))
    return {
        (stage, partition, name): store.read(receipt, name)
        for stage in store.stages()
        for partition, receipt in store.receipts(stage).items()
        for name in array_names(receipt)
    }


def test_killed_runs_end_with_the_bits_of_an_undisturbed_one(tmp_path):
    job = write_job(
        tmp_path, n=1200, job=JOB.replace("partition_examples = 32", "partition_examples = 16")
    )
    script = [sys.executable, str(Path(__file__).with_name("kill_run.py"))]
    arguments = [str(job), str(tmp_path / "killed"), str(KILLS), "0"]
    done = subprocess.run([*script, *arguments], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["exit"] == 0
    assert told["hits"] == KILLS, "the run ended before it was killed often enough; make it longer"
    run(job, str(tmp_path / "whole"))
    killed, whole = committed(tmp_path / "killed"), committed(tmp_path / "whole")
    assert killed.keys() == whole.keys()
    for key, array in whole.items():
        assert np.array_equal(killed[key], array, equal_nan=True), key
    # An attempt without a receipt is work that a kill threw away.
    attempts = list((tmp_path / "killed" / "parts").rglob("zarr.json"))
    groups = [
        path for path in attempts if "." in path.parent.name and path.parent.parent.name.isdigit()
    ]
    receipts = list((tmp_path / "killed" / "receipts").rglob("*.json"))
    assert len(groups) <= len(receipts) + KILLS
    assert (tmp_path / "killed" / MANIFEST).exists()
