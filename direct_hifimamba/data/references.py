"""Checks that references can be made from k-space: it is fully sampled, and its centre is where it should be."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.checks import check_image_origin, check_zero_frequency
from direct_hifimamba.data.fourier import check_scale

MAX_GAPS = 0.01
"""Fraction of the samples between the outermost ones that may be zero in fully sampled k-space."""


class SourceError(ValueError):
    """Error for a file of a data set that cannot be used; the message has the reason without the name of the file."""


def check_fully_sampled(kspace: NDArray[np.complex64]) -> None:
    """Check that a slice of k-space is fully sampled, so that it can be a reference.

    Samples that were not acquired are exactly zero in all coils. This is allowed at the edges (zero-padding, partial
    Fourier, elliptical shutters), but not in gaps within a row or column.

    Parameters
    ----------
    kspace : complex64 array of shape ([coil, ]height, width)

    Raises
    ------
    SourceError
        If it is undersampled, not finite, or too large or small for single precision.
    """
    if not np.isfinite(kspace).all():
        raise SourceError("it has values that are NaN or infinite")
    if maximum := float(np.abs(kspace).max()):
        try:
            check_scale(maximum)
        except ValueError as error:
            raise SourceError(str(error)) from error
    acquired = (kspace != 0).reshape(-1, *kspace.shape[-2:]).any(axis=0)

    def between(axis: int) -> NDArray[np.bool_]:
        before = np.logical_or.accumulate(acquired, axis)
        after = np.flip(np.logical_or.accumulate(np.flip(acquired, axis), axis), axis)
        return before & after & ~acquired

    gaps = between(0) | between(1)
    lines = [axis for axis in (0, 1) if (gaps.any(axis) & ~acquired.any(axis)).any()]
    if lines or gaps.sum() > MAX_GAPS * (acquired | gaps).sum():
        raise SourceError(
            f"its k-space is undersampled: {gaps.sum()} of the {(acquired | gaps).sum()} samples between the "
            "outermost ones are zero in all coils; expected fully sampled k-space, because references are made from it"
        )


def check_center(slices: Iterable[NDArray[np.complex64]], centered: bool) -> None:
    """Check that the zero frequency of fully sampled slices, and the object in their images, are where they should be.

    One slice in which they are is enough: an object that fills the field of view may be brightest on its edges.

    Parameters
    ----------
    slices : iterable of complex64 arrays of shape ([coil, ]height, width)
        At least one.
    centered : bool
        Whether the origin of the image is in the middle.

    Raises
    ------
    SourceError
        If the zero frequency is not in the middle, or if the object lies across the edges of the image.
    """
    found: ValueError | None = None
    for kspace in slices:
        shape = kspace.shape[-2:]
        energy = np.square(np.abs(kspace), dtype=np.float64).reshape(-1, *shape).sum(axis=0)
        try:
            check_zero_frequency(energy, hint="")
            check_image_origin(kspace[None], np.ones(shape, bool), centered, hint="")
        except ValueError as error:
            found = error
        else:
            return
    raise SourceError(str(found)) from found
