"""Members are found by file name and by entry point, and listing them imports none."""

import subprocess
import sys

import pytest
from patience import HANG_SECONDS

from streamfluence import registry
from streamfluence.errors import InputError

FAMILIES = (
    "codecs",
    "curvature",
    "data",
    "executors",
    "projections",
    "readouts",
    "scans",
    "solvers",
)


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """An installed distribution that adds the readout ``loudest`` to ours."""
    (tmp_path / "loud_plug_in.py").write_text("class Loudest:\n    volume = 11\n")
    info = tmp_path / "loud_plug_in-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud-plug-in\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[streamfluence.readouts]\nloudest = loud_plug_in:Loudest\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("loud_plug_in", None)


@pytest.fixture
def family(tmp_path, monkeypatch):
    """A family folder of our own, with one good member and files that are no members."""
    from streamfluence import readouts

    for name in ("base", "_helper", "two_words"):
        (tmp_path / f"{name}.py").write_text("class TwoWords:\n    pass\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.setattr(readouts, "__path__", [str(tmp_path)])
    yield "readouts"
    for name in ("two_words", "broken"):
        sys.modules.pop(f"streamfluence.readouts.{name}", None)
        if hasattr(readouts, name):
            delattr(readouts, name)


def test_names_are_the_files_of_the_family_without_base_and_helpers(family):
    assert registry.names(family) == ["broken", "two_words"]


def test_a_member_is_the_class_named_like_its_file(family):
    assert registry.member(family, "two_words").__name__ == "TwoWords"


def test_an_unknown_member_is_refused_with_the_names_there_are(family):
    with pytest.raises(InputError, match=r"'nothing'.*broken, two_words"):
        registry.member(family, "nothing")


@pytest.mark.parametrize("name", ["base", "_helper", "__init__", "../errors", ""])
def test_only_listed_names_can_be_loaded(family, name):
    with pytest.raises(InputError):
        registry.member(family, name)


def test_a_plug_in_is_listed_and_loaded_beside_our_own(plug_in):
    assert "loudest" in registry.names("readouts")
    assert registry.member("readouts", "loudest").volume == 11
    assert "loudest" not in registry.names("codecs")


def test_a_plug_in_is_not_imported_by_listing_it(plug_in):
    registry.names("readouts")
    assert "loud_plug_in" not in sys.modules


def test_listing_every_family_imports_no_member_and_no_heavy_package():
    heavy = "{'torch', 'numpy', 'zarr', 'dask'}"
    script = (
        "import sys; from streamfluence.registry import names\n"
        f"for family in {FAMILIES}: names(family)\n"
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=HANG_SECONDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_member_of_every_family_can_be_loaded_by_its_name(family):
    for name in registry.names(family):
        assert isinstance(registry.member(family, name), type), name
