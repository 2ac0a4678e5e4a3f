"""Every way in which a file of a run is damaged here: drawn from a seed, over every kind of file.

Files are taken class by class, so that the one manifest is hit as often as the hundreds of
objects, and within a class at random.
"""

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from _tree import files_of, folders_of, linked

KINDS = {"flip": 400, "truncation": 60, "deletion": 60, "swap": 40, "stale": 30}
_ATTEMPT = re.compile(r"^parts/(.+)/(\d{8})\.([^/]+)(?:/(.+))?$")
_FOLDERS_OF_DELETIONS = 4  # one deletion in so many is that of a folder


@dataclass(frozen=True)
class Damage:
    """One damage.

    Attributes:
        kind: A key of ``KINDS``.
        what: What is done to which file, for a person.
        files: Files whose content is another one afterwards.
        only_content: Whether every file is still there, as long as before.
        apply: Does it to a run's folder.
    """

    kind: str
    what: str
    files: tuple[str, ...]
    only_content: bool
    apply: Callable[..., None]


def damages(run: Path, stale: dict[str, Path], seed: int, counts: dict[str, int]) -> list[Damage]:
    """Return the damages of every kind, the same for the same run and seed."""
    makers: dict[str, Callable[[random.Random], Iterator[Damage]]] = {
        "flip": lambda chance: _flips(run, chance),
        "truncation": lambda chance: _truncations(run, chance),
        "deletion": lambda chance: _deletions(run, chance),
        "swap": lambda chance: _swaps(run, chance),
        "stale": lambda chance: _stale(run, stale, chance),
    }
    found = []
    for kind, count in counts.items():
        drawn = makers[kind](random.Random(f"{seed} {kind}"))
        found += [next(drawn) for _ in range(count)]
    return found


def class_of(path: str) -> str:
    """Return the kind of a file: its top folder, the stage, and whether it is metadata or data."""
    parts = path.split("/")
    words = parts[:2] if parts[0] in ("parts", "receipts") else parts[:1]
    if parts[0] in ("parts", "sets"):
        words.append("metadata" if parts[-1] == "zarr.json" else "data")
    return " ".join(words)


def _class_by_class(paths: Sequence[str], chance: random.Random) -> Iterator[str]:
    classes: dict[str, list[str]] = {}
    for path in paths:
        classes.setdefault(class_of(path), []).append(path)
    while True:
        for name in sorted(classes):
            yield chance.choice(classes[name])


def _flips(run: Path, chance: random.Random) -> Iterator[Damage]:
    shared = linked(run)
    for path in _class_by_class(_not_empty(run), chance):
        size = (run / path).stat().st_size
        place, bit = chance.randrange(size), chance.randrange(8)

        def flipped(data: bytes, place: int = place, bit: int = bit) -> bytes:
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            return bytes(changed)

        what = f"bit {bit} of byte {place} of {path} ({size} bytes)"
        yield _changed("flip", what, path, flipped, shared, chance, only_content=True)


