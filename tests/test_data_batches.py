"""Helpers over batches of any shape."""

from collections import namedtuple

import numpy as np
import pytest
import torch

from streamfluence.data._batches import (
    batch_length,
    concatenate,
    input_digest,
    leaves,
    map_batch,
    slice_batch,
    to_tensors,
)
from streamfluence.errors import InputError

Pair = namedtuple("Pair", ["inputs", "target"])


def nested(rows: int = 4):
    return {
        "pair": Pair(np.arange(rows * 2.0).reshape(rows, 2), torch.arange(rows)),
        "list": [np.ones((rows, 1), np.uint8), ("kept", None)],
        "names": [f"row {row}" for row in range(rows)],
    }


def test_a_map_keeps_the_structure_and_touches_arrays_only():
    doubled = map_batch(lambda array: array * 2, nested())
    assert isinstance(doubled["pair"], Pair) and isinstance(doubled["list"][1], tuple)
    assert doubled["pair"].inputs[3].tolist() == [12.0, 14.0]
    assert doubled["list"][1] == ("kept", None) and doubled["names"] == nested()["names"]


def test_the_parts_of_a_batch_concatenate_to_the_batch():
    whole = {key: value for key, value in nested(5).items() if key != "list"}
    parts = [slice_batch(whole, 0, 2), slice_batch(whole, 2, 2), slice_batch(whole, 2, 5)]
    assert input_digest(concatenate(parts)) == input_digest(whole)


def test_the_length_is_that_of_every_array():
    assert batch_length(nested(4)) == 4
    assert batch_length(torch.zeros(0, 3)) == 0


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"a": np.zeros(3), "b": [np.zeros(4)]}, "/a: 3, /b/0: 4"),
        ({"a": np.zeros(3), "b": np.array(1.0)}, "/b: none"),
        ({"a": "text"}, "must hold arrays"),
    ],
)
def test_arrays_that_disagree_are_refused(batch, message):
    with pytest.raises(InputError, match=message):
        batch_length(batch)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("uint8", torch.uint8),
        ("uint16", torch.int64),
        (">u4", torch.int64),
        (">f4", torch.float32),
        ("float64", torch.float64),
        ("bool", torch.bool),
    ],
)
def test_arrays_become_tensors_of_the_same_values(given, expected):
    array = np.array([0, 1, 1], dtype=given)
    tensor = to_tensors({"x": array})["x"]
    assert tensor.dtype == expected and tensor.tolist() == array.tolist()


def test_a_read_only_array_is_copied_and_strings_stay_arrays():
    frozen = np.arange(3)
    frozen.flags.writeable = False
    tensors = to_tensors((frozen, np.array(["a", "b", "c"])))
    tensors[0][0] = 7
    assert frozen[0] == 0 and isinstance(tensors[1], np.ndarray)


def test_the_digest_ignores_key_order_and_the_kind_of_array():
    array = np.arange(6).reshape(2, 3)
    one = {"a": array, "b": torch.ones(2)}
    other = {"b": np.ones(2, np.float32), "a": torch.from_numpy(array.copy())}
    assert input_digest(one) == input_digest(other)


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.array([0, 1, 2, 4])},
        {"b": np.arange(4)},
        {"a": np.arange(4, dtype=np.int32)},
        {"a": np.arange(4).reshape(2, 2)},
        {"a": np.arange(4), "b": np.zeros(0)},
        {"a": np.arange(4), "b": "text"},
    ],
    ids=str,
)
def test_the_digest_changes_with_names_types_shapes_and_values(other):
    assert input_digest(other) != input_digest({"a": np.arange(4)})


def test_the_digest_of_strings_and_other_values_is_of_their_content():
    assert input_digest({"a": ["x", "y"]}) != input_digest({"a": ["x", "z"]})
    assert input_digest({"a": object()}) == input_digest({"a": object()})


def test_a_digest_goes_on_from_another():
    a, b = np.arange(3), np.arange(4)
    assert input_digest(b, input_digest(a)) != input_digest(a, input_digest(b))


def test_half_precision_has_a_digest_of_its_own():
    values = torch.ones(3, dtype=torch.bfloat16)
    assert input_digest(values) != input_digest(values.view(torch.int16))


def test_leaves_are_named_by_their_place():
    places = [place for place, _ in leaves(nested())]
    assert places == ["/pair/0", "/pair/1", "/list/0", "/names"]
