"""NumPy's `.npy` and `.npz` files."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.raw_data import Format, MissingArrayError, RawData, from_array

_MAGIC = b"\x93NUMPY"


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _matches(path: Path) -> bool:
    if not path.is_file():
        return False
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    return _is_array(path)


def _read(path: Path, axes: Sequence[str] | None = None, variable: str | None = None) -> RawData:
    if variable is not None and _is_array(path):
        raise MissingArrayError("it has one array, which has no name; leave out --variable")
    name = variable or "kspace"
    kspace = read_array(path, name)
    if kspace is None:
        raise MissingArrayError(f"it has no {name!r}; expected k-space under this name")
    return from_array(kspace, axes, mask=None if _is_array(path) else read_array(path, "mask"))


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """Return the array of a `.npy` file, mapped into memory, or that with this name in a `.npz` file."""
    stored = np.load(path, mmap_mode="r")
    if isinstance(stored, np.ndarray):
        return stored
    with stored:
        return stored.get(name)


FORMAT = Format("NumPy", _matches, _read, read_array)
