"""Crop, zero-pad and resample slices."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from skimage.transform import resize


def crop_or_pad(images: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
    """Centre crop and zero-pad the last two axes to `size`; the centre is DIRECT's, index `length // 2`."""
    for axis, length in zip((-2, -1), size, strict=True):
        surplus = images.shape[axis] // 2 - length // 2
        images = images.take(range(max(0, surplus), min(images.shape[axis], surplus + length)), axis)
        padding = [(0, 0)] * images.ndim
        padding[axis] = (max(0, -surplus), length - images.shape[axis] - max(0, -surplus))
        images = np.pad(images, padding)
    return images


def resample(images: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
    """Resample the last two axes to `size` by linear interpolation, after smoothing where the grid becomes coarser."""
    return resize(images, (*images.shape[:-2], *size), order=1, mode="edge", anti_aliasing=True)
