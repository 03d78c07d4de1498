"""How good a reconstruction is: DIRECT's metrics, two of fine detail, three after the paper, and an error spectrum.

The groups of metrics, `GROUPS`, answer different questions and must not be mixed.

A slice whose target is constant has `fastmri` scores, since the volume gives the scale, and no others. Nor has anything
else a score whose definition divides by zero, such as the PSNR of a perfect reconstruction; or a VIF, if it is smaller
than `VIF_MIN_SIZE`. No score is None, never NaN, and averages leave it out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from direct.functionals.challenges import (
    calgary_campinas_psnr,
    calgary_campinas_ssim,
    calgary_campinas_vif,
    fastmri_nmse,
    fastmri_psnr,
    fastmri_ssim,
)
from direct.functionals.hfen import HFENL2Loss
from numpy.typing import NDArray
from sewar.full_ref import vifp
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

Volume = NDArray[np.float32]
"""Of shape (slices, height, width)."""

SPECTRUM_EDGES: tuple[float, ...] = tuple(np.linspace(0, 1, 17).tolist())
"""Of the radial k-space bands; 1 is the Nyquist frequency. What is beyond, in the corners, belongs to none."""

HFEN_SIZE, HFEN_SIGMA = 15, 1.5
"""Of the Laplacian of Gaussian, in pixels, as in Ravishankar and Bresler, doi:10.1109/TMI.2010.2090538."""

SSIM_WINDOW = 7
"""Pixels, scikit-image's default and DIRECT's."""

VIF_MAXIMUM = 255.0
"""VIF is defined for images of 8 bits: it adds noise of variance 2."""

VIF_MIN_SIZE = 41
"""Of the shorter side; on anything smaller VIF has not the four scales that define it."""


def mean_of_errors(psnr: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """PSNR of a volume from that of its slices, if they have one range of values."""
    return -10 * np.log10(np.mean(10 ** (-psnr / 10), axis=axis))


GROUPS = {
    "fastmri": "DIRECT's fastMRI metrics: over the whole volume; the range of values is the maximum of the volume",
    "calgary_campinas": "DIRECT's Calgary-Campinas metrics: of every slice, divided by its maximum, and averaged",
    "detail": "visual information fidelity and high-frequency error norm: of every slice, and averaged",
    "unit_interval": "after the paper's metrics: of every slice, scaled to [0, 1] with the minimum and maximum of its "
    "target and the reconstruction clamped to this, and averaged (the paper takes PSNR and NMSE over batches of up to "
    "four slices)",
}


@dataclass(frozen=True)
class Metric:
    """What a score is called and means.

    Attributes
    ----------
    label : str
    group : str
        Key of `GROUPS`.
    unit : str
        Empty: a plain number.
    decimals : int
        To show.
    higher_is_better : bool
    level : str
        `volume` or `slice`: what it is defined for. Volumes have the mean of slices otherwise, and slices the part
        that they have in the score of their volume.
    definition : str
        One sentence; two results are comparable only if it is the same.
    combine : callable
        Makes of the scores of slices that of the volume, along `axis`.
    """

    label: str
    group: str
    unit: str
    decimals: int
    higher_is_better: bool
    level: Literal["volume", "slice"]
    definition: str
    combine: Callable[..., Any] = np.mean

    @property
    def heading(self) -> str:
        """Of a table's column."""
        return ", ".join(filter(None, (self.label, self.unit)))

    def format(self, value: float, sign: str = "") -> str:
        """A value as tables show it; ``sign="+"`` for a difference."""
        return f"{value:{sign}z.{self.decimals}f}"


_ssim = partial(Metric, label="SSIM", unit="", decimals=4, higher_is_better=True)
_psnr = partial(Metric, label="PSNR", unit="dB", decimals=2, higher_is_better=True)
_nmse = partial(Metric, label="NMSE", unit="", decimals=5, higher_is_better=False)
_vif = partial(Metric, label="VIF", unit="", decimals=4, higher_is_better=True)
_hfen = partial(Metric, label="HFEN", unit="", decimals=4, higher_is_better=False)

