"""The fidelity benchmark's own arithmetic against torch's optimisers and one backward per example."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).parents[1] / "tools" / "bench"))

import fidelity_reference as reference
import fidelity_rows
import fidelity_table
import fidelity_training as training
import fidelity_truth as truth
from cases import NAMES, load_case
from cases.base import Split
from fidelity_judge import Judge
from fidelity_library import Workspace
from fidelity_variants import UNSTORED

from streamfluence.evaluation import lds

CASES = {key: load_case(key) for key in NAMES}
every_case = pytest.mark.parametrize("key", list(NAMES))


def cut(split, n_train, n_queries):
    """Return the first examples of a split."""
    return Split(
        {name: values[:n_train] for name, values in split.train.items()},
        {name: values[:n_queries] for name, values in split.queries.items()},
    )


def module_of(case, flat):
    """Return the task's own module with flat weights."""
    model = case.task().network().to(flat.dtype).eval()
    nn.utils.vector_to_parameters(flat.clone(), model.parameters())
    return model


def gradient_of(model, value):
    found = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in found])


def loss_of(case, outputs, targets):
    """Return the mean loss of a batch, written out once more."""
    if case.task().likelihood == "gaussian":
        return ((outputs - targets) ** 2).sum(1).mean() / 2
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def batch_of(fields, rows, dtype=torch.float32):
    found = {name: torch.from_numpy(values)[rows] for name, values in fields.items()}
    return {n: v.to(dtype) if v.is_floating_point() else v for n, v in found.items()}


OPTIMIZERS = {
    "a": lambda w, r: torch.optim.Adam(w, r.learning_rate, weight_decay=r.weight_decay),
    "c": lambda w, r: torch.optim.AdamW(w, r.learning_rate, weight_decay=r.weight_decay),
    "d": lambda w, r: torch.optim.SGD(
        w, r.learning_rate, momentum=r.momentum, weight_decay=r.weight_decay
    ),
}


@pytest.mark.parametrize("key", list(OPTIMIZERS))
def test_stacked_training_equals_one_net_at_a_time(key):
    case = CASES[key]
    short = {"steps": 4, "epochs": None} if key == "c" else {"epochs": 2}
    recipe, split = replace(case.recipe, batch_size=20, **short), case.data()
    members = np.stack([np.arange(0, 50), np.arange(25, 75)])
    together = training.train(case, split, members, [3, 4], recipe)
    for number, seed in enumerate((3, 4)):
        torch.manual_seed(seed)
        model = case.task().network()
        optimizer = OPTIMIZERS[key](model.parameters(), recipe)
        orders = [torch.from_numpy(members[number])[torch.randperm(50)] for _ in range(2)]
        if key == "c":  # whole batches, across the ends of passes
            batches = torch.cat(orders)[:80].split(20)
        else:
            batches = [rows for order in orders for rows in order.split(20)]
        for step, rows in enumerate(batches):
            if recipe.schedule == "cosine":
                share = (1 + np.cos(np.pi * step / len(batches))) / 2
                optimizer.param_groups[0]["lr"] = recipe.learning_rate * share
            optimizer.zero_grad()
            loss_of(case, *case.task().forward(model, batch_of(split.train, rows))).backward()
            optimizer.step()
        alone = nn.utils.parameters_to_vector(model.parameters()).detach()
        torch.testing.assert_close(together[number], alone, rtol=0, atol=2e-5)


