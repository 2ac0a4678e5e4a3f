"""Short versions of the campaigns in ``tools/faults``: nothing silent, nothing run, nothing hung."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parents[1] / "tools" / "faults"
pytestmark = pytest.mark.slow


def campaign(name, folder, *options):
    """Run a campaign; return its exit code, the number of failures, and what it printed."""
    command = [sys.executable, str(FAULTS / f"{name}.py"), "--folder", str(folder), *options]
    path = os.pathsep.join([str(FAULTS.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr[-2000:]


def test_no_damage_changes_a_number_in_silence_and_repair_brings_every_bit_back(tmp_path):
    failures, told = campaign("damage", tmp_path, "--share", "0.02")
    assert " damages in" in told, told
    assert failures == 0, told


def test_hostile_inputs_end_in_a_sentence(tmp_path):
    failures, told = campaign("hostile", tmp_path, "--every", "60")
    assert " inputs, " in told, told
    assert failures == 0, told
