"""The laws of readers over the reader ``lines``; run by test_plug_in.py, with the package installed."""

import inspect

import numpy as np
import pytest
import test_data_laws as laws


@pytest.fixture
def made(tmp_path):
    table = np.random.default_rng(0).normal(size=(laws.COUNT, 4)).round(3)
    table[:, -1] = np.arange(laws.COUNT) % 3
    np.savetxt(tmp_path / "x.csv", table, fmt="%.3f", delimiter=";")
    return tmp_path, {"reader": "lines", "path": "x.csv", "between": ";"}


LAWS = {n: f for n, f in vars(laws).items() if n.startswith("test_") and callable(f)}
globals().update({n: f for n, f in LAWS.items() if "made" in inspect.signature(f).parameters})
