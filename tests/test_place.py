"""A project moves: its run goes on where the same things lie, and nowhere else."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from small_job import JOB, TASK, write_job

from streamfluence.cli import main
from streamfluence.errors import DamageError, InputError
from streamfluence.execution import Execution, mounted
from streamfluence.run.opened import OpenRun
from streamfluence.run.place import Place
from streamfluence.stages.collect import collect
from streamfluence.stages.relocate import relocate
from streamfluence.stages.repair import repair
from streamfluence.stages.run import run
from streamfluence.stages.score import score
from streamfluence.stages.top import top
from streamfluence.stages.verify import verify
from streamfluence.store.documents import unseal
from streamfluence.user_code import _loader

SERIAL = Execution(executor="serial", workers=1, device="cpu")
NEIGHBOUR = "WIDTH = 5\n\n\ndef width():\n    return WIDTH\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with its finished run in it; the task has a neighbour."""
    folder = tmp_path_factory.mktemp("first") / "project"
    job = write_job(folder)
    (folder / "shape.py").write_text(NEIGHBOUR)
    task = TASK.replace("from torch import nn\n", "from torch import nn\nimport shape\n", 1)
    (folder / "task.py").write_text(task.replace("(6, 5)", "(6, shape.width())"))
    run(str(job), str(folder / "run"))
    return folder


@pytest.fixture
def moved(made, tmp_path):
    """The project at another place, where nothing of the first one can be found."""
    folder = tmp_path / "elsewhere" / "project"
    shutil.copytree(made, folder)
    path = folder / "run" / "place.json"
    text = path.read_bytes()
    assert str(made).encode() in text
    hidden = made.with_name("hidden")
    made.rename(hidden)
    yield folder
    hidden.rename(made)


def numbers(folder):
    """Return everything that the run has stored, without what says when and where."""
    store = OpenRun.open(str(folder / "run"))
    return {
        f"{stage}/{partition}/{name}": store.read(receipt, name)
        for stage in store.stages()
        for partition, receipt in store.receipts(stage).items()
        for name in store.array_names(receipt)
    }


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def lose(folder, partition=2):
    """Take away rows and all that was made from them."""
    for stage in ("collect/train/0", "score/test", "scores/test"):
        name = f"{partition if stage[0] == 'c' else 0:08d}.json"
        (folder / "run" / "receipts" / stage / name).unlink()


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_a_moved_project_goes_on_by_its_job_and_gives_the_same_bits(moved):
    before, said = numbers(moved), top(str(moved / "run"), "3")
    lose(moved)
    run(str(moved / "job.toml"), str(moved / "run"))
    assert same(numbers(moved), before)
    assert top(str(moved / "run"), "3") == said
    assert OpenRun.open(str(moved / "run")).place.root == moved
    verify(str(moved / "run"), full=True)


def test_a_moved_project_is_refused_where_its_place_is_gone_and_says_what_to_do(moved):
    lose(moved)
    with pytest.raises(InputError, match=r"which is not there; if it was moved.*relocate.*--root"):
        collect(str(moved / "run"), None, SERIAL)


def test_what_is_finished_is_read_whatever_the_place_says(moved):
    said = top(str(moved / "run"), "3")
    for text in (b"{}", None):
        path = moved / "run" / "place.json"
        path.unlink()
        if text:
            path.write_bytes(text)
        assert top(str(moved / "run"), "3") == said
        with pytest.raises(DamageError, match=r"place.json"):
            verify(str(moved / "run"))
        with pytest.raises(DamageError, match=r"place.json"):
            repair(str(moved / "run"), SERIAL)
        with pytest.raises((InputError, DamageError), match=r"place.json.*streamfluence relocate"):
            score(str(moved / "run"), damping=0.5, name="more", execution=SERIAL)
    run(str(moved / "job.toml"), str(moved / "run"))
    verify(str(moved / "run"))


def test_relocate_says_where_things_lie_and_the_verbs_go_on(moved):
    before = numbers(moved)
    said = invoke("relocate", moved / "run", "--root", moved, "--json")
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["root"] == str(moved)
    lose(moved)
    for words in (["collect"], ["score"]):
        assert invoke(*words, moved / "run", "--executor", "serial").exit_code == 0
    assert same(numbers(moved), before)


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_root_holds_for_one_command_and_leaves_the_place(moved, made, executor):
    before, place = numbers(moved), (moved / "run" / "place.json").read_bytes()
    lose(moved)
    options = ["--root", moved, "--executor", executor, "--workers", 2]
    assert invoke("collect", moved / "run", *options).exit_code == 0
    assert invoke("score", moved / "run", *options).exit_code == 0
    assert invoke("run", moved / "job.toml", moved / "run", "--root", moved).exit_code == 0
    assert same(numbers(moved), before)
    assert (moved / "run" / "place.json").read_bytes() == place
    assert invoke("collect", moved / "run", "--executor", "serial").exit_code == 2


def changed_data(folder):
    shard = dict(np.load(folder / "train-1.npz"))
    shard["x"][3, 2] += 1
    np.savez(folder / "train-1.npz", **shard)


def changed_weights(folder):
    data = bytearray((folder / "model.pt").read_bytes())
    data[-200] ^= 1
    (folder / "model.pt").write_bytes(data)


