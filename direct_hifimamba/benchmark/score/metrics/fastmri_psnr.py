"""PSNR of the fastMRI challenge."""

import numpy as np

from direct_hifimamba.benchmark.score.metric import Array, Volume, mean_of_errors, metric


@metric(
    label="PSNR",
    unit="dB",
    group="fastmri",
    decimals=2,
    higher_is_better=True,
    definition="DIRECT's fastmri_psnr",
    combine=mean_of_errors,
)
def fastmri_psnr(target: Volume, image: Volume) -> Array:
    """Return the PSNR of every slice; the volume has that of the mean squared error over slices."""
    squared_error = np.square(image.astype(np.float64) - target).mean(axis=(1, 2))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(np.square(np.float64(target.max())) / squared_error)
