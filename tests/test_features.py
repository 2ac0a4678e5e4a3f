"""What features measure of an example: laws of every member, and each against plain autograd or slices."""

from dataclasses import replace

import pytest
import torch
from per_example import one_backward_an_example
from small_job import load, write_job
from torch import nn

from streamfluence.batches import select
from streamfluence.capture import dense_gradient
from streamfluence.errors import CoverageError, InputError
from streamfluence.features.base import Ground
from streamfluence.features.gradient import Gradient
from streamfluence.registry import member, names
from streamfluence.task_file import load_task

OPTIONS = {"representation": {"module": "1"}}


def ground_of(task, module, batch, forward=None, **how):
    forward = forward or task.forward
    return Ground(task, module, forward, forward, batch, **how)


def made(name, ground, **options):
    feature = member("features", name)(**(options or OPTIONS.get(name, {})))
    feature.at(ground)
    return feature


def rows_of(feature, batch, measurement="training_loss", prove=()):
    """Return everything measured of a batch, flat, ``(example, number)``."""
    uses = feature.measure(batch, measurement, prove).uses
    dense = [dense_gradient(block, uses[block.name]).flatten(1) for block in feature.blocks]
    return torch.cat(dense, dim=1).double()


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    write_job(folder, n=40)
    task = load_task("task.py", folder)
    module, x, y, *_ = load(folder)
    batch = {"x": x[:12], "y": y[:12]}
    return task, module, batch, made("gradient", ground_of(task, module.eval(), batch))


def second_moment(feature, uses_and_weights):
    """Sum of weight * row row^T over examples and probes, and the sum of weights."""
    projection = member("projections", "identity")(feature.blocks, 1, 0)
    total, weights = 0.0, 0.0
    for uses, weight in uses_and_weights:
        rows = projection.apply(uses).double()
        total, weights = total + weight * rows.T @ rows, weights + weight
    return total, weights


@pytest.mark.parametrize("name", names("features"))
def test_neither_the_split_of_a_batch_nor_its_order_changes_a_row(job, name):
    task, module, batch, _ = job
    feature = made(name, ground_of(task, module, batch))
    whole = rows_of(feature, batch, prove=range(12))
    for cut in ([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]], [[i] for i in range(12)]):
        parts = torch.cat([rows_of(feature, select(batch, part)) for part in cut])
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).tolist()
    torch.testing.assert_close(
        rows_of(feature, select(batch, order)), whole[order], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", names("features"))
def test_a_row_has_the_width_of_its_blocks_and_a_value_that_is_the_loss(job, name):
    task, module, batch, _ = job
    feature = made(name, ground_of(task, module, batch))
    assert rows_of(feature, batch).shape == (12, sum(block.size for block in feature.blocks))
    loss = nn.functional.cross_entropy(module(batch["x"]), batch["y"], reduction="none")
    value = feature.measure(batch).value
    torch.testing.assert_close(value, loss.detach().float())
    assert value.dtype == torch.float32 and not value.requires_grad


@pytest.mark.parametrize("name", names("features"))
def test_the_model_is_left_as_it_was(job, name):
    task, module, batch, _ = job
    feature = made(name, ground_of(task, module, batch))
    feature.check(select(batch, [0, 1, 2]))
    feature.measure(batch)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(weight.grad is None and weight.requires_grad for weight in module.parameters())


@pytest.mark.parametrize("name", names("features"))
def test_what_a_score_means_is_known_without_a_model(name):
    feature = member("features", name)(**OPTIONS.get(name, {}))
    assert feature.meaning("margin") and feature.unit("margin") and len(set(feature.sides)) == 2
    assert ("predicted increase" in feature.meaning("loss")) == feature.predicts


@pytest.mark.parametrize("name", names("features"))
def test_a_model_in_training_mode_is_refused(job, name):
    task, module, batch, _ = job
    module.train()
    try:
        with pytest.raises(CoverageError, match="training mode"):
            made(name, ground_of(task, module, batch))
    finally:
        module.eval()


def test_rows_and_values_are_those_of_one_backward_an_example(job):
    task, module, batch, gradient = job
    expected = one_backward_an_example(module, batch, task.forward, task.loss)
    rows = torch.cat(
        [  # a block is the weight with the bias as its last column
            torch.cat([expected[f"{i}.weight"], expected[f"{i}.bias"][..., None]], -1).flatten(1)
            for i in (0, 2)
        ],
        dim=1,
    )
    torch.testing.assert_close(rows_of(gradient, batch), rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 400])
