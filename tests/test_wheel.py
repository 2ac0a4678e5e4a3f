"""What a user installs holds everything that the package reads at work."""

import email
import zipfile
from pathlib import Path

import pytest

import streamfluence

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    reason = "needs hatchling, which tools/dev.py installs"
    builders = pytest.importorskip("hatchling.builders.wheel", reason=reason)
    folder = tmp_path_factory.mktemp("wheel")
    built = builders.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    with zipfile.ZipFile(next(iter(built))) as archive:
        yield archive


def test_a_wheel_holds_every_file_of_the_package(wheel):
    package = ROOT / "streamfluence"
    files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    wanted = {str(p.relative_to(ROOT)) for p in files}
    assert {
        "streamfluence/py.typed",
        "streamfluence/guide/job.md",
        "streamfluence/templates/job.toml",
        "streamfluence/templates/task.py",
    } <= wanted
    assert wanted - set(wheel.namelist()) == set()


def test_a_wheel_holds_both_examples_and_nothing_of_the_repository(wheel):
    names = set(wheel.namelist())
    for example in ("digits", "code"):
        for file in ("job.toml", "task.py", "train.py"):
            assert f"streamfluence/_examples/{example}/{file}" in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"streamfluence"}


def test_the_version_of_a_wheel_is_that_of_the_package(wheel):
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Version"] == streamfluence.__version__
    assert "Typing :: Typed" in metadata.get_all("Classifier")
