"""NMSE of the fastMRI challenge."""

import numpy as np

from direct_hifimamba.benchmark.score.metric import Array, Volume, metric


@metric(label="NMSE", group="fastmri", decimals=5, higher_is_better=False, definition="DIRECT's fastmri_nmse")
def fastmri_nmse(target: Volume, image: Volume) -> Array:
    """Return the squared error of every slice over the volume's mean energy; the mean is the NMSE of the volume."""
    squared_error = np.square(image.astype(np.float64) - target).mean(axis=(1, 2))
    return squared_error / np.square(target.astype(np.float64)).mean()