def _truncations(run: Path, chance: random.Random) -> Iterator[Damage]:
    shared = linked(run)
    for path in _class_by_class(_not_empty(run), chance):
        size = (run / path).stat().st_size
        length = chance.choice([0, size // 2, size - 1, max(size - 4, 0), chance.randrange(size)])

        def cut(data: bytes, length: int = length) -> bytes:
            return data[:length]

        what = f"{path} cut from {size} to {length} bytes"
        yield _changed("truncation", what, path, cut, shared, chance, only_content=False)


def _changed(
    kind: str,
    what: str,
    path: str,
    change: Callable[[bytes], bytes],
    shared: dict[str, list[str]],
    chance: random.Random,
    only_content: bool,
) -> Damage:
    """Return the damage of one file: of the bytes on the disk, or of one of its names alone."""
    together = path in shared and chance.random() < 0.5

    def apply(root: Path) -> None:
        data = change((root / path).read_bytes())
        if not together:
            (root / path).unlink()
        (root / path).write_bytes(data)

    names = tuple(shared[path]) if together else (path,)
    return Damage(kind, what + (" and its other name" * together), names, only_content, apply)


def _deletions(run: Path, chance: random.Random) -> Iterator[Damage]:
    files = _class_by_class(files_of(run), chance)
    folders = _class_by_class(folders_of(run), chance)
    number = 0
    while True:
        number += 1
        if number % _FOLDERS_OF_DELETIONS:
            path = next(files)
            yield Damage("deletion", path, (path,), False, lambda root, p=path: (root / p).unlink())
        else:
            path = next(folders)
            yield Damage(
                *("deletion", f"folder {path}", (path,), False),
                lambda root, p=path: shutil.rmtree(root / p),
            )


def _swaps(run: Path, chance: random.Random) -> Iterator[Damage]:
    alike: dict[tuple, list[str]] = {}
    for path in files_of(run):
        found = _ATTEMPT.match(path)
        data = (run / path).read_bytes()
        if found or path.startswith("sets/"):
            # Data of equal length, metadata of any: both would be read without a murmur.
            key: tuple = (class_of(path), path.endswith("zarr.json") or len(data))
        else:
            key = (class_of(path), None)
        alike.setdefault(key, []).append(path)
    several = [sorted(group) for key, group in sorted(alike.items(), key=str) if len(group) > 1]
    by_class: dict[str, list[list[str]]] = {}
    for group in several:
        by_class.setdefault(class_of(group[0]), []).append(group)
    while True:
        for name in sorted(by_class):
            one, other = chance.sample(chance.choice(by_class[name]), 2)
            if (run / one).read_bytes() != (run / other).read_bytes():
                yield Damage(
                    *("swap", f"{one} and {other}", (one, other), False),
                    lambda root, a=one, b=other: _swap(root / a, root / b),
                )


def _swap(one: Path, other: Path) -> None:
    spare = one.with_name(one.name + ".spare")
    os.rename(one, spare)
    os.rename(other, one)
    os.rename(spare, other)


def _stale(run: Path, stale: dict[str, Path], chance: random.Random) -> Iterator[Damage]:
    """Yield files, and whole partitions with their receipts, of runs that differ in one thing."""
    while True:
        for name, source in sorted(stale.items()):
            yield _stale_file(run, name, source, chance)
            yield _stale_partition(run, name, source, chance)


def _stale_file(run: Path, name: str, source: Path, chance: random.Random) -> Damage:
    of_source = {_place(path): path for path in files_of(source)}
    known = [path for path in files_of(run) if _place(path) in of_source]
    for path in _class_by_class(known, chance):
        taken = source / of_source[_place(path)]
        if taken.read_bytes() != (run / path).read_bytes():
            what = f"{path} of a run of another {name}"
            apply = partial(_replace_in, taken, path)
            return Damage("stale", what, (path,), False, apply)
    raise AssertionError("two runs of unlike settings are the same to the last bit")


def _stale_partition(run: Path, name: str, source: Path, chance: random.Random) -> Damage:
    receipts = [path for path in files_of(run) if path.startswith("receipts/")]
    places = [path for path in _known(receipts, source) if not path.startswith("receipts/sketch")]
    path = chance.choice(places)
    stage, partition = path.removeprefix("receipts/").rsplit("/", 1)
    folder = f"parts/{stage}/{partition.removesuffix('.json')}."

    def apply(root: Path) -> None:
        _replace(source / path, root / path)
        for attempt in (source / folder).parent.glob(Path(folder).name + "*"):
            shutil.copytree(attempt, root / attempt.relative_to(source))

    what = f"{path} and its attempt of a run of another {name}"
    return Damage("stale", what, (path,), False, apply)


def _known(paths: Sequence[str], source: Path) -> list[str]:
    return [path for path in paths if (source / path).exists()]


def _place(path: str) -> str:
    """Return a path without what differs between two runs of one job: the attempt's name."""
    found = _ATTEMPT.match(path)
    return path if found is None else f"parts/{found[1]}/{found[2]}/{found[4]}"


def _replace_in(source: Path, path: str, root: Path) -> None:
    _replace(source, root / path)


def _replace(source: Path, target: Path) -> None:
    target.unlink()
    shutil.copyfile(source, target)


def _not_empty(run: Path) -> list[str]:
    return [path for path in files_of(run) if (run / path).stat().st_size]
