"""What a reader of an image may trust: the spread of an ensemble of networks, and the residual at the samples."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample
from direct_hifimamba.files import write_text
from direct_hifimamba.reconstruction.domain import find_acceleration, includes_acceleration
from direct_hifimamba.reconstruction.noise import whitening_matrix
from direct_hifimamba.reconstruction.reconstructor import Reconstructor

NOMINAL = 0.95
"""Fraction of the pixels whose error should be at most twice the calibrated spread."""

MAX_RESIDUAL = 2.0
"""Residual, in standard deviations of the noise, from which on an image is said not to fit its samples."""

_NO_SPREAD = "One image has no spread; expected the checkpoints of several trainings, or --flips."

_OBJECT = 0.1
"""Pixels of the object are brighter than this fraction of the 99th percentile."""


def residual_map(
    residual: NDArray[np.complex64], covariance: NDArray[np.complex128]
) -> tuple[NDArray[np.float32], float]:
    """Return the residual at the samples in standard deviations of the noise: of each sample, and of all.

    Noise alone makes it 1 on average, and less if the image fits the noise as well.

    Parameters
    ----------
    residual : complex64 array of shape (coils, height, width)
        Samples less those of the image, 0 where nothing was sampled.
    covariance : complex128 array of shape (coils, coils)
        Of the noise in a sample, E[n n^H].

    Returns
    -------
    tuple
        float32 array of shape (height, width), the root mean square over coils after prewhitening; and its root mean
        square over all samples, 0 if there are none.
    """
    whitened = np.tensordot(whitening_matrix(covariance), residual, 1)
    squares = np.square(np.abs(whitened)).mean(axis=0)
    samples = squares[(residual != 0).any(axis=0)]
    return np.sqrt(squares).astype(np.float32), float(np.sqrt(samples.mean())) if samples.size else 0.0


def spread(images: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the standard deviation of magnitudes (networks, height, width) over the networks.

    Raises
    ------
    ValueError
        If there is one network alone.
    """
    if len(images) < 2:
        raise ValueError(_NO_SPREAD)
    return np.abs(images).std(axis=0, ddof=1).astype(np.float32)


@dataclass(frozen=True)
class Calibration:
    """Factors by which the spread of an ensemble becomes a standard deviation of the error.

    Attributes
    ----------
    weights : tuple of str
        SHA-256 of the configuration and the checkpoints, and the number of images in the mean.
    accelerations : tuple of floats
        In ascending order.
    factors : tuple of floats
        For each acceleration; between them, the factor is interpolated.
    coverage_before, coverage_after : tuple of floats
        Fraction of the pixels of other simulated slices whose error is at most twice the spread, without and with the
        factor; with it, `NOMINAL` is expected.
    worst_after : tuple of floats
        That fraction in the slice in which it is smallest.
    """

    weights: tuple[str, ...]
    accelerations: tuple[float, ...]
    factors: tuple[float, ...]
    coverage_before: tuple[float, ...]
    coverage_after: tuple[float, ...]
    worst_after: tuple[float, ...]

    def factor(self, sampled: NDArray[np.bool_]) -> float:
        """Return the factor for a sampling mask."""
        return float(np.interp(find_acceleration(sampled), self.accelerations, self.factors))

    def find_departures(self, sampled: NDArray[np.bool_]) -> list[str]:
        """Say in a sentence if the acceleration of a sampling mask is outside those of the calibration."""
        acceleration, limits = find_acceleration(sampled), (self.accelerations[0], self.accelerations[-1])
        if includes_acceleration(limits, acceleration):
            return []
        return [f"The acceleration is {acceleration:.1f}; the spread is calibrated for {limits[0]:g} to {limits[1]:g}."]

    def write(self, path: Path) -> None:
        """Write a JSON file."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, weights: Sequence[str] | None = None) -> Self:
        """Read a file of :meth:`write`.

        Raises
        ------
        ValueError
            If it is no such file, or of other weights than `weights`.
        """
        try:
            calibration = cls(**{name: tuple(value) for name, value in json.loads(path.read_text()).items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no calibration; expected a file of direct-hifimamba calibrate.") from error
        if weights is not None and calibration.weights != tuple(weights):
            raise ValueError(f"{path} was made for other weights; run direct-hifimamba calibrate with these ones.")
        return calibration


def calibrate(
    reconstructor: Reconstructor,
    heads: Sequence[Path],
    weights: Sequence[str] = (),
    accelerations: Sequence[float] = (4, 8),
    number: int = 24,
    size: int = 128,
    coils: tuple[int, int] = (6, 16),
    seed: int = 0,
) -> Calibration:
    """Calibrate the spread of an ensemble on simulated slices.

    Half of the slices give the factor, a quantile of |error| / spread over the pixels of the object [1]_; the others
    show the coverage.

    Parameters
    ----------
    reconstructor : Reconstructor
        Of several networks.
    heads : sequence of Path
        NIfTI files that the training did not use, see :class:`SampleOptions`. Empty: random tissues and phantoms.
    weights : sequence of str
        As in :class:`Calibration`.
    accelerations : sequence of floats
    number : int
        Slices for each acceleration, from 2 up.
    size : int
        Height and width.
    coils : tuple of two ints
        Smallest and largest number of coils.
    seed : int

    Raises
    ------
    ValueError
        If there is one network alone, or fewer than 2 slices.

    References
    ----------
    .. [1] Angelopoulos et al. Image-to-image regression with distribution-free uncertainty quantification and
       applications in imaging. ICML 2022.
    """
    if number < 2:
        raise ValueError(f"The number of slices is {number}; expected at least 2: some to calibrate, others to test.")
    if reconstructor.members < 2:
        raise ValueError(_NO_SPREAD)
    factors, before, after, worst = [], [], [], []
    for acceleration in sorted(accelerations):
        options = SampleOptions(
            heads=tuple(heads),
            head_fraction=1.0,
            num_coils=coils,
            shape=(size, size),
            snr=(15, 200),
            noiseless_fraction=0,
            accelerations=(acceleration,),
            masks=("equispaced",),
        )
        ratios = []
        for index in tqdm(range(number), f"{acceleration:g}x", unit="slice"):
            sample = draw_sample((seed, round(1000 * acceleration), index), options)
            analysis = reconstructor.analyse_slice(sample.kspace * sample.mask, sample.mask)
            error = np.abs(np.abs(analysis.image) - sample.target)
            is_object = sample.target > _OBJECT * np.quantile(sample.target, 0.99)
            ratios.append(
                error[is_object] / np.maximum(2 * spread(analysis.images)[is_object], np.finfo(np.float32).tiny)
            )
        factors.append(float(np.quantile(np.concatenate(ratios[::2]), NOMINAL)))
        tested = ratios[1::2]
        before.append(float(np.mean(np.concatenate(tested) <= 1)))
        after.append(float(np.mean(np.concatenate(tested) <= factors[-1])))
        worst.append(min(float(np.mean(ratio <= factors[-1])) for ratio in tested))
    return Calibration(
        tuple(weights), tuple(sorted(accelerations)), tuple(factors), tuple(before), tuple(after), tuple(worst)
    )