def test_probes_of_any_number_sum_to_one_gauss_newton_matrix(job, count):
    _, _, batch, gradient = job
    ids = torch.arange(12)
    exact, _ = second_moment(
        gradient, gradient.curvature_vectors("probes", batch, ids, 0, lambda _: None)
    )
    found, weights = second_moment(
        gradient, gradient.curvature_vectors("probes", batch, ids, 0, lambda _: count)
    )
    assert weights == pytest.approx(1.0)
    # Probes that were all alike would leave the error of one: .5 to 1.
    tolerance = 2.0 if count == 1 else 0.15
    assert torch.linalg.norm(found - exact) < tolerance * torch.linalg.norm(exact)


def test_the_probes_of_an_example_depend_on_its_number_and_not_on_its_batch(job):
    _, _, batch, gradient = job
    ids = torch.arange(100, 112)

    def rows(part):
        cut = {key: value[part] for key, value in batch.items()}
        found = gradient.curvature_vectors("probes", cut, ids[part], 5, lambda _: 3)
        projection = member("projections", "identity")(gradient.blocks, 1, 0)
        return [projection.apply(uses) for uses, _ in found]

    for whole, half in zip(rows(slice(None)), rows(slice(6, 12)), strict=True):
        torch.testing.assert_close(whole[6:], half)


@pytest.fixture
def squeezing(tmp_path):
    """A task, batch and feature of which a batch of one loses its example axis everywhere."""
    write_job(tmp_path, n=40)
    task = load_task("task.py", tmp_path)
    module, x, y, *_ = load(tmp_path)

    def forward(model, batch):
        return model(batch["x"].squeeze()).squeeze(), batch["y"].squeeze()

    def training_loss(outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, reduction="none").squeeze()

    task = replace(task, _forward=forward, _training_loss=training_loss)

    def checked(model, batch):
        returned = task.forward(model, batch)
        task.check(returned, len(batch["x"]))
        return returned

    batch = {"x": x[:12], "y": y[:12]}
    return batch, ground_of(task, module.eval(), batch, checked)


@pytest.mark.parametrize("name", names("features"))
@pytest.mark.parametrize("measurement", ["loss", "margin", "training_loss"])
def test_a_batch_of_one_that_is_squeezed_is_measured_like_a_batch_of_many(
    squeezing, name, measurement
):
    batch, ground = squeezing
    feature = made(name, ground)
    whole = rows_of(feature, batch, measurement)
    for place in (0, 11):
        one = {key: value[[place]] for key, value in batch.items()}
        torch.testing.assert_close(rows_of(feature, one, measurement), whole[[place]])


def test_the_vectors_of_a_batch_of_one_that_is_squeezed_are_those_of_a_batch_of_many(squeezing):
    batch, ground = squeezing
    gradient = made("gradient", ground)
    projection = member("projections", "identity")(gradient.blocks, 1, 0)
    one, ids = {key: value[[3]] for key, value in batch.items()}, torch.arange(12)
    for source in ("probes", "loss"):
        pairs = zip(
            gradient.curvature_vectors(source, one, ids[[3]], 0, lambda _: 3),
            gradient.curvature_vectors(source, batch, ids, 0, lambda _: 3),
            strict=True,
        )
        for (uses, weight), (others, other_weight) in pairs:
            assert weight == other_weight
            torch.testing.assert_close(projection.apply(uses), projection.apply(others)[[3]])


def test_a_training_loss_whose_gradient_mixes_its_batch_is_refused(job):
    task, module, batch, _ = job

    def training_loss(outputs, targets):
        loss = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
        return loss + (loss - loss.detach()) * targets.max()  # the value is the loss alone

    mixing = made("gradient", ground_of(replace(task, _training_loss=training_loss), module, batch))
    with pytest.raises(CoverageError, match="its gradient at the outputs changes with the others"):
        mixing.measure(batch)


