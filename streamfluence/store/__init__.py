"""The run directory: partitions, attempts, receipts, and what is read back from them."""

from streamfluence.store.array_reader import ArrayReader, array_names
from streamfluence.store.connect import open_storage
from streamfluence.store.garbage import Leftover
from streamfluence.store.receipts import Receipt, StoredObject
from streamfluence.store.run_store import ANYTHING, RunStore
from streamfluence.store.storage import Storage
from streamfluence.store.verify import Problem

__all__ = [
    "ANYTHING",
    "ArrayReader",
    "Leftover",
    "Problem",
    "Receipt",
    "RunStore",
    "Storage",
    "StoredObject",
    "array_names",
    "open_storage",
]
