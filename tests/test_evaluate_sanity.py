"""`evaluate sanity`: a sound run passes, and each check fails when what it guards is broken."""

import json

import pytest
import torch
from calls import invoke
from small_job import JOB, write_job
from torch import nn

from streamfluence.capture import Capture
from streamfluence.collecting.decision import Decision
from streamfluence.evaluation.pilot.examples import choose_pilot, whitened
from streamfluence.run import at_checkpoint as _at_checkpoint
from streamfluence.run.at_checkpoint import AtCheckpoint
from streamfluence.run.session import open_session
from streamfluence.stages.evaluate import sanity as evaluate_sanity

DECAYED = JOB.replace("damping = 0.01", "weight_decay = 0.01")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sanity")
    write_job(path, job=DECAYED)
    result = invoke("run", path / "job.toml", path / "run")
    assert result.exit_code == 0, result.output
    return path


def verdicts(run_path):
    found = evaluate_sanity.evaluate_sanity(str(run_path), sample=48, n_queries=7)
    return {row["check"]: row["verdict"] for row in found["checks"]}


def failed(run_path):
    return [name for name, verdict in verdicts(run_path).items() if verdict != "passed"]


# Decay as before, and a damping that differs from weight to weight.
ADAM = ["optimizer=adam", "learning_rate=0.02", "steps=150", "batch_size=150", "damping=auto"]


@pytest.mark.parametrize("told", [[], ADAM])
def test_a_sound_run_passes_every_check_and_says_what_each_means(folder, told):
    run = folder / ("adam" if told else "run")
    for_run = [word for one in told for word in ("--set", f"curvature.{one}")]
    if told:
        assert invoke("run", folder / "job.toml", run, *for_run).exit_code == 0
    result = invoke("evaluate", "sanity", run, "--strict", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["passed"] and len(report["checks"]) == 8
    assert all(
        check["value"] <= check["at_most"] and check["meaning"] for check in report["checks"]
    )


def test_weights_that_were_never_trained_are_not_at_an_optimum(folder, tmp_path):
    write_job(tmp_path, job=DECAYED)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    torch.nn.init.constant_(net[2].bias, 2.0)
    net[2].bias.data[0] = -4.0
    torch.save(net.state_dict(), tmp_path / "model.pt")
    assert invoke("run", tmp_path / "job.toml", tmp_path / "run").exit_code == 0
    result = invoke("evaluate", "sanity", tmp_path / "run", "--strict")
    assert result.exit_code == 6
    assert "FAILED" in result.stdout and "training had converged" in result.stdout
    assert invoke("evaluate", "sanity", tmp_path / "run").exit_code == 0


def test_scores_that_ignore_what_was_learned_fail(folder, monkeypatch):
    monkeypatch.setattr(_at_checkpoint, "shuffled", lambda model, seed: model)
    assert failed(folder / "run") == ["a model of shuffled weights scores differently"]


def test_gradients_that_do_not_add_up_fail(folder, monkeypatch):
    whole = Capture.whole
    halved = lambda self, g: whole(self, {name: 0.5 * t for name, t in g.items()})  # noqa: E731
    monkeypatch.setattr(Capture, "whole", halved)
    assert "scores sum to the score of the summed gradient" in failed(folder / "run")


def test_stored_self_influence_of_another_model_fails(folder, monkeypatch):
    stored = evaluate_sanity.stored_values

    def larger(store, name, *others):
        found = stored(store, name, *others)
        return 1.1 * found if name == "self_influence" else found

    monkeypatch.setattr(evaluate_sanity, "stored_values", larger)
    assert failed(folder / "run") == ["stored self-influence is that of rows made now"]


def test_rows_that_depend_on_their_place_fail(folder, monkeypatch):
    scores_of = evaluate_sanity._scores_of

    def by_place(*arguments):
        found = scores_of(*arguments)
        return found * torch.linspace(1, 1.1, len(found))[:, None]

    monkeypatch.setattr(evaluate_sanity, "_scores_of", by_place)
    assert failed(folder / "run") == [
        "the order of examples does not matter",
        "duplicated examples score alike",
    ]


def test_a_codec_that_loses_an_examples_product_with_itself_fails(folder, monkeypatch):
    session = open_session(str(folder / "run"), "cpu")
    kind = type(Decision(AtCheckpoint(session, 0)).codec)
    decode = kind.decode
    monkeypatch.setattr(kind, "decode", lambda self, encoded, out=None: 0.9 * decode(self, encoded))
    assert "own score" in failed(folder / "run")[0]


def test_a_pilot_too_small_to_rank_is_one_sentence(folder):
    result = invoke("evaluate", "sanity", folder / "run", "--sample", "3")
    assert result.exit_code == 2 and "too small to rank" in result.stderr


def test_an_examples_own_score_is_taken_in_the_coordinates_that_are_stored(folder):
    """What the receipts say that the codec kept of the first batches, when rows were written."""
    run = folder / "few-bytes"
    assert invoke("run", folder / "job.toml", run, "--bytes", "12").exit_code == 0
    pilot = choose_pilot(open_session(str(run), "cpu"), 150, None, 7)
    decision = Decision(AtCheckpoint(pilot.session, 0))
    rows = torch.cat(list(whitened(decision, pilot)))
    own, energy = evaluate_sanity.own_scores(pilot, decision, rows)
    first_batches = pilot.rows % 32 < 16
    share = energy / decision.preconditioner.for_rows(rows).square().sum(1)
    receipts = pilot.session.run.receipts("collect/train/0").values()
    stored = [receipt.facts["stored"] for receipt in receipts]
    assert sum(one["rows"] for one in stored) == first_batches.sum()
    kept = sum(one["kept"] for one in stored) / first_batches.sum()
    assert kept < 0.98, "every direction is stored, so no choice of them shows"
    assert float(share[first_batches].mean()) == pytest.approx(kept, abs=1e-4)
    assert float((own / energy - 1).abs().max()) < 0.02
