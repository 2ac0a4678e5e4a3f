"""Hostile shards of data: headers, pickles, archives."""

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _hostile import Hostile
from _hostile_runs import ESCAPES
from _place import Place, linked, pipe

RUN_JOB = "run job"


def hostile_shards() -> Iterator[Hostile]:
    """Yield every hostile shard."""
    headers = {
        "of 10^12 rows": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 6), }",
        "of -5 rows": "{'descr': '<f4', 'fortran_order': False, 'shape': (-5, 6), }",
        "of 10^30 rows": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 6), }}",
        "of a shape of text": "{'descr': '<f4', 'fortran_order': False, 'shape': 'x', }",
        "of 10^5 axes": "{'descr': '<f4', 'fortran_order': False, 'shape': ("
        + "1," * 30_000
        + "), }",
        "of objects": "{'descr': '|O', 'fortran_order': False, 'shape': (40, 6), }",
        "of a header that is code": "__import__('pathlib').Path('MARK').touch()",
        "of a header nested deeply": "(" * 60_000,
        "of an unknown kind": "{'descr': 'zz', 'fortran_order': False, 'shape': (40, 6), }",
        "of records": "{'descr': [('a', '<f4'), ('b', '<i8')], 'fortran_order': False, 'shape': (40,), }",
        "of no key": "{}",
    }
    for name, header in headers.items():
        yield Hostile(
            f"a shard {name}",
            lambda p, h=header: _shard(p, {"x": npy(h.replace("MARK", str(p.mark)))}),
            (RUN_JOB, "collect"),
        )
    yield Hostile(
        "a shard that holds a pickle", lambda p: _shard(p, {"x": pickled(p)}), (RUN_JOB, "collect")
    )
    yield Hostile("a shard that unpacks to 16 GiB", _zip_bomb, (RUN_JOB,))
    yield Hostile(
        "a shard that is no archive",
        lambda p: (p.job / "train-1.npz").write_bytes(b"PK\x03\x04" + b"\xff" * 500),
        (RUN_JOB,),
    )
    yield Hostile(
        "a shard that is cut",
        lambda p: (p.job / "train-1.npz").write_bytes((p.job / "train-1.npz").read_bytes()[:-40]),
        (RUN_JOB, "collect"),
    )
    yield Hostile("a shard that is a pipe", lambda p: pipe(p.job / "train-1.npz"), (RUN_JOB, "top"))
    yield Hostile(
        "a shard that is a device",
        lambda p: linked(p.job / "train-1.npz", "/dev/zero"),
        (RUN_JOB, "top"),
    )
    yield Hostile(
        "a shard whose member leaves the folder",
        lambda p: _shard(p, {"../../outside/theirs/file": npy(headers["of 10^12 rows"])}),
        (RUN_JOB,),
    )
    yield Hostile(
        "a shard whose field drives the terminal",
        lambda p: _shard(p, {f"x{ESCAPES}": npy(headers["of records"])}),
        (RUN_JOB,),
    )
    yield Hostile("a shard of text without end", _long_text, (RUN_JOB,))


def npy(header: str) -> bytes:
    text = header.encode() + b" " * 16 + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + b"\0" * 4096


class _Touch:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def pickled(place: Place) -> bytes:
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (40,), }"
    return npy(header)[:-4096] + pickle.dumps([_Touch(place.mark)] * 40)


def _shard(place: Place, members: dict[str, bytes]) -> None:
    rest = dict(np.load(place.job / "train-1.npz"))
    with zipfile.ZipFile(place.job / "train-1.npz", "w") as archive:
        for name, array in rest.items():
            if name not in members:
                buffer = io.BytesIO()
                np.save(buffer, array)
                archive.writestr(f"{name}.npy", buffer.getvalue())
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


def _zip_bomb(place: Place) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({40 << 20}, 100), }}"
    with zipfile.ZipFile(
        place.job / "train-1.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as archive:
        for name in ("x", "y", "key"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(npy(header)[:-4096])
                for _ in range(8):  # the rest is only promised
                    member.write(b"\0" * (1 << 24))


def _long_text(place: Place) -> None:
    x = np.array(["x" * 100_000] * 22)
    buffer = io.BytesIO()
    np.save(buffer, x)
    _shard(place, {"x": buffer.getvalue()})
