"""Reading a run runs no code that the run names; computing compares every file of it first."""

import importlib.util
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from calls import invoke
from small_job import JOB, TASK, write_job

import streamfluence
from streamfluence.errors import InputError, StreamfluenceError
from streamfluence.execution import Execution
from streamfluence.run.opened import OpenRun
from streamfluence.stages.collect import collect
from streamfluence.stages.finalise import finalise
from streamfluence.stages.run import run
from streamfluence.stages.score import score
from streamfluence.task_file import load_task
from streamfluence.user_code import load_file

DATA = """
import numpy as np


def mark(word):
    with open({marker!r}, "a") as file:
        file.write(word)


mark("data ")
import helper


class Rows:
    def __init__(self, path):
        with np.load(path) as arrays:
            self.x, self.y = arrays["x"], arrays["y"]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        mark("item ")
        return {{"x": self.x[row] * helper.SCALE, "y": self.y[row]}}

    def preview(self, row):
        mark("preview ")
        return f"row {{row}}"


def test():
    return Rows({folder!r} + "/test.npz")
"""
MARK = "with open({!r}, 'a') as file:\n    file.write({!r})\n"
QUERIES = """
[queries.code]
reader = "python"
dataset = "data.py:test"
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A finished run whose query set, training task and neighbours leave a mark when they run."""
    write_job(tmp_path, n=96, job=JOB + QUERIES)
    marker = str(tmp_path / "marker")
    (tmp_path / "data.py").write_text(DATA.format(marker=marker, folder=str(tmp_path)))
    (tmp_path / "helper.py").write_text(f"{MARK.format(marker, 'helper ')}SCALE = 1\n")
    (tmp_path / "task.py").write_text(f"{MARK.format(marker, 'task ')}import helper\n{TASK}")
    run(tmp_path / "job.toml", str(tmp_path / "run"))
    assert (tmp_path / "marker").exists()
    (tmp_path / "marker").unlink()
    return tmp_path


def marked(folder: Path) -> bool:
    there = (folder / "marker").exists()
    (folder / "marker").unlink(missing_ok=True)
    return there


def fresh(folder: Path, call: str) -> str:
    """Return what a fresh process that read the run printed; nothing it had loaded before can hide a load."""
    script = f"import streamfluence\nrun = streamfluence.open({str(folder / 'run')!r})\n{call}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return done.stdout + done.stderr


def test_no_reading_verb_runs_code_of_the_run(folder):
    out = folder / "out.csv"
    for arguments in (
        ("top", folder / "run", "code/0"),
        ("export", folder / "run", out, "--name", "code"),
        ("status", folder / "run"),
        ("verify", folder / "run", "--full"),
        ("finalise", folder / "run"),
    ):
        invoke(*arguments)
        assert not marked(folder), arguments
    assert out.exists()
    called = fresh(
        folder,
        "print(run.top('code/1')['query']['preview'])\nrun.results('code')\nrun.rows('code').compute()\n"
        "run.scores('code').compute()\nrun.status()\nprint(repr(run), run.manifest['task_digest'])",
    )
    assert "row 1" in called and "Error" not in called
    assert not marked(folder)


@pytest.mark.parametrize("file", ["data.py", "helper.py", "task.py"])
def test_changed_code_is_refused_before_any_of_it_runs(folder, file):
    (folder / file).write_text((folder / file).read_text() + "\nANOTHER = 1\n")
    shutil.rmtree(folder / "run" / "receipts" / "collect" / "code")
    with pytest.raises(InputError, match=f"{file} changed since the run was made"):
        collect_in(folder)
    marks = (folder / "marker").read_text() if (folder / "marker").exists() else ""
    assert "data" not in marks and (file == "data.py" or not marks)


def collect_in(folder: Path) -> None:
    """Collect in a fresh session, as another process would."""
    from streamfluence.run import session

    session._session.cache_clear()
    collect(str(folder / "run"), execution=Execution(executor="serial"))


def test_scores_are_made_without_previews_where_the_code_changed(folder):
    (folder / "data.py").write_text((folder / "data.py").read_text() + "\nANOTHER = 1\n")
    score(str(folder / "run"), ["code"], damping=0.5)
    assert not marked(folder)
    found = streamfluence.open(str(folder / "run")).top("code-damping-0.5/0")
    assert found["query"]["preview"] is None
    assert "data.py changed" in found["record"]["previews"]["queries"]


def test_a_neighbour_that_was_not_there_is_refused_before_it_runs(tmp_path):
    (tmp_path / "task.py").write_text(
        f"try:\n    import extra\nexcept ImportError:\n    pass\n{TASK}"
    )
    files = load_task("task.py", tmp_path).files
    assert set(files) == {"task.py"}
    mark = tmp_path / "marker"
    (tmp_path / "extra.py").write_text(MARK.format(str(mark), "ran"))
    with pytest.raises(InputError, match=r"extra\.py would be imported"):
        load_task("task.py", tmp_path, files)
    assert not mark.exists()


