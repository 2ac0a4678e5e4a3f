"""Sizes as people write them."""

import pytest

from streamfluence.budget import parse_size
from streamfluence.errors import InputError


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("4GiB", 4 << 30), ("1.5g", 3 << 29), ("512 MB", 512_000_000), ("2kB", 2000)],
)
def test_a_size_is_read_as_it_is_meant(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "12xx", "-1", "1e9", "9" * 400, "0." + "1" * 400, "4 iB", "inf"]
)
def test_what_is_no_size_is_refused_in_a_sentence(text):
    with pytest.raises(InputError, match=r"is no size in bytes; give one such as 4GiB") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 120
