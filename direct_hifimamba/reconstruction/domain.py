"""The k-space that a network was trained for, and in what other k-space differs from it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from direct_hifimamba.data.center import grow_block
from direct_hifimamba.data.fourier import root_sum_of_squares
from direct_hifimamba.nn.layers.sense import estimate_noise_variance

SAMPLING = ("whole columns", "whole rows", "single points", "lines through the centre")
"""Kinds of sampling; single points are those of Poisson discs, lines through the centre those of radial sampling."""


class OutsideDomainWarning(UserWarning):
    """K-space differs from what the network was trained with."""


@dataclass(frozen=True)
class Domain:
    """K-space that a network was trained with; the limits are included.

    Attributes
    ----------
    size : tuple of two ints
        Smallest and largest height and width.
    coils : tuple of two ints
    acceleration : tuple of two floats
        Number of all samples over that of the measured ones.
    calibration : int
        Smallest height and width of the block around the centre that is sampled without gaps.
    snr : float
        Smallest signal-to-noise ratio: mean magnitude of the root sum of squares over the object, divided by the
        standard deviation of the noise in the real part of a coil image.
    sampling : tuple of str
        Of :data:`SAMPLING`.
    """

    size: tuple[int, int]
    coils: tuple[int, int]
    acceleration: tuple[float, float]
    calibration: int
    snr: float
    sampling: tuple[str, ...]

    def find_departures(self, kspace: NDArray[Any], sampled: NDArray[np.bool_]) -> list[str]:
        """Say in what k-space differs from that of the training.

        Parameters
        ----------
        kspace : complex array of shape (slices[, coils], height, width)
            Zero outside the mask, or fully sampled.
        sampled : bool array of shape (height, width)
            Sampling mask.

        Returns
        -------
        list of str
            A sentence for each difference, with the value and the range of the training.
        """
        coils = kspace.shape[1] if kspace.ndim == 4 else 1
        acceleration = find_acceleration(sampled)
        block = grow_block(sampled)
        calibration = min(int(block.any(axis=axis).sum()) for axis in (0, 1))
        kind = classify_sampling(sampled)
        snr = estimate_snr(kspace[len(kspace) // 2], sampled)
        (low, high), (fewest, most), (least, greatest) = self.size, self.coils, self.acceleration
        is_outside = {
            **{
                f"The {name} is {length} pixels; the training had {low} to {high}.": not low <= length <= high
                for name, length in zip(("height", "width"), sampled.shape, strict=True)
            },
            f"The number of coils is {coils}; the training had {fewest} to {most}.": not fewest <= coils <= most,
            f"The acceleration is {acceleration:.1f}; the training had {least:g} to {greatest:g}.": (
                not includes_acceleration(self.acceleration, acceleration)
            ),
            f"The block around the centre that is sampled without gaps is {calibration} samples wide; the training had "
            f"at least {self.calibration}.": calibration < self.calibration,
            f"The mask samples {kind}; the training had {' or '.join(self.sampling)}.": kind not in self.sampling,
            # Correlated noise makes the estimate up to twice too low.
            f"The signal-to-noise ratio of the middle slice is about {snr:.2g}; the training had at least "
            f"{self.snr:g}.": snr < self.snr / 2,
        }
        return [departure for departure, applies in is_outside.items() if applies]


def find_acceleration(sampled: NDArray[np.bool_]) -> float:
    """Return the number of all samples of a mask over that of the measured ones."""
    return sampled.size / np.count_nonzero(sampled)


def includes_acceleration(limits: tuple[float, float], acceleration: float) -> bool:
    """Return whether an acceleration is between two others, which masks miss by up to a tenth."""
    return 0.9 * limits[0] <= acceleration <= 1.1 * limits[1]


def classify_sampling(sampled: NDArray[np.bool_]) -> str:
    """Return the kind of a mask of shape (height, width), of :data:`SAMPLING`.

    Zero-padding and partial Fourier do not change it. Points are lines through the centre if all of them are connected
    with it; Poisson discs and spirals are not.
    """
    has_samples = [sampled.any(axis=axis) for axis in (1, 0)]
    rows, columns = (slice(*(np.flatnonzero(used)[[0, -1]] + (0, 1))) for used in has_samples)
    if (sampled == np.outer(*has_samples)).all():
        if has_samples[0][rows].all():
            return "whole columns"
        return "whole rows" if has_samples[1][columns].all() else "single points"
    outside = sampled & ~grow_block(sampled)
    components, _ = ndimage.label(sampled, np.ones((3, 3)))
    middle = components[sampled.shape[0] // 2, sampled.shape[1] // 2]
    is_sparse = sampled[rows, columns].mean() < 0.7  # else only corners are missing
    is_connected = is_sparse and (components[outside] == middle).mean() > 0.97
    return "lines through the centre" if is_connected else "single points"


def estimate_snr(kspace: NDArray[Any], sampled: NDArray[np.bool_]) -> float:
    """Estimate the signal-to-noise ratio of a slice, as :class:`Domain` defines it; infinite without noise.

    The signal is that of the image of the block around the centre, the noise that at the edge of k-space. Where the
    signal reaches up to there, the estimate is too low: by about 15 % at ratios of 5 to 20, by half at 100.

    Parameters
    ----------
    kspace : complex array of shape ([coils, ]height, width)
    sampled : bool array of shape (height, width)
    """
    kspace = np.where(sampled, kspace, 0).astype(np.complex64)
    uncentred = torch.view_as_real(torch.fft.ifftshift(torch.from_numpy(kspace), dim=(-2, -1)))
    variance = float(estimate_noise_variance(torch.view_as_complex(uncentred.reshape(1, -1, *sampled.shape, 2))))
    image = root_sum_of_squares(kspace * grow_block(sampled))
    peak = np.quantile(image, 0.99)
    if variance == 0 or peak == 0:
        return math.inf
    return float(image[image > 0.1 * peak].mean()) / math.sqrt(variance / 2)
