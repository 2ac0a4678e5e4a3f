"""Hostile runs made of links, pipes, devices and folders, at every level of a run."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from _hostile import CHANGING, READING, Hostile
from _place import Place, write

_LEVELS = (
    *("manifest.json", "receipts", "receipts/collect", "receipts/collect/train/0", "parts"),
    *("receipts/collect/train/0/00000000.json", "parts/collect/train", "parts/collect/train/0"),
    *("sets", "sets/train.zarr", "sets/train.zarr/rows", "sets/train.zarr/zarr.json", "scores"),
    *("scores/asked", "scores/asked/score.json", "data", "data/asked/000000.json", "identities"),
    *("parts/scores/asked", "parts/sketch/0/decision", "data/train", "place.json"),
)
_VERBS = ("status", "top", *CHANGING, "results")


def hostile_links() -> Iterator[Hostile]:
    """Yield every run with something in it that is no plain file or folder."""
    yield from _links()
    yield from _leftovers()
    yield from _not_files()


def _links() -> Iterator[Hostile]:
    for path in _LEVELS:
        yield Hostile(
            f"{path} is a link to somebody's",
            lambda p, a=path: p.replace_by_link(a, p.outside / "theirs"),
            _VERBS,
        )
    for path in (
        "receipts/collect/train/0",
        "parts/collect/train/0",
        "sets/train.zarr",
        "scores/asked",
        "data",
        "data/train",
    ):
        yield Hostile(
            f"{path} is a link to what it was", lambda p, a=path: _moved_and_linked(p, a), _VERBS
        )
    for path in (
        "manifest.json",
        "receipts",
        "sets/train.zarr",
        "data/train/000000.json",
        "place.json",
        "receipts/collect/train/0/00000000.json",
    ):
        yield Hostile(
            f"{path} is a link to itself",
            lambda p, a=path: p.replace_by_link(a, (p.run / a).name),
            _VERBS,
        )
    yield Hostile(
        "an attempt is a link to somebody's",
        lambda p: p.replace_by_link(_attempt(p), p.outside / "theirs"),
        _VERBS,
    )
    yield Hostile(
        "an attempt is a link to the receipts",
        lambda p: p.replace_by_link(_attempt(p), p.run / "receipts"),
        _VERBS,
    )
    yield Hostile(
        "an object is a link to somebody's",
        lambda p: p.replace_by_link(f"{_attempt(p)}/rows/c.0.0", p.outside / "theirs/file"),
        _VERBS,
    )
    yield Hostile(
        "an array is a link to somebody's",
        lambda p: p.replace_by_link(f"{_attempt(p)}/rows", p.outside / "theirs"),
        _VERBS,
    )


def _attempt(place: Place) -> str:
    return place.attempt().relative_to(place.run).as_posix()


def _moved_and_linked(place: Place, path: str) -> None:
    """Move a folder of the run outside and link it there: the files of somebody else, now."""
    target = place.outside / "theirs" / "moved"
    os.rename(place.run / path, target)
    (place.run / path).symlink_to(target)


def _leftovers() -> Iterator[Hostile]:
    """Yield what collecting garbage would take for its own: lost attempts and old temporary files."""
    targets = {
        "somebody's": lambda p: p.outside / "theirs",
        "the receipts": lambda p: p.run / "receipts",
        "the run": lambda p: p.run,
        "another attempt": lambda p: p.attempt(partition=1),
        "itself": lambda p: Path("00000000.evil"),
    }
    for what, target in targets.items():
        yield Hostile(
            f"a lost attempt is a link to {what}",
            lambda p, t=target: (p.run / "parts/collect/train/0/00000000.evil").symlink_to(t(p)),
            _VERBS,
        )
    yield Hostile("a lost attempt holds a link to somebody's", _lost_attempt_with_link, _VERBS)
    names = {
        "receipts/collect/train/0/.x.partial": "file",
        "sets/train.zarr.x.partial": "",
        ".manifest.json.x.partial": "file",
        "data/train/.x.partial": "file",
        ".place.json.x.partial": "file",
        "sets/x.partial": "",
    }
    for name, below in names.items():
        yield Hostile(
            f"{name} is an old link",
            lambda p, n=name, b=below: _old_link(p, n, p.outside / "theirs" / b),
            _VERBS,
        )
    yield Hostile("receipts-damaged is a link", lambda p: _damaged_with_link(p), _VERBS)
    yield Hostile(
        "a set's temporary folder is a link",
        lambda p: _old_link(p, "sets/other.zarr.y.partial", p.run / "receipts"),
        _VERBS,
    )
    yield Hostile(
        "a folder of parts is a link to its parent",
        lambda p: (p.run / "parts/collect/loop").symlink_to(".."),
        _VERBS,
    )
    yield Hostile(
        "a folder of receipts is a link to its parent",
        lambda p: (p.run / "receipts/collect/loop").symlink_to(".."),
        _VERBS,
    )
    yield Hostile(
        "a folder of receipts is a link to the root",
        lambda p: (p.run / "receipts/loop").symlink_to("/"),
        _VERBS,
    )


def _lost_attempt_with_link(place: Place) -> None:
    lost = place.run / "parts/collect/train/0/00000000.evil"
    lost.mkdir()
    (lost / "rows").symlink_to(place.outside / "theirs")
    (lost / "zarr.json").symlink_to(place.outside / "theirs/file")


def _old_link(place: Place, name: str, target: Path) -> None:
    link = place.run / name
    link.symlink_to(target)
    os.utime(link, (1, 1), follow_symlinks=False)
    for file in (place.outside / "theirs").rglob("*"):
        os.utime(file, (1, 1))
    os.utime(place.outside / "theirs", (1, 1))


def _damaged_with_link(place: Place) -> None:
    """A damaged receipt, which repair sets aside: into somebody's folder."""
    (place.run / "receipts-damaged").symlink_to(place.outside / "theirs")
    file = place.run / place.receipt()
    write(file, file.read_bytes()[:-5])


