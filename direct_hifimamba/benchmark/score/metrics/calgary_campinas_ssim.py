"""SSIM of the Calgary-Campinas challenge."""

from direct.functionals import challenges

from direct_hifimamba.benchmark.score.metric import Array, Volume, metric, of_slices


@metric(
    label="SSIM",
    group="calgary_campinas",
    decimals=4,
    higher_is_better=True,
    definition="DIRECT's calgary_campinas_ssim",
)
def calgary_campinas_ssim(target: Volume, image: Volume) -> Array:
    """Return DIRECT's score of every slice."""
    return of_slices(
        lambda *pair: challenges.calgary_campinas_ssim(*(part[None, None] for part in pair)).item(), target, image
    )