def test_a_compiled_cache_never_stands_in_for_a_neighbour(tmp_path):
    (tmp_path / "task.py").write_text(f"import beside\nWORD = beside.WORD\n{TASK}")
    beside = tmp_path / "beside.py"
    beside.write_text("WORD = 'evil'\n")
    cache = importlib.util.cache_from_source(str(beside))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(beside), cache, invalidation_mode=mode)
    beside.write_text("WORD = 'good'\n")
    module, files = load_file(tmp_path / "task.py", tmp_path, "planted_cache", None)
    assert module.WORD == "good" and set(files) == {"task.py", "beside.py"}


def test_packages_beside_a_file_are_among_its_code_and_installed_ones_are_not(tmp_path):
    inner = tmp_path / "parts" / "deep"
    inner.mkdir(parents=True)
    (tmp_path / "parts" / "__init__.py").write_text("")
    (inner / "__init__.py").write_text("from . import one\n")
    (inner / "one.py").write_text("import numpy\nONE = 1\n")
    (tmp_path / "a.py").write_text("from parts.deep.one import ONE\n")
    module, files = load_file(tmp_path / "a.py", tmp_path, "packages_beside", None)
    wanted = {"a.py", "parts/__init__.py", "parts/deep/__init__.py", "parts/deep/one.py"}
    assert module.ONE == 1 and set(files) == wanted
    (inner / "one.py").write_text("ONE = 2\n")
    with pytest.raises(InputError, match=r"parts/deep/one\.py changed"):
        load_file(tmp_path / "a.py", tmp_path, "packages_beside", files)


def test_a_mere_folder_hides_no_package_and_what_lies_in_it_is_code(tmp_path):
    (tmp_path / "wsgiref").mkdir()
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "inner.py").write_text("INNER = 1\n")
    (tmp_path / "a.py").write_text("import wsgiref.util\nfrom spaces.inner import INNER\n")
    assert "wsgiref" not in sys.modules
    module, files = load_file(tmp_path / "a.py", tmp_path, "mere_folders", None)
    assert module.wsgiref.__file__ is not None and module.INNER == 1
    assert set(files) == {"a.py", "spaces/inner.py"}


def test_two_files_share_a_neighbour_and_each_names_it(tmp_path):
    (tmp_path / "shared.py").write_text("import under\n\n\nclass Shared: ...\n")
    (tmp_path / "under.py").write_text("")
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text("from shared import Shared\n")
    (one, first), (two, second) = (
        load_file(tmp_path / f"{name}.py", tmp_path, f"sharing_{name}", None)
        for name in ("one", "two")
    )
    assert one.Shared is two.Shared
    assert set(first) - {"one.py"} == set(second) - {"two.py"} == {"shared.py", "under.py"}


def test_a_package_is_compared_without_importing_its_parents(tmp_path):
    package = tmp_path / "outer" / "inner"
    package.mkdir(parents=True)
    mark = tmp_path / "marker"
    (tmp_path / "outer" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "task.py").write_text(TASK)
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from streamfluence.task_file import load_task\n"
        "from streamfluence.user_code import _located, digest\n"
        "located = _located('outer.inner.task', None)\n"
        "files = {f'module {n}': digest(f'module {n}', p) for n, p in located.items()}\n"
        "assert len(files) == 3 and 'outer' not in sys.modules\n"
        "Path(sys.argv[1], 'outer', '__init__.py').write_text(f'open({sys.argv[2]!r}, \"w\")')\n"
        "try:\n    load_task('outer.inner.task', Path('.'), files)\n"
        "except Exception as error:\n    print(error)\n"
        "assert 'outer' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(mark)], capture_output=True, text=True
    )
    assert "module outer changed since" in done.stdout, done.stderr
    assert not mark.exists()


def test_query_documents_that_name_code_run_nothing_when_planted(folder):
    """A sound document put in the place of another: what it names is a callable of the system."""
    from streamfluence.store.documents import seal, unseal

    path = folder / "run" / "data/test/000000.json"
    document = unseal(path.read_bytes(), "x")
    document["table"] = {
        "reader": "python",
        "dataset": "pathlib:Path.touch",
        "arguments": {"self": str(folder / "marker")},
    }
    path.unlink()
    path.write_bytes(seal(document))
    opened = streamfluence.open(str(folder / "run"))
    for call in (
        lambda: opened.top("test/0"),
        lambda: opened.results("test"),
        lambda: opened.scores("test"),
        lambda: score(str(folder / "run"), ["test"], damping=0.5),
        lambda: finalise(str(folder / "run"), "test"),
    ):
        with pytest.raises(StreamfluenceError):
            call()
        assert not marked(folder)
    assert np.isfinite(opened.scores("code").compute()).all()
    assert OpenRun.open(str(folder / "run")).train.generations[0].code == {}
