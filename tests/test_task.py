"""Loading a user's task, and what it may get wrong."""

import textwrap

import pytest
import torch

from streamfluence.errors import InputError
from streamfluence.task_file import load_task

GOOD = """
import torch
from torch import nn
likelihood = "categorical"
def model(checkpoint):
    net = nn.Linear(3, 2)
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()
def forward(model, batch):
    return model(batch["x"]), batch["y"]
"""


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    return path


def write(tmp_path, text):
    (tmp_path / "task.py").write_text(textwrap.dedent(text))
    return load_task("task.py", tmp_path)


def test_a_task_runs_its_model_and_measures(tmp_path, checkpoint):
    task = write(
        tmp_path, GOOD + "measurements = {'first': lambda outputs, targets: outputs[:, 0]}\n"
    )
    batch = {"x": torch.randn(4, 3), "y": torch.tensor([0, 1, 1, 0])}
    returned = task.forward(task.model(checkpoint), batch)
    task.check(returned, 4)
    outputs, targets = returned
    expected = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    torch.testing.assert_close(task.measure("loss", returned), expected)
    # A margin is better when higher; a measurement is better when lower.
    p = torch.exp(-expected)
    torch.testing.assert_close(task.measure("margin", returned), -torch.log(p / (1 - p)))
    torch.testing.assert_close(task.measure("first", returned), outputs[:, 0])
    with pytest.raises(InputError, match="loss, margin, first"):
        task.measure("last", returned)


@pytest.mark.parametrize(
    "body",
    [
        "batch['x'].mul_(2); return model(batch['x']), batch['y']",
        "y = batch.pop('y'); return model(2 * batch['x']), y",
        "batch['x'] = 2 * batch['x']; batch['more'].clear(); return model(batch['x']), batch['y']",
        "x = batch['more'][0]; x *= 2; return model(batch['x']), batch['y']  # the same tensor",
    ],
)
def test_forward_may_change_its_batch(tmp_path, checkpoint, body):
    before = GOOD.split("def forward")[0]
    task = write(tmp_path, before + f"def forward(model, batch):\n    {body}\n")
    x, model = torch.randn(4, 3), task.model(checkpoint)
    batch = {"x": x, "y": torch.tensor([0, 1, 1, 0]), "more": [x]}
    expected = model(2 * x)
    for _ in range(2):
        torch.testing.assert_close(task.forward(model, batch)[0], expected)


def test_a_bare_loss_may_change_its_batch(tmp_path):
    task = write(
        tmp_path,
        "def model(checkpoint): ...\ndef loss(model, batch): return batch.mul_(2).sum(1)\n",
    )
    batch = torch.ones(2, 3)
    assert [task.forward(None, batch).tolist() for _ in range(2)] == [[6.0, 6.0]] * 2


def test_the_digest_covers_the_neighbours_a_task_imports(tmp_path):
    (tmp_path / "net.py").write_text("WIDTH = 3\n")
    one = write(tmp_path, "import net\n" + GOOD).digest
    assert write(tmp_path, "import net\n" + GOOD).digest == one
    (tmp_path / "net.py").write_text("WIDTH = 4\n")
    assert write(tmp_path, "import net\n" + GOOD).digest != one


def test_two_tasks_with_neighbours_of_one_name_do_not_mix(tmp_path):
    tasks = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "train.py").write_text(f"NUMBER = {number}\n")
        tasks.append(
            write(folder, "from train import NUMBER\nmeasurements = {str(NUMBER): None}\n" + GOOD)
        )
    assert [list(task._measurements) for task in tasks] == [["1"], ["2"]]


def test_a_bare_loss_is_a_task_without_likelihood(tmp_path):
    task = write(
        tmp_path, "def model(checkpoint): ...\ndef loss(model, batch): return batch.sum(1)\n"
    )
    assert task.likelihood is None
    assert task.loss(task.forward(None, torch.ones(2, 3))).tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "defines no model"),
        ("def model(c): ...", "neither likelihood"),
        ("def model(c): ...\nlikelihood = 'categorical'", "no forward"),
        (
            "def model(c): ...\ndef forward(m, b): ...\nlikelihood = 'poisson'",
            "none of bernoulli",
        ),
        ("import nothing_like_this", "fails to load: ModuleNotFoundError"),
        ("def model(c:", "fails to load: SyntaxError"),
    ],
)
def test_a_task_that_lacks_something_is_refused(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        write(tmp_path, text)


def test_a_missing_task_and_a_missing_checkpoint_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_task("none.py", tmp_path)
    with pytest.raises(InputError, match="cannot be imported"):
        load_task("no_such_package:thing", tmp_path)
    with pytest.raises(InputError, match=r"model\.pt does not exist"):
        write(tmp_path, GOOD).model(tmp_path / "model.pt")


def test_a_checkpoint_that_does_not_fit_the_model_is_one_sentence(tmp_path, checkpoint):
    torch.save(torch.nn.Linear(5, 2).state_dict(), checkpoint)
    with pytest.raises(InputError, match="size mismatch"):
        write(tmp_path, GOOD).model(checkpoint)


def test_nan_weights_are_refused_by_name(tmp_path, checkpoint):
    state = torch.nn.Linear(3, 2).state_dict()
    state["weight"][0, 0] = float("nan")
    torch.save(state, checkpoint)
    with pytest.raises(InputError, match="weight holds NaN"):
        write(tmp_path, GOOD).model(checkpoint)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return model(batch['x'])", "must return \\(outputs, targets\\)"),
        ("return model(batch['image']), batch['y']", "KeyError"),
        ("return model(batch['x']).mean(0), batch['y'][0]", "first axis must count examples"),
        ("return model(batch['x']), batch['y'].float()", "class numbers"),
    ],
)
def test_a_forward_that_returns_the_wrong_thing_is_refused(tmp_path, checkpoint, body, words):
    task = write(tmp_path, GOOD + f"def forward(model, batch):\n    {body}\n")
    batch = {"x": torch.randn(4, 3), "y": torch.tensor([0, 1, 1, 0])}
    with pytest.raises(InputError, match=words):
        task.check(task.forward(task.model(checkpoint), batch), 4)