CHANGES = {
    "data": (changed_data, "the data of 'train' changed"),
    "checkpoint": (changed_weights, "changed since"),
    "lost": (lambda folder: (folder / "test.npz").unlink(), "no file matches"),
    "task": (lambda f: (f / "task.py").write_text("likelihood = 'gaussian'"), r"task\.py changed"),
    "neighbour": (lambda f: (f / "shape.py").write_text("WIDTH = 6"), r"shape\.py changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_file_at_the_new_place_is_refused_and_the_place_stays(moved, change):
    apply, words = CHANGES[change]
    apply(moved)
    place = (moved / "run" / "place.json").read_bytes()
    with pytest.raises(InputError, match=words):
        relocate(str(moved / "run"), root=str(moved))
    lose(moved)
    if change != "lost":  # of the queries, whose rows are there
        with mounted(moved), pytest.raises(InputError, match=words):
            collect(str(moved / "run"), None, SERIAL)
    with pytest.raises(InputError):
        run(str(moved / "job.toml"), str(moved / "run"))
    assert (moved / "run" / "place.json").read_bytes() == place


def test_comments_in_the_task_and_its_neighbour_do_not_end_a_run_but_a_constant_does(moved):
    before = numbers(moved)
    for name in ("task.py", "shape.py"):
        text = (moved / name).read_text()
        (moved / name).write_text(f'"""What it is."""\n# a comment\n\n\n{text}\n# and another\n')
    lose(moved)
    run(str(moved / "job.toml"), str(moved / "run"))
    assert same(numbers(moved), before)
    (moved / "shape.py").write_text(NEIGHBOUR.replace("5", "4 + 1"))
    with pytest.raises(InputError, match=r"task_digest|task_files"):
        run(str(moved / "job.toml"), str(moved / "run"))


def test_data_task_and_checkpoint_may_move_apart(moved, tmp_path):
    before, run_path = numbers(moved), str(moved / "run")
    far = tmp_path / "far"
    far.mkdir()
    for name in ("train-0.npz", "train-1.npz", "model.pt", "task.py", "shape.py"):
        (moved / name).rename(far / name)
    data = {"train.path": str(far / "train-*.npz")}
    relocate(run_path, str(moved), str(far / "task.py"), [str(far / "model.pt")], data)
    lose(moved)
    collect(run_path, None, SERIAL)
    score(run_path, execution=SERIAL)
    assert same(numbers(moved), before)
    job = JOB.replace("train-*.npz", str(far / "train-*.npz"))
    job = job.replace('"task.py"', f'"{far}/task.py"').replace("model.pt", f"{far}/model.pt")
    (moved / "job.toml").write_text(job)
    run(str(moved / "job.toml"), run_path)
    assert same(numbers(moved), before)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"data": {"train.fields": ["x"]}}, "give SET.OPTION with one of the options path"),
        ({"data": {"train.1.path": "x"}}, "up to train.0"),
        ({"data": {"held.path": "x"}}, "no example set 'held'; there are: train, test"),
        ({"checkpoints": ["model.pt", "model.pt"]}, "has 1 checkpoints"),
        ({"root": "/nowhere/at/all"}, "is no folder"),
        ({"task": "job.toml.py"}, "is none of those of the run"),
    ],
)
def test_relocate_refuses_what_cannot_be(moved, asked, words):
    with pytest.raises(InputError, match=words):
        relocate(str(moved / "run"), **{"root": str(moved), **asked})


def test_relocate_runs_no_code(moved):
    (moved / "reader.py").write_text("raise SystemExit('run')")
    loaded = set(_loader.ours)
    relocate(str(moved / "run"), root=str(moved))
    assert set(_loader.ours) == loaded


def test_the_manifest_holds_no_path_and_the_fingerprint_is_of_the_method(moved, made):
    content = unseal((moved / "run" / "manifest.json").read_bytes(), "")
    assert "train" not in content and str(made) not in json.dumps(content)
    other = write_job(moved.parent / "other-data", seed=3).parent
    for name in ("task.py", "shape.py", "model.pt"):
        shutil.copy(moved / name, other / name)
    run(str(other / "job.toml"), str(other / "run"))
    one, two = (OpenRun.open(str(folder / "run")) for folder in (moved, other))
    assert one.fingerprint == two.fingerprint and one.train.seal != two.train.seal


STALE = [
    "sketch/0/decision",
    "sketch/0/gram",
    "sketch/0/coverage",
    "collect/train/0",
    "scores/test",
]


@pytest.mark.parametrize("stage", STALE)
def test_what_was_made_of_other_data_under_the_same_method_is_found(moved, stage):
    other = write_job(moved.parent / "other-data", seed=3).parent
    for name in ("task.py", "shape.py", "model.pt"):
        shutil.copy(moved / name, other / name)
    run(str(other / "job.toml"), str(other / "run"))
    before = numbers(moved)
    for top_folder in ("receipts", "parts"):
        shutil.rmtree(moved / "run" / top_folder / stage)
        shutil.copytree(other / "run" / top_folder / stage, moved / "run" / top_folder / stage)
    with pytest.raises(DamageError):
        verify(str(moved / "run"))
    if stage in ("sketch/0/decision", "sketch/0/coverage", "collect/train/0", "scores/test"):
        with pytest.raises(DamageError):
            top(str(moved / "run"), "3")
    with mounted(moved):
        repair(str(moved / "run"), SERIAL)
    after = numbers(moved)
    assert all(np.array_equal(after[key], before[key]) for key in before.keys() & after.keys())
    assert {key for key in before if "gram" not in key} <= after.keys()


def test_the_place_decides_no_number_of_a_reader(moved):
    """Options that are no paths are not taken from it, whatever it says."""
    store = OpenRun.open(str(moved / "run"))
    place = Place(moved, "task.py", ("model.pt",), {"train": [{"path": "a", "fields": ["y"]}]})
    assert place.table("train", 0, store.train.generations[0].table) == {
        "reader": "arrays",
        "path": "a",
    }
