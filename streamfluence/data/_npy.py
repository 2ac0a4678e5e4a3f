"""Arrays inside .npy and .npz files, described by their headers and mapped when read.

An array is mapped for one read and let go, so neither memory nor file handles grow with
the data. A stored (uncompressed) .npz member is a .npy file at an offset of its archive
and is mapped there; a compressed one can only be loaded whole. Nothing is ever unpickled.
"""

import io
import math
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.lib import format as npy

from streamfluence.data._files import file_size, readable
from streamfluence.errors import InputError

# A header is parsed as Python source; in 3.11, two threads at that fail with a SystemError
# (https://github.com/python/cpython/issues/106905).
_PARSING = threading.Lock()
_LONGEST_HEADER = 2**20
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies and what it is; ``member`` is set when it must be decompressed."""

    path: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int = 0
    fortran_order: bool = False
    member: str | None = None

    @property
    def n_bytes(self) -> int:
        """The bytes of all its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self) -> np.ndarray:
        """Return the array: a read-only map of the file, or its decompressed values."""
        if self.n_bytes == 0:
            return np.empty(self.shape, dtype=self.dtype)
        with readable(self.path):
            if self.member is not None:
                return self._decompressed(self.member)
            order: Literal["C", "F"] = "F" if self.fortran_order else "C"
            return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)

    def _decompressed(self, member: str) -> np.ndarray:
        order: Literal["C", "F"] = "F" if self.fortran_order else "C"
        with zipfile.ZipFile(self.path) as archive, archive.open(member) as file:
            _header(file)
            return np.frombuffer(file.read(self.n_bytes), self.dtype).reshape(
                self.shape, order=order
            )


def npy_header(path: Path) -> StoredArray:
    """Return the array of a .npy file from its header alone.

    Raises:
        InputError: If the file is not one, is shorter than its header says, or holds objects.
    """
    with readable(path), open(path, "rb") as file:
        shape, fortran_order, dtype = _header(file)
        offset = file.tell()
    array = StoredArray(path, dtype, shape, offset, fortran_order)
    return _checked(array, path.name, file_size(path) - offset)


def npz_headers(path: Path) -> dict[str, StoredArray]:
    """Return the arrays of a .npz file, in its order, from their headers alone.

    Raises:
        InputError: If the file is not one, is truncated, encrypted, or holds objects.
    """
    with readable(path), zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        arrays = {info.filename[:-4]: _member(archive, info, path) for info in members}
    if not arrays:
        raise InputError(f"{path} holds no array; save it with numpy.savez(path, name=array)")
    return arrays


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> StoredArray:
    if info.flag_bits & _ENCRYPTED:
        raise InputError(f"{path}: {info.filename} is encrypted; save it without a password")
    with archive.open(info) as file:
        shape, fortran_order, dtype = _header(file)
        header_bytes = file.tell()
    stored = info.compress_type == zipfile.ZIP_STORED
    offset = _data_offset(path, info) + header_bytes if stored else 0
    member = None if stored else info.filename
    array = StoredArray(path, dtype, shape, offset, fortran_order, member)
    return _checked(array, info.filename, info.file_size - header_bytes)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    # The lengths of name and extra field come from the local header: those of the
    # central directory differ (numpy writes a zip64 extra field only here).
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(_LOCAL_HEADER_BYTES)
    if len(local) < _LOCAL_HEADER_BYTES or local[:4] != b"PK\x03\x04":
        raise InputError(f"{path}: {info.filename} is not where the archive's directory says")
    name_bytes, extra_bytes = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(file)
    # 2.0 and 3.0 differ in how names of the fields of records are encoded.
    readers = {(1, 0): (npy.read_array_header_1_0, 2)} | dict.fromkeys(
        ((2, 0), (3, 0)), (npy.read_array_header_2_0, 4)
    )
    if version not in readers:
        raise ValueError(
            f"version {version} of the .npy format is unknown; save it again with numpy.save"
        )
    read, bytes_of_length = readers[version]
    length = file.read(bytes_of_length)
    text = file.read(min(int.from_bytes(length, "little"), _LONGEST_HEADER))
    with _PARSING:
        return read(io.BytesIO(length + text))


def _checked(array: StoredArray, name: str, available: int) -> StoredArray:
    if array.dtype.hasobject:
        raise InputError(
            f"{array.path}: {name} holds Python objects, which only pickle can read; "
            f"save plain numbers or strings"
        )
    if available < array.n_bytes:
        raise InputError(
            f"{array.path} is truncated: {name} needs {array.n_bytes:,} bytes and has {available:,}"
        )
    return array
