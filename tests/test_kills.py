"""kill -9 at random moments, then the same command again: the same bits, and little lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from small_job import JOB, write_job

from streamfluence.execution import Execution
from streamfluence.job_parser import load_job
from streamfluence.layout import MANIFEST
from streamfluence.run.opened import OpenRun
from streamfluence.run.resolve import open_run
from streamfluence.stages.run import run
from streamfluence.stages.sketch import sketch
from streamfluence.store import array_names

KILLS = 20
SCORE_KILLS = 5


def committed(path):
    """Every committed array of a run, by stage, partition and name."""
    store = OpenRun.open(str(path))
    return {
        (stage, partition, name): store.read(receipt, name)
        for stage in store.stages()
        for partition, receipt in store.receipts(stage).items()
        for name in array_names(receipt)
    }


def kill(job, path, times):
    """Kill a run again and again, then let it finish; return how often it was hit, and its exit code."""
    script = [sys.executable, str(Path(__file__).with_name("kill_run.py"))]
    arguments = [str(job), str(path), str(times), "0"]
    done = subprocess.run([*script, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def same_bits(killed, whole):
    killed, whole = committed(killed), committed(whole)
    assert killed.keys() == whole.keys()
    for key, array in whole.items():
        assert np.array_equal(killed[key], array, equal_nan=True), key


def test_killed_runs_end_with_the_bits_of_an_undisturbed_one(tmp_path):
    job = write_job(
        tmp_path, n=1200, job=JOB.replace("partition_examples = 32", "partition_examples = 16")
    )
    told = kill(job, tmp_path / "killed", KILLS)
    assert told["exit"] == 0
    assert told["hits"] == KILLS, "the run ended before it was killed often enough; make it longer"
    run(job, str(tmp_path / "whole"))
    same_bits(tmp_path / "killed", tmp_path / "whole")
    # An attempt without a receipt is work that a kill threw away.
    attempts = list((tmp_path / "killed" / "parts").rglob("zarr.json"))
    groups = [
        path for path in attempts if "." in path.parent.name and path.parent.parent.name.isdigit()
    ]
    receipts = list((tmp_path / "killed" / "receipts").rglob("*.json"))
    assert len(groups) <= len(receipts) + KILLS
    assert (tmp_path / "killed" / MANIFEST).exists()


def test_killed_scores_of_streamed_gradients_end_with_the_bits_of_undisturbed_ones(tmp_path):
    """Every kill falls on directions or scores, for the sketch is there before the first."""
    large = JOB.replace("batch_size = 16", "batch_size = 64").replace("= 32", "= 64")
    job = write_job(tmp_path, n=1280, job=large + '[score]\nsource = "streamed"\n')
    open_run(load_job(job), str(tmp_path / "whole"))
    sketch(str(tmp_path / "whole"), Execution("serial", 1))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    assert kill(job, tmp_path / "killed", SCORE_KILLS) == {"exit": 0, "hits": SCORE_KILLS}
    run(job, str(tmp_path / "whole"))
    same_bits(tmp_path / "killed", tmp_path / "whole")
    made = {
        name: (
            len(list((tmp_path / "killed" / "parts" / name / "test").glob("0*"))),
            len(list((tmp_path / "killed" / "receipts" / name / "test").glob("*.json"))),
        )
        for name in ("prepared", "score")
    }
    assert made["prepared"][1] == 1 and made["score"][1] == 20
    assert made["score"][0] > 20, "no kill fell amid a part of the scores"
