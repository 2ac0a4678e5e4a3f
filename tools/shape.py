"""How the code is cut: lines of modules and functions, parameters, and what is carried by hand.

python tools/shape.py            the figures, and what is over its bound
"""

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "streamfluence"
MODULE_LINES, MEDIAN, NINETIETH, PARAMETERS = 300, 5, 15, 8
CARRIED = ("run_path", "device", "checkpoint", "example_set")  # what a handle holds is no parameter
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    """Yield every function of the package with the place it is at."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node


def body_lines(function: Function) -> int:
    """Return the lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def names(function: Function) -> list[str]:
    """Return the names of the parameters that a caller may give."""
    takes = function.args
    given = [*takes.posonlyargs, *takes.args, *takes.kwonlyargs]
    return [each.arg for each in given if each.arg not in ("self", "cls")]


def parameters(function: Function) -> int:
    """Return how many parameters a caller may give."""
    return len(names(function))


def main() -> int:
    """Print the figures; return how many bounds are broken."""
    modules = {p: p.read_text().count("\n") for p in PACKAGE.rglob("*.py")}
    lines = sorted(body_lines(function) for _, function in functions())
    median, ninetieth = statistics.median(lines), lines[len(lines) * 9 // 10]
    broken = [
        f"{p.relative_to(PACKAGE)}: {n} lines" for p, n in modules.items() if n > MODULE_LINES
    ]
    broken += [f"median function: {median} lines"] if median > MEDIAN else []
    broken += [f"ninetieth percentile: {ninetieth} lines"] if ninetieth > NINETIETH else []
    broken += [
        f"{where}: {parameters(function)} parameters"
        for where, function in functions()
        if parameters(function) > PARAMETERS and not function.name.startswith("_")
    ]
    print(f"{len(modules)} modules, median {statistics.median(modules.values()):g} lines")
    print(f"{len(lines)} functions, median {median:g} lines, ninetieth percentile {ninetieth}")
    for carried in CARRIED:
        print(f"{sum(carried in names(f) for _, f in functions())} functions take {carried}")
    print("\n".join(f"over its bound: {each}" for each in broken))
    return len(broken)


if __name__ == "__main__":
    sys.exit(main())