def test_a_bare_loss_has_nothing_to_probe(job):
    task, module, batch, _ = job
    bare = replace(task, likelihood=None, _forward=None, _loss=lambda m, b: m(b["x"]).sum(1))
    feature = made("gradient", ground_of(bare, module, batch))
    assert isinstance(feature, Gradient)
    with pytest.raises(InputError, match="no output Hessian"):
        next(feature.curvature_vectors("probes", batch, torch.arange(12), 0, lambda _: 1))


class Sequences(nn.Module):
    """Outputs of every shape that a module may have, by the name of the module that returns them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 5)
        self.image = nn.Conv2d(2, 3, 3)
        self.recurrent = nn.LSTM(4, 6, batch_first=True)
        self.places_first = nn.Identity()
        self.idle, self.twice = nn.Identity(), nn.Identity()
        self.head = nn.Linear(5, 3)

    def forward(self, batch):
        words = self.embed(batch["words"])
        self.image(batch["image"])
        self.recurrent(batch["words"])
        self.places_first(words.transpose(0, 1))
        return self.twice(self.twice(self.head(words.mean(1))))


@pytest.fixture(scope="module")
def sequences(job):
    torch.manual_seed(0)
    model = Sequences().double().eval()
    batch = {
        "words": torch.randn(6, 7, 4).double(),
        "image": torch.randn(6, 2, 5, 5).double(),
        "mask": torch.arange(7)[None] < torch.tensor([7, 1, 3, 4, 2, 6])[:, None],
        "y": torch.randint(3, (6,)),
    }
    task = replace(job[0], _forward=lambda m, b: (m(b), b["y"]))
    return task, model, batch


def expected_rows(model, batch):
    words, image = model.embed(batch["words"]), model.image(batch["image"])
    counted = batch["mask"].double()[:, :, None]
    last = batch["mask"].sum(1) - 1
    return {
        ("embed", "mean", ""): words.mean(1),
        ("embed", "last", ""): words[:, -1],
        ("embed", "flatten", ""): words.flatten(1),
        ("embed", "mean", "mask"): (words * counted).sum(1) / counted.sum(1),
        ("embed", "last", "mask"): words[torch.arange(6), last],
        ("image", "mean", ""): image.mean((2, 3)),
        ("image", "flatten", ""): image.flatten(2).transpose(1, 2).flatten(1),
        ("", "mean", ""): model(batch),
    }


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_representation_is_the_output_of_its_module_pooled_over_positions(sequences, one_by_one):
    task, model, batch = sequences
    for (module, pool, mask), expected in expected_rows(model, batch).items():
        options = {"module": module, "pool": pool, "mask": mask or None}
        ground = ground_of(task, model, batch, one_by_one=one_by_one)
        rows = rows_of(made("representation", ground, **options), batch, prove=range(6))
        torch.testing.assert_close(rows, expected.detach(), rtol=1e-5, atol=1e-6)


def test_channels_and_one_of_several_outputs_are_as_asked(sequences):
    task, model, batch = sequences
    ground = ground_of(task, model, batch)
    rows = rows_of(made("representation", ground, module="embed", channels="first"), batch)
    torch.testing.assert_close(
        rows, model.embed(batch["words"]).mean(2).detach(), rtol=1e-5, atol=1e-6
    )
    rows = rows_of(made("representation", ground, module="recurrent", output=0), batch)
    expected = model.recurrent(batch["words"])[0].mean(1).detach()
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"module": "embde"}, InputError, "did you mean 'embed'"),
        ({"module": "zzz"}, InputError, "it has: embed, image"),
        ({"module": "idle"}, InputError, "not called in forward"),
        ({"module": "twice"}, InputError, "called 2 times"),
        ({"module": "recurrent"}, InputError, "returns a tuple, not a tensor; say which.*: 0, 1"),
        ({"module": "recurrent", "output": 1}, InputError, "is a tuple, not a tensor"),
        ({"module": "recurrent", "output": 7}, InputError, "feature.options.output: 0, 1"),
        ({"module": "embed", "output": 0}, InputError, "returns one tensor"),
        ({"module": "places_first"}, CoverageError, "the first axis must count examples"),
        ({"module": "embed", "pool": "max"}, InputError, "none of mean, last, flatten"),
        ({"module": "embed", "pool": "flatten", "mask": "mask"}, InputError, "different widths"),
        ({"module": "embed", "mask": "maks"}, InputError, "no tensor under that key"),
        ({"module": "image", "mask": "mask"}, InputError, "6, 9"),
    ],
)
def test_a_module_without_one_vector_an_example_is_refused_by_name(
    sequences, options, error, words
):
    task, model, batch = sequences
    with pytest.raises(error, match=words):
        made("representation", ground_of(task, model, batch), **options)
    assert not any(part._forward_hooks for part in model.modules())


def test_a_later_batch_of_another_width_is_refused(sequences):
    task, model, batch = sequences
    feature = made("representation", ground_of(task, model, batch), module="embed", pool="flatten")
    longer = {**batch, "words": torch.cat([batch["words"]] * 2, dim=1)}
    with pytest.raises(InputError, match=r"70 numbers wide.* 35"):
        feature.measure(longer)


class Mixing(nn.Module):
    """A module whose output is one of several things that are not of the example alone."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.head = how, nn.Identity(), nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        shown = {
            "neighbours": lambda: x - 0.1 * x.mean(0),
            "sorted": lambda: x[x[:, 0].argsort()],
            "places": lambda: x + torch.arange(len(x))[:, None] / 10,
            "random": lambda: x + torch.randn_like(x),
        }[self.how]()
        self.first(shown)
        return self.head(x)


