"""Metrics: every function with the decorator `metric` is one. There is no other registration."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from direct.functionals import challenges
from direct.functionals.hfen import HFENL2Loss
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

type Volume = NDArray[np.float32]
"""Of shape (slices, height, width)."""

type Array = NDArray[np.float64]

SSIM_WINDOW = 7
"""Pixels, scikit-image's default and DIRECT's; smaller slices cannot be scored."""

GROUPS = {
    "fastMRI": "DIRECT's fastMRI metrics: over the whole volume; the range of values is the maximum of the volume",
    "Calgary-Campinas": "DIRECT's Calgary-Campinas metrics: of every slice, divided by its maximum, and averaged",
    "Fine detail": "visual information fidelity and high-frequency error norm: of every slice, and averaged",
}
"""Groups by their titles. Metrics of different ones answer different questions and must not be mixed."""


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

    function: Callable[[Volume, Volume], Array]
    label: str
    group: str
    decimals: int
    higher_is_better: bool
    definition: str
    unit: str = ""
    combine: Callable[..., Any] = np.nanmean
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

    def compare(self, target: Volume, image: Volume) -> float:
        """Return the score of a volume; NaN if no slice has one."""
        return self.of_volume(self(target, image))

    def format(self, value: float, sign: str = "") -> str:
        """Return a value as tables show it; ``sign="+"`` for a difference."""
        return f"{value:{sign}z.{self.decimals}f}"


METRICS: dict[str, Metric] = {}
"""All metrics by the names of their functions, in the order of the tables."""


def metric(**fields: Any) -> Callable[[Callable[[Volume, Volume], Array]], Metric]:
    """Return a decorator that adds a function to `METRICS`; without `definition`, as DIRECT's metric of this name."""

    def add(function: Callable[[Volume, Volume], Array]) -> Metric:
        name = function.__name__
        METRICS[name] = Metric(function, **({"definition": f"DIRECT's {name}"} | fields))
        return METRICS[name]

    return add


def of_slices(score: Callable[[NDArray[np.float32], NDArray[np.float32]], Any], target: Volume, image: Volume) -> Array:
    """Return a score of every slice, for images of shape (height, width); NaN where the target is constant."""
    return np.array([score(*pair) if np.ptp(pair[0]) > 0 else np.nan for pair in zip(target, image, strict=True)])


@metric(label="NMSE", group="fastMRI", decimals=5, higher_is_better=False)
def fastmri_nmse(target: Volume, image: Volume) -> Array:
    """Return the squared error of every slice over the volume's mean energy; the mean is the NMSE of the volume."""
    squared_error = np.square(image.astype(np.float64) - target).mean(axis=(1, 2))
    return squared_error / np.square(target.astype(np.float64)).mean()


def mean_of_errors(psnr: Array) -> Any:
    """Return the PSNR of a volume from those of its slices, with one range of values; NaN: a slice without error."""
    return -10 * np.log10(np.mean(np.nan_to_num(10 ** (-psnr / 10))))


@metric(label="PSNR", unit="dB", group="fastMRI", decimals=2, higher_is_better=True, combine=mean_of_errors)
def fastmri_psnr(target: Volume, image: Volume) -> Array:
    """Return the PSNR of every slice; the volume has that of the mean squared error over slices."""
    squared_error = np.square(image.astype(np.float64) - target).mean(axis=(1, 2))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(np.square(np.float64(target.max())) / squared_error)


@metric(label="SSIM", group="fastMRI", decimals=4, higher_is_better=True)
def fastmri_ssim(target: Volume, image: Volume) -> Array:
    """Return the SSIM of every slice; the mean over slices is that of the volume."""
    pairs = zip(target, image, strict=True)
    return np.array([structural_similarity(*pair, data_range=target.max()) for pair in pairs])


def _calgary_campinas(name: str, target: Volume, image: Volume) -> Array:
    """Return DIRECT's score of every slice."""
    function = getattr(challenges, f"calgary_campinas_{name}")
    return of_slices(lambda true, made: function(true[None, None], made[None, None]).item(), target, image)


@metric(label="PSNR", unit="dB", group="Calgary-Campinas", decimals=2, higher_is_better=True)
def calgary_campinas_psnr(target: Volume, image: Volume) -> Array:
    """Return the PSNR of the Calgary-Campinas challenge."""
    return _calgary_campinas("psnr", target, image)


