"""The digest of what a source says: comments, docstrings and layout are no part of it.

The tree of the parsed source is written out here and not by ``ast.dump``, whose form is another in
every version of Python; what a node does not have is left out, so that new fields change nothing.
"""

import ast
import hashlib
from pathlib import PurePath
from typing import Any

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_IGNORED = ("ctx", "type_comment", "kind", "type_ignores")
# Names by which code looks at its own text, docstrings or lines; scripting compiles the text.
_LOOKS_AT_ITSELF = {
    *("__doc__", "getdoc", "getsource", "getsourcelines", "linecache", "__file__", "script"),
    *("co_firstlineno", "f_lineno", "co_lines"),
}
_known: dict[str, str] = {}  # digests by those of the bytes


def digest_of_source(source: bytes) -> str:
    """Return the sha256 of what a Python source says; of its bytes where it is none, or looks at itself."""
    raw = hashlib.sha256(source).hexdigest()
    if raw not in _known:  # a process asks again and again whether files changed
        _known[raw] = _meaning(source) or raw
    return _known[raw]


def digest_of_code(name: str, source: bytes) -> str:
    """Return the digest of a file of the user's code.

    Args:
        name: Its path relative to the job's folder. What lies outside of that is a library, perhaps of
            thousands of modules, which take a while to be parsed: it is held to its bytes.
    """
    if name.startswith("..") or PurePath(name).is_absolute():
        return hashlib.sha256(source).hexdigest()
    return digest_of_source(source)


def _meaning(source: bytes) -> str | None:
    pieces: list[str] = []
    try:
        tree = ast.parse(source)
        if _looks_at_itself(tree):
            return None
        _write(tree, pieces)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return hashlib.sha256("".join(pieces).encode("utf-8", "replace")).hexdigest()


def _looks_at_itself(tree: ast.AST) -> bool:
    names = (
        [getattr(node, key, None) for key in ("attr", "id", "name")] for node in ast.walk(tree)
    )
    return any(name in _LOOKS_AT_ITSELF for some in names for name in some)


def _write(node: Any, to: list[str]) -> None:
    """Add the pieces of a node's form, which no other node has."""
    if isinstance(node, ast.AST):
        to.append(f"({type(node).__name__}")
        for name in node._fields:
            value = getattr(node, name, None)
            if name == "body" and isinstance(node, _DOCUMENTED) and _documented(node):
                value = node.body[1:]
            if name not in _IGNORED and value is not None and value != []:
                to.append(f" {name}=")
                _write(value, to)
        to.append(")")
    elif isinstance(node, list):
        to.append("[")
        for item in node:
            _write(item, to)
            to.append(",")
        to.append("]")
    else:
        to.append(f"{type(node).__name__} {node!r}")


def _documented(node: Any) -> bool:
    first = node.body[0] if node.body else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
