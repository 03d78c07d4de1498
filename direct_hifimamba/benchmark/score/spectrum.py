"""The error in bands of spatial frequency."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import rfft2

from direct_hifimamba.benchmark.score.metrics import Array, Volume

EDGES: tuple[float, ...] = tuple(np.linspace(0, 1, 17).tolist())
"""Of the radial k-space bands; 1 is the Nyquist frequency. What is beyond, in the corners, belongs to none."""

BANDS = tuple(f"spectrum_{band}" for band in range(len(EDGES) - 1))
"""Names of the bands beside those of metrics."""


def error_spectrum(target: Volume, image: Volume, edges: Sequence[float] = EDGES) -> Array:
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


def band_energies(image: NDArray[Any], edges: Sequence[float] = EDGES) -> Array:
    """Return the energy of images (slices, height, width) in radial bands of their orthonormal Fourier transform."""
    height, width = image.shape[1:]
    energy = sum(np.square(np.abs(rfft2(part.astype(np.float64), norm="ortho"))) for part in image)
    columns = 2 * np.fft.rfftfreq(width)
    # Frequencies whose conjugates are not stored count twice.
    energy *= np.where((columns == 0) | (columns == 1), 1, 2)
    return np.histogram(np.hypot(2 * np.fft.fftfreq(height)[:, None], columns), edges, weights=energy)[0]
