"""The members of a family and their options: read off their source, so that nothing is imported."""

import ast
from importlib.machinery import PathFinder
from itertools import accumulate
from pathlib import Path

from streamfluence.guide._docstrings import entries, paragraphs, section, table
from streamfluence.options import maker
from streamfluence.registry import Origin, names, origin

# Families whose members' docstrings are shown whole: what is stored, what a matrix is, what scores mean.
_WHOLE = {"readouts", "curvature", "features", "scales", "solvers", "scans", "scoring.sources"}
_PYTHON_ONLY = {"Sequence[Any]", "np.ndarray"}  # types that no value of a job has
_WITH_EXAMPLE = {"data"}  # those whose modules begin with an example of a job


def members(family: str) -> str:
    """Return what the members of a family are, plug-ins included, with the options each takes."""
    return "\n\n".join(_member(family, name) for name in names(family))


def _member(family: str, name: str) -> str:
    found = origin(family, name)
    try:
        module = _parsed(found.module)
        classes = _classes(module, found)
    except LookupError:  # a plug-in that is not made of plain files
        return f"### `{name}`\n\nIn `{found.module}` of the package `{found.distribution}`."
    promise, said = ast.get_docstring(module) or "", ast.get_docstring(classes[0]) or ""
    parts = [f"### `{name}`"]
    if family in _WITH_EXAMPLE:
        parts += [promise.replace("``", "`"), *paragraphs(said)[1:]]
    else:
        parts += [*paragraphs(promise)[:1], *paragraphs(said)[: None if family in _WHOLE else 1]]
    source = section(said, "Source")
    parts += [f"Source: {source}"] if source else []
    parts += [f"From the package `{found.distribution}`."] if found.distribution else []
    rows = _options(classes, maker(family))
    parts += [table(["Option", "Type", "Default", "Meaning"], rows)] if rows else []
    return "\n\n".join(parts)


def _options(classes: list[ast.ClassDef], makes: str) -> list[list[str]]:
    """Return name, type, default and meaning of what ``makes`` may be given by keyword alone."""
    said: dict[str, str] = {}
    for each in reversed(classes):
        for described in (each, _function(each, makes)):
            said |= entries((described and ast.get_docstring(described)) or "", "Args")
    found: dict[str, list[str]] = {}
    further: str | None = None
    for each in classes:
        made = _function(each, makes)
        if made is None:
            continue
        for argument, default in zip(made.args.kwonlyargs, made.args.kw_defaults, strict=True):
            kind = ast.unparse(argument.annotation) if argument.annotation else ""
            row = [f"`{argument.arg}`", _type(kind), _default(default), said.get(argument.arg, "")]
            found.setdefault(argument.arg, row)
        if made.args.kwarg is None:
            return list(found.values())
        further = said.get(made.args.kwarg.arg)
    return [*found.values(), *([["others", "", "", further]] if further else [])]


def _type(annotation: str) -> str:
    """Return an annotation as it reads in a job."""
    words = [w for w in annotation.removesuffix(" | None").split(" | ") if w not in _PYTHON_ONLY]
    known = {"str": "string", "int": "whole number", "float": "number", "bool": "true or false"}
    known |= {"Sequence[str]": "list of strings"}
    named = (_choices(word) or known.get(word, "table") for word in words)
    return " or ".join(named)


def _choices(annotation: str) -> str:
    """Return the values of a ``Literal`` as they stand in a job; empty for another annotation."""
    if not annotation.startswith("Literal["):
        return ""
    values = annotation.removeprefix("Literal[").removesuffix("]").replace("'", '"')
    return " or ".join(f"`{value}`" for value in values.split(", "))


def _default(default: ast.expr | None) -> str:
    match default:
        case None:
            return "required"
        case ast.Constant(None):
            return "not set"
        case ast.Constant(bool(value)):
            return f"`{str(value).lower()}`"
        case ast.BinOp(ast.Constant(int(left)), ast.LShift(), ast.Constant(int(right))):
            return f"`{left << right}`"
    return f"`{ast.unparse(default)}`"


def _function(kind: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    """Return the function of that name, if the class itself defines one."""
    return next((n for n in kind.body if isinstance(n, ast.FunctionDef) and n.name == name), None)


def _classes(module: ast.Module, found: Origin) -> list[ast.ClassDef]:
    """Return the class of a member and those it is derived from, as far as they can be read.

    Raises:
        LookupError: If the module does not define the class.
    """
    own = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    if found.attribute not in own:
        raise LookupError(found.attribute)
    kind = own[found.attribute]
    for base in kind.bases:
        where = _imported_from(module, ast.unparse(base))
        if where and not where.endswith(".base"):
            above = Origin(where, ast.unparse(base), None)
            return [kind, *_classes(_parsed(where), above)]
    return [kind]


def _imported_from(module: ast.Module, name: str) -> str | None:
    for node in module.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return node.module
    return None


def _parsed(module: str) -> ast.Module:
    """Return the syntax tree of an installed module, found without importing its packages.

    Raises:
        LookupError: If there is no source file of it.
    """
    path, file = None, None
    for name in accumulate(module.split("."), "{}.{}".format):
        spec = PathFinder.find_spec(name, path)
        if spec is None:
            raise LookupError(module)
        path, file = list(spec.submodule_search_locations or ()), spec.origin
    if file is None or not file.endswith(".py"):
        raise LookupError(module)
    return ast.parse(Path(file).read_text(encoding="utf-8"))
