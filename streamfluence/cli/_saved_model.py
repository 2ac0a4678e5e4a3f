"""The options of `init`: a worked example, or the saved model and the data that a job is made for."""

from pathlib import Path

import click

from streamfluence.cli._options import together

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

saved_model = together(
    click.option("--example", metavar="NAME", help="Copy a worked example: digits or code."),
    click.option(
        "--hf", type=_FOLDER, metavar="MODEL_DIR", help="A model as transformers saves it."
    ),
    click.option(
        "--data",
        type=click.Path(exists=True, path_type=Path),
        metavar="FILE_OR_DIR",
        help="What it was trained on: Parquet, JSON lines, text, or a folder of save_to_disk.",
    ),
    click.option("--text-column", metavar="T", help="Column of the text that the model reads."),
    click.option("--prompt-column", metavar="P", help="Column of prompts, which are no targets."),
    click.option("--completion-column", metavar="C", help="Column of what follows the prompts."),
    click.option("--label-column", metavar="L", help="Column of the class, for a classifier."),
    click.option(
        "--peft", type=_FOLDER, metavar="ADAPTER", help="An adapter: its weights alone are judged."
    ),
    click.option(
        "--trust-remote-code", is_flag=True, help="Let Python files in MODEL_DIR run: read them."
    ),
)
