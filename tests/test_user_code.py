"""Every file that the user's code runs is pinned when it is loaded, and refused once it is another."""

import importlib.util
import py_compile
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from small_job import TASK, write_job

from streamfluence.data._source import load_named
from streamfluence.data.python import Python
from streamfluence.errors import InputError
from streamfluence.run.opened import OpenRun
from streamfluence.stages.plan import plan
from streamfluence.stages.run import run
from streamfluence.task_file import load_task
from streamfluence.user_code import _installed
from streamfluence.user_code._installed import installed

LATE = """
likelihood = "categorical"


def model(checkpoint):
    {late}
    return scale


def forward(module, batch):
    raise NotImplementedError
"""
HELP = "scale = 1\n"
CHANGED = "open({!r}, 'w')\nscale = 3\n"
FOLDER = "import pathlib, sys\nFOLDER = pathlib.Path(__file__).parent\n"
BY_PATH = (
    "import importlib.util as u; s = u.spec_from_file_location('h', FOLDER / 'lib' / 'helping.py'); "
    "m = u.module_from_spec(s); s.loader.exec_module(m); scale = m.scale"
)
RUNPY = "import runpy; scale = runpy.run_path(str(FOLDER / 'lib' / 'helping.py'))['scale']"
COMPILED = (
    "p = FOLDER / 'lib' / 'helping.py'; n = {}; exec(compile(p.read_text(), str(p), 'exec'), n); "
    "scale = n['scale']"
)
EARLY = "pass"  # the early import is what model() returns
READ = "n = {}; exec((FOLDER / 'lib' / 'helping.py').read_text(), n); scale = n['scale']"
ON_PATH = "sys.path.insert(0, str(FOLDER / 'lib'))\n"
CASES = {
    "a neighbour, late": ("task.py", "", "from helping import scale", "helping.py"),
    "a neighbour by name": (
        "task.py",
        "import importlib\n",
        "scale = importlib.import_module('helping').scale",
        "helping.py",
    ),
    "a neighbour's neighbour, late": (
        "task.py",
        "import other\n",
        "scale = other.get()",
        "helping.py",
    ),
    "on sys.path": ("task.py", f"{ON_PATH}from helping import scale\n", EARLY, "lib/helping.py"),
    "on sys.path, late": ("task.py", ON_PATH, "from helping import scale", "lib/helping.py"),
    "a sibling": ("pkgx.mod", "from pkgx.helping import scale\n", EARLY, "pkgx/helping.py"),
    "a sibling, relative": (
        "pkgx.mod",
        "from . import helping\nscale = helping.scale\n",
        EARLY,
        "pkgx/helping.py",
    ),
    "a sibling, late": ("pkgx.mod", "", "from .helping import scale", "pkgx/helping.py"),
    "a file of spec_from_file_location": ("task.py", f"{BY_PATH}\n", EARLY, "lib/helping.py"),
    "a file of runpy": ("task.py", f"{RUNPY}\n", EARLY, "lib/helping.py"),
    "a file that is run as text": ("task.py", f"{READ}\n", EARLY, "lib/helping.py"),
    "a file that is run as text, late": ("task.py", "", READ, "lib/helping.py"),
    "a file that is compiled": ("task.py", f"{COMPILED}\n", EARLY, "lib/helping.py"),
}


def write(folder: Path, case: str) -> tuple[str, Path]:
    """Write one case; return what the job calls its task, and the file that helps it."""
    task, early, late, helping = CASES[case]
    file = folder / (task if task.endswith(".py") else f"{task.replace('.', '/')}.py")
    for path in (file, folder / helping):
        path.parent.mkdir(exist_ok=True)
    if not task.endswith(".py"):
        (file.parent / "__init__.py").write_text("")
    file.write_text(FOLDER + early + LATE.format(late=late))
    (folder / "other.py").write_text(
        "def get():\n    from helping import scale\n    return scale\n"
    )
    (folder / helping).write_text(HELP)
    return task, folder / helping


@pytest.fixture(autouse=True)
def path_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_a_task_runs_is_pinned_and_refused_once_it_changed(tmp_path, case):
    task, helping = write(tmp_path, case)
    loaded = load_task(task, tmp_path)
    assert loaded._model("x") == 1
    assert helping.relative_to(tmp_path).as_posix() in loaded.files
    promised = dict(loaded.files)
    assert load_task(task, tmp_path, promised)._model("x") == 1
    mark = tmp_path / "mark"
    helping.write_text(CHANGED.format(str(mark)))
    with pytest.raises(
        InputError, match=r"helping\.py changed since the run was made, and its code was not"
    ):
        load_task(task, tmp_path, promised)
    assert not mark.exists()


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_was_not_promised_is_refused_when_it_would_run(tmp_path, case):
    task, helping = write(tmp_path, case)
    loaded = load_task(task, tmp_path)
    loaded._model("x")
    promised = {name: loaded.files[name] for name in loaded.files if "helping" not in name}
    mark = tmp_path / "mark"
    helping.write_text(CHANGED.format(str(mark)))
    with pytest.raises(InputError, match=r"helping\.py would be imported"):
        load_task(task, tmp_path, promised)._model("x")
    assert not mark.exists()