@pytest.mark.parametrize("how", ["neighbours", "sorted", "places", "random"])
def test_a_representation_that_is_not_of_its_example_alone_is_refused(job, how):
    task, _, batch, _ = job
    model = Mixing(how).double().eval()
    feature = made("representation", ground_of(task, model, batch), module="first")
    with pytest.raises(CoverageError, match="random" if how == "random" else "other examples"):
        feature.check(batch)
    with pytest.raises(CoverageError, match=r"other examples|order"):
        feature.measure(batch, prove=range(12))
    if how not in (
        "random",
        "places",
    ):  # alone, an example has neither neighbours nor another place
        alone = made(
            "representation", ground_of(task, model, batch, one_by_one=True), module="first"
        )
        alone.measure(batch, prove=range(12))


def test_a_later_batch_that_mixes_its_examples_is_refused(job):
    task, _, batch, _ = job
    model = Mixing("neighbours").double().eval()
    zeros = {**batch, "x": torch.zeros(12, 6).double()}
    feature = made("representation", ground_of(task, model, zeros), module="first")
    feature.check(zeros)
    with pytest.raises(CoverageError, match="other examples"):
        feature.measure(batch)


@pytest.mark.parametrize("name", ["loss", "representation"])
def test_a_loss_that_depends_on_its_neighbours_is_refused(job, name):
    task, module, batch, _ = job
    mixed = replace(
        task,
        likelihood=None,
        _forward=None,
        _loss=lambda m, b: nn.functional.cross_entropy(
            m(b["x"] - b["x"].mean(0)), b["y"], reduction="none"
        ),
    )
    with pytest.raises(CoverageError, match="other examples"):
        made(name, ground_of(mixed, module, batch)).check(batch)


def test_an_example_that_is_another_when_it_is_read_by_itself_is_refused(sequences):
    task, model, batch = sequences
    one = select(batch, [1])
    short = {**one, "words": one["words"][:, :1], "mask": one["mask"][:, :1]}
    ground = ground_of(task, model, batch)
    padded = made("representation", ground, module="embed")
    with pytest.raises(CoverageError, match=r"padded to its longest.*feature.options.mask"):
        padded.refuse_padded(batch, 1, short, "loss")
    made("representation", ground, module="embed", mask="mask").refuse_padded(
        {**batch, "words": batch["words"]}, 1, short, "loss"
    )
