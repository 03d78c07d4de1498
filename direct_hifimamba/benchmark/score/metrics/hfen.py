"""High-frequency error norm (HFEN), Ravishankar and Bresler, doi:10.1109/TMI.2010.2090538."""

import torch
from direct.functionals.hfen import HFENL2Loss

from direct_hifimamba.benchmark.score.metric import Array, Volume, metric, of_slices

SIZE, SIGMA = 15, 1.5
"""Of the Laplacian of Gaussian, in pixels."""


@metric(
    label="HFEN",
    group="detail",
    decimals=4,
    higher_is_better=False,
    definition="norm of error over norm of target, both under a Laplacian of Gaussian of 15 x 15 pixels, sigma 1.5",
)
def hfen(target: Volume, image: Volume) -> Array:
    """Return the HFEN of every slice."""
    # DIRECT's own normalisation divides by the norm of the target itself, not of its filtered image.
    squared_norm = HFENL2Loss(kernel_size=SIZE, sigma=SIGMA)

    def score(true: Volume, made: Volume) -> float:
        error, reference = (torch.from_numpy(part)[None] for part in (made - true, true))
        zero = torch.zeros_like(error)
        return float((squared_norm(error, zero) / squared_norm(reference, zero)).sqrt())

    scale = target.max()
    with torch.no_grad():
        return of_slices(score, target / scale, image / scale)
