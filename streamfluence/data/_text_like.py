"""Tables with columns of text, which may be tokenised as they are read."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data import _arrow, _files, _options
from streamfluence.data._tabular import Tabular
from streamfluence.data._tokenizer import Tokenizer
from streamfluence.errors import InputError


class TextLike(Tabular):
    """Read columns of a table, texts as tokens if a tokenizer is named.

    A batch then holds ``input_ids``, ``attention_mask`` and ``labels``, each (example, length), beside
    the fields that are named; ``labels`` are the tokens, -100 on padding and on prompts, and left out
    where a field of yours has that name. Texts are tokenised whenever they are read; nothing is kept.

    Args:
        root: The job's folder.
        tokenizer: Folder of a model or tokenizer as transformers saves it, with a tokenizer.json; no
            code is loaded and nothing downloaded.
        text_field: Column of the text to tokenise.
        prompt_field, completion_field: Columns that are put together and tokenised; only tokens
            of the completion are targets.
        end_token: Add the end-of-text token, as training may have done.
        length: Tokens of an example, and of lists of numbers their length: longer ones are cut, shorter
            ones padded (numbers of ``labels`` by -100, others by 0). Without it all lists must be
            equally long.
        further: Of ``Tabular``.
    """

    def __init__(
        self,
        root: Path,
        *,
        tokenizer: str | None = None,
        text_field: str | None = None,
        prompt_field: str | None = None,
        completion_field: str | None = None,
        end_token: bool = False,
        length: int | None = None,
        **further: Any,
    ) -> None:
        super().__init__(root, length=length, **further)
        given = {
            "text_field": text_field,
            "prompt_field": prompt_field,
            "completion_field": completion_field,
        }
        self._texts = {key: _options.text(key, name) for key, name in given.items() if name}
        self._end_token = _options.flag("end_token", end_token)
        self._tokenizer = None
        if tokenizer is None and (self._texts or end_token):
            raise InputError(f"{', '.join(self._texts) or 'end_token'} needs tokenizer = FOLDER")
        if tokenizer is not None:
            _check(self._texts, length)
            folder = root / _options.text("tokenizer", tokenizer)
            self._tokenizer = Tokenizer(folder, int(length or 0), end_token)

    def identity(self) -> dict[str, Any]:
        """Return what decides a batch, and the digest of every file; reads all bytes once."""
        found = super().identity()
        if self._tokenizer is None:
            return found
        tokens = {"files": _files.file_digests(self._tokenizer.files), **self._texts}
        return found | {"tokenizer": tokens | {"end_token": self._end_token}}

    def stat_signature(self) -> Any:
        """Return sizes and times of the files; while they are equal, ``identity`` need not be redone."""
        more = [] if self._tokenizer is None else self._tokenizer.files
        return _files.file_signatures([*self._paths, *more])

    @property
    def _needed(self) -> list[str]:
        texts = [self._known(name) for name in self._texts.values()]
        return list(dict.fromkeys([*self._fields, *texts]))

    @property
    def _named(self) -> list[str]:
        return [*super()._named, *self._texts.values()]

    @property
    def _shown(self) -> list[str]:
        return self._previewed or [*self._texts.values(), *self._fields]

    @cached_property
    def _fields(self) -> list[str]:
        if self._chosen is None and self._texts:
            return []
        return super()._fields

    def _batch_of(
        self, columns: dict[str, Any], rows: np.ndarray, like: dict[str, Any]
    ) -> dict[str, Any]:
        batch = super()._batch_of(columns, rows, like)
        if self._tokenizer is None:
            return batch
        texts = {key: self._strings(columns[name], name, rows) for key, name in self._texts.items()}
        if "text_field" in texts:
            tokens = self._tokenizer.texts(texts["text_field"])
        else:
            tokens = self._tokenizer.pairs(texts["prompt_field"], texts["completion_field"], rows)
        return {**tokens, **batch}

    def _strings(self, column: Any, name: str, rows: np.ndarray) -> list[str]:
        if not self._is_text(name):
            raise InputError(f"column {name!r} is {column.type}, no text that could be tokenised")
        return list(_arrow.values_of(column, f"column {name!r}", rows))


def _check(texts: dict[str, str], length: int | None) -> None:
    """Raise InputError unless the options say what to tokenise, and to which length."""
    if set(texts) not in ({"text_field"}, {"prompt_field", "completion_field"}):
        raise InputError(
            "tokenizer needs text_field, or prompt_field and completion_field: the columns to tokenise"
        )
    if length is None:
        raise InputError("tokenizer needs length = N: how many tokens every example has")
