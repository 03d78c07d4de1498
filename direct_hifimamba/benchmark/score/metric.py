"""What a metric is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

type Volume = NDArray[np.float32]
"""Of shape (slices, height, width)."""

type Array = NDArray[np.float64]

SSIM_WINDOW = 7
"""Pixels, scikit-image's default and DIRECT's; smaller slices cannot be scored."""

GROUPS = {
    "fastmri": "DIRECT's fastMRI metrics: over the whole volume; the range of values is the maximum of the volume",
    "calgary_campinas": "DIRECT's Calgary-Campinas metrics: of every slice, divided by its maximum, and averaged",
    "detail": "visual information fidelity and high-frequency error norm: of every slice, and averaged",
}
"""Metrics of different groups answer different questions and must not be mixed."""


def mean_of_errors(psnr: Array) -> Any:
    """Return the PSNR of a volume from those of its slices, with one range of values; NaN: a slice without error."""
    return -10 * np.log10(np.mean(np.nan_to_num(10 ** (-psnr / 10))))


@dataclass(frozen=True)
class Metric:
    """A metric: a function of target and reconstruction, and what tables say about it.

    Attributes
    ----------
    function : callable
        Of target and reconstruction, both of shape (slices, height, width). Returns the score of every slice, shape
        (slices,), NaN or infinite where it is not defined.
    label : str
    group : str
        Key of `GROUPS`.
    decimals : int
        To show.
    higher_is_better : bool
    definition : str
        One sentence. Two results are comparable only if it is the same.
    unit : str
        Empty: a plain number.
    combine : callable
        Returns the score of the volume from those of its slices, at least one of which is not NaN.
    version : int
        To be increased when the function returns other values, so that stored scores are computed again.
    """

    function: Callable[[Volume, Volume], Array] = field(compare=False)
    label: str
    group: str
    decimals: int
    higher_is_better: bool
    definition: str
    unit: str = ""
    combine: Callable[..., Any] = field(default=np.nanmean, compare=False)
    version: int = 1

    def __call__(self, target: Volume, image: Volume) -> Array:
        """Return the score of every slice, NaN where it is not defined."""
        scores = np.asarray(self.function(target, image), np.float64)
        return np.where(np.isfinite(scores), scores, np.nan)

    @property
    def identity(self) -> str:
        """What two scores must share to be comparable."""
        version = "" if self.version == 1 else f" (version {self.version})"
        return f"{GROUPS[self.group]}: {self.definition}{version}"

    @property
    def heading(self) -> str:
        """Heading of a table's column."""
        return ", ".join(filter(None, (self.label, self.unit)))

    def of_volume(self, slices: Array) -> float:
        """Return the score of a volume; NaN if no slice has one."""
        return np.nan if np.isnan(slices).all() else float(self.combine(slices))

    def format(self, value: float, sign: str = "") -> str:
        """Return a value as tables show it; ``sign="+"`` for a difference."""
        return f"{value:{sign}z.{self.decimals}f}"


def metric(**fields: Any) -> Callable[[Callable[[Volume, Volume], Array]], Metric]:
    """Return a decorator that makes a :class:`Metric` of a function."""
    return partial(Metric, **fields)


def of_slices(score: Callable[[Volume, Volume], float], target: Volume, image: Volume) -> Array:
    """Return a score of every slice, for images of shape (height, width); NaN where the target is constant."""
    return np.array([score(*pair) if np.ptp(pair[0]) > 0 else np.nan for pair in zip(target, image, strict=True)])


def visual_information_fidelity(target: Volume, image: Volume, noise_variance: float) -> float:
    """Return the pixel-based VIF of an image (height, width); NaN on a side shorter than 41, which has no 4 scales."""
    import torch
    from torchmetrics.functional.image import visual_information_fidelity as vif  # slow to import

    if min(target.shape) < 41:
        return np.nan
    made, true = (torch.from_numpy(part)[None, None] for part in (image, target))
    return float(vif(made, true, sigma_n_sq=noise_variance))
