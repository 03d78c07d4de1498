"""PSNR of the Calgary-Campinas challenge."""

from direct.functionals import challenges

from direct_hifimamba.benchmark.score.metric import Array, Volume, metric, of_slices


@metric(
    label="PSNR",
    unit="dB",
    group="calgary_campinas",
    decimals=2,
    higher_is_better=True,
    definition="DIRECT's calgary_campinas_psnr",
)
def calgary_campinas_psnr(target: Volume, image: Volume) -> Array:
    """Return DIRECT's score of every slice."""
    return of_slices(
        lambda *pair: challenges.calgary_campinas_psnr(*(part[None, None] for part in pair)).item(), target, image
    )
