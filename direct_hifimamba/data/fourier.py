"""DIRECT's orthonormal Fourier transform for numpy arrays."""

import numpy as np
import torch
from direct.data import transforms
from numpy.typing import NDArray

SCALE = 1e-12, 1e15
"""Least and greatest maximum of k-space or images whose squares single precision holds, as DIRECT computes them."""


def check_scale(maximum: float, what: str = "k-space") -> None:
    """Raise a ValueError unless the largest magnitude of `what` is within `SCALE`."""
    if not SCALE[0] <= maximum <= SCALE[1]:
        raise ValueError(
            f"The largest magnitude of {what} is {maximum:.3g}; expected {SCALE[0]:g} to {SCALE[1]:g}, because single "
            "precision does not hold the squares of others. Multiply all values by a power of ten."
        )


def image_to_kspace(image: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Centred, orthonormal 2-D Fourier transform of the last two axes: DIRECT's `fft2` with its default options."""
    return transforms.fft2(torch.from_numpy(image), dim=_spatial_dims(image), complex_input=False).numpy()


def kspace_to_image(kspace: NDArray[np.complex64], centered: bool = True) -> NDArray[np.complex64]:
    """Inverse of :func:`image_to_kspace`; or, if not `centered`, DIRECT's `ifft2(centered=False)`."""
    dim = _spatial_dims(kspace)
    return transforms.ifft2(torch.from_numpy(kspace), dim=dim, centered=centered, complex_input=False).numpy()


def root_sum_of_squares(kspace: NDArray[np.complex64], centered: bool = True) -> NDArray[np.float32]:
    """Magnitude image of fully sampled k-space as DIRECT computes its target.

    Parameters
    ----------
    kspace : complex64 array of shape ([coil, ]height, width)
    centered : bool
        As in :func:`kspace_to_image`.

    Returns
    -------
    float32 array of shape (height, width)
    """
    image = kspace_to_image(kspace, centered)
    return np.abs(image) if image.ndim == 2 else np.linalg.norm(image, axis=0)


def _spatial_dims(array: NDArray[np.complex64]) -> tuple[int, int]:
    return array.ndim - 2, array.ndim - 1
