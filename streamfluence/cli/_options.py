"""Arguments and options that several commands share, each defined once.

An option that changes the job becomes an entry of ``overrides``: the dotted key
it has in the job file, and the value.
"""

import functools
import tomllib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

Command = Callable[..., Any]
if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:  # generic only since click 8.5
    ParamType = click.ParamType
Decorator = Callable[[Command], Command]


class Worker(ParamType):
    """``i/N``: this is worker i of N, counted from 0."""

    name = "i/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        index, _, count = value.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            self.fail(f"{value!r} is not i/N, such as 0/4", param, ctx)
        if int(index) >= int(count):
            self.fail(f"{value!r}: workers count from 0, so i is below N", param, ctx)
        return int(index), int(count)


class Assignment(ParamType):
    """``KEY=VALUE`` with a TOML value; what is not TOML is taken as a string."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals or not all(key.strip().split(".")):
            self.fail(f"{value!r} is not KEY=VALUE, such as rows.bytes=512", param, ctx)
        return key.strip(), _toml(text.strip())


def _toml(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # the job says what is wrong with it
        return text
    return table["value"] if len(table) == 1 else text


def together(*decorators: Decorator) -> Decorator:
    """Return one decorator that applies several, shown in this order by --help."""
    return lambda command: functools.reduce(lambda f, add: add(f), reversed(decorators), command)


job_path = click.argument("job_path", metavar="JOB", type=click.Path(path_type=Path))
run_path = click.argument("run_path", metavar="RUN")
optional_run_path = click.argument("run_path", metavar="[RUN]", required=False)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
score_name = click.option("--name", metavar="NAME", help="Which scores, where a run has several.")
worker = click.option(
    "--worker", type=Worker(), help="Do the share of worker i of N, counted from 0."
)
partition = click.option(
    "--partition", type=click.IntRange(min=0), metavar="K", help="Do only this partition."
)

root_option = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Resolve relative paths against DIR, for this command only.",
)

# Option -> key in the job, type, word in --help, text; the order is that of --help.
COMPUTE = {
    "memory": ("compute.memory", str, "SIZE", "Memory one worker may use, such as 4GiB."),
    "device": ("compute.device", str, "NAME", "cpu, cuda, cuda:1, or auto."),
    "executor": ("compute.executor", str, "NAME", "serial, processes or dask."),
    "workers": ("compute.workers", click.IntRange(min=1), "N", "Processes at work at once."),
    "dask": ("compute.dask", str, "ADDRESS", "Scheduler of a Dask cluster to run on."),
}
DECISIVE = {
    "precision": ("compute.precision", str, "NAME", "float32, or bf16 for forward and backward."),
    "bytes": ("rows.bytes", click.IntRange(min=0), "N", "Bytes of one stored row."),
    "damping": ("curvature.damping", float, "X", "Damping, in the unit of the eigenvalues."),
}


def overrides(command: Command) -> Command:
    """Add every option that changes the job; they arrive as the dict ``overrides``, by job key."""

    @functools.wraps(command)
    def collect(assignments: tuple[tuple[str, Any], ...], **values: Any) -> Any:
        root = values.pop("root")
        given = {key: values.pop(name) for name, (key, *_) in (COMPUTE | DECISIVE).items()}
        laid_over = {key: value for key, value in given.items() if value is not None}
        with _seen_from(root):
            return command(overrides=laid_over | dict(assignments), **values)

    assignments = click.option(
        "--set",
        "assignments",
        type=Assignment(),
        multiple=True,
        help="Set any key of the job, such as sketch.examples=8192. May be repeated.",
    )
    return together(*_declared(COMPUTE | DECISIVE), assignments, root_option)(collect)


def readout_options(command: Command) -> Command:
    """Add ``--set readouts.NAME.KEY=VALUE``; what it says arrives as the dict ``options``, by readout."""

    @functools.wraps(command)
    def collect(assignments: tuple[tuple[str, Any], ...], **values: Any) -> Any:
        tables: dict[str, dict[str, Any]] = {}
        for key, value in assignments:
            family, *rest = key.split(".")
            if family != "readouts" or len(rest) != 2:
                raise click.UsageError(f"--set {key}: only readouts.NAME.KEY can be set here")
            tables.setdefault(rest[0], {})[rest[1]] = value
        return command(options=tables, **values)

    return click.option(
        "--set",
        "assignments",
        type=Assignment(),
        multiple=True,
        help="Set an option of a readout, such as readouts.top_k.k=50. May be repeated.",
    )(collect)


def compute(command: Command) -> Command:
    """Add the options that say how work is run; they arrive as the dict ``how``, by option."""

    @functools.wraps(command)
    def collect(**values: Any) -> Any:
        root = values.pop("root")
        given = {name: values.pop(name) for name in COMPUTE}
        with _seen_from(root):
            return command(how={k: v for k, v in given.items() if v is not None}, **values)

    return together(*_declared(COMPUTE), root_option)(collect)


def _seen_from(root: Path | None) -> AbstractContextManager[None]:
    """Have relative paths resolve against a folder while a command runs; torch comes with it."""
    return nullcontext() if root is None else import_module("streamfluence.execution").mounted(root)


def _declared(options: dict[str, tuple[Any, ...]]) -> list[Decorator]:
    return [
        click.option(f"--{name}", type=kind, metavar=metavar, help=text)
        for name, (_, kind, metavar, text) in options.items()
    ]


def exclusive(**values: Any) -> None:
    """Refuse two options that contradict each other."""
    given = [name.replace("_", "-") for name, value in values.items() if value]
    if len(given) > 1:
        raise click.UsageError(f"give only one of {', '.join(f'--{name}' for name in given)}")
