"""Who may import whom, who may use which package, and how modules are named and cut.

The rules are checked on the syntax tree, so that an import inside a function or
an ``if`` counts like one at the top. Every rule is first seen failing on a small
package that breaks it.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import streamfluence

PACKAGE = Path(streamfluence.__file__).parent
LAYERS = (  # the lowest first; a module imports from its own layer and from those below
    {"errors"},
    {"layout", "columns", "given", "new_file", "recorded"},
    {"linalg", "linearised", "registry", "options", "batches"},
    {"codecs", "curvature", "preconditioners", "readouts", "executors"}
    | {"scales", "solvers", "scans"}
    | {
        "likelihoods",
        "job",
        "job_file",
        "job_parser",
        "tables",
        "budget",
        "user_code",
        "short_forms",
    },
    {"capture", "store", "data", "task", "task_file", "execution"},
    {"projections"},
    {"features"},
    {"run"},
    {"sketching", "collecting", "scoring"},
    {"evaluation", "starting"},
    {"stages"},
    {"api", "guide", "recording"},
    {"cli", "__init__", "__main__"},
)
# Each does one part of the work on what is below, and none needs another.
WORKSHOPS = {"sketching", "collecting", "scoring"}
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
ONLY_IN = {
    "zarr": ("store", "codecs"),
    "dask": ("executors", "scoring.lazy"),
    "distributed": ("executors", "scoring.lazy"),
    "click": ("cli",),
    "rich": ("cli",),
}
# The manifest is read as typed values; those who write one, or keep another, know it by its keys.
KNOWS_KEYS = ("run", "store", "evaluation.truth", "evaluation.pilot")
# Every path inside a run is spelt in ``layout``.
FOLDERS = (
    "receipts",
    "parts",
    "data",
    "scores",
    "score",
    "scan",
    "sets",
    "identities",
    "sketch",
    "collect",
)
MAX_LINES = 300
# The folder of stored-row formats; always imported by its full name, so nothing is shadowed.
ALLOWED_NAMES = {"codecs"}


def violations(root: Path) -> list[str]:
    """Return every broken rule of the package in ``root`` as a readable line."""
    sources = {_name(root, path): path.read_text() for path in sorted(root.rglob("*.py"))}
    sources = {name: text for name, text in sources.items() if not name.startswith(("_ex", "temp"))}
    imports = {
        name: _resolve(set(_imports(text, name, root.name)), root.name, set(sources))
        for name, text in sources.items()
    }
    found = [line for name in sources for line in _check(name, sources[name], imports[name], root)]
    return found + _cycles(imports)


def _check(name: str, text: str, imports: set[str], root: Path) -> Iterator[str]:
    own = {target for target in imports if not target.startswith("/")}
    packages = {target.removeprefix("/").partition(".")[0] for target in imports - own}
    if _top(name) not in RANKS:
        yield f"{name}: has no layer"
        return
    for target in sorted(own):
        if RANKS.get(_top(target), -1) > RANKS[_top(name)]:
            yield f"{name}: imports {target} from a layer above"
        if {_top(name), _top(target)} <= WORKSHOPS and _top(name) != _top(target):
            yield f"{name}: imports {target} of another workshop"
        if _is_sibling(name, target, root):
            yield f"{name}: imports {target} of the same family"
    for package in sorted(packages & set(ONLY_IN)):
        if not any(_inside(name, place) for place in ONLY_IN[package]):
            yield f"{name}: imports {package}, which is for {' and '.join(ONLY_IN[package])}"
    yield from _spelt_out(name, ast.parse(text))
    for word in name.split("."):
        if word in sys.stdlib_module_names - ALLOWED_NAMES and not word.startswith("_"):
            yield f"{name}: has the name of the standard-library module {word}"
    if text.count("\n") > MAX_LINES:
        yield f"{name}: has {text.count(chr(10))} lines, the most is {MAX_LINES}"


def _spelt_out(name: str, tree: ast.Module) -> Iterator[str]:
    """Yield what is known by a string that has one place to be known in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            owner = node.value
            named = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if named == "manifest" and not any(_inside(name, place) for place in KNOWS_KEYS):
                yield f"{name}: looks {node.slice.value!r} of the manifest up by string"
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and name != "layout":
            folder, slash, _ = node.value.partition("/")
            if slash and folder in FOLDERS and " " not in node.value:
                yield f"{name}: spells the path {node.value!r}, which is for layout"


