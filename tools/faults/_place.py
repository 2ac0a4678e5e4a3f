"""The place of one hostile input: copies to spoil, what must stay as it is, and ways to spoil.

Documents and receipts are sealed again after a change, so that no checksum gives them away: who
made the run made the checksums, too.
"""

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import google_crc32c

_WRITER = "streamfluence_version"


@dataclass(frozen=True)
class Place:
    """One sandbox.

    Attributes:
        run: A copy of a finished run.
        job: The folder of its job: task, data, ``job.toml``; code in ``evil.py``.
        outside: Files of somebody else, which nothing may change.
        out: Where ``export`` writes; what the user has there stays, too.
        mark: Exists once code ran that the user did not name.
    """

    run: Path
    job: Path
    outside: Path
    out: Path
    mark: Path

    def document(self, path: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change a document of the run and seal it again; a returned value replaces it."""
        file = self.run / path
        content = _content(file.read_bytes())
        changed = change(content)
        write(file, seal_any(content if changed is None else changed))
        if path.startswith("data/"):
            self._rest_on(path.split("/")[1], _digest(_content(file.read_bytes()))[:32])

    def manifest(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the manifest, and let every ledger and receipt carry the new fingerprint."""
        self.document("manifest.json", change)
        content = _content((self.run / "manifest.json").read_bytes())
        content.pop(_WRITER, None)
        fingerprint = _digest(content)
        for receipt in sorted((self.run / "receipts").rglob("[0-9]*.json")):
            path = receipt.relative_to(self.run).as_posix()
            self.document(path, lambda content: content.update(fingerprint=fingerprint))
        for ledger in sorted((self.run / "data").glob("*/000000.json")):
            path = ledger.relative_to(self.run).as_posix()
            self.document(path, lambda content: content.update(before=fingerprint))

    def _rest_on(self, name: str, seal: str) -> None:
        """Let what was made of a set rest on another seal of it."""
        made = [f"collect/{name}", *(["sketch"] if name == "train" else [])]
        for top in made:
            for receipt in sorted((self.run / "receipts" / top).rglob("[0-9]*.json")):
                path = receipt.relative_to(self.run).as_posix()
                self.document(path, lambda content: content["facts"].update(set=seal))

    def receipt(self, stage: str = "collect/train/0", partition: int = 0) -> str:
        """Return the path of a receipt in the run."""
        return f"receipts/{stage}/{partition:08d}.json"

    def attempt(self, stage: str = "collect/train/0", partition: int = 0) -> Path:
        """Return the folder of the attempt that a receipt names."""
        (found,) = (self.run / "parts" / stage).glob(f"{partition:08d}.*")
        return found

    def objects(self, data: dict[str, bytes], stage: str = "collect/train/0") -> None:
        """Put objects into the first attempt of a stage, with length and checksum in its receipt."""
        for name, content in data.items():
            write(self.attempt(stage) / name, content)
        promised = {name: [len(c), zlib.crc32(c)] for name, c in data.items()}
        self.document(self.receipt(stage), lambda content: content["objects"].update(promised))

    def metadata(self, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        """Change the ``zarr.json`` of an array of the first partition of the training set."""
        key = f"{name}/zarr.json"
        content = json.loads((self.attempt() / key).read_bytes())
        change(content)
        self.objects({key: json.dumps(content).encode()})

    def replace_by_link(self, path: str, target: Path | str) -> None:
        """Put a symbolic link in the place of a file or folder of the run."""
        file = self.run / path
        if file.is_dir() and not file.is_symlink():
            os.rename(file, self.outside.parent / f"moved-{file.name}")
        elif file.exists() or file.is_symlink():
            file.unlink()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(target)


def write(file: Path, data: bytes) -> None:
    """Write a file in the place of whatever was there; what shared its inode keeps its content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def seal_any(content: Any) -> bytes:
    """Return a sealed document of a mapping, whatever is in it."""
    return seal_text(json.dumps(content))


def seal_text(text: str) -> bytes:
    """Return ``{...}`` as the text of a document with a checksum that fits."""
    body = text.encode("utf-8", "surrogateescape")[1:]
    return b'{"crc32c": "%08x",' % google_crc32c.value(body) + body


def _digest(content: Any) -> str:
    """Return the sha256 of the canonical text of a document, by rules of our own."""
    return sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _content(data: bytes) -> dict[str, Any]:
    """Return what a document of an undamaged run says, by rules of our own."""
    content = json.loads(data)
    del content["crc32c"]
    return content


def snapshot(folder: Path) -> dict[str, Any]:
    """Return what is in a folder: names, kinds, contents."""
    found: dict[str, Any] = {}
    for top, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(top, name)
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = path.read_bytes()
            else:
                found[str(path)] = "folder"
    return found


def pipe(file: Path) -> None:
    """Put a pipe in the place of a file."""
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def linked(file: Path, target: str) -> None:
    """Put a symbolic link in the place of a file."""
    file.unlink(missing_ok=True)
    file.symlink_to(target)
