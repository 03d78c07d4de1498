"""SSIM of the fastMRI challenge."""

import numpy as np
from skimage.metrics import structural_similarity

from direct_hifimamba.benchmark.score.metric import Array, Volume, metric


@metric(label="SSIM", group="fastmri", decimals=4, higher_is_better=True, definition="DIRECT's fastmri_ssim")
def fastmri_ssim(target: Volume, image: Volume) -> Array:
    """Return the SSIM of every slice; the mean over slices is that of the volume."""
    pairs = zip(target, image, strict=True)
    return np.array([structural_similarity(*pair, data_range=target.max()) for pair in pairs])
