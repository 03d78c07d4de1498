import hashlib
from dataclasses import replace

import numpy as np
import pytest

from direct_hifimamba.data.fourier import root_sum_of_squares
from direct_hifimamba.data.simulation.sample import Sample, SampleOptions, draw_sample

SMALL = SampleOptions(size=(96, 112), num_coils=(4, 8))


def digest(seed) -> str:
    sample = draw_sample(seed, SMALL)
    arrays = (sample.kspace, sample.target, sample.sensitivity_map, sample.mask, sample.noise_covariance)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def to_image(kspace: np.ndarray) -> np.ndarray:
    axes = (-2, -1)
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), norm="ortho"), axes=axes)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [draw_sample((0, 0, index), SMALL) for index in range(12)]


def test_sample_has_the_shapes_and_types_that_it_says(samples):
    for sample in samples:
        coil, height, width = sample.kspace.shape
        assert 4 <= coil <= 8 and 96 <= height <= 112 and 96 <= width <= 112
        assert sample.sensitivity_map.shape == sample.kspace.shape
        assert sample.target.shape == sample.mask.shape == sample.calibration_mask.shape == (height, width)
        assert sample.kspace.dtype == sample.sensitivity_map.dtype == np.complex64
        assert sample.target.dtype == np.float32
        assert all(np.isfinite(array).all() for array in (sample.kspace, sample.target, sample.sensitivity_map))
        np.testing.assert_allclose(np.linalg.norm(sample.sensitivity_map, axis=0), 1, rtol=1e-5)
        np.testing.assert_allclose(
            sample.noisy_target, np.linalg.norm(to_image(sample.kspace), axis=0), rtol=1e-3, atol=1e-4
        )


def test_no_sample_twice_and_the_same_for_the_same_seed():
    seeds = [(s, e, i) for s in range(2) for e in range(2) for i in range(2)]
    digests = [digest(seed) for seed in seeds]
    assert len(set(digests)) == len(seeds)
    assert digest(seeds[-1]) == digests[-1]


def test_true_maps_reproduce_the_kspace():
    """What is left is what the finite resolution makes of maps that vary within a pixel, or of missing samples."""
    for index in range(8):
        sample = draw_sample(index, replace(SMALL, noiseless_fraction=1.0))
        images = to_image(sample.kspace)

        def misfit(maps: np.ndarray, images: np.ndarray = images) -> float:
            return float(np.linalg.norm(maps * (maps.conj() * images).sum(0) - images) / np.linalg.norm(images))

        maps = sample.sensitivity_map
        assert misfit(maps) < min(0.06, *(misfit(np.roll(maps, shift, (1, 2))) for shift in ((1, 0), (-1, 0), (0, 1))))
        np.testing.assert_allclose(sample.target, root_sum_of_squares(sample.kspace), atol=1e-4)


def test_snr_and_noise_covariance_are_as_asked():
    options = replace(SMALL, snr=(25, 25), noiseless_fraction=0.0, shape=(96, 96), num_coils=(4, 4))
    for index in range(3):
        noisy = draw_sample(index, options)
        # The same drawings with hardly any noise.
        clean = draw_sample(index, replace(options, snr=(1e6, 1e6)))
        noise = (noisy.kspace - clean.kspace).reshape(4, -1)
        noise = noise[:, np.abs(noise[0]) > 0]
        measured = noise @ noise.conj().T / noise.shape[1]
        np.testing.assert_allclose(measured, noisy.noise_covariance, atol=0.06 * np.abs(noisy.noise_covariance).max())
        deviation = np.sqrt(np.trace(noisy.noise_covariance).real / 4 / 2)
        foreground = clean.target > 0.1 * np.quantile(clean.target, 0.99)
        np.testing.assert_allclose(clean.target[foreground].mean() / deviation, 25, rtol=1e-3)


def test_whitened_noise_has_equal_strength_and_no_correlation():
    options = replace(SMALL, whitened_fraction=1.0, noiseless_fraction=0.0)
    covariance = draw_sample(0, options).noise_covariance
    np.testing.assert_allclose(covariance, covariance[0, 0] * np.eye(len(covariance)), atol=1e-12)
    covariance = draw_sample(0, replace(options, whitened_fraction=0.0)).noise_covariance
    correlation = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert np.abs(correlation - np.eye(len(correlation))).max() > 0.1


@pytest.mark.parametrize(("name", "tolerance"), [("equispaced", 0.25), ("random", 0.6), ("poisson", 0.11)])
@pytest.mark.parametrize("acceleration", [2, 4, 8])
def test_masks_have_the_rate_that_is_asked_for(name, tolerance, acceleration):
    options = replace(SMALL, masks=(name,), accelerations=(acceleration,), shape=(96, 128))
    sample = draw_sample(1, options)
    rate = sample.mask.size / sample.mask.sum()
    assert abs(rate / acceleration - 1) < tolerance
    assert (sample.mask | ~sample.calibration_mask).all()
    assert sample.calibration_mask[48].sum() >= 4
    assert sample.calibration_mask[48, 64]
    assert (name == "poisson") == bool((sample.mask != sample.mask[0]).any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snr": (30, 10)}, r"snr is \(30, 10\)"),
        ({"num_coils": (4,)}, r"num_coils is \(4,\)"),
        ({"shape": (320, 8)}, r"shape is \(320, 8\)"),
        ({"head_fraction": 1.5}, "head_fraction is 1.5"),
        ({"accelerations": (1,)}, "accelerations are"),
        ({"accelerations": ()}, "accelerations are"),
        ({"masks": ("equispace",)}, "masks are .*expected some of equispaced"),
        ({"masks": ()}, "masks are"),
    ],
)
def test_invalid_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SampleOptions(**options)


def test_a_field_of_view_in_which_the_object_is_tiny_is_refused(monkeypatch):
    monkeypatch.setattr("direct_hifimamba.data.simulation.sample.MAX_ATTEMPTS", 2)
    with pytest.raises(ValueError, match="2 slices of 64 x 64 pixels of 20 mm"):
        draw_sample(0, SampleOptions(shape=(64, 64), pixel_size=(20, 20)))


def test_a_single_coil_is_drawn():
    sample = draw_sample(0, SampleOptions(shape=(32, 32), num_coils=(1, 1)))
    assert sample.kspace.shape == (1, 32, 32)
    np.testing.assert_allclose(np.abs(sample.sensitivity_map), 1, rtol=1e-5)
