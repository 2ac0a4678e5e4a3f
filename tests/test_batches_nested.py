"""Batches as people have them: what of them is cut by example, the same for every cut."""

import itertools
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from streamfluence import batches
from streamfluence.batches import ListOfExamples, SharedList
from streamfluence.capture import _nested
from streamfluence.data._batches import input_digest, map_batch, to_tensors
from streamfluence.errors import InputError

Pair = namedtuple("Pair", ["one", "other"])


@dataclass
class Record:
    one: Any
    other: Any


class Encoding(UserDict):
    """A mapping with attributes, as tokenisers return."""

    def __getattr__(self, name):
        if name == "data":
            raise AttributeError(name)
        return self.data[name]


SHAPES = {
    "dict": lambda a, b: {"one": a, "other": b},
    "ordered": lambda a, b: OrderedDict(one=a, other=b),
    "encoding": lambda a, b: Encoding(one=a, other=b),
    "named": Pair,
    "record": Record,
}


def leaf_of(kind: str, rows: list[int]) -> Any:
    """A leaf whose entry at ``i`` is a function of ``rows[i]`` alone."""
    made = {
        "tensor": lambda: torch.tensor(rows, dtype=torch.int64)[:, None] * torch.tensor([1, 10]),
        "array": lambda: np.array(rows, dtype=np.float32),
        "strings": lambda: np.array([f"row {row}" for row in rows], dtype="U9"),
        "objects": lambda: np.array([*({"row": r} for r in rows), None], dtype=object)[:-1],
        "names": lambda: ListOfExamples(f"row {row}" for row in rows),
        "dicts": lambda: ListOfExamples({"n": row, "x": torch.full((3,), row)} for row in rows),
        "ragged": lambda: ListOfExamples(torch.arange(row) for row in rows),
        "mixed": lambda: ListOfExamples([None, row][row % 2] for row in rows),
    }
    return made[kind]()


KINDS = ["tensor", "array", "strings", "objects", "names", "dicts", "ragged", "mixed"]
SHARED = [None, 3, "text", 2.5, SharedList([1, 2, 3])]
TREES = st.recursive(
    st.sampled_from(KINDS) | st.sampled_from(SHARED).map(lambda value: ("shared", value)),
    lambda inner: st.tuples(st.sampled_from(list(SHAPES)), inner, inner),
    max_leaves=8,
)
ROWS = st.lists(st.integers(0, 5), max_size=6)


def build(tree: Any, rows: list[int]) -> Any:
    """Build a batch of these rows by construction alone."""
    if isinstance(tree, str):
        return leaf_of(tree, rows)
    if tree[0] == "shared":
        return tree[1]
    return SHAPES[tree[0]](build(tree[1], rows), build(tree[2], rows))


def has_leaf(tree: Any) -> bool:
    return isinstance(tree, str) or (tree[0] != "shared" and any(map(has_leaf, tree[1:])))


def same(a: Any, b: Any) -> bool:
    """Literal comparison, type by type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return a.dtype.kind == b.dtype.kind and a.shape == b.shape and a.tolist() == b.tolist()
    if isinstance(a, dict | UserDict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, Record):
        return same(a.one, b.one) and same(a.other, b.other)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(TREES.filter(has_leaf), ROWS, st.data())
def test_slices_concatenate_to_the_whole(tree, rows, data):
    whole = build(tree, rows)
    ends = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    bounds = [0, *ends, len(rows)]
    parts = [batches.cut(whole, a, b) for a, b in itertools.pairwise(bounds)]
    for part, a, b in zip(parts, bounds[:-1], bounds[1:], strict=True):
        assert batches.example_count(part) == b - a
        assert same(part, build(tree, rows[a:b]))
    assert same(batches.join(parts), whole)
    assert input_digest(batches.join(parts)) == input_digest(whole)


@given(TREES.filter(has_leaf), ROWS.filter(bool), st.data())
def test_a_selection_is_the_batch_of_the_selected_rows(tree, rows, data):
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    whole, wanted = build(tree, rows), build(tree, [rows[place] for place in places])
    for given_places in (places, np.array(places), torch.tensor(places)):
        assert same(batches.select(whole, given_places), wanted)
    assert same(_nested.select(whole, places), wanted)
    assert _nested.example_count(whole) == batches.example_count(whole) == len(rows)
    assert same(_nested.resize(whole, 3), build(tree, [rows[i % len(rows)] for i in range(3)]))
    assert input_digest(batches.select(whole, places)) == input_digest(wanted)


@given(TREES.filter(has_leaf), ROWS)
def test_a_map_reaches_every_array_and_keeps_the_structure(tree, rows):
    whole, seen = build(tree, rows), []
    same_again = map_batch(lambda array: seen.append(array) or array, whole)
    assert same(same_again, whole)
    assert batches.example_count(to_tensors(whole)) == len(rows)


def test_a_list_without_arrays_is_a_leaf_when_it_is_as_long_as_the_batch():
    batch = {"x": torch.zeros(3, 2), "names": ["a", "b", "c"], "classes": ["cat", "dog"]}
    two = batches.select(batch, [2, 0])
    assert two["names"] == ["c", "a"] and two["classes"] == ["cat", "dog"]
    # Now there are as many classes as examples, but it was seen that they are no examples.
    assert batches.select(two, [1, 0])["classes"] == ["cat", "dog"]
    assert batches.join([two, two])["classes"] == ["cat", "dog"]


def test_lists_that_hold_arrays_are_containers_unless_they_are_marked():
    towers = [torch.zeros(2, 3), {"y": torch.ones(2)}]
    assert [leaf.shape for _, leaf in batches.leaves(towers)] == [(2, 3), (2,)]
    images = ListOfExamples([torch.zeros(3, 4), torch.ones(3, 5)])
    assert batches.select(images, [1])[0].shape == (3, 5)


def test_a_batch_of_lists_alone_has_their_length():
    assert batches.example_count({"text": ["a", "b"], "label": [0, 1]}) == 2
    with pytest.raises(InputError, match="must hold arrays"):
        batches.example_count({"text": ["a", "b"], "label": [0]})


def test_a_mapping_keeps_its_attributes_and_a_dataclass_its_type():
    moved = to_tensors(Encoding(ids=np.arange(2)))
    assert torch.equal(moved.ids, torch.arange(2))
    assert isinstance(to_tensors(Record(np.arange(2), 1)), Record)


def test_the_digest_of_objects_is_of_what_they_are_not_where():
    def make(last: str):
        return {"o": np.array(["one", ["two", last]], dtype=object)}

    assert input_digest(make("x")) == input_digest(make("x")) != input_digest(make("y"))
    assert input_digest({"a": np.float32(1)}) != input_digest({"a": np.float32(2)})
