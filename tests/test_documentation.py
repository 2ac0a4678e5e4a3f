"""What README, guide and community files name is there: files, sections, commands, options, keys."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import click
import pytest

from streamfluence.cli import main
from streamfluence.job import Job

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / ".github").glob("*.md")),
    *sorted((ROOT / "streamfluence" / "guide").glob("*.md")),
]
SECTIONS = {f.name: f.default for f in fields(Job) if is_dataclass(f.default)}
# Of tools/dev.py, of the benchmarks, of git, of click itself.
OTHER_OPTIONS = {"--fast", "--cases", "--no-verify", "--help"}


def each_page(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)(test)


def anchors(text: str) -> set[str]:
    """Return what can be linked to in a page, as GitHub names it."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def commands(group: click.Group, before: str = "") -> dict[str, set[str]]:
    """Return the options of every command by its words."""
    found = {}
    for name, command in group.commands.items():
        found[before + name] = {option for each in command.params for option in each.opts}
        if isinstance(command, click.Group):
            found |= commands(command, f"{before}{name} ")
    return found


def code_of(text: str) -> list[str]:
    """Return the lines of code blocks and the inline code of a page; a link's text is prose."""
    blocks = re.compile(r"^(?: {4}[^\n]*|```.*?^```)$", re.MULTILINE | re.DOTALL)
    lines = [line.partition(" # ")[0] for b in blocks.findall(text) for line in b.splitlines()]
    inline = re.findall(r"`((?:[^`\n]|\n(?!\n))+)`", blocks.sub("", text))
    return lines + [" ".join(each.split()) for each in inline]


@each_page
def test_every_link_leads_to_a_file_and_a_section_that_is_there(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@each_page
def test_every_path_of_the_repository_that_is_named_is_there(page):
    tops = r"(?:streamfluence|tools|tests|examples|\.github)"
    for path in re.findall(rf"`({tops}/[\w./-]+)`", page.read_text()):
        if "NAME" not in path:
            assert (ROOT / path).exists(), path


@each_page
def test_every_option_that_is_named_exists(page):
    known = set().union(*commands(main).values(), OTHER_OPTIONS, {"--version"})
    named = {
        option
        for code in code_of(page.read_text())
        for option in re.findall(r"--[a-z][\w-]*", code)
    }
    assert named - known == set()


@each_page
def test_every_command_that_is_named_exists_with_the_options_it_is_given(page):
    known = commands(main)
    for code in code_of(page.read_text()):
        for words in re.findall(r"streamfluence ([a-z][^|;`]*)", code):
            name = " ".join(words.split()[: 2 if words.startswith("evaluate ") else 1])
            assert name in known, code
            assert set(re.findall(r"--[a-z][\w-]*", words)) <= known[name], code


@each_page
def test_every_key_of_a_job_that_is_named_exists(page):
    for section, key in re.findall(rf"`({'|'.join(SECTIONS)})\.(\w+)", page.read_text()):
        if key != "py":
            assert hasattr(SECTIONS[section], key), f"{section}.{key}"
