"""The pages of the guide say what the code does: keys, members, options, exit codes, names."""

import inspect
import re
import subprocess
import sys
import tomllib
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest
from calls import invoke
from patience import HANG_SECONDS

from streamfluence import errors, guide
from streamfluence.api import Run
from streamfluence.guide._docstrings import entries, paragraphs, section
from streamfluence.job import Job, Projection, Rows
from streamfluence.options import maker
from streamfluence.registry import member, names
from streamfluence.run.defaults import width_of

SECTIONS = {f.name: f.default for f in fields(Job) if is_dataclass(f.default)}
ON_PAGES = {
    "data": "readers",
    "features": "methods",
    "projections": "methods",
    "curvature": "methods",
    "codecs": "methods",
    "readouts": "methods",
    "scales": "methods",
    "solvers": "methods",
    "scans": "methods",
    "scoring.sources": "methods",
    "executors": "methods",
}


def part(page: str, generator: str, subject: str) -> str:
    """Return a generated part of a page as it lies in the package."""
    _, _, rest = guide.stored(page).partition(f"<!-- {generator}: {subject} -->")
    return rest.partition("<!-- end -->")[0]


def table_rows(text: str) -> dict[str, list[str]]:
    """Return the cells of every table row by its first cell, which names a thing in backticks."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in lines}


@pytest.mark.parametrize("name", guide.PAGES)
def test_a_page_lies_in_the_package_as_it_is_printed(name):
    assert guide.page(name) == guide.stored(name), "run: python3 tools/dev.py guide"
    printed = invoke("guide", name)
    assert printed.exit_code == 0
    assert printed.stdout == guide.stored(name)


def test_without_a_name_every_page_is_listed_with_what_it_is_about():
    printed = invoke("guide").stdout
    for name in guide.PAGES:
        assert re.search(rf"^{name} +\w.{{20,}}$", printed, re.MULTILINE), printed


def test_every_page_in_the_folder_is_listed():
    folder = guide.files("streamfluence") / "guide"
    assert {p.name for p in folder.iterdir() if p.name.endswith(".md")} == {
        f"{name}.md" for name in guide.PAGES
    }


@pytest.mark.parametrize(
    "name, words", [("opreations", "did you mean 'operations'?"), ("xyz", "there are: concepts")]
)
def test_an_unknown_page_is_refused_in_one_sentence_with_the_nearest(name, words):
    printed = invoke("guide", name)
    assert (printed.exit_code, printed.stdout) == (2, "")
    assert words in printed.stderr and printed.stderr.count("\n") == 1


def test_printing_a_page_imports_no_member_and_no_heavy_package():
    script = (
        "import sys; from streamfluence.guide import PAGES, page\n"
        "for name in PAGES: page(name)\n"
        "heavy = {'torch', 'numpy', 'zarr', 'dask', 'click', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=HANG_SECONDS)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_a_section_is_there_with_its_default_and_its_meaning(section):
    rows = table_rows(part("job", "keys", section))
    assert list(rows) == [f.name for f in fields(SECTIONS[section])]
    for key, (kind, default, meaning) in rows.items():
        wanted = getattr(SECTIONS[section], key)
        assert kind and meaning, key
        if wanted is None:
            assert default == "not set", key
        elif wanted != {}:
            value = tomllib.loads(f"x = {default.strip('`')}")["x"]
            assert (tuple(value) if isinstance(value, list) else value) == wanted, key


def test_every_key_above_the_sections_is_there_and_says_whether_it_is_required():
    rows = table_rows(part("job", "keys", "job"))
    above = [f for f in fields(Job) if f.name not in SECTIONS and f.name != "root"]
    assert list(rows) == [f.name for f in above]
    for each in above:
        required = each.default is MISSING and each.default_factory is MISSING
        assert (rows[each.name][1] == "required") == required
        assert rows[each.name][2]


@pytest.mark.parametrize("projection", ["principal", "spectral"])
@pytest.mark.parametrize("row_bytes", [1, 10**6])
def test_the_widths_that_auto_is_said_to_mean_are_those_it_means(projection, row_bytes):
    job = Job(Path(), "", (), {}, projection=Projection(projection), rows=Rows(row_bytes))
    assert f"{width_of(job):,}" in table_rows(part("job", "keys", "projection"))["width"][2]


@pytest.mark.parametrize("family", ON_PAGES)
def test_every_member_is_there_with_every_option_it_takes(family):
    text = part(ON_PAGES[family], "members", family)
    shown = dict(re.findall(r"### `(\w+)`\n(.*?)(?=\n### |\Z)", text, re.DOTALL))
    assert list(shown) == names(family)
    for name, said in shown.items():
        assert re.match(r"\n[A-Z].{20,}", said), name
        kind = member(family, name)
        made = kind if maker(family) == "__init__" else getattr(kind, maker(family))
        signature = inspect.signature(made).parameters.values()
        options = {each.name: each for each in signature if each.kind is each.KEYWORD_ONLY}
        rows = table_rows(said)
        assert options.keys() <= rows.keys(), name
        for option, (kind, default, meaning) in rows.items():
            assert kind and meaning, (name, option)
            required = option in options and options[option].default is inspect.Parameter.empty
            assert (default == "required") == required, (name, option)


def test_a_plug_in_is_described_from_its_source_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "parquet_plug_in"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "reader.py").write_text(
        '"""Columns of tables."""\n'
        "from streamfluence.data.base import Reader\n"
        "class Table(Reader):\n"
        '    """Read columns.\n\n    Args:\n        column: Which one.\n    """\n'
        "    def __init__(self, root, *, column: str, rows: int = 1 << 4): ...\n"
    )
    info = tmp_path / "parquet_plug_in-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parquet-plug-in\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[streamfluence.data]\ntable = parquet_plug_in.reader:Table\n"
        "lost = parquet_plug_in.nowhere:Lost\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = guide.page("readers")
    assert "### `table`\n\nColumns of tables.\n\nFrom the package `parquet-plug-in`." in text
    assert "| `column` | string | required | Which one. |" in text
    assert "| `rows` | whole number | `16` |  |" in text
    assert "### `lost`\n\nIn `parquet_plug_in.nowhere` of the package `parquet-plug-in`." in text
    assert text != guide.stored("readers")


def test_the_exit_codes_are_those_of_the_errors():
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", guide.stored("operations"), re.M)}
    kinds = [each for each in vars(errors).values() if isinstance(each, type)]
    assert told == {0, 1, 6} | {each.exit_code for each in kinds}


def test_the_page_on_python_names_all_of_a_run():
    public = [name for name in vars(Run) if not name.startswith("_")]
    assert [name for name in public if f"run.{name}" not in guide.stored("python")] == []


def test_a_docstring_is_cut_into_paragraphs_sections_and_entries():
    text = """First
    sentence.

    Args:
        a, b: Of ``both``;
            on two lines.
        c: Alone.

    After it.

    Source:
        Somebody (2020).
    """
    assert paragraphs(text) == ["First sentence.", "After it."]
    both = "Of `both`; on two lines."
    assert entries(text, "Args") == {"a": both, "b": both, "c": "Alone."}
    assert section(text, "Source") == "Somebody (2020)."
    assert (entries(text, "Raises"), section("One line.", "Args")) == ({}, "")
