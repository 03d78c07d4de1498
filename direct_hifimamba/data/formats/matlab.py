"""MATLAB 7.3 files of the CMRxRecon challenge, as DIRECT's reader takes them."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from direct_hifimamba.data.formats.hdf5 import StoredArray
from direct_hifimamba.data.formats.raw_data import Format, MissingArrayError, RawData, as_complex, from_array


def _matches(path: Path) -> bool:
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return any(_is_kspace(name, stored) for name, stored in file.items())


def _is_kspace(name: str, stored: Any) -> bool:
    return name.startswith("kspace") and isinstance(stored, h5py.Dataset) and stored.dtype.names == ("real", "imag")


def _find(file: h5py.File, name: str) -> str | None:
    """Find a data set by its name or its beginning, such as `kspace_sub04` and `mask04`."""
    if name in file:
        return name
    found = [key for key in file if key.startswith(name)]
    if len(found) > 1:  # several masks: the one of the k-space
        numbers = {number for key in file if key.startswith("kspace") for number in re.findall(r"\d+$", key)}
        found = [key for key in found if numbers.intersection(re.findall(r"\d+$", key))] or found
    if len(found) > 1:
        raise ValueError(f"it has {', '.join(found)}; expected one of them, or the name {name!r}")
    return found[0] if found else None


def _read(path: Path, axes: Sequence[str] | None = None, variable: str | None = None) -> RawData:
    with h5py.File(path) as file:
        name = _find(file, variable or "kspace")
        if name is None:
            raise MissingArrayError(f"it has no {variable!r}, but {', '.join(file)}")
    kspace = StoredArray(path, name)
    if axes is not None:
        return from_array(kspace, axes, mask=read_array(path, "mask"))
    if kspace.ndim not in (4, 5):
        raise ValueError(f"k-space has the shape {kspace.shape}; expected (time, slice[, coil], width, height)")
    times, slices, *rest = kspace.shape
    raw = from_array(_Times(kspace), ("slice", *["coil"][: len(rest) - 2], "width", "height"))
    height, width = raw.shape[2:]
    return replace(
        raw,
        mask=read_array(path, "mask"),
        image_size=(round(height / 3), round(width / 2)),  # DIRECT's reader asks for this part of the image
        messages=(f"{times} times of {slices} slices became {times * slices} slices.",) if times > 1 else (),
    )


class _Times:
    """An array whose first two axes, time and slice, are one."""

    def __init__(self, kspace: StoredArray) -> None:
        self._kspace = kspace
        self.shape = (kspace.shape[0] * kspace.shape[1], *kspace.shape[2:])
        self.ndim, self.dtype = kspace.ndim - 1, kspace.dtype

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        return self._kspace[(*divmod(index[0], self._kspace.shape[1]), *index[1:])]


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """Return an array, whose axes HDF5 has in reverse, or None if there is none of this name or beginning."""
    with h5py.File(path) as file:
        found = _find(file, name)
        if found is None:
            return None
        stored = file[found][()]
    return as_complex(stored).T if stored.dtype.names else stored.T


FORMAT = Format("MATLAB 7.3 of CMRxRecon", _matches, _read, read_array)