METRICS: dict[str, Metric] = {
    "fastmri_ssim": _ssim(group="fastmri", level="volume", definition="DIRECT's fastmri_ssim"),
    "fastmri_psnr": _psnr(group="fastmri", level="volume", definition="DIRECT's fastmri_psnr", combine=mean_of_errors),
    "fastmri_nmse": _nmse(group="fastmri", level="volume", definition="DIRECT's fastmri_nmse"),
    "calgary_campinas_ssim": _ssim(
        group="calgary_campinas", level="slice", definition="DIRECT's calgary_campinas_ssim"
    ),
    "calgary_campinas_psnr": _psnr(
        group="calgary_campinas", level="slice", definition="DIRECT's calgary_campinas_psnr"
    ),
    "calgary_campinas_vif": _vif(group="calgary_campinas", level="slice", definition="DIRECT's calgary_campinas_vif"),
    "vif": _vif(
        group="detail",
        level="slice",
        definition="sewar's vifp with noise of variance 2, where the maximum of the target volume is 255",
    ),
    "hfen": _hfen(
        group="detail",
        level="slice",
        definition="norm of error over norm of target, both under a Laplacian of Gaussian of 15 x 15 pixels, sigma 1.5",
    ),
    "unit_interval_ssim": _ssim(
        group="unit_interval",
        level="slice",
        definition="scikit-image's structural_similarity with uniform 7 x 7 windows",
    ),
    "unit_interval_psnr": _psnr(
        group="unit_interval", level="slice", definition="scikit-image's peak_signal_noise_ratio"
    ),
    "unit_interval_nmse": _nmse(
        group="unit_interval", level="slice", definition="squared error over squared norm of the target"
    ),
}


def metric_definitions() -> dict[str, str]:
    """What every metric is, in words, for the protocol of the results."""
    return {name: f"{GROUPS[metric.group]}: {metric.definition}" for name, metric in METRICS.items()}


_FASTMRI = {"fastmri_ssim": fastmri_ssim, "fastmri_psnr": fastmri_psnr, "fastmri_nmse": fastmri_nmse}
_CALGARY_CAMPINAS = {
    "calgary_campinas_ssim": calgary_campinas_ssim,
    "calgary_campinas_psnr": calgary_campinas_psnr,
}


@dataclass(frozen=True)
class VolumeScores:
    """Scores of one reconstructed volume; None: not defined.

    Attributes
    ----------
    volume : dict
        By name of the metric.
    slices : list of dict
        The same for every slice.
    spectrum : list
        Relative error energy in the bands between `SPECTRUM_EDGES`, see :func:`error_spectrum`.
    """

    volume: dict[str, float | None]
    slices: list[dict[str, float | None]]
    spectrum: list[float | None]


def score_volume(target: Volume, image: Volume) -> VolumeScores:
    """Score a reconstructed volume.

    Parameters
    ----------
    target, image : float32 arrays of shape (slices, height, width)
        Magnitudes in the same units.

    Raises
    ------
    ValueError
        If the shapes differ, slices are smaller than SSIM's window, all slices of the target are constant, or either
        has values that are not finite.
    """
    _check(target, image)
    with np.errstate(divide="ignore", invalid="ignore"):
        volume = {name: metric(target[:, None], image[:, None]).item() for name, metric in _FASTMRI.items()}
        slices = {
            **_fastmri_slices(target, image),
            **_per_varied_slice(_calgary_campinas, target, image),
            **_per_varied_slice(_unit_interval, target, image),
            **_per_varied_slice(_detail, *(volume / target.max() for volume in (target, image))),
        }
        spectrum = error_spectrum(target, image)
    for name, scores in slices.items():
        defined = scores[np.isfinite(scores)]
        volume.setdefault(name, float(defined.mean()) if len(defined) else np.nan)
    return VolumeScores(
        {name: _or_none(volume[name]) for name in METRICS},
        [{name: _or_none(slices[name][index]) for name in METRICS} for index in range(len(target))],
        [_or_none(band) for band in spectrum],
    )


def error_spectrum(target: Volume, image: Volume, edges: Sequence[float] = SPECTRUM_EDGES) -> NDArray[np.float64]:
    """Energy of the error over energy of the target in radial bands of k-space.

    Parameters
    ----------
    target, image : float32 arrays of shape (slices, height, width)
    edges : sequence of float
        Edges of the bands, 1 is the Nyquist frequency along either axis.

    Returns
    -------
    float64 array of shape (bands,)
        NaN or infinite where the target has no energy.
    """
    errors = band_energies(image.astype(np.float64) - target, edges)
    with np.errstate(divide="ignore", invalid="ignore"):
        return errors / band_energies(target, edges)


