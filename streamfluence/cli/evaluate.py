"""The commands that measure whether scores can be trusted, one a protocol."""

from typing import Any

import click

from streamfluence.cli import _options as options
from streamfluence.cli._call import call, call_watched, execution, grouped
from streamfluence.cli._program import Commands
from streamfluence.cli._show import show, warn

CHECK_FAILED_EXIT_CODE = 6


@click.group(cls=Commands)
def evaluate() -> None:
    """Measure whether the scores of a run can be trusted."""


class Several(options.ParamType):
    """Values separated by commas, as a tuple."""

    def __init__(self, kind: type) -> None:
        self.kind, self.name = kind, f"{kind.__name__},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of values separated by commas", param, ctx)


by_id = click.option(
    "--ids", "by_id", is_flag=True, help="FILE lists your own ids (numbers or strings), not rows."
)
query_set = click.option("--queries", metavar="NAME", help="Which query set, of several.")


@evaluate.command()
@options.run_path
@click.option(
    "--flags",
    required=True,
    metavar="FILE",
    help="Suspicious examples: a mask (.npy, .npz), or rows (.npy, .npz, .json, .txt).",
)
@by_id
@options.as_json
def mislabel(run_path: str, flags: str, by_id: bool, as_json: bool) -> None:
    """Judge how well each ranking of RUN finds flagged examples.

    Self-influence stands beside the loss, its mean over checkpoints and the gradient
    norm: the mean loss often wins.
    """
    show(call("evaluate.mislabel", run_path, flags, by_id=by_id), as_json)


@evaluate.command()
@options.run_path
@click.option(
    "--relevant", metavar="FILE", help="JSON: query row to a list of relevant training rows."
)
@click.option("--same-group", is_flag=True, help="Relevant are the examples of the query's group.")
@by_id
@query_set
@click.option(
    "-k", "ks", type=click.IntRange(min=1), multiple=True, metavar="K", help="Recall at K."
)
@options.as_json
def retrieval(run_path: str, as_json: bool, **how: Any) -> None:
    """Judge whether the scores of RUN bring up relevant training examples.

    Prints recall@K (K = 1, 10, 100, or as given) and the mean reciprocal rank, each beside chance.
    """
    given = {key: value for key, value in how.items() if value != ()}
    show(call("evaluate.retrieval", run_path, **given), as_json)


@evaluate.command()
@options.run_path
@click.option("--sample", type=click.IntRange(min=1), default=512, show_default=True, metavar="N")
@click.option(
    "--queries",
    "n_queries",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="K",
    help="How many queries.",
)
@click.option("--query-set", "queries", metavar="NAME", help="Which query set, of several.")
@click.option("--bytes", "row_bytes", type=Several(int), default=(), metavar="N,N", help="To try.")
@click.option("--width", "widths", type=Several(int), default=(), metavar="N,N", help="To try.")
@click.option(
    "--curvature", "curvatures", type=Several(str), default=(), metavar="NAME,NAME", help="To try."
)
@click.option("--damping", type=Several(float), default=(), metavar="X,X", help="To try.")
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, metavar="K")
@click.option("--by-layer/--joint", default=None, help="Whether to solve layer by layer as well.")
@click.option("--double", is_flag=True, help="Solve the reference in float64.")
@click.option(
    "--solver", default="conjugate_gradients", show_default=True, metavar="NAME", help="Solves it."
)
@options.as_json
def fidelity(run_path: str, as_json: bool, **how: Any) -> None:
    """Compare the scores of RUN with unprojected Gauss-Newton, without retraining.

    On N training examples the reference is solved at the run's damping. Other bytes,
    widths, curvatures and dampings are tried on the same examples.
    """
    others = grouped(_OTHERS, how, "row_bytes", "widths", "curvatures", "damping")
    compared = grouped("evaluation.asked.Compared", how, *how)
    result = call_watched("evaluate.fidelity", run_path, compared, others)
    warn(result)
    show(result, as_json)


