"""Checkpoints, known by the bytes of their files and by their own name, wherever they lie."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamfluence.data._files import file_signatures
from streamfluence.errors import InputError
from streamfluence.run.opened import OpenRun


def refuse_other_checkpoint(run: OpenRun, checkpoint: int, path: Path) -> None:
    """Raise InputError unless what lies at a path is a checkpoint of the run."""
    if checkpoint_facts(path) != asdict(run.method.checkpoints[checkpoint]):
        raise InputError(
            f"checkpoint {path} changed since {run.url} was made; restore it, or use a new run folder"
        )


def checkpoint_facts(path: Path) -> dict[str, Any]:
    """Return name and sha256 of a checkpoint file, or of every file of a checkpoint folder."""
    digest = hashlib.sha256()
    for file in _checkpoint_files(path):
        digest.update(os.fsencode(file.relative_to(path.parent)))
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return {"name": path.name, "sha256": digest.hexdigest()}


def checkpoint_signature(path: Path) -> Any:
    """Return sizes and times of the files of a checkpoint."""
    return file_signatures(_checkpoint_files(path))


def _checkpoint_files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"checkpoint {path} does not exist; check `checkpoints` in the job")
    return sorted(_files_below(path)) if path.is_dir() else [path]


def _files_below(folder: Path, inside: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files of a folder, through links, which whoever loads it follows too."""
    real = folder.resolve()
    if real in inside:
        raise InputError(f"checkpoint folder {folder} links back to a folder it lies in")
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files_below(entry, inside | {real})
        elif entry.is_file():
            yield entry
