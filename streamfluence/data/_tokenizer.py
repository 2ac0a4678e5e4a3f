"""Texts as token numbers, by a tokenizer that was saved: a ``tokenizer.json``, which holds no code.

Batches have one length: what a batch looks like must not depend on which examples are in it.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from streamfluence.data._files import readable
from streamfluence.data._wanted import wanted
from streamfluence.errors import InputError
from streamfluence.given import read_json

NOT_A_TARGET = -100  # the class number that transformers' losses and our likelihoods leave out
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


class Tokenizer:
    """A saved tokenizer.

    Args:
        folder: Of a model or tokenizer as transformers saves it, or the tokenizer.json itself.
        length: Tokens of every example: longer texts are cut, shorter ones padded on the right.
        end: Whether the end-of-text token is added to every text.

    Raises:
        InputError: At first use, if the folder holds no tokenizer.json that can be read.
    """

    def __init__(self, folder: Path, length: int, end: bool) -> None:
        self._folder = folder.parent if folder.suffix == ".json" else folder
        self._file = folder if folder.suffix == ".json" else folder / "tokenizer.json"
        self._length, self._end = length, end

    @property
    def files(self) -> list[Path]:
        """The files that decide tokens."""
        settings = [self._folder / name for name in _SETTINGS]
        return [self._file, *(path for path in settings if path.is_file())]

    def texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return ``input_ids``, ``attention_mask``, ``labels``, each ``(example, length)`` int64.

        Labels are the tokens, -100 on padding. An empty text is one token of padding that is looked at,
        since a model may divide by the number of those.
        """
        found = self._encode(texts)
        return self._filled([(ids, 0) for ids, _ in found])

    def pairs(
        self, prompts: Sequence[str], completions: Sequence[str], rows: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the same of prompts with their completions, labels -100 on the prompts, too.

        A token that holds characters of both is of the completion.

        Args:
            rows: The number of each in the data set, for messages.

        Raises:
            InputError: If nothing of a completion is left within the length.
        """
        joined = [prompt + more for prompt, more in zip(prompts, completions, strict=True)]
        found = []
        for row, (ids, ends) in enumerate(self._encode(joined)):
            given, upto = (
                int(np.searchsorted(ends, len(text), side="right"))
                for text in (prompts[row], joined[row])
            )
            if given >= min(upto, self._length) and completions[row]:
                raise InputError(
                    f"row {rows[row]}: after a prompt of {given} tokens or more no token of the "
                    f"completion is left within length = {self._length}; raise it, or leave such rows out"
                )
            found.append((ids, given))
        return self._filled(found)

    @cached_property
    def _loaded(self) -> Any:
        library = wanted("tokenizers", "text")
        if not self._file.is_file():
            raise InputError(
                f"{self._file} does not exist; `tokenizer` must name a folder that transformers saved "
                f"(with a fast tokenizer), or a tokenizer.json"
            )
        try:
            loaded = library.Tokenizer.from_file(str(self._file))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"{self._file} is no tokenizer that can be read: {error}") from error
        loaded.no_padding()
        return loaded

    @cached_property
    def _settings(self) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for path in reversed(self.files[1:]):
            with readable(path):
                content = read_json(path)
            named |= content if isinstance(content, dict) else {}
        return named

    @cached_property
    def _special(self) -> dict[str, int]:
        """The numbers of the tokens for padding and for the end, those that are known."""
        found: dict[str, int] = {}
        for key in ("pad_token", "eos_token"):
            token = self._settings.get(key)
            text = token.get("content") if isinstance(token, dict) else token
            number = self._loaded.token_to_id(text) if isinstance(text, str) else None
            found |= {} if number is None else {key: number}
        return found

    @property
    def _end_tokens(self) -> list[int]:
        if not self._end:
            return []
        if "eos_token" not in self._special:
            raise InputError(
                f"end_token = true, but {self._folder} names no eos_token that its tokenizer knows"
            )
        return [self._special["eos_token"]]

    def _encode(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """Return of every text its tokens, and up to where in the text each reaches, ascending."""
        end = self._end_tokens
        # As transformers cuts: what is added around a text is kept.
        side = "left" if self._settings.get("truncation_side") == "left" else "right"
        self._loaded.enable_truncation(self._length, direction=side)
        encoded = self._loaded.encode_batch(list(texts))
        found = []
        for text, each in zip(texts, encoded, strict=True):
            more = end if each.ids[-1:] != end else []
            reached = [stop for _, stop in each.offsets] + [len(text) + 1 for _ in more]
            # What is added around a text has no place in it; after text it is of the completion.
            last = max((place for place, stop in enumerate(reached) if stop), default=-1)
            reached[last + 1 :] = [len(text) + 1] * (len(reached) - last - 1)
            found.append((each.ids + more, np.maximum.accumulate(np.array(reached, np.int64))))
        return found

    def _filled(self, found: Sequence[tuple[list[int], int]]) -> dict[str, np.ndarray]:
        """Return tokens as arrays; the number with each says how many of the first are no targets."""
        shape = (len(found), self._length)
        padding = self._special.get("pad_token", self._special.get("eos_token", 0))
        batch = {
            "input_ids": np.full(shape, padding, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "labels": np.full(shape, NOT_A_TARGET, np.int64),
        }
        for row, (ids, given) in enumerate(found):
            kept = ids[: self._length]
            batch["input_ids"][row, : len(kept)] = kept
            batch["attention_mask"][row, : max(len(kept), 1)] = 1
            batch["labels"][row, given : len(kept)] = kept[given:]
        return batch
