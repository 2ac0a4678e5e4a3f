"""A model that is not what was trained on the data is doubted, with the fix, and a good one is not."""

import numpy as np
import pytest
import torch
from calls import done
from small_job import JOB, TASK, write_job
from torch import nn

from streamfluence.likelihoods.bernoulli import Bernoulli
from streamfluence.likelihoods.categorical import Categorical
from streamfluence.likelihoods.gaussian import Gaussian
from streamfluence.run.doubts import score_doubts
from streamfluence.run.opened import OpenRun
from streamfluence.run.record import coverage_facts
from streamfluence.sketching.plausible import _Channels, _Losses

WORDS = {
    "losses": "than a guess without inputs",
    "norm": "BatchNorm statistics",
    "scores": "whole loss",
}


def doubts(folder, *arguments) -> list[str]:
    """Return which of the plausibility doubts a run raises."""
    said = done("run", folder / "job.toml", folder / "run", *arguments).stderr
    return [name for name, words in WORDS.items() if words in said]


def losses_of(likelihood, *batches):
    losses = _Losses(likelihood)
    for batch in batches:
        losses.add(batch)
    return losses.facts()


# --- losses ---------------------------------------------------------------------------------


def test_a_trained_model_is_not_doubted(tmp_path):
    assert doubts(write_job(tmp_path).parent) == []
    facts = coverage_facts(OpenRun.open(str(tmp_path / "run")), 0)["plausibility"]
    assert facts["losses"]["examples"] == 150 and facts["losses"]["share"] < 0.5
    assert facts["losses"]["guess"] == pytest.approx(np.log(3)) and facts["batch_norm"] is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('module(batch["x"])', 'module(-9 * batch["x"])'),  # inputs prepared in another way
        ('batch["y"]\n', '(batch["y"] + 1) % 3\n'),  # classes numbered in another way
    ],
)
def test_a_model_that_sees_other_data_than_it_was_trained_on_is_doubted(tmp_path, old, new):
    write_job(tmp_path)
    assert TASK.count(old) == 1
    (tmp_path / "task.py").write_text(TASK.replace(old, new))
    assert "losses" in doubts(tmp_path)


@pytest.mark.parametrize("soft", [False, True])
def test_the_guess_of_classes_is_equal_odds_for_those_positions_that_count(soft):
    torch.manual_seed(0)
    outputs, targets = torch.randn(6, 4, 5), torch.randint(0, 5, (6, 4))
    weights, likelihood = torch.rand(6, 4), Categorical()
    targets[0, :3] = -100
    if soft:
        likelihood, targets = Categorical("mean"), torch.rand(6, 4, 5)
        targets /= targets.sum(-1, keepdim=True)
    facts = losses_of(
        likelihood,
        *((outputs[i : i + 2], targets[i : i + 2], weights[i : i + 2]) for i in (0, 2, 4)),
    )
    loss = likelihood.loss(outputs, targets, weights)
    guess = likelihood.loss(torch.zeros_like(outputs), targets, weights)
    assert facts["share"] == pytest.approx(float((loss > guess).float().mean()))
    assert facts["guess"] == pytest.approx(float(guess.mean()), rel=1e-5)
    assert facts["mean"] == pytest.approx(float(loss.mean()), rel=1e-5)


def test_the_guess_of_logits_is_one_half():
    outputs, targets = torch.tensor([[3.0], [-3.0], [3.0]]), torch.tensor([[1.0], [0.0], [0.0]])
    facts = losses_of(Bernoulli(), (outputs, targets))
    assert facts["share"] == pytest.approx(1 / 3) and facts["guess"] == pytest.approx(np.log(2))


