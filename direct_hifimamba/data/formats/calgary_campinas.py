"""Multi-coil k-space of the Calgary-Campinas data set, as DIRECT's reader takes it."""

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.formats.hdf5 import StoredArray
from direct_hifimamba.data.formats.raw_data import Format, RawData

SAMPLED = 0.85
"""Fraction of the columns that was acquired; DIRECT's reader sets the others to zero."""


def read_slice(kspace: Any, index: int) -> NDArray[np.complex64]:
    """Return a slice of shape (coil, height, width), zero where it was not acquired.

    Parameters
    ----------
    kspace : float32 data set of shape (slices, height, width, 2 * coil)
        Real and imaginary parts take turns.
    index : int
    """
    values = kspace[index].view(np.complex64)
    values[:, math.ceil(SAMPLED * values.shape[1]) :] = 0
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))


def _matches(path: Path) -> bool:
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        kspace = file.get("kspace")
        if not isinstance(kspace, h5py.Dataset) or kspace.dtype != np.float32 or kspace.ndim != 4:
            return False
        _, height, width, channels = kspace.shape
        # Otherwise they are real numbers of other axes, such as (slices, coil, height, width).
        return channels > 2 and channels % 2 == 0 and channels // 2 <= min(height, width)


def _read(path: Path) -> RawData:
    array = StoredArray(path, "kspace")
    if 0 in array.shape:
        raise ValueError(f"k-space has the shape {array.shape} and so no samples")
    slices, height, width, channels = array.shape
    message = "The origin of the image is in its corner: the configuration has to have centered=False."
    return RawData((slices, channels // 2, height, width), lambda index: read_slice(array, index), messages=(message,))


FORMAT = Format("HDF5 of Calgary-Campinas", _matches, _read)
