"""The files of a job for a saved model: task, job and queries, as text."""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from streamfluence.starting.examples import Columns, placed, relative
from streamfluence.starting.saved_model import SavedModel
from streamfluence.starting.training import Found

QUERIES = "queries.jsonl"


def task_text(model: SavedModel, directory: Path, label: str | None, trusted: bool) -> str:
    """Return the task of a model, with what is its own filled in."""
    template = files("streamfluence") / "templates" / "transformers" / f"{model.kind}.py"
    text = template.read_text(encoding="utf-8")
    base = relative(model.folder, directory) if model.adapter else ""
    for old, new in (
        ('BASE = ""', f"BASE = {json.dumps(base)}"),
        ("TRUST_REMOTE_CODE = False", f"TRUST_REMOTE_CODE = {trusted}"),
        ('LABEL = "label"', f"LABEL = {json.dumps(label)}" if label else 'LABEL = "label"'),
        ('likelihood = "categorical"', f'likelihood = "{model.likelihood}"'),
    ):
        text = text.replace(old, new, 1)
    return text


def reader_options(model: SavedModel, columns: Columns, length: int) -> dict[str, Any]:
    """Return the options by which a reader gives what the task takes."""
    if model.kind == "tokens":
        return {"fields": ["input_ids", "labels"], "length": length}
    options: dict[str, Any] = {"tokenizer": str(model.folder.absolute()), **columns.fields}
    if columns.label:
        options |= {"fields": [columns.label]}
        options |= {"group_field": columns.label} if model.likelihood == "categorical" else {}
    return options | {"length": length}


def job_text(
    model: SavedModel,
    directory: Path,
    train: Mapping[str, Any],
    asked: Mapping[str, Any],
    found: list[Found],
    notes: list[str],
) -> str:
    """Return the job: where everything lies, and how the model was trained as far as that is known."""
    lines = [
        "# Which training examples made this model answer as it does? Written by streamfluence init.",
        "#",
        "#   streamfluence run job.toml",
        "#   streamfluence top run asked/0",
        "",
        'task = "task.py"',
        f"checkpoints = [{json.dumps(relative(model.checkpoint, directory))}]",
        "",
        "[train]",
        *_entries(placed(train, directory)),
        '# id_field = "..."                      # a column of your own ids',
        "",
        f"[queries.asked]                         # {QUERIES}: replace its lines by your own",
        *_entries({**placed(asked, directory), "path": QUERIES}),
        "",
        "[curvature]                             # how it was trained decides the damping",
        # Comments, as no file tells the optimizer: without it they would mean plain SGD.
        *(f"# {each.key} = {each.value:<20} # {each.source}" for each in found),
        *(f"# {note}" for note in notes),
        "",
        "[compute]",
        "batch_size = 8",
    ]
    return "\n".join(lines) + "\n"


def _entries(table: Mapping[str, Any]) -> Iterator[str]:
    for key, value in table.items():
        yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
