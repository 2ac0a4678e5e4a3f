"""The commands that measure whether scores can be trusted, one a protocol."""

from typing import Any

import click

from streamfluence.cli import _options as options
from streamfluence.cli._call import call_watched, execution
from streamfluence.cli._show import show


@click.group()
def evaluate() -> None:
    """Measure whether the scores of a run can be trusted."""


class Rows(click.ParamType):
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


_retraining = options.together(
    click.option("--queries", metavar="NAME", help="Which query set, of several."),
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
    found = call_watched("evaluate_lds", run_path, execution=execution(how), **given)
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
    found = call_watched("evaluate_loo", run_path, execution=execution(how), **given)
    show(found, as_json)
