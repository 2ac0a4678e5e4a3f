"""Nothing that lies in the working folder is taken for a part of the program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NAMES = [
    "typing",
    "re",
    "enum",
    "signal",
    "json",
    "click",
    "rich",
    "torch",
    "numpy",
    "multiprocessing",
]
NAMES += ["pickle", "tempfile", "streamfluence_task"]
SCRIPT = """
import operator
from streamfluence.executors.processes import Processes

if __name__ == "__main__":
    print(Processes(1).run(operator.add, [(1, 2)]).results)
"""


@pytest.fixture
def planted(tmp_path) -> Path:
    """A folder full of files that are named like modules of the program and leave a mark."""
    folder = tmp_path / "received"
    folder.mkdir()
    for name in NAMES:
        mark = str(tmp_path / f"mark-{name}")
        (folder / f"{name}.py").write_text(f"open({mark!r}, 'w')\nraise SystemExit(9)\n")
    return folder


def ran(folder: Path, *arguments: str) -> str:
    """Return what a fresh Python in a folder printed."""
    program = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": program}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and not list(folder.parent.glob("mark-*")), done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [["-m", "streamfluence"], ["-mstreamfluence"]])
def test_python_m_runs_nothing_of_the_working_folder(planted, arguments):
    assert ran(planted, *arguments, "--version").startswith("streamfluence ")


def test_a_worker_process_runs_nothing_of_the_working_folder(planted):
    script = planted.parent / "script.py"
    script.write_text(SCRIPT)
    assert "3" in ran(planted, str(script))


def test_another_program_that_imports_the_package_keeps_its_path(tmp_path):
    package = tmp_path / "received" / "other"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import streamfluence\n")
    (package / "__main__.py").write_text("import sys\nprint(sys.path[0])\n")
    assert ran(tmp_path / "received", "-m", "other", "streamfluence").strip() == str(package.parent)
