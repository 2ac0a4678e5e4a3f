"""Readers laid end to end: the same examples as of one reader of all files."""

import numpy as np
import pytest

from streamfluence.data import open_reader
from streamfluence.data._together import together
from streamfluence.errors import InputError

CUTS = (7, 9, 20)  # of 23 examples, into four readers


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "x": random.normal(size=(23, 3)),
        "y": random.integers(0, 4, 23),
        "key": 100 + np.arange(23),
    }
    np.savez(tmp_path / "whole.npz", **arrays)
    edges = [0, *CUTS, 23]
    for number in range(4):
        rows = slice(edges[number], edges[number + 1])
        np.savez(tmp_path / f"part-{number}.npz", **{k: a[rows] for k, a in arrays.items()})
    np.save(tmp_path / "tokens-0.npy", np.arange(40))
    np.save(tmp_path / "tokens-1.npy", np.arange(40, 70))
    return tmp_path


def arrays(folder, path, **options):
    table = {"reader": "arrays", "fields": ["x", "y"], "id_field": "key", "group_field": "y"}
    return open_reader({**table, "path": path, **options}, folder)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_reads_takes_ids_and_groups_are_those_of_one_reader(folder):
    whole = arrays(folder, "whole.npz")
    parts = together([arrays(folder, f"part-{number}.npz") for number in range(4)])
    assert parts.count() == 23
    for start in range(0, 24, 3):
        for stop in range(start, 24):
            assert same(parts.read(start, stop), whole.read(start, stop))
            if start < stop:
                assert np.array_equal(parts.example_ids(start, stop), 100 + np.arange(start, stop))
                assert np.array_equal(parts.groups(start, stop), whole.groups(start, stop))
    random = np.random.default_rng(1)
    for size in (0, 1, 5, 23):
        rows = random.permutation(23)[:size]
        assert same(parts.take(rows), whole.take(rows))
    assert all(parts.preview(row) == whole.preview(row) for row in range(23))


def test_one_reader_is_itself(folder):
    reader = arrays(folder, "whole.npz")
    assert together([reader]) is reader


def test_the_identity_and_the_signature_are_of_every_reader(folder):
    def parts():
        return together([arrays(folder, f"part-{number}.npz") for number in range(4)])

    identity, signature = parts().identity(), parts().stat_signature()
    np.savez(folder / "part-2.npz", x=np.zeros((11, 3)), y=np.zeros(11, int), key=np.arange(11))
    assert parts().identity() != identity and parts().stat_signature() != signature


def test_groups_that_a_reader_numbers_by_itself_are_apart(folder):
    readers = [
        open_reader(
            {"reader": "tokens", "path": f"tokens-{number}.npy", "sequence_length": 10}, folder
        )
        for number in range(2)
    ]
    whole = together(readers)
    groups = whole.groups(0, 7)
    assert groups[:4].tolist() == [0] * 4 and len(set(groups[4:].tolist())) == 1
    assert [whole.group_name(int(group)) for group in groups] == [
        *["tokens-0.npy"] * 4,
        *["tokens-1.npy"] * 3,
    ]


def test_ids_of_some_readers_alone_are_refused(folder):
    table = {"reader": "arrays", "fields": ["x", "y"], "path": "part-1.npz"}
    parts = together([arrays(folder, "part-0.npz"), open_reader(table, folder)])
    with pytest.raises(InputError, match="some have ids or groups and some have none"):
        parts.example_ids(5, 9)