def _imports(text: str, name: str, package: str) -> Iterator[str]:
    """Yield the full dotted name of everything that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                above = [package, *name.removesuffix("__init__").rstrip(".").split(".")]
                levels = node.level - name.endswith("__init__")
                start = ".".join([*above[: len(above) - levels], *filter(None, [node.module])])
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _called_imports(node)


def _called_imports(call: ast.Call) -> Iterator[str]:
    """Yield what ``import_module("name")`` imports."""
    function = call.func
    called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if called in ("import_module", "__import__") and call.args:
        first = call.args[0]
        yield from [str(first.value)] if isinstance(first, ast.Constant) else []


def _resolve(imports: set[str], package: str, modules: set[str]) -> set[str]:
    """Return own modules by their name inside the package, and all others after a slash."""
    resolved = set()
    for target in imports - {f"{package}.__version__"}:
        top, _, inside = target.partition(".")
        if top != package:
            resolved.add(f"/{target}")
            continue
        while inside and inside not in modules and f"{inside}.__init__" not in modules:
            inside = inside.rpartition(".")[0]
        resolved.add(inside if inside in modules else f"{inside}.__init__".lstrip("."))
    return resolved


def _cycles(imports: dict[str, set[str]]) -> list[str]:
    """Return one line for each import that closes a circle of modules."""
    found, finished, path = [], set(), []

    def visit(name: str) -> None:
        path.append(name)
        for target in sorted(imports.get(name, ())):
            if target in path:
                circle = [*path[path.index(target) :], target]
                found.append(f"{name}: imports in a circle, {' > '.join(circle)}")
            elif target not in finished and target in imports:
                visit(target)
        finished.add(path.pop())

    for name in sorted(imports):
        if name not in finished:
            visit(name)
    return found


def _is_sibling(name: str, target: str, root: Path) -> bool:
    """Return whether a member, or the contract, of a family imports a member of the same family."""
    family, _, member = name.partition(".")
    other_family, _, other = target.partition(".")
    if family != other_family or not (root / family / "base.py").exists() or name == target:
        return False
    return not member.startswith("_") and not other.startswith("_") and other != "base"


def _name(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _inside(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def test_the_package_breaks_no_rule():
    assert violations(PACKAGE) == []


@pytest.fixture
def package(tmp_path):
    """Return a function that writes a small package, clean but for the given files."""

    def write(**files: str) -> Path:
        root = tmp_path / "streamfluence"
        clean = {
            "__init__": "from streamfluence.errors import Wrong\n",
            "errors": "class Wrong(Exception): ...\n",
            "codecs/__init__": "",
            "codecs/base": "from streamfluence import linalg\nimport zarr\n",
            "codecs/bands": "from streamfluence.codecs.base import Codec\nfrom . import _pack\n",
            "codecs/_pack": "import numpy\n",
            "linalg": "def f():\n    from streamfluence.errors import Wrong\n",
            "store/__init__": "",
            "store/run": "import zarr\nfrom streamfluence import __version__, codecs\n",
            "stages/__init__": "",
            "run/__init__": "",
            "run/session": "from streamfluence.store.run import Run\n",
            "scoring/__init__": "",
            "scoring/lazy": "import dask.array\nfrom streamfluence.run.session import Session\n",
            "collecting/__init__": "",
            "collecting/units": "from streamfluence.run.session import Session\n",
            "stages/score": "from streamfluence.scoring.lazy import scores\n",
            "stages/top": "from streamfluence.stages.score import score\n",
            "cli/__init__": "import click\n\ndef f():\n    from streamfluence import stages\n",
        }
        for name, text in (clean | files).items():
            path = root / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return write


def test_a_clean_package_is_found_clean(package):
    assert violations(package()) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("errors", "import streamfluence.layout", "from a layer above"),
        ("linalg", "from streamfluence.stages import score", "stages.score from a layer above"),
        ("linalg", "from streamfluence import stages", "stages.__init__ from a layer above"),
        (
            "linalg",
            "def f():\n    from streamfluence import cli",
            "cli.__init__ from a layer above",
        ),
        ("linalg", "def f():\n    import streamfluence.store.run", "store.run from a layer above"),
        ("linalg", "if f:\n    from .store import run", "store.run from a layer above"),
        ("linalg", "from streamfluence import open", "__init__ from a layer above"),
        ("store/run", "from ..stages.top import top", "stages.top from a layer above"),
        ("store/__init__", "from ..stages import top", "stages.top from a layer above"),
        ("linalg", "importlib.import_module('streamfluence.cli')", "from a layer above"),
        ("codecs/int8", "from streamfluence.codecs.bands import B", "codecs.bands of the same"),
        ("codecs/int8", "def f():\n    from . import bands", "codecs.bands of the same family"),
        (
            "codecs/base",
            "from streamfluence.codecs import bands",
            "codecs.bands of the same family",
        ),
        ("stages/top", "import zarr.storage", "imports zarr, which is for store and codecs"),
        ("linalg", "def f():\n    from zarr import open", "imports zarr"),
        ("stages/top", "from dask import array", "imports dask"),
        ("stages/scores", "import distributed", "imports distributed"),
        ("store/run", "import_module('dask')", "imports dask"),
        ("stages/top", "import click", "imports click, which is for cli"),
        ("store/statistics", "", "the name of the standard-library module statistics"),
        ("queue/__init__", "", "queue.__init__: has no layer"),
        ("novelty", "", "novelty: has no layer"),
        ("stages/top", "x = run.manifest['rows']['bytes']", "looks 'rows' of the manifest up"),
        (
            "scoring/lazy",
            "def f(manifest): return manifest['rows']",
            "looks 'rows' of the manifest",
        ),
        (
            "stages/top",
            "x = f'sketch/{c}/decision'",
            "spells the path 'sketch/', which is for layout",
        ),
        ("run/session", "x = 'scores/' + name", "spells the path 'scores/'"),
        (
            "collecting/units",
            "def f():\n    from streamfluence.scoring import lazy",
            "collecting.units: imports scoring.lazy of another workshop",
        ),
        (
            "run/session",
            "from streamfluence.scoring import lazy",
            "scoring.lazy from a layer above",
        ),
        ("linalg", "#\n" * 301, "linalg: has 301 lines, the most is 300"),
        (
            "stages/score",
            "from streamfluence.stages import top",
            "circle, stages.score > stages.top",
        ),
    ],
)
def test_a_broken_rule_is_found(package, name, text, complaint):
    files = {"layout": "", "stages/scores": "", name: text}
    found = violations(package(**files))
    assert any(complaint in line for line in found), found


def test_one_broken_rule_is_one_complaint(package):
    assert violations(package(linalg="def f():\n    import click")) == [
        "linalg: imports click, which is for cli"
    ]
