"""A recorded training: what was written is what happened, and a kill leaves the steps before it."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from patience import HANG_SECONDS
from torch import nn

import streamfluence
from streamfluence.errors import DamageError, InputError
from streamfluence.recorded import moments_path, open_record, weights_path


def training(folder, steps=7, optimizer=torch.optim.SGD, halves=1, **options):
    """Train a small net, recorded; return the weights before every step and at the end."""
    torch.manual_seed(0)
    net, seen = nn.Linear(3, 2), []
    moving = optimizer(net.parameters(), lr=0.1, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.StepLR(moving, 1, 0.5)
    with streamfluence.record(folder, net, moving, **options) as recording:
        for step in range(steps):
            seen.append({name: weight.clone() for name, weight in net.state_dict().items()})
            moving.zero_grad()
            for half in range(halves):
                recording.batch(torch.tensor([2 * step, 2 * step + 1]) + 100 * half)
                net(torch.randn(2, 3)).square().mean().backward()
            moving.step()
            falling.step()
    return [*seen, net.state_dict()]


def loaded(path):
    return torch.load(path, weights_only=True)


def assert_same(state, wanted):
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_a_record_says_what_every_step_was(tmp_path):
    seen = training(tmp_path / "r")
    found = open_record(tmp_path / "r")
    assert [step.examples for step in found.steps] == [(2 * n, 2 * n + 1) for n in range(7)]
    assert [step.weights for step in found.steps] == list(range(7))
    rates = [step.groups[0].rate for step in found.steps]
    assert rates == pytest.approx([0.1 * 0.5**n for n in range(7)])
    assert {step.groups[0].decay for step in found.steps} == {0.01}
    assert (found.optimizer, found.parameters, found.reduction) == (
        "SGD",
        (("weight", "bias"),),
        "mean",
    )
    for number, wanted in enumerate(seen[:-1]):
        assert_same(loaded(weights_path(found.folder, number)), wanted)
    assert_same(loaded(found.folder / "final.pt"), seen[-1])


def test_weights_of_every_third_step_are_written_and_stand_for_the_next_two(tmp_path):
    seen = training(tmp_path / "r", every=3)
    found = open_record(tmp_path / "r")
    assert [step.weights for step in found.steps] == [0, 0, 0, 3, 3, 3, 6]
    assert sorted(found.digests) == [0, 3, 6]
    assert_same(loaded(weights_path(found.folder, 3)), seen[3])
    assert not weights_path(found.folder, 1).exists()


def test_batches_before_one_step_are_its_examples_together(tmp_path):
    training(tmp_path / "r", steps=2, halves=2)
    assert open_record(tmp_path / "r").steps[1].examples == (2, 3, 102, 103)


def test_the_optimizers_moments_are_there_where_asked_for(tmp_path):
    training(tmp_path / "r", optimizer=torch.optim.Adam, every=2, moments=True)
    state = loaded(moments_path(tmp_path / "r", 4))
    assert state["state"][0]["step"] == 4 and state["state"][0]["exp_avg"].shape == (2, 3)
    assert not moments_path(tmp_path / "r", 3).exists()


def test_weights_are_found_again_by_their_digest(tmp_path):
    training(tmp_path / "r", every=3)
    found = open_record(tmp_path / "r")
    assert found.until(found.final) is found
    before = found.until(found.digests[3])
    assert len(before.steps) == 3 and sorted(before.digests) == [0]
    assert before.digest != found.digest
    assert found.until("0" * 64) is None


def test_ids_may_be_strings(tmp_path):
    net = nn.Linear(1, 1)
    moving = torch.optim.SGD(net.parameters(), lr=0.1)
    with streamfluence.record(tmp_path / "r", net, moving) as recording:
        recording.batch(["a", "b"])
        moving.step()
    assert open_record(tmp_path / "r").steps[0].examples == ("a", "b")


KILLED = """
import os, signal, sys, torch, streamfluence
net = torch.nn.Linear(300, 300)
moving = torch.optim.SGD(net.parameters(), lr=0.1)
with streamfluence.record(sys.argv[1], net, moving) as recording:
    for step in range(1000):
        recording.batch([step])
        net(torch.ones(1, 300)).sum().backward()
        moving.step()
        if step == 20:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_training_that_is_killed_leaves_its_finished_steps(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "r")]
    done = subprocess.run(command, timeout=HANG_SECONDS)
    assert done.returncode == -signal.SIGKILL
    found = open_record(tmp_path / "r")
    assert 19 <= len(found.steps) <= 21 and found.final is None
    for number in range(len(found.steps)):
        assert found.steps[number].examples == (number,)
        assert loaded(weights_path(found.folder, number))["weight"].shape == (300, 300)


def test_half_a_line_at_the_end_is_none(tmp_path):
    training(tmp_path / "r", steps=3)
    path = tmp_path / "r" / "steps.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    assert len(open_record(tmp_path / "r").steps) == 2


def test_a_loop_that_fails_keeps_its_record(tmp_path):
    net = nn.Linear(1, 1)
    moving = torch.optim.SGD(net.parameters(), lr=0.1)
    with (
        pytest.raises(ZeroDivisionError),
        streamfluence.record(tmp_path / "r", net, moving) as recording,
    ):
        recording.batch([5])
        moving.step()
        raise ZeroDivisionError
    found = open_record(tmp_path / "r")
    assert len(found.steps) == 1 and found.final is not None
    moving.step()  # and the optimizer is as it was before
    assert len(open_record(tmp_path / "r").steps) == 1


def test_a_step_of_unknown_examples_is_refused(tmp_path):
    net = nn.Linear(1, 1)
    moving = torch.optim.SGD(net.parameters(), lr=0.1)
    with (
        streamfluence.record(tmp_path / "r", net, moving),
        pytest.raises(InputError, match=r"before recording.batch"),
    ):
        moving.step()


def test_a_record_is_written_over_no_other(tmp_path):
    training(tmp_path / "r", steps=1)
    with pytest.raises(InputError, match="exists already"):
        training(tmp_path / "r", steps=1)


@pytest.mark.parametrize("options", [{"every": 0}, {"reduction": "max"}])
def test_options_that_nothing_is_recorded_by_are_refused(tmp_path, options):
    with pytest.raises(InputError, match="it must be"):
        training(tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


def test_weights_of_another_model_are_refused(tmp_path):
    moving = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    with pytest.raises(InputError, match="none of the model's"):
        streamfluence.record(tmp_path / "r", nn.Linear(1, 1), moving)


def test_a_folder_without_a_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="no recorded training"):
        open_record(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 5},
        {"examples": [-1]},
        {"examples": [1.5]},
        {"examples": None},
        {"groups": []},
        {"groups": [{"rate": float("nan"), "decay": 0, "momentum": 0}]},
    ],
)
def test_a_line_that_was_changed_is_damage(tmp_path, change):
    training(tmp_path / "r", steps=3)
    path = tmp_path / "r" / "steps.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DamageError, match="line 2"):
        open_record(tmp_path / "r")


def test_another_format_is_refused(tmp_path):
    training(tmp_path / "r", steps=1)
    path = tmp_path / "r" / "record.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(InputError, match="format 2"):
        open_record(tmp_path / "r")