@every_case
def test_the_stored_truth_belongs_to_the_case(key):
    case, stored = CASES[key], truth.load(CASES[key].truth_path)
    recipe, count = case.recipe, case.data().count
    assert asdict(recipe) | stored.recipe == asdict(recipe)
    expected = truth.half_subsets(count, recipe.n_subsets, recipe.subset_seed)
    np.testing.assert_array_equal(stored.masks, expected)
    assert (stored.masks.sum(1) == count // 2).all()
    assert stored.seed_losses.shape[:2] == (len(recipe.seeds), recipe.n_subsets)
    np.testing.assert_allclose(stored.losses, stored.seed_losses.mean(0), rtol=2e-3, atol=1e-4)
    assert stored.weights.shape[0] == len(recipe.model_seeds)
    assert lds.ceiling(stored.seed_losses) > 0.5


@pytest.mark.parametrize("key", ["a", "d", "e1"])
def test_the_stored_truth_is_what_its_recipe_makes(key):
    case, stored = CASES[key], truth.load(CASES[key].truth_path)
    split = case.data()
    nets = truth.train_subsets(case, split, stored.masks[:2], case.recipe.seeds[0])
    again = training.query_losses(case, nets, split).clamp_min(1e-7).log()
    before = torch.from_numpy(stored.seed_losses[0, :2]).clamp_min(1e-7).log()
    # Rounding grows over hundreds of steps, and the file keeps float16: equal as nets, not as bits.
    assert np.corrcoef(again.detach().flatten(), before.flatten())[0, 1] > 0.99


@every_case
def test_the_judged_nets_reach_the_stated_fit(key):
    case, stored = CASES[key], truth.load(CASES[key].truth_path)
    name = "model_accuracy" if "model_accuracy" in stored.facts else "model_fit"
    found = training.fit(case, stored.weights[:1], case.data().queries)
    torch.testing.assert_close(found[0].item(), stored.facts[name][0], rtol=0, atol=3e-3)
    assert found > {"c": 0.4, "d": 0.45, "g": 0.94}.get(key, 0.95)


@pytest.fixture(scope="module", params=["a", "b", "d"])
def net(request):
    case = CASES[request.param]
    weights = truth.load(case.truth_path).weights[0]
    split = cut(case.data(), 4, 5)
    return SimpleNamespace(
        case=case, split=split, flat=weights.double(), net=reference.Net(case, weights, split)
    )


def test_reference_gradients_equal_one_backward_per_example(net):
    model = module_of(net.case, net.flat)
    for row, found in enumerate(net.net.train):
        batch = batch_of(net.split.train, slice(row, row + 1), torch.float64)
        loss = loss_of(net.case, *net.case.task().forward(model, batch))
        torch.testing.assert_close(found, gradient_of(model, loss), rtol=1e-9, atol=1e-12)


def test_reference_gauss_newton_equals_the_dense_formula(net):
    model, total = module_of(net.case, net.flat), 0
    batch = batch_of(net.split.train, slice(None), torch.float64)
    for outputs in net.case.task().forward(model, batch)[0]:
        jacobian = torch.stack([gradient_of(model, output) for output in outputs])
        p = outputs.softmax(0).detach()
        gaussian = net.case.task().likelihood == "gaussian"
        inner = torch.eye(1).double() if gaussian else p.diag() - torch.outer(p, p)
        total = total + jacobian.T @ inner @ jacobian / 4
    torch.testing.assert_close(net.net.gauss_newton_joint[""], total, rtol=1e-8, atol=1e-12)
    for name, part in net.net.blocks.items():
        torch.testing.assert_close(net.net.gauss_newton[name], total[part, part])


def test_the_blocks_of_a_reference_are_the_modules_of_its_net():
    case = CASES["b"]
    net = reference.Net(case, truth.load(case.truth_path).weights[0], cut(case.data(), 1, 1))
    assert {name: (part.start, part.stop) for name, part in net.blocks.items()} == {
        "1": (0, 80),
        "3": (80, 1248),
        "7": (1248, 3818),
    }


def test_probes_of_a_sequence_are_pulled_back_with_the_root_of_the_weight_of_a_position():
    case = CASES["c"]
    flat = truth.load(case.truth_path).weights[0]
    net = reference.Net(case, flat, cut(case.data(), 2, 1), probes=3, seed=5)
    found = net.curvature_rows(0, 2)
    generator = torch.Generator().manual_seed(5)
    signs = torch.randint(0, 2, (2, 3, 64, 97), generator=generator) * 2.0 - 1
    model = module_of(case, flat)
    outputs = case.task().forward(model, batch_of(case.data().train, slice(1, 2)))[0][0]
    p = outputs.softmax(-1).detach()
    v = p.sqrt() * signs[1, 2]
    cotangent = (v - p * v.sum(-1, keepdim=True)) / (64 * 3) ** 0.5
    expected = gradient_of(model, (outputs * cotangent).sum())
    torch.testing.assert_close(found[5], expected, rtol=1e-3, atol=1e-5)


@pytest.fixture
def small():
    """Stand-in for a net of 12 weights in two modules, with a random curvature."""
    generator = torch.Generator().manual_seed(0)
    train, queries, root = (
        torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (9, 4, 20)
    )
    blocks = {"first": slice(0, 7), "second": slice(7, None)}
    net = SimpleNamespace(train=train, queries=queries, count=9, blocks=blocks, dtype=torch.float64)
    return net, root.T @ root / 20


def test_reference_scores_solve_the_damped_system(small):
    net, curvature = small
    inverse = torch.linalg.inv(curvature + 0.1 * torch.eye(12, dtype=torch.float64))
    scores = reference.damped(net, {"": curvature}, 0.1)
    torch.testing.assert_close(scores, net.train @ inverse @ net.queries.T / 9)


def test_reference_scores_by_layer_ignore_what_couples_the_layers(small):
    net, curvature = small
    apart = curvature.clone()
    apart[:7, 7:], apart[7:, :7] = 0, 0
    blocks = {name: curvature[part, part] for name, part in net.blocks.items()}
    by_layer = reference.damped(net, blocks, 0.1)
    torch.testing.assert_close(by_layer, reference.damped(net, {"": apart}, 0.1))
    assert not torch.allclose(by_layer, reference.damped(net, {"": curvature}, 0.1))


def test_reference_scores_from_rows_equal_those_from_blocks():
    case = CASES["b"]
    net = reference.Net(case, truth.load(case.truth_path).weights[0], cut(case.data(), 70, 3))
    for damping, found in reference.damped_from_rows(net, (1e-3, 0.1)).items():
        torch.testing.assert_close(found, reference.damped(net, net.gauss_newton, damping))


def test_ek_fac_of_one_example_is_exact_in_the_last_layer():
    # One example: its last layer's Gauss-Newton is (p - p p^T) kron (a a^T), a Kronecker product.
    case = CASES["a"]
    net = reference.Net(case, truth.load(case.truth_path).weights[0], cut(case.data(), 1, 3))
    block = net.gauss_newton["2"]
    order = reference.bias_last(10, 64, len(block))
    expected = block[order][:, order]
    left, right, values = reference.kronecker(expected, 10)
    basis = torch.kron(left, right)
    rebuilt = basis @ values.flatten().diag() @ basis.T
    torch.testing.assert_close(rebuilt, expected, rtol=1e-7, atol=1e-12)


def test_ek_fac_scores_equal_the_damped_solve_in_their_basis():
    case = CASES["b"]
    net = reference.Net(case, truth.load(case.truth_path).weights[0], cut(case.data(), 6, 3))
    total = 0
    for name, (rows, columns) in {"1": (8, 9), "3": (16, 72), "7": (10, 256)}.items():
        block, part = net.gauss_newton[name], net.blocks[name]
        order = reference.bias_last(rows, columns, len(block))
        left, right, values = reference.kronecker(block[order][:, order], rows)
        basis = torch.kron(left, right)
        inverse = basis @ (values.flatten() + 0.1).reciprocal().diag() @ basis.T
        train, queries = net.train[:, part][:, order], net.queries[:, part][:, order]
        total = total + train @ inverse @ queries.T / 6
    torch.testing.assert_close(reference.eigenvalue_corrected(net)(0.1), total)


def test_the_library_with_every_direction_equals_the_exact_reference(tmp_path):
    case = CASES["d"]
    flat, split = truth.load(case.truth_path).weights[:1], cut(case.data(), 128, 5)
    space = Workspace(tmp_path, case, split, flat)
    decay = case.recipe.weight_decay
    exact = {"projection.width": 897, "curvature.blocks": "layer", "curvature.damping": decay}
    scores, facts = space.scores(0, UNSTORED | exact)
    net = reference.Net(case, flat[0], split)
    expected = reference.damped(net, net.gauss_newton, decay).numpy()
    assert facts["damping_rule"] == "given"
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_queries_named_and_queries_asked_later_are_judged_apart():
    judge = Judge(CASES["d"])
    scores = [np.random.default_rng(number).normal(size=(342, 100)) for number in range(2)]
    figures = judge.figures(scores)
    for found, part in ((figures.named, slice(50)), (figures.later, slice(50, None))):
        each = [lds.lds(s[:, part], judge.truth.masks, judge.truth.losses[:, part]) for s in scores]
        assert found == pytest.approx(np.mean(each))
    assert figures.one == pytest.approx(np.mean([judge.lds(one) for one in scores]))
    assert figures.mean_of_models == pytest.approx(judge.lds(scores[0] + scores[1]))


def test_a_truth_that_was_interrupted_goes_on_where_it_was(tmp_path):
    recipe = replace(CASES["d"].recipe, epochs=1, n_subsets=5, seeds=(0, 1), model_seeds=(100, 101))
    case = replace(CASES["d"], recipe=recipe, models_at_once=2)
    whole = truth.generate(case, tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / "seed1-from2.npz").unlink()
    kept = dict(np.load(folder / "seed0-from4.npz"))
    np.savez(folder / "seed0-from4.npz", **kept | {"losses": kept["losses"] + 1})  # not made again
    again = truth.generate(case, tmp_path)
    np.testing.assert_allclose(again.seed_losses[1], whole.seed_losses[1])
    np.testing.assert_allclose(again.seed_losses[0, 4], whole.seed_losses[0, 4] + 1)
    alone = truth.train_subsets(case, case.data(), whole.masks, seed=1)
    expected = training.query_losses(case, alone, case.data())
    np.testing.assert_allclose(whole.seed_losses[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", [key for key in NAMES if CASES[key].reference_path.exists()])
def test_stored_references_predict_every_subset_and_say_how_they_were_solved(key):
    judge = Judge(CASES[key])
    found, solved = fidelity_rows.stored_references(CASES[key])
    assert set(found) == set(solved)
    for name, effects in found.items():
        assert len(effects) == len(solved[name])
        assert {one.shape for one in effects} == {judge.truth.losses.shape}
        assert all(one.get("residual", 0) <= 1e-2 for one in solved[name])


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(fidelity_rows, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(fidelity_table, "RESULTS", tmp_path / "results")
    return tmp_path


def test_scores_of_a_peer_become_a_row_beside_others(results):
    case, judge = CASES["d"], Judge(CASES["d"])
    scores = [
        np.random.default_rng(number).normal(size=(342, 100)).astype(np.float32)
        for number in range(2)
    ]
    lines = []
    for number, one in enumerate(scores):
        np.save(results / f"peer-best-net{number}.npy", one)
        facts = {"peer": "peer", "setting": "best", "row_bytes": 4, "model": number}
        lines.append(json.dumps(facts | {"finite": True}))
    lines.append(json.dumps({"peer": "peer", "model": 0, "error": "MemoryError"}))
    (results / "results.jsonl").write_text("\n".join(lines))
    fidelity_rows.keep(judge, "default", [])
    fidelity_rows.judge_peer(case, results)
    fidelity_rows.judge_peer(case, results)  # replaces its own rows
    (row,) = fidelity_table.stored(["d"])["d"]["rows"]
    assert (row["method"], row["bytes"], row["group"]) == ("peer best", 4, "peers")
    np.testing.assert_allclose(row["lds_each"], [judge.lds(one) for one in scores])
    assert row["lds_mean"] == pytest.approx(judge.lds((scores[0] + scores[1]) / 2))
    assert "peer best" in fidelity_table.table(["d"])
