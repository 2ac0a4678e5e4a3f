"""Read ahead in a background thread, so that reading overlaps computing.

At most ``depth`` items are read and not yet taken, and the thread ends with the consumer.
"""

import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

Item = TypeVar("Item")
_NEXT, _FAILED, _END = range(3)
# A read that hangs on lost storage must not keep an interrupted worker alive.
_JOIN_SECONDS = 5.0


def prefetch(iterable: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """Yield the items of ``iterable``, read up to ``depth`` items ahead in a thread.

    An exception of the iterable is raised here, after the items before it. When the
    consumer stops early, the item being read is the last one, and a generator is closed.

    Raises:
        ValueError: If ``depth`` is below 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    return _consume(iterable, depth)


def _consume(iterable: Iterable[Item], depth: int) -> Iterator[Item]:
    items: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    slots, stopped = threading.Semaphore(depth), threading.Event()
    arguments = (iterable, items, slots, stopped)
    thread = threading.Thread(target=_produce, args=arguments, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == _END:
                return
            if kind == _FAILED:
                raise value
            slots.release()
            yield value
            del value  # or one more item would live while the next is awaited
    finally:
        stopped.set()
        slots.release()
        thread.join(_JOIN_SECONDS)


def _produce(
    iterable: Iterable[Any],
    items: "SimpleQueue[tuple[int, Any]]",
    slots: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    try:
        iterator = iter(iterable)
        while slots.acquire() and not stopped.is_set():
            try:
                item = next(iterator)
            except StopIteration:
                break
            items.put((_NEXT, item))
            del item
        if hasattr(iterator, "close"):
            iterator.close()
        items.put((_END, None))
    except BaseException as error:
        items.put((_FAILED, error))
