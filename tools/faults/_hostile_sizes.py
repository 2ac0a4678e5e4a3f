"""Hostile runs: documents without end, and metadata of arrays that nobody can hold."""

import json
from collections.abc import Iterator
from typing import Any

from _hostile import CHANGING, QUICK, READING, Hostile
from _place import Place, seal_text, write


def hostile_sizes() -> Iterator[Hostile]:
    """Yield every run with something in it that is too large, too deep or of no known kind."""
    yield from _sizes()
    yield from _metadata()


def _sizes() -> Iterator[Hostile]:
    documents = ("manifest.json", "place.json", "data/asked/000000.json", "scores/asked/score.json")
    for path in (*documents, "receipts/collect/train/0/00000000.json"):
        deep = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
        yield Hostile(
            f"{path} nested deeply, sealed",
            lambda p, a=path, t=deep: write(p.run / a, seal_text(t)),
            QUICK,
        )
        yield Hostile(
            f"{path} nested deeply", lambda p, a=path, t=deep: write(p.run / a, t.encode()), QUICK
        )
        digits = '{"count":' + "9" * 6000 + "}"
        yield Hostile(
            f"{path} of 6,000 digits",
            lambda p, a=path, t=digits: write(p.run / a, seal_text(t)),
            QUICK,
        )
        yield Hostile(f"{path} of 4 GiB", lambda p, a=path: _sparse(p, a, 4 << 30), QUICK)
        yield Hostile(
            f"{path} is no UTF-8",
            lambda p, a=path: write(p.run / a, seal_text('{"a":"\udcff\udcfe"}')),
            QUICK,
        )
        yield Hostile(
            f"{path} of a million keys",
            lambda p, a=path: write(p.run / a, seal_text(_many())),
            QUICK,
        )


def _many() -> str:
    return json.dumps({str(i): i for i in range(1_000_000)})


def _sparse(place: Place, path: str, size: int) -> None:
    write(place.run / path, b"")
    with open(place.run / path, "r+b") as file:
        file.truncate(size)


def _metadata() -> Iterator[Hostile]:
    shapes: tuple[Any, ...] = ([10**12, 20], [-5, 20], [], "x", [10**30, 1], None, [16, 0], [16.5])
    for shape in shapes:
        yield Hostile(
            f"rows of shape {shape}",
            lambda p, s=shape: p.metadata("rows", lambda c: c.update(shape=s)),
            (*READING, "repair"),
        )
    for key, value in (
        *(("data_type", "object"), ("data_type", "no such"), ("data_type", 5), ("codecs", [])),
        ("codecs", [{"name": "numcodecs.pickle", "configuration": {}}]),
        ("codecs", [{"name": "evil.Evil", "configuration": {}}]),
        ("codecs", "x"),
        *(
            ("chunk_grid", None),
            ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [0, 0]}}),
        ),
        ("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [10**15, 10**15]}}),
        *(
            ("fill_value", {"a": 1}),
            ("zarr_format", 2),
            ("dimension_names", 7),
            ("node_type", "group"),
        ),
        *(("attributes", [1]), ("storage_transformers", [{"name": "evil"}])),
    ):
        yield Hostile(
            f"rows of {key} {str(value)[:40]}",
            lambda p, k=key, v=value: p.metadata("rows", lambda c: c.update({k: v})),
            (*READING, "repair"),
        )
    yield Hostile("rows that unpack to 16 GiB", _bomb, (*READING, "repair"))
    yield Hostile("canonical rows that unpack to 16 GiB", _bomb_in_sets, CHANGING)
    for text in (b"", b"[]", b"{", b"null", b"[" * 200_000, b'{"attributes": 5}'):
        yield Hostile(
            f"the plan's zarr.json is {text[:20]!r}",
            lambda p, t=text: p.objects({"zarr.json": t}, "sketch/0/decision"),
        )


def _bomb_metadata(metadata: dict[str, Any]) -> None:
    metadata["shape"], metadata["data_type"] = [16, 1 << 30], "uint8"
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [16, 1 << 30]
    metadata["codecs"] = [
        {"name": "bytes"},
        {"name": "zstd", "configuration": {"level": 0, "checksum": False}},
    ]


def _bomb_data() -> bytes:
    import numcodecs

    # A frame of a mebibyte after another: the content is as long as the metadata says.
    return bytes(numcodecs.Zstd(level=19).encode(b"\0" * (1 << 24))) * 1024


def _bomb(place: Place) -> None:
    place.metadata("rows", _bomb_metadata)
    place.objects({"rows/c.0.0": _bomb_data()})


def _bomb_in_sets(place: Place) -> None:
    path = place.run / "sets/train.zarr/rows"
    metadata = json.loads((path / "zarr.json").read_text())
    _bomb_metadata(metadata)
    metadata["shape"] = [2, *metadata["shape"]]
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [1, 16, 1 << 30]
    write(path / "zarr.json", json.dumps(metadata).encode())
    write(path / "c.0.0.0", _bomb_data())
