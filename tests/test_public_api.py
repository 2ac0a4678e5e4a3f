"""What users may rely on: the public names, their exit codes, and that importing costs nothing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import streamfluence
from streamfluence import errors

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numpy", "dask", "distributed", "zarr", "numcodecs", "rich", "click")
PUBLIC = [
    "BudgetError",
    "CoverageError",
    "DamageError",
    "IncompleteError",
    "InputError",
    "Interrupted",
    "NonFiniteError",
    "Run",
    "StorageError",
    "StreamfluenceError",
    "__version__",
    "open",
    "record",
]
EXIT_CODES = {
    "StreamfluenceError": 2,
    "InputError": 2,
    "BudgetError": 2,
    "CoverageError": 2,
    "DamageError": 3,
    "IncompleteError": 4,
    "NonFiniteError": 5,
    "StorageError": 74,
    "Interrupted": 75,
}


def modules_after(statement: str) -> set[str]:
    """Return the top-level names of the modules that a fresh Python holds after a statement."""
    script = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", script]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_the_public_names_are_these():
    assert sorted(streamfluence.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(streamfluence))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there(name):
    assert getattr(streamfluence, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = streamfluence.nothing


def test_importing_streamfluence_loads_no_heavy_package():
    assert not modules_after("import streamfluence") & set(HEAVY)


def test_a_command_line_without_work_loads_click_alone():
    loaded = modules_after(
        "from streamfluence.cli import main; main(['--help'], standalone_mode=False)"
    )
    assert loaded & set(HEAVY) == {"click"}


def test_every_error_has_its_documented_exit_code():
    found = {
        name: error.exit_code
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, errors.StreamfluenceError)
    }
    assert found == EXIT_CODES


def test_development_tools_are_pinned_to_what_the_constraints_install():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = (ROOT / "tools" / "constraints.txt").read_text().split()
    tools = [re.sub(r"\[.*\]", "", pin) for pin in project["optional-dependencies"]["dev"]]
    assert all("==" in pin for pin in tools)
    assert set(tools) <= set(constraints)
    names = {pin.partition("==")[0] for pin in constraints if "==" in pin}
    for requirement in project["dependencies"]:
        assert re.split(r"[\[><=]", requirement)[0] in names
