"""Visual information fidelity."""

import numpy as np

from direct_hifimamba.benchmark.score.metric import Array, Volume, metric, of_slices, visual_information_fidelity

MAXIMUM = 255
"""VIF is defined for images of 8 bits: it adds noise of variance 2."""


@metric(
    label="VIF",
    group="detail",
    decimals=4,
    higher_is_better=True,
    definition="pixel-based VIF with noise of variance 2, where the maximum of the target volume is 255",
)
def vif(target: Volume, image: Volume) -> Array:
    """Return the VIF of every slice."""
    scale = np.float32(MAXIMUM / target.max())
    return of_slices(lambda true, made: visual_information_fidelity(true, made, 2.0), scale * target, scale * image)
