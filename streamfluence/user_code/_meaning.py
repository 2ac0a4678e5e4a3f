"""The digest of what a source says: comments, docstrings and layout are no part of it.

The tree of the parsed source is written out here and not by ``ast.dump``, whose form is another in
every version of Python; what a node does not have is left out, so that new fields change nothing.
"""

import ast
import hashlib
from collections.abc import Iterator
from typing import Any

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_IGNORED = ("ctx", "type_comment", "kind", "type_ignores")
# Names by which code looks at its own text, docstrings or lines; scripting compiles the text.
_LOOKS_AT_ITSELF = {
    *("__doc__", "getdoc", "getsource", "getsourcelines", "linecache", "__file__", "script"),
    *("co_firstlineno", "f_lineno", "co_lines"),
}


def digest_of_source(source: bytes) -> str:
    """Return the sha256 of what a Python source says; of its bytes where it is none, or looks at itself."""
    try:
        tree = ast.parse(source)
        said = (
            source if _looks_at_itself(tree) else "".join(_written(tree)).encode("utf-8", "replace")
        )
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        said = source
    return hashlib.sha256(said).hexdigest()


def _looks_at_itself(tree: ast.AST) -> bool:
    names = (
        [getattr(node, key, None) for key in ("attr", "id", "name")] for node in ast.walk(tree)
    )
    return any(name in _LOOKS_AT_ITSELF for some in names for name in some)


def _written(node: Any) -> Iterator[str]:
    """Yield the pieces of a node's form, which no other node has."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name in node._fields:
            value = getattr(node, name, None)
            if name == "body" and isinstance(node, _DOCUMENTED):
                documented = ast.get_docstring(node, clean=False) is not None
                value = node.body[1:] if documented else node.body
            if name not in _IGNORED and value is not None and value != []:
                yield f" {name}="
                yield from _written(value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for item in node:
            yield from _written(item)
            yield ","
        yield "]"
    else:
        yield f"{type(node).__name__} {node!r}"
