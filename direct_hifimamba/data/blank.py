"""Detection of blank slices, which DIRECT cannot scale."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FOREGROUND_LEVEL = 0.1
"""A voxel is foreground above this fraction of the maximum."""

MIN_FOREGROUND = 0.01
"""A slice with a smaller fraction of foreground is blank."""


def foreground(image: NDArray[Any], maximum: float) -> NDArray[np.bool_]:
    """Return where a magnitude image or volume is brighter than background."""
    return image > FOREGROUND_LEVEL * maximum


def bright_level(image: NDArray[Any]) -> float:
    """Return the maximum of a magnitude image or volume, unless it is that of a few bright spots.

    If less than the fraction `MIN_FOREGROUND` is foreground relative to the maximum, return the quantile that this
    fraction of voxels exceeds, so that a spike does not turn everything else into background. The result is 0 where
    nearly all voxels are 0.
    """
    maximum = float(image.max())
    if foreground(image, maximum).mean() >= MIN_FOREGROUND:
        return maximum
    return float(np.quantile(image, 1 - MIN_FOREGROUND))


def is_blank(image: NDArray[Any], maximum: float) -> bool:
    """Return whether a magnitude image has almost no foreground, or is constant."""
    return bool(foreground(image, maximum).mean() < MIN_FOREGROUND or image.min() == image.max())
