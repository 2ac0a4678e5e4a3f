"""The commands, in the order a user meets them. Each calls one stage and prints what it returns."""

from importlib import import_module
from pathlib import Path
from typing import Any

import click

import streamfluence
from streamfluence.cli import _options as options
from streamfluence.cli._call import call, call_watched, execution, grouped
from streamfluence.cli._clean import put
from streamfluence.cli._program import Program
from streamfluence.cli._saved_model import saved_model
from streamfluence.cli._show import show, warn
from streamfluence.cli.evaluate import evaluate
from streamfluence.cli.relocate import relocate


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(streamfluence.__version__, message="streamfluence %(version)s")
def main() -> None:
    """Which training examples made the model do this?

    Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 a bug;
    2 usage, configuration or input; 3 damage found; 4 incomplete; 5 too many
    non-finite rows; 6 a check of `evaluate sanity --strict` failed; 74 storage
    error, retry later; 75 interrupted, safe to resume.
    """


@main.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@saved_model
@options.as_json
def init(directory: Path, example: str | None, as_json: bool, **given: Any) -> None:
    """Write a task and a job, or a worked example, into DIRECTORY.

    With --hf and --data they are made for a model and data you have, and run as they are.
    """
    start = grouped("starting.start.Start", given, *given) if given["hf"] else None
    if start is None and any(given.values()):
        raise click.UsageError("--data, columns and --peft are for --hf MODEL_DIR")
    show(call("init", directory, example=example, start=start), as_json)


@main.command()
@options.job_path
@options.optional_run_path
@options.overrides
@options.as_json
def plan(job_path: Path, run_path: str | None, overrides: dict[str, Any], as_json: bool) -> None:
    """Print what JOB will cost and refuse what does not fit.

    Time is estimated from a short probe of the real model and data.
    """
    show(call("plan", job_path, run_path or _beside(job_path), overrides=overrides), as_json)


@main.command()
@options.job_path
@options.optional_run_path
@options.overrides
@options.as_json
def run(job_path: Path, run_path: str | None, overrides: dict[str, Any], as_json: bool) -> None:
    """Do everything of JOB that is missing in RUN. Safe to repeat.

    RUN is a folder, or the address of one in an object store; the folder `run`
    beside JOB when it is not given.
    """
    target = run_path or _beside(job_path)
    show(call_watched("run", job_path, target, overrides=overrides), as_json)


@main.command()
@options.run_path
@options.compute
@options.as_json
def sketch(run_path: str, how: dict[str, Any], as_json: bool) -> None:
    """Fit the curvature of RUN from a sample of its training set."""
    show(call_watched("sketch", run_path, execution=execution(how)), as_json)


@main.command()
@options.run_path
@click.option(
    "--example-set",
    "example_sets",
    multiple=True,
    metavar="NAME",
    help="train, or the name of a query set. May be repeated; all when not given.",
)
@options.worker
@options.partition
@options.compute
@options.as_json
def collect(
    run_path: str,
    example_sets: tuple[str, ...],
    worker: tuple[int, int] | None,
    partition: int | None,
    how: dict[str, Any],
    as_json: bool,
) -> None:
    """Write the rows of RUN that are missing."""
    options.exclusive(worker=worker, partition=partition is not None)
    result = call_watched(
        "collect",
        run_path,
        example_sets=list(example_sets) or None,
        worker=worker,
        partition=partition,
        execution=execution(how),
    )
    show(result, as_json)


_ASKED = ("readouts", "top_k", "subsets", "options", "scale", "source", "solver", "record", "scan")


@main.command()
@options.run_path
@click.option(
    "--queries",
    multiple=True,
    metavar="NAME",
    help="Name of a query set. May be repeated; all when not given.",
)
@click.option("--damping", type=float, metavar="X", help="Another damping, over the same rows.")
@click.option(
    "--readout",
    "readouts",
    multiple=True,
    metavar="NAME",
    help="What to keep of the scores. May be repeated; the job's when not given.",
)
@click.option("--top-k", type=click.IntRange(min=1), metavar="K", help="Examples kept a query.")
@click.option("--subsets", metavar="FILE", help="Subsets of training rows for subset_sum.")
@click.option(
    "--scale", metavar="NAME", help="Multiply the scores of each example: cosine, relative or none."
)
@click.option("--source", metavar="NAME", help="rows, streamed or recorded: what is multiplied.")
@click.option("--solver", metavar="NAME", help="Solves the curvature for streamed scores.")
@click.option("--record", metavar="DIR", help="The recorded training, for recorded scores.")
@click.option("--scan", metavar="NAME", help="Walks the steps of a recorded training.")
@options.readout_options
@click.option("--allow-incomplete", is_flag=True, help="Go on without missing rows, and say so.")
@options.score_name
@options.compute
@options.as_json
def score(
    run_path: str,
    queries: tuple[str, ...],
    how: dict[str, Any],
    as_json: bool,
    **given: Any,
) -> None:
    """Score every training example of RUN against its queries."""
    asked = grouped("scoring.asked.Asked", given, *_ASKED)
    chosen = list(queries) or None
    result = call_watched("score", run_path, chosen, asked=asked, execution=execution(how), **given)
    warn(result)
    show(result, as_json)


