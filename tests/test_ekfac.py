"""A diagonal curvature in pairs of eigenvectors is EK-FAC, by its textbook form in float64."""

import numpy as np
import pytest
import torch
from small_job import load, loss_gradients, write_job

import streamfluence
from streamfluence.errors import InputError
from streamfluence.registry import member
from streamfluence.run.opened import OpenRun
from streamfluence.stages.run import run
from streamfluence.stages.sketch import describe

DAMPING = 0.01
WHOLE = {
    "curvature.name": "diagonal",
    "curvature.blocks": "auto",
    "rows.codec": "float32",
    "rows.bytes": 0,
    "sketch.probes": "exact",
}
PAIRS = {"dense_limit": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("job")
    write_job(path)
    return path


def scores_of(folder, name, **changes):
    run(folder / "job.toml", str(folder / name), {**WHOLE, **changes})
    return streamfluence.open(str(folder / name)).scores().compute()


def layers(module, x, y, source):
    """Inputs (with a one) and output gradients of both layers, ``(example, vector, side)``, by autograd."""
    found = {0: ([], []), 2: ([], [])}
    for i in range(len(x)):
        first = module[0](x[i])
        hidden = module[1](first)
        logits = module[2](hidden)
        p = logits.softmax(0).detach()
        if source == "loss":
            cotangents = [p - torch.eye(3).double()[y[i]]]
        else:
            values, vectors = torch.linalg.eigh(torch.diag(p) - torch.outer(p, p))
            cotangents = list((vectors * values.clamp_min(0).sqrt()).T)
        one = torch.ones(1).double()
        for number, output, given in ((0, first, x[i]), (2, logits, hidden)):
            gradients = [
                torch.autograd.grad(logits, output, c, retain_graph=True)[0] for c in cotangents
            ]
            found[number][0].append(torch.cat([given, one]).detach().expand(len(gradients), -1))
            found[number][1].append(torch.stack(gradients))
    return [tuple(torch.stack(side) for side in found[number]) for number in (0, 2)]


def eigenvectors(side, other, plain):
    """Of the mean over examples of sum over vectors of side side^T, or that times ``|other|^2``."""
    weighted = side if plain else side * other.square().sum(2, keepdim=True)
    return torch.linalg.eigh(torch.einsum("ncd,nce->de", weighted, side) / len(side))[1]


def textbook_scores(folder, source, plain):
    """Scores (example, query) with (U diag(Lambda) U^T + damping)^-1 of every layer."""
    module, x, y, qx, qy = load(folder)
    g, q = loss_gradients(module, x, y), loss_gradients(module, qx, qy)
    total, start = torch.zeros(len(g), len(q)).double(), 0
    for a, b in layers(module, x, y, source):
        v, u = eigenvectors(a, b, plain), eigenvectors(b, a, plain)
        # Lambda_ij = E[(u_i^T g a^T v_j)^2]
        values = torch.einsum("nco,ou,nci,iv->ncuv", b, u, a, v).square().sum(1).mean(0)
        outputs, inputs = b.shape[2], a.shape[2] - 1
        sides = []
        for rows in (g, q):
            weight, bias, _ = rows[:, start:].tensor_split(
                [outputs * inputs, outputs * inputs + outputs], dim=1
            )
            matrix = torch.cat([weight.view(-1, outputs, inputs), bias[:, :, None]], dim=2)
            sides.append(torch.einsum("noi,ou,iv->nuv", matrix, u, v).flatten(1))
        total += (sides[0] / (values.flatten() + DAMPING)) @ sides[1].T
        start += outputs * (inputs + 1)
    return (total / len(g)).numpy()


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "weighted"])
@pytest.mark.parametrize("source", ["probes", "loss"])
def test_all_pairs_with_a_diagonal_are_the_textbook_form(folder, source, plain):
    options = {"projection.options": {**PAIRS, "plain": plain}}
    options["curvature.options"] = {"source": source}
    measured = scores_of(folder, f"{source}-{plain}", **options)
    expected = textbook_scores(folder, source, plain)
    assert np.abs(measured - expected).max() < 2e-4 * np.abs(expected).max()


def test_one_block_over_all_layers_is_the_same_matrix(folder):
    joint = scores_of(folder, "joint", **{"curvature.blocks": "joint"})
    np.testing.assert_array_equal(joint, scores_of(folder, "layer"))
    record = streamfluence.open(str(folder / "joint")).top("0")["record"]
    assert "same matrix" in record["curvature_note"]


def test_a_bare_loss_has_the_diagonal_of_its_gradients_and_says_so(folder, tmp_path):
    write_job(tmp_path)
    task = (tmp_path / "task.py").read_text().split("def forward")[0]
    task = task.replace('likelihood = "categorical"', "")
    loss = (
        "return torch.nn.functional.cross_entropy(module(batch['x']), batch['y'], reduction='none')"
    )
    (tmp_path / "task.py").write_text(f"{task}def loss(module, batch):\n    {loss}\n")
    options = {"projection.options": {**PAIRS, "plain": True}}
    run(tmp_path / "job.toml", str(tmp_path / "run"), {**WHOLE, **options})
    opened = streamfluence.open(str(tmp_path / "run"))
    expected = textbook_scores(tmp_path, "loss", True)
    assert np.abs(opened.scores().compute() - expected).max() < 2e-4 * np.abs(expected).max()
    facts = describe(OpenRun.open(str(tmp_path / "run")))["checkpoints"][0]
    assert (facts["curvature"], facts["vectors"]) == ("diagonal", "loss gradients")
    assert "empirical Fisher" in opened.top("0")["record"]["curvature_note"]


@pytest.mark.parametrize(
    "options, words",
    [({"sauce": 1}, "sauce.*did you mean 'source'"), ({"source": "x"}, "'probes' or 'loss'")],
)
def test_an_option_that_it_has_not_is_refused_before_there_is_a_run(folder, options, words):
    with pytest.raises(InputError, match=words):
        scores_of(folder, "refused", **{"curvature.options": options})
    assert not (folder / "refused").exists()


def test_stored_rows_of_a_few_bytes_keep_the_scores(folder):
    exact = scores_of(folder, "layer")
    measured = scores_of(folder, "bytes", **{"rows.codec": "bands", "rows.bytes": 48})
    assert np.corrcoef(measured.ravel(), exact.ravel())[0, 1] > 0.99


def test_a_width_of_a_hundred_thousand_is_whitened_and_stored():
    # What is quadratic in the width would take 80 GB.
    width, row_bytes, generator = 100_000, 256, torch.Generator().manual_seed(0)
    scale = torch.arange(1, width + 1) ** -0.8
    rows = torch.randn(16, width, generator=generator) * scale
    curvature = member("curvature", "diagonal")()
    state = curvature.update(curvature.empty([60_000, 40_000]), rows)
    moments = curvature.row_moments
    of_rows = moments.blocks(moments.update(moments.empty([60_000, 40_000]), rows))
    made, energies = curvature.factor(state, 16, 1e-4).half_whitened([m / 16 for m in of_rows])
    kind = member("codecs", "bands")
    codec = kind(kind.allocate(energies, row_bytes, 0))
    whitened = made.to("cpu").whiten(rows)
    scores = (
        codec.query(made.for_queries(whitened))
        @ codec.decode(codec.encode(made.for_rows(whitened))).T
    )
    expected = made.solve(rows.double()) @ rows.double().T
    assert codec.stored_bytes <= row_bytes
    # The largest coordinates alone fit into so few bytes.
    kept = torch.corrcoef(torch.stack([scores.double().ravel(), expected.ravel()]))[0, 1]
    assert kept > 0.8