def test_the_guess_of_numbers_is_the_mean_of_those_there_are():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(60, 3, generator=generator) * 4 + torch.tensor([0.0, 50.0, -9.0])
    missing = torch.rand(60, 3, generator=generator) < torch.tensor([0, 0.3, 0.3])
    targets[missing] = float("nan")
    good = targets.nan_to_num() + torch.randn(60, 3, generator=generator)
    bad = targets.nan_to_num() * 0 + 7
    batches = [slice(0, 25), slice(25, 60)]
    for outputs, doubted in ((good, False), (bad, True)):
        facts = losses_of(Gaussian(), *((outputs[s], targets[s]) for s in batches))
        assert (facts["share"] > 0.5 and facts["mean"] > facts["guess"]) == doubted
        mean = np.nanmean(targets.numpy(), axis=0)
        guess = np.nanmean(((targets.numpy() - mean) ** 2), axis=1)
        assert facts["guess"] == pytest.approx(float(np.nanmean(guess)), rel=1e-4)
    scalar = losses_of(Gaussian(), (good[:, 0], targets[:, 0]))
    assert scalar["share"] < 0.5


def test_losses_that_are_not_finite_and_examples_without_targets_are_left_out():
    outputs = torch.tensor([[float("nan"), 0.0], [9.0, 0.0], [9.0, 0.0]])
    facts = losses_of(Categorical(), (outputs, torch.tensor([0, 0, -100])))
    assert facts["examples"] == 1 and facts["share"] == 0
    assert losses_of(Categorical(), (outputs[:1], torch.tensor([0]))) is None
    assert losses_of(None, torch.ones(3)) is None


# --- BatchNorm ------------------------------------------------------------------------------

NORM = """
import torch
from torch import nn
likelihood = "categorical"
def net():
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
def model(checkpoint):
    module = net()
    module.load_state_dict(torch.load(checkpoint, weights_only=True))
    return module.eval()
def forward(module, batch):
    return module(batch["x"] + SHIFT), batch["y"]
"""


@pytest.mark.parametrize(("shift", "expected"), [("0", []), ("40", ["norm"])])
def test_statistics_far_from_the_data_are_doubted(tmp_path, shift, expected):
    write_job(tmp_path)
    x, y = (
        torch.from_numpy(np.concatenate([np.load(tmp_path / f"train-{i}.npz")[k] for i in (0, 1)]))
        for k in ("x", "y")
    )
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    torch.save(net.state_dict(), tmp_path / "model.pt")
    (tmp_path / "task.py").write_text(NORM.replace("SHIFT", shift))
    assert [name for name in doubts(tmp_path) if name == "norm"] == expected


def test_the_share_of_channels_is_that_of_a_literal_loop():
    torch.manual_seed(0)
    layer, x = nn.BatchNorm2d(6), torch.randn(8, 6, 3, 3)
    layer.running_mean += torch.tensor([0, 0.5, 1.5, -2, 0, 0])
    layer.running_var *= torch.tensor([1, 1, 1, 1, 9.0, 0.1])
    seen = _Channels("layer", layer)
    for part in x.split(3):
        seen.see(layer, (part,))
    far = 0
    for channel in range(6):
        values = x[:, channel].double()
        spread = float(layer.running_var[channel]) + layer.eps
        apart = abs(float(values.mean() - layer.running_mean[channel])) / spread**0.5
        ratio = (float(values.var(unbiased=False)) + layer.eps) / spread
        far += apart > 1 or ratio > 4 or ratio < 1 / 4
    assert seen.share() == pytest.approx(far / 6) and far == 4


# --- scores ---------------------------------------------------------------------------------


def test_scores_larger_than_the_whole_loss_are_doubted(tmp_path):
    write_job(tmp_path, n=40, job=JOB.replace("damping = 0.01", "damping = 1e-9"))
    assert "scores" in doubts(tmp_path)
    shown = done("top", tmp_path / "run", "test/0", "--json").stdout
    assert WORDS["scores"] in shown


def test_only_most_queries_with_a_loss_to_speak_of_raise_the_doubt():
    assert len(score_doubts([2.0, 2.0, 0.1], [1.0, 1.0, 1.0])) == 1
    assert score_doubts([2.0, 0.1, 0.1], [1.0, 1.0, 1.0]) == []
    assert score_doubts([1.0] * 3, [1e-6] * 3) == [] and score_doubts([], []) == []
    assert score_doubts([float("nan")], [1.0]) == []