@metric(label="SSIM", group="Calgary-Campinas", decimals=4, higher_is_better=True)
def calgary_campinas_ssim(target: Volume, image: Volume) -> Array:
    """Return the SSIM of the Calgary-Campinas challenge."""
    return _calgary_campinas("ssim", target, image)


def visual_information_fidelity(target: NDArray[Any], image: NDArray[Any], noise_variance: float) -> float:
    """Return the pixel-based VIF of an image (height, width); NaN on a side shorter than 41, which has no 4 scales."""
    from torchmetrics.functional.image import visual_information_fidelity as vif  # slow to import

    if min(target.shape) < 41:
        return np.nan
    made, true = (torch.from_numpy(part)[None, None] for part in (image, target))
    return float(vif(made, true, sigma_n_sq=noise_variance))


@metric(label="VIF", group="Calgary-Campinas", decimals=4, higher_is_better=True)
def calgary_campinas_vif(target: Volume, image: Volume) -> Array:
    """Return the VIF of every slice, divided by the maximum of its target, in a sixth of the time DIRECT takes."""
    return of_slices(
        lambda true, made: visual_information_fidelity(true / true.max(), made / true.max(), 0.4), target, image
    )


@metric(
    label="HFEN",
    group="Fine detail",
    decimals=4,
    higher_is_better=False,
    definition="norm of error over norm of target, both under a Laplacian of Gaussian of 15 x 15 pixels, sigma 1.5",
)
def hfen(target: Volume, image: Volume) -> Array:
    """Return the high-frequency error norm of every slice, Ravishankar and Bresler, doi:10.1109/TMI.2010.2090538."""
    # DIRECT's own normalisation divides by the norm of the target itself, not of its filtered image.
    squared_norm = HFENL2Loss(kernel_size=15, sigma=1.5)

    def score(true: NDArray[Any], made: NDArray[Any]) -> float:
        error, reference = (torch.from_numpy(part)[None] for part in (made - true, true))
        zero = torch.zeros_like(error)
        return float((squared_norm(error, zero) / squared_norm(reference, zero)).sqrt())

    scale = target.max()
    with torch.no_grad():
        return of_slices(score, target / scale, image / scale)


@metric(
    label="VIF",
    group="Fine detail",
    decimals=4,
    higher_is_better=True,
    definition="pixel-based VIF with noise of variance 2, where the maximum of the target volume is 255",
)
def vif(target: Volume, image: Volume) -> Array:
    """Return the visual information fidelity of every slice."""
    scale = np.float32(255 / target.max())  # it is defined for images of 8 bits
    return of_slices(lambda true, made: visual_information_fidelity(true, made, 2.0), scale * target, scale * image)


DEFAULT = tuple(name for name, metric in METRICS.items() if metric.group == "fastMRI")
"""What is computed unless others are asked for."""


def metric_definitions(names: Iterable[str]) -> dict[str, str]:
    """Return what metrics are, in words, for the protocol of results."""
    return {name: METRICS[name].identity for name in names}


def score_volume(target: Volume, image: Volume, metrics: Iterable[str] = DEFAULT) -> dict[str, Array]:
    """Return the scores of every slice of a reconstructed volume.

    Parameters
    ----------
    target, image : float32 arrays of shape (slices, height, width)
        Magnitudes in the same units.
    metrics : iterable of str
        Names in `METRICS`.

    Returns
    -------
    dict
        By metric, float64 array of shape (slices,), NaN where the score is not defined: by a target that is constant
        (unless the volume gives the scale), or a division by zero, as the PSNR of a perfect reconstruction.

    Raises
    ------
    ValueError
        If the shapes differ, slices are smaller than SSIM's window, all slices of the target are constant, or either
        has values that are not finite.
    """
    if target.shape != image.shape or target.ndim != 3:
        raise ValueError(
            f"The target has the shape {target.shape} and the reconstruction {image.shape}; expected (slices, height, "
            "width) for both."
        )
    for name, volume in {"target": target, "reconstruction": image}.items():
        if not np.isfinite(volume).all():
            raise ValueError(f"The {name} has pixels that are infinite or NaN; it cannot be scored.")
    if min(target.shape[1:]) < SSIM_WINDOW:
        raise ValueError(
            f"The slices have {target.shape[1:]} pixels; expected at least {SSIM_WINDOW} in either direction."
        )
    if (target == target[:, :1, :1]).all():
        raise ValueError("No slice of the target has more than one value; metrics are not defined.")
    return {name: METRICS[name](target, image) for name in metrics}