def band_energies(image: NDArray[Any], edges: Sequence[float] = SPECTRUM_EDGES) -> NDArray[np.float64]:
    """Energy of images of shape (slices, height, width) in radial bands of their orthonormal Fourier transform."""
    energy = np.square(np.abs(np.fft.fft2(image.astype(np.float64), norm="ortho"))).sum(axis=0)
    rows, columns = (2 * np.fft.fftfreq(size) for size in energy.shape)
    return np.histogram(np.hypot(rows[:, None], columns), edges, weights=energy)[0]


def _check(target: Volume, image: Volume) -> None:
    if target.shape != image.shape or target.ndim != 3:
        raise ValueError(
            f"The target has the shape {target.shape} and the reconstruction {image.shape}; expected (slices, height, "
            "width) for both."
        )
    for name, volume in {"target": target, "reconstruction": image}.items():
        if not np.isfinite(volume).all():
            raise ValueError(f"The {name} has pixels that are infinite or no number; it cannot be scored.")
    if min(target.shape[1:]) < SSIM_WINDOW:
        raise ValueError(
            f"The slices have {target.shape[1:]} pixels; expected at least {SSIM_WINDOW} in either direction."
        )
    if (target == target[:, :1, :1]).all():
        raise ValueError("No slice of the target has more than one value; there is nothing to compare with.")


def _or_none(score: float) -> float | None:
    return float(score) if np.isfinite(score) else None


def _fastmri_slices(target: Volume, image: Volume) -> dict[str, NDArray[np.float64]]:
    """What every slice contributes: the mean, for PSNR that of the squared errors, is the score of the volume."""
    maximum = target.max()
    squared_error = np.square(image.astype(np.float64) - target).mean(axis=(1, 2))
    ssim = [structural_similarity(*pair, data_range=maximum) for pair in zip(target, image, strict=True)]
    return {
        "fastmri_ssim": np.array(ssim, np.float64),
        "fastmri_psnr": 10 * np.log10(np.square(np.float64(maximum)) / squared_error),
        "fastmri_nmse": squared_error / np.square(target.astype(np.float64)).mean(),
    }


def _per_varied_slice(
    score: Callable[[Volume, Volume], dict[str, float]], target: Volume, image: Volume
) -> dict[str, NDArray[np.float64]]:
    """Scores slice by slice, NaN where the target is constant."""
    varied = target.min(axis=(1, 2)) < target.max(axis=(1, 2))
    scores = {index: score(target[index], image[index]) for index in np.flatnonzero(varied).tolist()}
    names = next(iter(scores.values()))
    return {
        name: np.array([scores[index][name] if index in scores else np.nan for index in range(len(target))])
        for name in names
    }


def _calgary_campinas(target: Volume, image: Volume) -> dict[str, float]:
    target, image = target[None, None], image[None, None]
    scores = {name: metric(target, image).item() for name, metric in _CALGARY_CAMPINAS.items()}
    return scores | {"calgary_campinas_vif": calgary_campinas_vif(target, image).item() if _has_vif(target) else np.nan}


def _detail(target: Volume, image: Volume) -> dict[str, float]:
    """Of a slice in the unit of the volume's maximum."""
    vif = vifp(VIF_MAXIMUM * target, VIF_MAXIMUM * image) if _has_vif(target) else np.nan
    return {"vif": vif, "hfen": _high_frequency_error(target, image)}


def _has_vif(image: Volume) -> bool:
    return min(image.shape[-2:]) >= VIF_MIN_SIZE


def _high_frequency_error(target: Volume, image: Volume) -> float:
    # DIRECT's own normalisation divides by the norm of the target itself, not of its filtered image.
    squared_norm = HFENL2Loss(kernel_size=HFEN_SIZE, sigma=HFEN_SIGMA)
    error, reference = (torch.from_numpy(part)[None] for part in (image - target, target))
    with torch.no_grad():
        zero = torch.zeros_like(error)
        return float((squared_norm(error, zero) / squared_norm(reference, zero)).sqrt())


def _unit_interval(target: Volume, image: Volume) -> dict[str, float]:
    low, high = target.min(), target.max()
    target, image = (np.clip((volume - low) / (high - low), 0, 1) for volume in (target, image))
    return {
        "unit_interval_ssim": structural_similarity(target, image, data_range=1),
        "unit_interval_psnr": peak_signal_noise_ratio(target, image, data_range=1),
        "unit_interval_nmse": np.square(image - target).sum() / np.square(target).sum(),
    }
