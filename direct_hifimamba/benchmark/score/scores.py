"""Scores of one reconstructed volume: metrics of its slices, and the error in bands of spatial frequency."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import rfft2

from direct_hifimamba.benchmark.score.metric import SSIM_WINDOW, Array, Volume
from direct_hifimamba.benchmark.score.metrics import DEFAULT, METRICS

SPECTRUM_EDGES: tuple[float, ...] = tuple(np.linspace(0, 1, 17).tolist())
"""Of the radial k-space bands; 1 is the Nyquist frequency. What is beyond, in the corners, belongs to none."""


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
    _check(target, image)
    return {name: METRICS[name](target, image) for name in metrics}


def error_spectrum(target: Volume, image: Volume, edges: Sequence[float] = SPECTRUM_EDGES) -> Array:
    """Return the energy of the error over that of the target in radial bands of k-space, over the whole volume.

    Parameters
    ----------
    target, image : float32 arrays of shape (slices, height, width)
    edges : sequence of float
        Edges of the bands, 1 is the Nyquist frequency along either axis.

    Returns
    -------
    float64 array of shape (bands,)
        NaN where the target has no energy.
    """
    errors = band_energies(image.astype(np.float64) - target, edges)
    with np.errstate(divide="ignore", invalid="ignore"):
        spectrum: Array = errors / band_energies(target, edges)
    return np.where(np.isfinite(spectrum), spectrum, np.nan)


def band_energies(image: NDArray[Any], edges: Sequence[float] = SPECTRUM_EDGES) -> Array:
    """Return the energy of images (slices, height, width) in radial bands of their orthonormal Fourier transform."""
    height, width = image.shape[1:]
    energy = sum(np.square(np.abs(rfft2(part.astype(np.float64), norm="ortho"))) for part in image)
    columns = 2 * np.fft.rfftfreq(width)
    # Frequencies whose conjugates are not stored count twice.
    energy *= np.where((columns == 0) | (columns == 1), 1, 2)
    return np.histogram(np.hypot(2 * np.fft.fftfreq(height)[:, None], columns), edges, weights=energy)[0]


def _check(target: Volume, image: Volume) -> None:
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
