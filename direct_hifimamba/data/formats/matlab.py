"""MATLAB's files, those of the CMRxRecon challenge among them: version 5 by scipy, version 7.3, which is HDF5, by h5py.

Axes are named in MATLAB's order, which HDF5 reverses.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.hdf5 import StoredArray
from direct_hifimamba.data.formats.raw_data import Format, MissingArrayError, RawData, as_complex, from_array
from direct_hifimamba.data.provenance import read_provenance

_COMPLEX = ("real", "imag")
_VERSION_5 = (b"\0\1IM", b"\1\0MI")
_NUMBERS = re.compile("double|single|logical|u?int(8|16|32|64)")


def _is_version_5(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(128)[124:] in _VERSION_5


def _matches(path: Path) -> bool:
    if not h5py.is_hdf5(path):
        return _is_version_5(path)
    with path.open("rb") as file:
        if file.read(10) == b"MATLAB 7.3":
            return True
    with h5py.File(path) as file:
        return any(_is_array(file.get(name)) and file[name].dtype.names == _COMPLEX for name in file)


def _is_array(stored: Any) -> bool:
    return isinstance(stored, h5py.Dataset) and stored.attrs.get("MATLAB_class") not in (b"char", b"cell")


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays of numbers by their names."""
    if not _is_version_5(path):
        with h5py.File(path) as file:
            return {name: file[name].shape[::-1] for name in file if _is_array(file.get(name))}
    from scipy.io import whosmat

    try:
        return {name: tuple(shape) for name, shape, kind in whosmat(path) if _NUMBERS.fullmatch(kind)}
    except Exception as error:  # of scipy, which raises errors of many kinds
        raise ValueError(f"it is damaged or cut short: {error}") from error


def _load(path: Path, name: str) -> Any:
    """Return an array with its axes in MATLAB's order; that of version 7.3 is read when it is used."""
    if not _is_version_5(path):
        return _Reversed(StoredArray(path, name))
    from scipy.io import loadmat

    try:
        return loadmat(path, variable_names=[name])[name]
    except Exception as error:
        raise ValueError(f"its variable {name} is damaged or cut short: {error}") from error


class _Reversed:
    """A data set of HDF5 whose axes are reversed."""

    def __init__(self, stored: StoredArray) -> None:
        self._stored = stored
        self.shape, self.ndim, self.dtype = stored.shape[::-1], stored.ndim, stored.dtype

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        index += (slice(None),) * (self.ndim - len(index))
        return self._stored[index[::-1]].T


def _find(shapes: dict[str, Any], name: str) -> str | None:
    """Find an array by its name or its beginning, such as `kspace_sub04` and `mask04`."""
    if name in shapes:
        return name
    found = [key for key in shapes if key.startswith(name)]
    if len(found) > 1:  # several masks: the one of the k-space
        numbers = {number for key in shapes if key.startswith("kspace") for number in re.findall(r"\d+$", key)}
        found = [key for key in found if numbers.intersection(re.findall(r"\d+$", key))] or found
    if len(found) > 1:
        raise ValueError(f"it has {', '.join(found)}; expected one of them, or the name {name!r}")
    return found[0] if found else None


def _choose(path: Path, variable: str | None) -> str:
    """Return the name of k-space: the one asked for, `kspace`, or that of the only array of complex numbers."""
    shapes = _shapes(path)
    name = _find(shapes, variable or "kspace")
    if name is not None:
        return name
    if variable is None:
        found = [key for key in shapes if key != "mask" and _is_complex(_load(path, key))]
        if len(found) == 1:
            return found[0]
    names = ", ".join(f"{key} ({' x '.join(map(str, shape))})" for key, shape in shapes.items())
    raise MissingArrayError(
        f"it has no array {variable or 'kspace'!r}, but {names or 'none'}; name k-space (--variable)"
    )


def _is_complex(array: Any) -> bool:
    return array.dtype.kind == "c" or array.dtype.names == _COMPLEX


def _read(path: Path, axes: Sequence[str] | None = None, variable: str | None = None) -> RawData:
    name = _choose(path, variable)
    array, mask = _load(path, name), read_array(path, "mask")
    lengths = array.shape if _is_complex(array) else array.shape[:-1]
    is_challenge = len(lengths) == 5
    if len(lengths) == 4 and ("single" in name or read_provenance(path) is not None):
        # (height, width, slice, time) of single-coil data, as in the challenge and from `prepare`.
        order, is_challenge = ["height", "width", "slice"], True
    elif is_challenge or (len(lengths) == 4 and lengths[2] <= min(lengths[:2])):
        order = ["height", "width", "coil", "slice"]
    else:
        order = None
    if axes is not None or not is_challenge:
        return from_array(array, axes or order, mask=mask)
    slices, times = lengths[-2:]
    return from_array(
        array,
        order,
        has_times=True,
        mask=mask,
        image_size=(round(lengths[0] / 3), round(lengths[1] / 2)),  # DIRECT's reader asks for this part of the image
        messages=(f"{times} times of {slices} slices became {times * slices} slices.",) if times > 1 else (),
    )


def read_array(path: Path, name: str) -> NDArray[Any] | None:
    """Return an array with this name or beginning, a row vector with one axis; None if there is none."""
    found = _find(_shapes(path), name)
    if found is None:
        return None
    array = _load(path, found)[()]
    values = np.asarray(as_complex(array) if array.dtype.names else array)
    return values[0] if values.ndim == 2 and len(values) == 1 else values


FORMAT = Format("MATLAB", _matches, _read, read_array)
