"""The commands that measure whether scores can be trusted, one a protocol."""

import click


@click.group()
def evaluate() -> None:
    """Measure whether the scores of a run can be trusted."""