def _not_files() -> Iterator[Hostile]:
    paths = (
        *("manifest.json", "receipts/collect/train/0/00000000.json", "scores/asked/score.json"),
        *(
            "data/asked/000000.json",
            "place.json",
            "sets/train.zarr/zarr.json",
            "OBJECT",
            "receipts/scores/asked/00000000.json",
        ),
    )
    for path in paths:
        for kind in ("pipe", "device", "socket", "folder", "link to /dev/zero"):
            yield Hostile(
                f"{path} is a {kind}",
                lambda p, a=path, k=kind: _special(p, a, k),
                ("status", "top", "verify", "repair", "results", "finalise"),
            )
    yield Hostile(
        "identities hold a pipe",
        _piped_identities,
        (*READING, "collect", "run"),
    )
    yield Hostile(
        "a run that is a pipe",
        lambda p: os.mkfifo(_emptied(p)),
        ("status", "top", "verify", "run"),
    )
    yield Hostile(
        "a run that is a device",
        lambda p: _emptied(p).symlink_to("/dev/zero"),
        ("status", "top", "verify", "run"),
    )


def _emptied(place: Place) -> Path:
    """Return the run's place, where nothing is any more."""
    os.rename(place.run, place.run.with_name("moved-run"))
    return place.run


def _piped_identities(place: Place) -> None:
    for file in (place.run / "identities").iterdir():
        _special(place, f"identities/{file.name}", "pipe")


def _special(place: Place, path: str, kind: str) -> None:
    file = place.attempt() / "rows/c.0.0" if path == "OBJECT" else place.run / path
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        try:
            os.mknod(file, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        except PermissionError:
            file.symlink_to("/dev/zero")
    elif kind == "socket":
        folder = os.open(file.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as made:  # a path may be too long for one
            made.bind(f"/proc/self/fd/{folder}/{file.name}")
        os.close(folder)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