def test_a_file_that_changes_after_the_load_is_refused_when_it_is_imported(tmp_path):
    task, helping = write(tmp_path, "a neighbour, late")
    promised = dict(load_task(task, tmp_path).files)
    loaded = load_task(task, tmp_path, promised)
    mark = tmp_path / "mark"
    helping.write_text(CHANGED.format(str(mark)))
    with pytest.raises(InputError, match="changed since the run was made"):
        loaded._model("x")
    assert not mark.exists()


def test_an_archive_on_the_path_is_pinned_as_one_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "lib.zip", "w") as archive:
        archive.writestr("zipped_help.py", HELP)
    (tmp_path / "task.py").write_text(
        f"{FOLDER}sys.path.insert(0, str(FOLDER / 'lib.zip'))\nfrom zipped_help import scale\n{TASK}"
    )
    assert set(load_task("task.py", tmp_path).files) == {"task.py", "lib.zip"}


DATASET = """
class Rows:
    def __len__(self):
        return 3

    def __getitem__(self, row):
        from shifting import shift

        return {"x": float(row + shift)}
"""


def test_what_a_dataset_imports_while_it_is_read_is_pinned(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(DATASET)
    (folder / "shifting.py").write_text("shift = 0\n")
    before = list(sys.path)
    reader = Python(tmp_path, dataset="data/data.py:Rows")
    assert reader.read(0, 2)["x"].tolist() == [0, 1]
    assert set(reader.code()) == {"data/data.py", "data/shifting.py"}
    assert sys.path == before
    mark = tmp_path / "mark"
    (folder / "shifting.py").write_text(f"open({str(mark)!r}, 'w')\nshift = 0\n")
    again = Python(tmp_path, dataset="data/data.py:Rows")
    again.expect_code(reader.code())
    with pytest.raises(InputError, match=r"shifting\.py changed"):
        again.read(0, 2)
    assert not mark.exists()


def test_two_folders_have_a_neighbour_of_the_same_name_each(tmp_path):
    for folder, shift in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.py").write_text(DATASET)
        (tmp_path / folder / "shifting.py").write_text(f"shift = {shift}\n")
    one, two = (Python(tmp_path, dataset=f"{folder}/data.py:Rows") for folder in ("one", "two"))
    for _ in range(2):
        assert one.read(0, 1)["x"].tolist() == [1]
        assert two.read(0, 1)["x"].tolist() == [2]


def installed_in(folder: Path, monkeypatch) -> Path:
    """Return a folder of installed packages."""
    library = folder / "installed"
    library.mkdir()
    monkeypatch.setattr(_installed, "PLACES", [*_installed.PLACES, library])
    monkeypatch.syspath_prepend(str(library))
    return library


def test_a_library_finds_nothing_in_the_folder_of_the_users_code(tmp_path, monkeypatch):
    """What an installed package imports, while the user's code is loaded or later, is not the folder's."""
    library = installed_in(tmp_path, monkeypatch)
    (library / "eager_library.py").write_text(
        "try:\n    import planted\nexcept ImportError:\n    pass\n"
    )
    (library / "lazy_library.py").write_text(
        "def call():\n    try:\n        import planted\n    except ImportError:\n        return 'none'\n"
    )
    job = tmp_path / "job"
    job.mkdir()
    (job / "data.py").write_text(
        "import eager_library\nimport lazy_library\nfound = lazy_library.call\n"
    )
    found, _, files = load_named("dataset", "data.py:found", job)
    (job / "planted.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    sys.modules.pop("eager_library")
    again, _, _ = load_named("dataset", "data.py:found", job, files)
    assert found() == again() == "none" and not (tmp_path / "mark").exists()


def test_an_installed_module_that_is_named_runs_once(tmp_path, monkeypatch):
    library, job = installed_in(tmp_path, monkeypatch), tmp_path / "job"
    job.mkdir()
    (library / "counted.py").write_text(
        f"with open({str(tmp_path / 'mark')!r}, 'a') as file:\n    file.write('x')\nclass Rows: ...\n"
    )
    (job / "data.py").write_text("from counted import Rows\n")
    rows, _, files = load_named("dataset", "counted:Rows", job)
    assert set(files) == {"module counted"}
    assert load_named("dataset", "data.py:Rows", job)[0] is rows
    assert (tmp_path / "mark").read_text() == "x"
    (library / "counted.py").write_text("class Rows: ...\n")
    with pytest.raises(InputError, match="module counted changed since"):
        load_named("dataset", "counted:Rows", job, files)


def test_what_a_library_takes_from_a_path_that_the_task_added_is_pinned(tmp_path, monkeypatch):
    library, lib = installed_in(tmp_path, monkeypatch), tmp_path / "lib"
    lib.mkdir()
    (library / "late_library.py").write_text("def call():\n    import planted_late\n")
    (lib / "helping_beside.py").write_text(HELP)
    (tmp_path / "task.py").write_text(f"{FOLDER}{ON_PATH}import helping_beside\n{TASK}")
    files = dict(load_task("task.py", tmp_path).files)
    loaded = load_task("task.py", tmp_path, files)
    (lib / "planted_late.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    import late_library

    with pytest.raises(InputError, match=r"planted_late\.py would be imported"):
        late_library.call()
    assert loaded.files and not (tmp_path / "mark").exists()


@pytest.mark.parametrize("case", ["a sibling", "on sys.path", "a file of spec_from_file_location"])
@pytest.mark.parametrize("which", ["task", "help"])
def test_a_compiled_cache_never_runs_instead_of_a_source(tmp_path, case, which):
    task, helping = write(tmp_path, case)
    promised = dict(load_task(task, tmp_path).files)
    file = helping
    if which == "task":
        file = tmp_path / (task if task.endswith(".py") else f"{task.replace('.', '/')}.py")
    source, mark = file.read_text(), tmp_path / "mark"
    file.write_text(f"open({str(mark)!r}, 'w')\n{source}")
    cache = importlib.util.cache_from_source(str(file))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(file), cache, invalidation_mode=mode)
    file.write_text(source)
    try:
        assert load_task(task, tmp_path, promised)._model("x") == 1
    except InputError as error:
        assert "other code than the file holds" in str(error)
    assert not mark.exists()


def test_a_module_of_the_jobs_folder_is_found_wherever_the_program_is_started(tmp_path):
    task, _ = write(tmp_path, "a sibling")
    script = (
        "import sys; from pathlib import Path; from streamfluence.task_file import load_task\n"
        "print(sorted(load_task(sys.argv[1], Path(sys.argv[2])).files))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, task, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.stdout.strip() == "['pkgx/__init__.py', 'pkgx/helping.py', 'pkgx/mod.py']", (
        done.stderr
    )


def test_a_module_elsewhere_is_named_and_its_siblings_are_pinned(tmp_path, monkeypatch):
    job = tmp_path / "job"
    job.mkdir()
    task, helping = write(tmp_path, "a sibling")
    monkeypatch.syspath_prepend(str(tmp_path))
    files = dict(load_task(task, job).files)
    assert set(files) == {"module pkgx", "module pkgx.mod", "../pkgx/helping.py"}
    helping.write_text("scale = 2\n")
    with pytest.raises(InputError, match=r"helping\.py changed"):
        load_task(task, job, files)


def test_a_module_that_the_caller_has_keeps_its_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "callers_own.py").write_text(HELP)
    import callers_own

    job = tmp_path / "job"
    job.mkdir()
    (job / "callers_own.py").write_text("scale = 2\n")
    (job / "task.py").write_text(f"from callers_own import scale\n{TASK}")
    assert set(load_task("task.py", job).files) == {"task.py", "callers_own.py"}
    assert sys.modules["callers_own"] is callers_own and callers_own.scale == 1


def test_a_module_that_the_caller_has_loaded_is_pinned_as_well(tmp_path, monkeypatch):
    """A script imports its own package and then has a job run, whose workers import it anew."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "callers_lib.py").write_text(HELP)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    import callers_lib

    (tmp_path / "task.py").write_text(f"from callers_lib import scale\n{TASK}")
    loaded = load_task("task.py", tmp_path)
    assert set(loaded.files) == {"task.py", "lib/callers_lib.py"}
    assert sys.modules["callers_lib"] is callers_lib


NAMED_LATE = """
    import importlib

    module.scale = importlib.import_module("named" + "_late").scale
    return module(batch["x"]) * module.scale, batch["y"]
"""


def test_a_module_named_while_a_task_runs_is_pinned_if_the_rehearsal_runs_it(tmp_path):
    path = write_job(tmp_path, n=48)
    (tmp_path / "task.py").write_text(
        TASK.replace('    return module(batch["x"]), batch["y"]', NAMED_LATE)
    )
    (tmp_path / "named_late.py").write_text("scale = 1.0\n")
    plan(path, str(tmp_path / "run"))
    for _ in range(2):
        run(path, str(tmp_path / "run"))
    manifest = OpenRun.open(str(tmp_path / "run")).manifest
    assert set(manifest["task_files"]) == {"task.py", "named_late.py"}
    (tmp_path / "named_late.py").write_text("scale = 3.0\n")
    with pytest.raises(InputError, match="task"):
        run(path, str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"named_late\.py changed"):
        load_task("task.py", tmp_path, manifest["task_files"])


def test_installed_is_what_lies_in_the_folders_of_python_and_not_beside_a_job(
    tmp_path, monkeypatch
):
    assert installed(np.__file__) and installed(subprocess.__file__)
    assert not installed(tmp_path / "site-packages" / "x.py", tmp_path)
    assert not installed(tmp_path / "x.py", tmp_path)
    monkeypatch.setattr(_installed, "PLACES", [tmp_path / ".venv" / "lib"])
    assert installed(tmp_path / ".venv" / "lib" / "x.py", tmp_path)
    monkeypatch.undo()
    within = Path(np.__file__).parent / "job"
    assert not installed(within / "task.py", within)
