"""Magnitude images of test files and predictions, cropped as DIRECT crops both.

Units are those of the k-space file under an orthonormal Fourier transform. `shape` is that of the reconstruction, so
that `crop: header` in a configuration is followed without reading the header. Samples that `padding_eps` zeroes are
kept: they are below a ten-thousandth of the mean.
"""

from pathlib import Path

import h5py
import numpy as np
import torch
from direct.data.transforms import center_crop
from numpy.typing import NDArray

from direct_hifimamba.data.formats.hdf5 import acquired_columns, kspace_shape, read_mask, read_slices
from direct_hifimamba.data.fourier import root_sum_of_squares


def load_target(path: Path, shape: tuple[int, int], centered: bool = True) -> NDArray[np.float32]:
    """Return the root sum of squares of the fully sampled k-space of a test file.

    Parameters
    ----------
    path : Path
        As :mod:`direct_hifimamba.data.formats.hdf5` writes them.
    shape : tuple of two ints
        Height and width to crop to, about the centre.
    centered : bool
        Whether the forward operator of the configuration is centred, as it is unless it says ``centered=False``.

    Returns
    -------
    float32 array of shape (slices, height, width)

    Raises
    ------
    ValueError
        If the image is smaller than `shape`.
    """
    return _load(path, shape, centered, masked=False)


def load_zero_filled(path: Path, shape: tuple[int, int], centered: bool = True) -> NDArray[np.float32]:
    """Return the root sum of squares of the k-space that the mask of a test file leaves; see :func:`load_target`.

    Raises
    ------
    ValueError
        If the file has no mask, or if the image is smaller than `shape`.
    """
    return _load(path, shape, centered, masked=True)


def load_reconstruction(path: Path) -> NDArray[np.float32]:
    """Return what `direct predict` has written, a float32 array of shape (slices, height, width)."""
    with h5py.File(path) as file:
        return file["reconstruction"][()]


def _load(path: Path, shape: tuple[int, int], centered: bool, masked: bool) -> NDArray[np.float32]:
    with h5py.File(path) as file:
        mask = read_mask(file)
        if masked and mask is None:
            raise ValueError(
                f"{path} has no mask; expected a test file with one, as `prepare` and `simulate` store it."
            )
        samples = np.zeros(kspace_shape(file)[-1], bool)
        samples[acquired_columns(file)] = True  # DIRECT clears k-space elsewhere
        if masked:
            samples = samples & mask
        images = np.stack([root_sum_of_squares(kspace * samples, centered) for kspace in read_slices(file)])
    if any(size < wanted for size, wanted in zip(images.shape[1:], shape, strict=True)):
        raise ValueError(f"{path} has images of {images.shape[1:]} pixels; expected at least the {shape} predicted.")
    return center_crop(torch.from_numpy(images), shape).numpy()
