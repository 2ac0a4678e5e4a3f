"""A model as transformers saves it, known by its JSON files: no weights are loaded and no code runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamfluence.errors import InputError
from streamfluence.given import read_json

_KINDS = {  # what the name of the architecture ends with, and the task it needs
    "ForCausalLM": "causal",
    "LMHeadModel": "causal",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "tokens",
}
_OTHER_TARGETS = {"regression": "gaussian", "multi_label_classification": "bernoulli"}
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
_MOST_TOKENS = 2048  # of an example, unless somebody writes more into the job


@dataclass(frozen=True)
class SavedModel:
    """What is known of a model.

    Attributes:
        folder: Of its config, weights and tokenizer.
        adapter: Folder of an adapter of it, or None.
        kind: The task it needs: ``causal``, ``sequence`` or ``tokens``.
        likelihood: What its outputs mean.
        most_tokens: That it can read at once.
    """

    folder: Path
    adapter: Path | None
    kind: str
    likelihood: str
    most_tokens: int

    @property
    def checkpoint(self) -> Path:
        """The folder of the weights that training changed."""
        return self.adapter or self.folder


def saved_model(folder: Path, adapter: Path | None, trust_remote_code: bool) -> SavedModel:
    """Return what the files of a folder say of the model in it.

    Raises:
        InputError: If it is no model that transformers saved as safetensors, has an architecture for
            which there is no task, or needs code of its own that nobody said to trust.
    """
    config = _config(folder)
    name = (config.get("architectures") or [""])[0]
    kind = next((kind for end, kind in _KINDS.items() if str(name).endswith(end)), None)
    if kind is None:
        raise InputError(
            f"{folder} holds a {name or 'model without a named architecture'}; there are tasks for "
            f"{', '.join(_KINDS)}: write one for it by hand, from `streamfluence init DIR`"
        )
    if "auto_map" in config and not trust_remote_code:
        raise InputError(
            f"{folder} names Python files of its own (auto_map), which would run; read them, then give "
            f"--trust-remote-code"
        )
    _refuse_pickles(folder, "model")
    if adapter is not None:
        _adapter(adapter)
    likelihood = _likelihood(config) if kind == "sequence" else "categorical"
    return SavedModel(folder, adapter, kind, likelihood, _most_tokens(folder, config))


def json_of(path: Path) -> Mapping[str, Any]:
    """Return the object of a JSON file; empty if there is none.

    Raises:
        InputError: If the file is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is no JSON that can be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object")
    return content


def _config(folder: Path) -> Mapping[str, Any]:
    config = json_of(folder / "config.json")
    if not config and (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} is an adapter; name the folder of the model it adapts with --hf, and it with --peft"
        )
    if not config:
        raise InputError(
            f"{folder} holds no config.json; --hf names a folder written by save_pretrained or a Trainer"
        )
    return config


def _adapter(folder: Path) -> None:
    if not (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} holds no adapter_config.json; --peft names an adapter that peft saved"
        )
    _refuse_pickles(folder, "adapter_model")


def _refuse_pickles(folder: Path, stem: str) -> None:
    if not any(folder.glob(f"{stem}*.safetensors")):
        raise InputError(
            f"{folder} holds no {stem}*.safetensors; other weights may run code when they are loaded: "
            f"save them again by save_pretrained(..., safe_serialization=True)"
        )


def _likelihood(config: Mapping[str, Any]) -> str:
    asked = config.get("problem_type")
    if asked is None and len(config.get("id2label") or "two") == 1:
        asked = "regression"
    return _OTHER_TARGETS.get(str(asked), "categorical")


def _most_tokens(folder: Path, config: Mapping[str, Any]) -> int:
    told = [config.get(key) for key in _POSITIONS]
    told.append(json_of(folder / "tokenizer_config.json").get("model_max_length"))
    # A tokenizer that knows no bound has one of 10^30.
    known = [int(each) for each in told if isinstance(each, int | float) and 0 < each < 1 << 31]
    return min([*known, _MOST_TOKENS])
