"""K-space files in the form of the fastMRI data set, the one that DIRECT's `FastMRI` data set reads."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.fourier import root_sum_of_squares
from direct_hifimamba.files import replace_when_complete


def write_volume(
    path: Path,
    kspace: Iterable[NDArray[np.complex64]],
    provenance: dict[str, Any],
    mask: NDArray[np.bool_] | None = None,
) -> None:
    """Write one volume; the file appears when it is complete.

    The attributes `max` and `norm` are those of the root-sum-of-squares volume, as in fastMRI. (Without `max`, DIRECT
    would hand all attributes to its collate function.)

    Parameters
    ----------
    path : Path
    kspace : iterable of complex64 arrays of shape ([coil, ]height, width)
        The slices, at least one. Only one is held at a time.
    provenance : dict
        Where the data come from; stored as JSON in the attribute `provenance`.
    mask : bool array of shape (width,), optional
        Sampling mask, for use with `pass_mask: true`.
    """
    maximum = squared_norm = 0.0
    with replace_when_complete(path) as partial, h5py.File(partial, "w") as file:
        dataset = None
        for index, kspace_slice in enumerate(kspace):
            if dataset is None:
                shape = kspace_slice.shape
                dataset = file.create_dataset(
                    "kspace", (0, *shape), np.complex64, chunks=(1, *shape), maxshape=(None, *shape)
                )
            dataset.resize(index + 1, axis=0)
            dataset[index] = kspace_slice
            image = root_sum_of_squares(kspace_slice)
            maximum = max(maximum, float(image.max()))
            squared_norm += float(np.sum(np.square(image, dtype=np.float64)))
        if mask is not None:
            file["mask"] = mask
        file.attrs["max"] = maximum
        file.attrs["norm"] = squared_norm**0.5
        file.attrs["provenance"] = json.dumps(provenance, indent=1, sort_keys=True)


def read_provenance(path: Path) -> dict[str, Any] | None:
    """What :func:`write_volume` stored with a volume, or None if `path` is no file that it wrote."""
    try:
        with h5py.File(path) as file:
            return json.loads(file.attrs["provenance"])
    except (OSError, KeyError):
        return None
