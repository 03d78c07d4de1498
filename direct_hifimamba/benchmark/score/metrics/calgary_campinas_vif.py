"""VIF of the Calgary-Campinas challenge, in a sixth of the time that DIRECT's takes."""

from direct_hifimamba.benchmark.score.metric import Array, Volume, metric, of_slices, visual_information_fidelity

NOISE_VARIANCE = 0.4


@metric(
    label="VIF",
    group="calgary_campinas",
    decimals=4,
    higher_is_better=True,
    definition="DIRECT's calgary_campinas_vif",
)
def calgary_campinas_vif(target: Volume, image: Volume) -> Array:
    """Return the VIF of every slice, both images divided by the maximum of its target."""
    return of_slices(
        lambda true, made: visual_information_fidelity(true / true.max(), made / true.max(), NOISE_VARIANCE),
        target,
        image,
    )
