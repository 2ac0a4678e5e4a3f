"""From a saved model and data to a job that runs as it is."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from streamfluence.errors import InputError
from streamfluence.starting import examples, written
from streamfluence.starting.examples import Columns
from streamfluence.starting.saved_model import SavedModel, saved_model
from streamfluence.starting.training import training_of

_TOKENS = ["input_ids", "labels"]


@dataclass(frozen=True)
class Start:
    """What somebody has.

    Attributes:
        hf: Folder of a model that transformers saved.
        data: File or folder of training examples.
        text_column, prompt_column, completion_column: What the model reads.
        label_column: Of the class, for classifiers.
        peft: Folder of an adapter of the model, whose weights alone are attributed.
        trust_remote_code: Whether Python files in the model's folder may run.
    """

    hf: Path
    data: Path | None = None
    text_column: str | None = None
    prompt_column: str | None = None
    completion_column: str | None = None
    label_column: str | None = None
    peft: Path | None = None
    trust_remote_code: bool = False

    def files(self, directory: Path) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the text of every file of the job by name, and what was found out.

        Raises:
            InputError: If the model or the data cannot be used, or a column is not named.
        """
        if self.data is None:
            raise InputError("--hf needs --data FILE_OR_DIR: the examples it was trained on")
        model = saved_model(self.hf, self.peft, self.trust_remote_code)
        train, asked = examples.table_of(self.data)
        columns = self._columns(model, str(train["reader"]))
        names = _TOKENS if model.kind == "tokens" else columns.names
        if model.kind == "tokens":
            columns = Columns()
        examples.check_columns(train, names)
        length, looked_at = self._length(model, train, columns)
        options = written.reader_options(model, columns, length)
        found, notes = training_of(model.checkpoint)
        lines = examples.queries(asked, names, options.get("length"))
        query_table = {"reader": "jsonl", "path": written.QUERIES, **options}
        if train["reader"] == "text":  # which names its only column itself
            options.pop("text_field")
        job = written.job_text(model, directory, {**train, **options}, query_table, found, notes)
        task = written.task_text(model, directory, columns.label, self.trust_remote_code)
        facts = {
            "model": f"{model.kind}, {model.likelihood}",
            "length": f"{length} tokens, from {looked_at:,} examples",
            "training": [f"{each.key} = {each.value} ({each.source})" for each in found],
            "notes": notes,
        }
        return {"task.py": task, "job.toml": job, written.QUERIES: lines}, facts

    def _columns(self, model: SavedModel, reader: str) -> Columns:
        found = Columns(
            self.text_column, self.prompt_column, self.completion_column, self.label_column
        )
        if reader == "text" and not found.fields:
            found = replace(found, text="text")
        if model.kind == "sequence" and found.label is None:
            raise InputError(
                "a classifier of texts needs --label-column: the class of each example"
            )
        if model.kind != "sequence" and found.label is not None:
            raise InputError(
                f"--label-column is for classifiers of texts; this model is: {model.kind}"
            )
        return found

    def _length(
        self, model: SavedModel, train: dict[str, Any], columns: Columns
    ) -> tuple[int, int]:
        table = {**train, **written.reader_options(model, columns, 1)}
        if train["reader"] == "text":
            table.pop("text_field")
        return examples.longest(table, model.most_tokens)
