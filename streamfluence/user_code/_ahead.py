"""The modules that a source imports, also those it imports only once one of its functions runs."""

import ast
import importlib.util
from collections.abc import Iterator


def imported(source: bytes, package: str) -> Iterator[str]:
    """Yield the full name of every module that a source may import, and of every name it takes of one.

    Args:
        package: Of the source, which its relative imports start from.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # whoever imports it hears of that
    for node in _run(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from(node, package)
        elif isinstance(node, ast.Call) and _imports(node.func) and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value.lstrip(".")


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node but those that only a type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from _run(other)
        else:
            yield from _run(child)


def _from(node: ast.ImportFrom, package: str) -> Iterator[str]:
    base = "." * node.level + (node.module or "")
    try:
        base = importlib.util.resolve_name(base, package)
    except ImportError:
        return
    yield base
    yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _imports(function: ast.AST) -> bool:
    name = getattr(function, "attr", None) or getattr(function, "id", None)
    return name in ("import_module", "__import__")
