"""Noise: its covariance in k-space, and its standard deviation in an image."""

from collections.abc import Callable, Iterable
from itertools import repeat

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, gammaincinv

MIN_REPLICAS = 8
"""With fewer pseudo-replicas, the standard deviation is uncertain by more than a quarter."""

_EDGE = 0.1
"""Fraction of the samples that belong to the edge of k-space; more where they are fewer than `_SAMPLES_PER_COIL`."""

_MOST = 0.5
"""Fraction of the samples that the edge may have at most."""

_SAMPLES_PER_COIL = 20
"""Fewest samples at the edge, per coil, from which the covariance is estimated."""

_STEPS = 20

_KEPT = 0.975
"""Fraction of the noise that is kept when samples with signal are left out."""


def estimate_noise_covariance(
    slices: Iterable[NDArray[np.complex64]], sampled: NDArray[np.bool_]
) -> NDArray[np.complex128]:
    """Estimate the covariance of the noise of all coils from the samples at the edge of k-space.

    The estimate is robust against signal in some of these samples: it begins with the half that has the smallest
    covariance, and leaves out samples that are improbable for noise of this covariance [1]_. For complex Gaussian noise
    n of several coils, n^H Psi^-1 n has a gamma distribution.

    Parameters
    ----------
    slices : iterable of complex64 arrays of shape (coils, height, width)
        Zero frequency in the middle.
    sampled : bool array of shape (height, width) or (slices, height, width)

    Returns
    -------
    complex128 array of shape (coils, coils)
        Psi = E[n n^H].

    Raises
    ------
    ValueError
        If there are too few samples, or if they have no noise, or the same in several coils.

    References
    ----------
    .. [1] Rousseeuw, van Driessen. A fast algorithm for the minimum covariance determinant estimator. Technometrics
       41:212-223, 1999.
    """
    rows, columns = ((np.arange(length) - length // 2) / length for length in sampled.shape[-2:])
    radius = np.hypot(rows[:, None], columns)
    chosen = []
    for kspace, mask in zip(slices, sampled if sampled.ndim == 3 else repeat(sampled), strict=False):
        acquired = mask & (kspace != 0).any(axis=0)
        if acquired.any():
            fraction = np.clip(_SAMPLES_PER_COIL * len(kspace) / np.count_nonzero(acquired), _EDGE, _MOST)
            chosen.append(kspace[:, acquired & (radius >= np.quantile(radius[acquired], 1 - fraction))].astype(complex))
    samples = np.concatenate(chosen, axis=1) if chosen else np.zeros((1, 0), complex)
    coils, count = samples.shape
    if count < _SAMPLES_PER_COIL * coils:
        raise ValueError(
            f"The noise cannot be estimated: there are {count} samples at the edge of k-space, for {coils} coils; "
            f"expected at least {_SAMPLES_PER_COIL * coils}, or a file with a noise scan."
        )
    covariance = samples @ samples.conj().T / count
    for _ in range(_STEPS):
        energy = _energy(samples, covariance)
        half = samples[:, energy <= np.median(energy)]
        covariance = half @ half.conj().T / half.shape[1]
    covariance *= np.median(_energy(samples, covariance)) / gammaincinv(coils, 0.5)
    largest = gammaincinv(coils, _KEPT)
    for _ in range(_STEPS):
        kept = samples[:, _energy(samples, covariance) <= largest]
        covariance = kept @ kept.conj().T / kept.shape[1] * gammainc(coils, largest) / gammainc(coils + 1, largest)
    return covariance


def _energy(samples: NDArray[np.complex128], covariance: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Return n^H Psi^-1 n of each sample n."""
    return np.square(np.abs(whitening_matrix(covariance) @ samples)).sum(axis=0)


def whitening_matrix(covariance: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Return the matrix that makes the noise of all coils uncorrelated, with variance 1.

    Raises
    ------
    ValueError
        If the covariance is not positive definite.
    """
    if np.linalg.matrix_rank(covariance, hermitian=True) < len(covariance):
        raise ValueError(
            "The noise cannot be estimated: there is none at the edge of k-space, or coils are linear combinations of "
            "others, as after coil compression. Noise maps and residuals need k-space as it was measured."
        )
    return np.linalg.inv(np.linalg.cholesky(covariance))


def noise_map(
    reconstruct: Callable[[NDArray[np.complex64]], NDArray[np.inexact]],
    kspace: NDArray[np.complex64],
    sampled: NDArray[np.bool_],
    covariance: NDArray[np.complex128],
    replicas: int,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Return the standard deviation that noise causes in the magnitude of each pixel, by pseudo-replicas [1]_.

    Noise is added to the samples and the image is reconstructed, again and again. This is exact for linear
    reconstructions at high signal-to-noise ratios. For others it is the standard deviation at a noise that is higher by
    sqrt(2), as the measured noise is still in k-space. With n replicas it is uncertain by 1 / sqrt(2 (n - 1)).

    Parameters
    ----------
    reconstruct : callable
        From k-space of the shape of `kspace` to an image (height, width), real or complex.
    kspace : complex64 array of shape (coils, height, width)
    sampled : bool array of shape (height, width)
    covariance : complex128 array of shape (coils, coils)
        Of the noise in a sample, E[n n^H].
    replicas : int
    seed : int
        Of the noise; for example the number of the slice.

    Returns
    -------
    float32 array of the shape of the image, in its units

    Raises
    ------
    ValueError
        If there are fewer than `MIN_REPLICAS` replicas.

    References
    ----------
    .. [1] Robson et al. Comprehensive quantification of signal-to-noise ratio and g-factor for image-based and
       k-space-based parallel imaging reconstructions. Magn Reson Med 60:895-907, 2008.
    """
    check_replicas(replicas)
    factor = np.linalg.cholesky(covariance) * np.sqrt(0.5)
    acquired = sampled & (kspace != 0).any(axis=0)
    mean: NDArray[np.float64] | float = 0.0
    squares: NDArray[np.float64] | float = 0.0
    for replica in range(replicas):
        normal = np.random.default_rng((seed, replica)).standard_normal((2, len(kspace), np.count_nonzero(acquired)))
        noisy = kspace.copy()
        noisy[:, acquired] += factor @ (normal[0] + 1j * normal[1])
        image = np.abs(reconstruct(noisy)).astype(float)
        change = image - mean  # Welford's algorithm holds one image at a time
        mean = mean + change / (replica + 1)
        squares = squares + change * (image - mean)
    return np.sqrt(squares / (replicas - 1)).astype(np.float32)


def check_replicas(replicas: int) -> None:
    """Raise a ValueError if there are fewer than `MIN_REPLICAS` pseudo-replicas."""
    if replicas < MIN_REPLICAS:
        raise ValueError(f"The number of pseudo-replicas is {replicas}; expected at least {MIN_REPLICAS}.")
