"""The package itself: what it exports and what listing its members costs."""

import subprocess
import sys

import pytest

import streamfluence.data


def test_listing_the_readers_loads_neither_torch_nor_numpy():
    program = (
        "import sys; from streamfluence.registry import names; assert 'arrays' in names('data'); "
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", streamfluence.data.__all__)
def test_every_exported_name_is_callable(name):
    assert callable(getattr(streamfluence.data, name))


def test_a_name_that_is_not_exported_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'shuffle'"):
        _ = streamfluence.data.shuffle
