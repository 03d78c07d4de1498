"""Slices without anything in them. DIRECT cannot scale them, and fails."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FOREGROUND_LEVEL = 0.1
"""A voxel is foreground above this fraction of the maximum."""

MIN_FOREGROUND = 0.01
"""A slice with a smaller fraction of foreground is blank."""


def foreground(image: NDArray[Any], maximum: float) -> NDArray[np.bool_]:
    """Where a magnitude image, or volume, shows more than background."""
    return image > FOREGROUND_LEVEL * maximum


def bright_level(image: NDArray[Any]) -> float:
    """Return the maximum of a magnitude image or volume, unless it is that of a few bright spots.

    With less than `MIN_FOREGROUND` of foreground below the maximum, it is the quantile that so many voxels exceed: a
    spike does not make background of all the rest. It is 0 where nearly all voxels are.
    """
    maximum = float(image.max())
    if foreground(image, maximum).mean() >= MIN_FOREGROUND:
        return maximum
    return float(np.quantile(image, 1 - MIN_FOREGROUND))


def is_blank(image: NDArray[Any], maximum: float) -> bool:
    """Whether a magnitude image has next to no foreground, or nothing else but one value."""
    return bool(foreground(image, maximum).mean() < MIN_FOREGROUND or image.min() == image.max())