@main.command()
@options.run_path
@click.argument("query")
@click.option(
    "-k",
    type=click.IntRange(min=1),
    metavar="K",
    help="Examples in each list; 10 if so many are kept.",
)
@click.option("--positive", is_flag=True, help="Only those that help, or score largest.")
@click.option("--negative", is_flag=True, help="Only those that hurt, or score smallest.")
@options.score_name
@options.as_json
def top(
    run_path: str,
    query: str,
    k: int | None,
    positive: bool,
    negative: bool,
    name: str | None,
    as_json: bool,
) -> None:
    """Print the training examples that matter most for QUERY.

    QUERY is SET/INDEX, or INDEX where the run has one query set. A score is the
    predicted increase of the query's loss if the example were removed: positive
    means that the example helps. Of other features than the gradient it is a
    similarity; the record says which.
    """
    both = positive == negative
    result = call(
        *("top", run_path, query),
        k=k,
        positive=positive or both,
        negative=negative or both,
        name=name,
    )
    warn(result.get("record", {}))
    show(result, as_json)


@main.command()
@options.run_path
@options.as_json
def status(run_path: str, as_json: bool) -> None:
    """Print what of RUN is there and what is missing."""
    show(call("status", run_path), as_json)


@main.command()
@options.run_path
@click.option("--full", is_flag=True, help="Read every stored byte, not a sample.")
@click.option(
    "--fraction", type=click.FloatRange(0, 1, min_open=True), metavar="F", help="Share to read."
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Which share to read; the next one when not given.",
)
@options.as_json
def verify(
    run_path: str, full: bool, fraction: float | None, seed: int | None, as_json: bool
) -> None:
    """Compare the bytes of RUN with what their receipts promise.

    What must be there is always looked for. Of the bytes every call reads another
    share, 5 % when none is given, so 20 calls in a row read all.
    """
    options.exclusive(full=full, fraction=fraction)
    options.exclusive(full=full, seed=seed is not None)
    show(call("verify", run_path, full=full, fraction=fraction, seed=seed), as_json)


@main.command()
@options.run_path
@options.compute
@options.as_json
def repair(run_path: str, how: dict[str, Any], as_json: bool) -> None:
    """Compute again exactly what is damaged in RUN."""
    show(call_watched("repair", run_path, execution=execution(how)), as_json)


main.add_command(relocate)


@main.command()
@options.run_path
@click.argument("example_set", default="train")
@options.as_json
def finalise(run_path: str, example_set: str, as_json: bool) -> None:
    """Link the rows of EXAMPLE_SET into one Zarr array."""
    show(call("finalise", run_path, example_set), as_json)


@main.command()
@options.run_path
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--format",
    "file_format",
    metavar="NAME",
    help="csv, jsonl or parquet; told by the ending of OUTPUT when not given.",
)
@options.score_name
@options.as_json
def export(
    run_path: str, output: Path, file_format: str | None, name: str | None, as_json: bool
) -> None:
    """Write the ranked examples of RUN to OUTPUT."""
    show(call("export", run_path, str(output), format=file_format, name=name), as_json)


main.add_command(evaluate)


@main.command()
@click.argument("name", required=False)
@options.as_json
def guide(name: str | None, as_json: bool) -> None:
    """Print the page NAME of the guide, or the list of its pages."""
    pages = import_module("streamfluence.guide")
    if name is None:
        titles = [{"page": page, "about": title} for page, title in pages.titles().items()]
        show({"pages": titles}, as_json)
    elif as_json:
        show({"page": name, "markdown": pages.page(name)}, as_json)
    else:
        put(pages.page(name).rstrip("\n"))


def _beside(job_path: Path) -> str:
    """Return where a job's run lies unless the user says otherwise."""
    return str(job_path.parent / "run")
