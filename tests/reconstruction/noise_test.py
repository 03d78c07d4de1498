"""Tests of direct_hifimamba.reconstruction.noise against linear reconstructions whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample
from direct_hifimamba.reconstruction.noise import MIN_REPLICAS, estimate_noise_covariance, noise_map, whitening_matrix

COILS, HEIGHT, WIDTH = 4, 8, 12


def random(*shape: int, seed: int = 0) -> NDArray[np.complex128]:
    return np.random.default_rng(seed).standard_normal((*shape, 2)).view(np.complex128)[..., 0]


def covariance_of(coils: int) -> NDArray[np.complex128]:
    """Correlated noise, different in each coil."""
    mixing = random(coils, coils, seed=1) + 2 * np.diag(1 + np.arange(coils))
    return mixing @ mixing.conj().T


def add_noise(kspace: NDArray[np.complex128], covariance: NDArray[np.complex128], seed: int) -> NDArray[np.complex128]:
    noise = random(*kspace.shape, seed=seed) * np.sqrt(0.5)
    return kspace + np.tensordot(np.linalg.cholesky(covariance), noise, 1)


class Sense:
    """SENSE reconstruction as a matrix, in float64, which weights with the noise covariance."""

    def __init__(self, sampled: NDArray[np.bool_], covariance: NDArray[np.complex128]) -> None:
        maps = random(COILS, HEIGHT, WIDTH, seed=2) * 0.3 + np.exp(
            1j * np.linspace(0, 5, COILS * HEIGHT * WIDTH).reshape(COILS, HEIGHT, WIDTH)
        )
        pixels = np.eye(HEIGHT * WIDTH).reshape(-1, 1, HEIGHT, WIDTH)
        encoding = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(maps * pixels, (-2, -1)), norm="ortho"), (-2, -1))
        self.sampled = sampled
        encoding = np.tensordot(encoding, whitening_matrix(covariance), (1, 1))[:, sampled]  # pixel, sample, coil
        self.matrix = encoding.reshape(len(pixels), -1).T
        self.whitening = whitening_matrix(covariance)
        self.inverse = np.linalg.pinv(self.matrix)

    @property
    def standard_deviation(self) -> NDArray[np.float64]:
        """Of the part of the noise that is in phase with the image."""
        variance = np.linalg.inv(self.matrix.conj().T @ self.matrix).diagonal().real
        return np.sqrt(variance / 2).reshape(HEIGHT, WIDTH)

    def __call__(self, kspace: NDArray[np.complex128]) -> NDArray[np.complex128]:
        samples = np.tensordot(self.whitening, kspace, 1)[:, self.sampled].T.ravel()
        return (self.inverse @ samples).reshape(HEIGHT, WIDTH)


def test_noise_maps_and_g_factor_of_sense_are_the_analytic_ones() -> None:
    covariance = covariance_of(COILS)
    columns = np.broadcast_to(np.arange(WIDTH) % 2 == 0, (HEIGHT, WIDTH))
    maps, expected = [], []
    for sampled in (columns, np.ones((HEIGHT, WIDTH), bool)):
        sense = Sense(sampled, covariance)
        kspace = add_noise(1e5 * random(COILS, HEIGHT, WIDTH, seed=3), covariance, 4)
        maps.append(noise_map(sense, kspace, sampled, covariance, 300))
        expected.append(sense.standard_deviation)
        ratio = maps[-1] / expected[-1]
        assert ratio.mean() == pytest.approx(1, abs=0.02)
        assert ratio.std() == pytest.approx(1 / np.sqrt(2 * 299), rel=0.3)
    g_factor, truth = ((accelerated / full / np.sqrt(2)) for accelerated, full in (maps, expected))
    assert truth.max() > 1.5 and np.abs(g_factor / truth - 1).max() < 0.25


def test_noise_maps_are_deterministic_and_need_replicas() -> None:
    kspace, sampled = random(COILS, HEIGHT, WIDTH), np.ones((HEIGHT, WIDTH), bool)
    kspace[:, :2] = 0  # zero-filled by the scanner: gets no noise

    def reconstruct(noisy: NDArray[np.complex128]) -> NDArray[np.float64]:
        assert not noisy[:, :2].any()
        return np.abs(noisy).sum(axis=0)

    first, again, other = (
        noise_map(reconstruct, kspace, sampled, np.eye(COILS), MIN_REPLICAS, seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and not first[:2].any()
    with pytest.raises(ValueError, match=f"is {MIN_REPLICAS - 1}; expected at least {MIN_REPLICAS}"):
        noise_map(reconstruct, kspace, sampled, np.eye(COILS), MIN_REPLICAS - 1)


@pytest.mark.parametrize("coils", [1, 4])
def test_the_covariance_is_that_of_the_noise_with_signal_in_a_third_of_the_samples(coils: int) -> None:
    covariance = covariance_of(coils)
    signal = np.where(np.random.default_rng(5).random((96, 64)) < 0.3, 100 * random(coils, 96, 64, seed=6), 0)
    slices = [add_noise(signal, covariance, seed) for seed in (7, 8)]
    sampled = np.broadcast_to(np.arange(64) % 2 == 0, (96, 64))
    estimate = estimate_noise_covariance(slices, sampled)
    whitening = whitening_matrix(covariance)
    np.testing.assert_allclose(whitening @ estimate @ whitening.conj().T, np.eye(coils), atol=0.15)


def test_the_covariance_of_simulated_slices_is_found() -> None:
    options = SampleOptions(
        shape=(96, 96), num_coils=(6, 6), snr=(20, 20), noiseless_fraction=0, masks=("random",), accelerations=(4,)
    )
    for index in range(4):
        sample = draw_sample(index, options)
        whitening = whitening_matrix(sample.noise_covariance)
        estimate = whitening @ estimate_noise_covariance([sample.kspace], sample.mask) @ whitening.conj().T
        assert 0.8 < np.trace(estimate).real / 6 < 1.5  # signal at the edge makes it too large
        assert np.linalg.eigvalsh(estimate).min() > 0.5


def test_no_estimate_without_noise() -> None:
    full = np.ones((32, 32), bool)
    noise = random(4, 32, 32)
    with pytest.raises(
        ValueError, match=r"there are \d+ samples at the edge of k-space, for 16 coils; expected at least 320"
    ):
        estimate_noise_covariance([random(16, 16, 16)], full[:16, :16])
    for slices in ([np.stack([noise[0], noise[1], noise[0] + noise[1]])], [np.full((2, 32, 32), 1.0 + 0j)]):
        with pytest.raises(ValueError, match="coils are linear combinations of others"):
            estimate_noise_covariance(slices, full)
    with pytest.raises(ValueError, match="there are 0 samples"):
        estimate_noise_covariance([np.zeros((2, 32, 32))], full)
