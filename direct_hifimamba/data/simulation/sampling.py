"""Sampling masks of simulated slices, by DIRECT's mask functions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from direct.common import subsample
from numpy.typing import NDArray

MASKS = ("equispaced", "random", "poisson")
"""Kinds of masks: equispaced or random columns, or two-dimensional Poisson discs of variable density."""

MIN_CALIBRATION = 4
"""Least number of columns that are sampled without gaps around the centre."""

CENTER = 0.32
"""Fraction of the sampled columns that are around the centre: 8 % of all columns at 4x, 4 % at 8x."""


def draw_sampling(
    shape: tuple[int, int], names: Sequence[str], accelerations: Sequence[float], rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
    """Draw a sampling mask.

    Parameters
    ----------
    shape : tuple of ints
        Height and width of k-space.
    names : sequence of str
        Kinds of masks, of :data:`MASKS`, one of which is drawn.
    accelerations : sequence of floats
        Accelerations, one of which is drawn. Random columns reach it only on average.
    rng : numpy.random.Generator

    Returns
    -------
    tuple
        The mask and its calibration region, bool arrays of shape (height, width), and a record of what was drawn.
    """
    name = str(names[int(rng.integers(len(names)))])
    acceleration = float(accelerations[int(rng.integers(len(accelerations)))])
    center = CENTER / acceleration * (1 if rng.random() < 0.5 else rng.uniform(0.7, 1.4))
    center = max(center, MIN_CALIBRATION / shape[1])
    function: subsample.BaseMaskFunc
    if name == "poisson":  # the centre is a disc, its radius relative to the diagonal of k-space
        radius = max(0.25 * center, MIN_CALIBRATION / np.hypot(*shape))
        function = subsample.VariableDensityPoissonMaskFunc([acceleration], [radius], tol=0.1 * acceleration)
    else:
        kind = subsample.FastMRIEquispacedMaskFunc if name == "equispaced" else subsample.FastMRIRandomMaskFunc
        function = kind([acceleration], [center])
    seed = int(rng.integers(2**32))
    mask, calibration = (
        np.broadcast_to(function(shape=(*shape, 1), seed=seed, return_acs=acs).numpy()[0, :, :, 0], shape).astype(bool)
        for acs in (False, True)
    )
    return mask | calibration, calibration, {"mask": name, "acceleration": mask.size / int(mask.sum())}
