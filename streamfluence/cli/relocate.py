"""The command that says where things of a run lie."""

from typing import Any

import click

from streamfluence.cli import _options as options
from streamfluence.cli._call import call
from streamfluence.cli._show import show


@click.command()
@options.run_path
@click.option("--root", metavar="DIR", help="Folder that relative paths resolve against.")
@click.option("--task", metavar="FILE", help="The task, a file or package.module:name.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="PATH",
    help="A checkpoint; repeated for all of them, in order.",
)
@click.option(
    "--data",
    type=options.Assignment(),
    multiple=True,
    metavar="SET.OPTION=PATH",
    help="Files of a set, such as train.path=/data/train-*.npz. May be repeated.",
)
@options.as_json
def relocate(
    run_path: str,
    root: str | None,
    task: str | None,
    checkpoints: tuple[str, ...],
    data: tuple[tuple[str, Any], ...],
    as_json: bool,
) -> None:
    """Say where the task, checkpoints and data of RUN lie now.

    What lies there is compared with what RUN was made of, and refused if it is
    another. What is not given stays as it is, relative to --root.
    """
    result = call(
        *("relocate", run_path), root=root, task=task, checkpoints=checkpoints, data=dict(data)
    )
    show(result, as_json)
