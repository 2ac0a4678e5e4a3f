"""Reading ahead: same items, bounded, overlapping, and no thread left behind."""

import gc
import threading
import time

import pytest
from patience import HANG_SECONDS, wait_until

from streamfluence.data._prefetch import prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert threads() == []


@pytest.mark.parametrize("depth", [1, 2, 7, 100])
@pytest.mark.parametrize("length", [0, 1, 20])
def test_the_items_are_those_of_the_iterable_in_order(depth, length):
    assert list(prefetch(range(length), depth)) == list(range(length))


@pytest.mark.parametrize("depth", [1, 3])
def test_at_most_depth_items_are_read_ahead(depth):
    read = []

    def source():
        for item in range(20):
            read.append(item)
            yield item

    ahead = prefetch(source(), depth)
    for taken in range(1, 6):
        next(ahead)
        wait_until(lambda taken=taken: len(read) >= taken + depth)
        time.sleep(0.02)  # whoever reads too far ahead has a moment to do so
        assert len(read) == taken + depth
    ahead.close()


def test_an_exception_comes_after_the_items_before_it_and_is_the_same_one():
    failure = KeyError("third")

    def source():
        yield 1
        yield 2
        raise failure

    ahead = prefetch(source())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(KeyError) as caught:
        next(ahead)
    assert caught.value is failure


def test_an_object_that_cannot_be_iterated_fails_in_the_consumer():
    with pytest.raises(TypeError, match="not iterable"):
        list(prefetch(3))


def test_a_consumer_that_stops_early_ends_the_thread_and_closes_the_source():
    closed = threading.Event()

    def source():
        try:
            yield from range(10**9)
        finally:
            closed.set()

    for item in prefetch(source(), 3):
        if item == 4:
            break
    gc.collect()
    assert closed.is_set() and threads() == []


def test_a_consumer_that_fails_ends_the_thread():
    with pytest.raises(ZeroDivisionError):
        for _ in prefetch(iter(range(10**9))):
            raise ZeroDivisionError
    gc.collect()
    assert threads() == []


def test_an_iterator_never_started_has_no_thread():
    prefetch(range(3))
    assert threads() == []


def test_the_next_item_is_read_while_one_is_in_use():
    reading = [threading.Event() for _ in range(4)]

    def source():
        for item in range(4):
            reading[item].set()
            yield item

    for item in prefetch(source(), 1):
        assert reading[min(item + 1, 3)].wait(timeout=HANG_SECONDS)


def test_a_depth_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        prefetch(range(3), 0)
