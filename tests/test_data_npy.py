"""Headers of .npy and .npz files, read by several threads at once."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from streamfluence.data._npy import npz_headers


@pytest.fixture
def collecting_gives_way():
    """Let garbage be collected all the time, and another thread go on whenever it is."""

    def give_way(phase, info):
        time.sleep(0)

    before = gc.get_threshold()
    gc.callbacks.append(give_way)
    gc.set_threshold(5, 10**6)
    yield
    gc.set_threshold(*before)
    gc.callbacks.remove(give_way)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_threads_read_headers_and_values_at_once(tmp_path, collecting_gives_way, save):
    path = tmp_path / "a.npz"
    arrays = {f"f{k}": np.arange(6.0).reshape(2, 3) + k for k in range(8)}
    save(path, **arrays, columns=np.asfortranarray(arrays["f0"]))

    def content(_):
        return {name: array.view() for name, array in npz_headers(path).items()}

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(content, range(40)):
            assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
            assert np.array_equal(found["columns"], arrays["f0"])
