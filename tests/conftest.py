"""What every test shares: one thread a process, signals, and GPU tests that skip with a reason.

One thread, because two test processes share two cores, and because a sum over
several threads may round otherwise than a sum over one.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Dask's own patience with a worker that starts is too short for a machine that is busy.
os.environ.setdefault("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "900s")
os.environ.setdefault("DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP", "900s")

import pytest
from hypothesis import HealthCheck, settings

# Programs that tests interrupt would ignore it, too, where the tests run in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline and no limit of the time to draw: a shared machine stalls. In CI the same examples
# every time.
settings.register_profile(
    "streamfluence",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("streamfluence")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch finds no CUDA device."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device on this machine"))
