"""The block around the centre of k-space that is sampled without gaps."""

import numpy as np
from numpy.typing import NDArray

MIN_CENTER = 2
"""Smallest number of adjacent lines around the centre of k-space from which sensitivities can be estimated."""


def center_block(sampled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the block around the centre of k-space that is sampled without gaps, for autocalibration (ACS).

    For masks of whole columns it is the one of DIRECT's `FastMRI` data set. Others get a block that is grown from the
    centre on all sides as long as it has no gap.

    Parameters
    ----------
    sampled : bool array of shape (height, width)

    Returns
    -------
    bool array of shape (height, width)

    Raises
    ------
    ValueError
        If the block is narrower than `MIN_CENTER`.
    """
    block = grow_block(sampled)
    height, width = sampled.shape
    size = [int(block.any(axis=axis).sum()) for axis in (1, 0)]
    if min(size) < min(MIN_CENTER, height, width):
        raise ValueError(
            f"The mask samples no centre: {size[0]} x {size[1]} adjacent "
            f"samples (height x width) around index ({height // 2}, {width // 2}), where the zero frequency is "
            f"expected; coil sensitivities are estimated from at least {MIN_CENTER} each way. If the zero frequency "
            "is at index 0, apply np.fft.fftshift to both axes of k-space and to the mask."
        )
    return block


def grow_block(sampled: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the block of :func:`center_block`, of any width: empty if the centre itself is not sampled."""
    height, width = sampled.shape
    top, left = height // 2, width // 2
    bottom, right = top + 1, left + 1
    grown = bool(sampled[top, left])
    while grown:
        grown = False
        if top > 0 and sampled[top - 1, left:right].all():
            top, grown = top - 1, True
        if bottom < height and sampled[bottom, left:right].all():
            bottom, grown = bottom + 1, True
        if left > 0 and sampled[top:bottom, left - 1].all():
            left, grown = left - 1, True
        if right < width and sampled[top:bottom, right].all():
            right, grown = right + 1, True
    block = np.zeros_like(sampled)
    block[top:bottom, left:right] = sampled[height // 2, width // 2]
    return block