@evaluate.command()
@options.run_path
@click.option("--sample", type=click.IntRange(min=1), default=256, show_default=True, metavar="N")
@click.option("--query-set", "queries", metavar="NAME", help="Which query set, of several.")
@click.option("--strict", is_flag=True, help="End with exit code 6 when a check fails.")
@options.as_json
def sanity(run_path: str, sample: int, queries: str | None, strict: bool, as_json: bool) -> None:
    """Check that the scores of RUN behave as scores must.

    Duplicates score alike, order does not matter, sums agree with autograd, and a model
    of shuffled weights scores differently. A failed check is no damage: the exit code
    stays 0 unless --strict is given.
    """
    result = call_watched("evaluate.sanity", run_path, sample=sample, queries=queries)
    show(result, as_json)
    if strict and not result["passed"]:
        raise click.exceptions.Exit(CHECK_FAILED_EXIT_CODE)


class Rows(options.ParamType):
    """Row numbers separated by commas, as a list."""

    name = "ROW,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            self.fail(f"{value!r} is not a list of rows such as 3,17", param, ctx)


def _seeds(default: int) -> options.Decorator:
    return click.option(
        "--seeds",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        metavar="S",
        help="Trainings of each, with seeds 0 to S - 1.",
    )


_OTHERS = "evaluation.asked.Others"
_CHOSEN = "evaluation.truth.chosen.Chosen"


def _judged_by(given: dict[str, Any]) -> dict[str, Any]:
    """Take out of what was given which scores are judged, and by which trainings."""
    trainings = ("truth", "seeds", "draw_seed", "train", "worker")
    return {
        "judged": grouped("evaluation.asked.Judged", given, "queries", "scores", "damping"),
        "trainings": grouped("evaluation.asked.Trainings", given, *trainings),
    }


_retraining = options.together(
    query_set,
    click.option("--scores", metavar="NAME", help="Which scores, of several."),
    click.option("--damping", type=float, metavar="X", help="Judge scores at another damping."),
    click.option(
        "--truth",
        metavar="FOLDER",
        help="Where retraining outcomes are kept; beside RUN, shared by runs of the same task and data.",
    ),
    click.option(
        "--draw-seed", type=int, default=0, metavar="N", help="Of the random draw of examples."
    ),
    click.option("--no-train", "train", flag_value=False, default=True, help="Train nothing."),
    options.worker,
    options.compute,
    options.as_json,
)


@evaluate.command()
@options.run_path
@click.option(
    "--subsets",
    type=int,
    default=50,
    show_default=True,
    metavar="N",
    help="Random subsets to train on. More can be added later.",
)
@click.option(
    "--fraction",
    type=float,
    default=0.5,
    show_default=True,
    metavar="F",
    help="Share of the training set in each.",
)
@_seeds(2)
@_retraining
def lds(run_path: str, how: dict[str, Any], as_json: bool, **given: Any) -> None:
    """Judge the scores of RUN by training on random subsets.

    The linear datamodeling score: how well the summed scores of a subset rank what training
    on it does to a query; 1 is perfect. Needs train(indices, seed) in the task. What is
    trained stays, and is used again by other runs of the same task and data.
    """
    given |= _judged_by(given)
    found = call_watched("evaluate.lds", run_path, execution=execution(how), **given)
    show(found if as_json else {k: v for k, v in found.items() if k != "per_query"}, as_json)


@evaluate.command()
@options.run_path
@click.option("--examples", type=Rows(), help="Rows of the training examples to leave out.")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="K",
    help="Leave out those with the largest absolute scores.",
)
@click.option("--random", type=click.IntRange(min=1), metavar="K", help="Leave out random ones.")
@click.option(
    "--leave",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Examples left out together.",
)
@click.option("--query", type=int, metavar="ROW", help="Judge by this query alone.")
@_seeds(3)
@_retraining
def loo(run_path: str, how: dict[str, Any], as_json: bool, **given: Any) -> None:
    """Compare the scores of RUN with training without chosen examples.

    Needs train(indices, seed) in the task. A predicted change is the sum of the scores of what
    is left out; slope is actual per predicted change, and 1 is calibrated.
    """
    given |= _judged_by(given)
    chosen = grouped(_CHOSEN, given, "examples", "top", "random", "leave")
    found = call_watched("evaluate.loo", run_path, chosen, execution=execution(how), **given)
    show(found, as_json)
