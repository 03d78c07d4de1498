from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from direct.functionals import SSIMLoss
from direct.functionals import challenges as direct_metrics
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_laplace
from sewar.full_ref import vifp

from direct_hifimamba.benchmark.score.metrics import DEFAULT, GROUPS, METRICS, metric_definitions
from direct_hifimamba.benchmark.score.metrics import score_volume as score_some
from direct_hifimamba.benchmark.score.spectrum import EDGES, band_energies, error_spectrum

SHAPE = (4, 48, 60)
BY_DIRECT = [name for name, metric in METRICS.items() if metric.group in ("fastMRI", "Calgary-Campinas")]
BY_SLICE = [name for name, metric in METRICS.items() if metric.group != "fastMRI"]


def smooth_noise(seed: int, sigma: float, shape: tuple[int, ...] = SHAPE) -> NDArray[np.float64]:
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), (0, sigma, sigma))
    return noise / noise.std()


@pytest.fixture
def target() -> NDArray[np.float32]:
    """Slices of different brightness."""
    volume = np.abs(smooth_noise(0, 2.0)) * np.array([1.0, 0.5, 2.0, 1.5])[:, None, None] + 0.1
    return (300 * volume).astype(np.float32)


@pytest.fixture
def image(target: NDArray[np.float32]) -> NDArray[np.float32]:
    return degrade(target, 0.05)


def degrade(target: NDArray[np.float32], level: float, seed: int = 1) -> NDArray[np.float32]:
    return np.abs(target + level * target.max() * smooth_noise(seed, 0.7)).astype(np.float32)


Scores = dict[str, NDArray[np.float64]]


def score_volume(target: NDArray[np.float32], image: NDArray[np.float32]) -> Scores:
    return score_some(target, image, METRICS)


def of_volume(scores: Scores, name: str) -> float:
    return METRICS[name].of_volume(scores[name])


def ssim_by_convolution(target: NDArray[np.float32], image: NDArray[np.float32], data_range: float) -> float:
    """DIRECT's loss, made with PyTorch's convolutions and not with scikit-image."""
    pair = (torch.from_numpy(volume).double()[None, None] for volume in (image, target))
    return 1 - SSIMLoss().double()(*pair, torch.tensor([data_range], dtype=torch.float64)).item()


@pytest.mark.parametrize("name", BY_DIRECT)
def test_volumes_have_the_scores_of_direct(name: str, target: NDArray[np.float32], image: NDArray[np.float32]) -> None:
    expected = getattr(direct_metrics, name)(torch.from_numpy(target)[:, None], torch.from_numpy(image)[:, None])
    assert of_volume(score_volume(target, image), name) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_slices_combine_to_their_volume(name: str, target: NDArray[np.float32], image: NDArray[np.float32]) -> None:
    scores = score_volume(target, image)
    assert METRICS[name].combine(scores[name]) == pytest.approx(of_volume(scores, name), rel=1e-5)
    assert np.ptp(scores[name]) > 0


def test_ssim_of_slices(target: NDArray[np.float32], image: NDArray[np.float32]) -> None:
    scores = score_volume(target, image)
    expected = [ssim_by_convolution(*pair, target.max()) for pair in zip(target, image, strict=True)]
    np.testing.assert_allclose(scores["fastmri_ssim"], expected, rtol=1e-5)


def test_hfen_is_that_of_a_laplacian_of_gaussian(target: NDArray[np.float32], image: NDArray[np.float32]) -> None:
    found = score_volume(target, image)["hfen"]
    for true, made, value in zip(target, image, found, strict=True):
        filtered = [
            gaussian_laplace(part.astype(np.float64), 1.5, mode="constant", truncate=7 / 1.5) for part in (true, made)
        ]
        assert value == pytest.approx(np.linalg.norm(filtered[1] - filtered[0]) / np.linalg.norm(filtered[0]), rel=0.02)


def test_hfen_sees_edges_alone(target: NDArray[np.float32]) -> None:
    hill = 0.2 * target.max() * np.outer(*(np.hanning(size) ** 2 for size in SHAPE[1:])).astype(np.float32)
    assert of_volume(score_volume(target, target + hill), "hfen") < 0.3 * of_volume(
        score_volume(target, degrade(target, 0.1)), "hfen"
    )


def test_vif_is_that_of_images_of_8_bits(target: NDArray[np.float32], image: NDArray[np.float32]) -> None:
    expected = [
        vifp(255.0 / target.max() * true, 255.0 / target.max() * made) for true, made in zip(target, image, strict=True)
    ]
    np.testing.assert_allclose(score_volume(target, image)["vif"], expected, rtol=1e-4)
    vif = [of_volume(score_some(target, factor * target, ["vif"]), "vif") for factor in np.float32([2, 0.5])]
    assert vif[0] > 1 > vif[1]


@pytest.mark.parametrize("factor", [1e-6, 1e4])
def test_units_do_not_matter(factor: float, target: NDArray[np.float32], image: NDArray[np.float32]) -> None:
    expected = score_volume(target, image)
    scaled = score_volume(np.float32(factor) * target, np.float32(factor) * image)
    for name in METRICS:
        np.testing.assert_allclose(scaled[name], expected[name], rtol=1e-3)
        assert of_volume(scaled, name) == pytest.approx(of_volume(expected, name), rel=1e-3)
    factor = np.float32(factor)
    spectra = error_spectrum(target, image), error_spectrum(factor * target, factor * image)
    np.testing.assert_allclose(*spectra, rtol=1e-3)


@pytest.mark.parametrize("name", METRICS)
def test_more_noise_is_worse(name: str, target: NDArray[np.float32]) -> None:
    values = [of_volume(score_volume(target, degrade(target, level)), name) for level in (0.01, 0.03, 0.1)]
    assert values == sorted(values, reverse=METRICS[name].higher_is_better)


def test_the_target_itself_is_perfect(target: NDArray[np.float32]) -> None:
    scores = score_volume(target, target.copy())
    for name, metric in METRICS.items():
        expected = {"SSIM": 1, "VIF": 1, "NMSE": 0, "HFEN": 0, "PSNR": np.nan}[metric.label]
        np.testing.assert_allclose(scores[name], expected, atol=1e-6)
        assert of_volume(scores, name) == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert error_spectrum(target, target).tolist() == [0.0] * (len(EDGES) - 1)


@pytest.mark.parametrize("constant", [0.0, 40.0])
def test_a_constant_slice_has_the_scores_that_the_volume_defines(
    constant: float, target: NDArray[np.float32], image: NDArray[np.float32]
) -> None:
    others = np.array([0, 1, 3])
    target[2] = constant
    scores, without = score_volume(target, image), score_volume(target[others], image[others])
    assert all(np.isnan(scores[name][2]) == (name in BY_SLICE) for name in METRICS)
    assert all(of_volume(scores, name) == pytest.approx(of_volume(without, name), rel=1e-5) for name in BY_SLICE)
    for name in ("fastmri_ssim", "fastmri_psnr", "fastmri_nmse"):
        expected = getattr(direct_metrics, name)(target[:, None], image[:, None]).item()
        assert of_volume(scores, name) == pytest.approx(expected)
        assert METRICS[name].combine(scores[name]) == pytest.approx(expected, rel=1e-5)


def test_a_slice_without_error_counts_in_the_psnr_of_the_volume(
    target: NDArray[np.float32], image: NDArray[np.float32]
) -> None:
    target[1] = image[1] = 0
    scores = score_some(target, image, ["fastmri_psnr"])
    expected = direct_metrics.fastmri_psnr(torch.from_numpy(target)[:, None], torch.from_numpy(image)[:, None])
    assert np.isnan(scores["fastmri_psnr"][1])
    assert of_volume(scores, "fastmri_psnr") == pytest.approx(expected.item(), rel=1e-6)


def test_small_images_have_no_vif(target: NDArray[np.float32], image: NDArray[np.float32]) -> None:
    scores = score_volume(target[:, :41], image[:, :41])
    assert all(np.isfinite(values).all() for values in scores.values())
    scores = score_volume(target[..., :40], image[..., :40])
    assert {name for name, values in scores.items() if np.isnan(values).all()} == {"calgary_campinas_vif", "vif"}
    assert np.isnan(of_volume(scores, "vif"))


def test_only_what_is_asked_for_is_computed(target: NDArray[np.float32], image: NDArray[np.float32]) -> None:
    assert list(score_some(target, image)) == list(DEFAULT)
    assert {name.partition("_")[0] for name in DEFAULT} == {"fastmri"}
    (scores,) = score_some(target, image, ["hfen"]).values()
    np.testing.assert_array_equal(scores, score_volume(target, image)["hfen"])


def test_bands_add_up_to_the_nmse(target: NDArray[np.float32], image: NDArray[np.float32]) -> None:
    edges = np.linspace(0, 1.5, 7).tolist()
    weights = band_energies(target, edges)
    assert weights.sum() == pytest.approx(np.square(target, dtype=np.float64).sum())
    nmse = of_volume(score_volume(target, image), "fastmri_nmse")
    assert np.average(error_spectrum(target, image, edges), weights=weights) == pytest.approx(nmse, rel=1e-5)


@pytest.mark.parametrize("cycles", [(0, 0), (5, 0), (0, 29), (-10, 12), (24, 0), (24, 30)])
def test_a_wave_lies_in_the_band_of_its_frequency(cycles: tuple[int, int]) -> None:
    rows, columns = np.meshgrid(*(np.arange(size) / size for size in SHAPE[1:]), indexing="ij")
    wave = np.cos(2 * np.pi * (cycles[0] * rows + cycles[1] * columns))
    energies = band_energies(np.stack([wave, 2 * wave]))
    radius = 2 * np.hypot(cycles[0] / SHAPE[1], cycles[1] / SHAPE[2])
    expected = np.zeros(len(EDGES) - 1)
    if radius <= 1:
        expected[min(int(radius * len(expected)), len(expected) - 1)] = 5 * np.square(wave).sum()
    np.testing.assert_allclose(energies, expected, atol=1e-9 * max(1, expected.max()))


def test_a_band_without_energy_has_no_relative_error() -> None:
    target = np.ones((1, 48, 48), np.float32)
    target[:, 1::2] = 0  # nothing but the mean and the Nyquist frequency
    spectrum = error_spectrum(target, np.float32(1.1) * target)
    np.testing.assert_allclose(spectrum[[0, -1]], 0.01, rtol=1e-4)
    assert np.isnan(spectrum[1:-1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda target, image: (target, image[1:]), r"\(4, 48, 60\) and the reconstruction \(3, 48, 60\)"),
        (lambda target, image: (target[0], image[0]), "slices, height"),
        (lambda target, image: (target, image * np.nan), "The reconstruction has pixels"),
        (lambda target, image: (target * np.inf, image), "The target has pixels"),
        (lambda target, image: (0 * target, image), "No slice of the target"),
        (
            lambda target, image: (0 * target + np.float32([[[1]], [[2]], [[3]], [[0]]]), image),
            "No slice of the target",
        ),
        (lambda target, image: (target[:, :6], image[:, :6]), r"\(6, 60\) pixels"),
    ],
)
def test_refuses_what_cannot_be_scored(
    change: Callable[..., tuple[NDArray[np.float32], NDArray[np.float32]]],
    message: str,
    target: NDArray[np.float32],
    image: NDArray[np.float32],
) -> None:
    with pytest.raises(ValueError, match=message):
        score_volume(*change(target, image))


def test_every_metric_is_defined_once() -> None:
    assert len(set(metric_definitions(METRICS).values())) == len(METRICS)
    assert {metric.group for metric in METRICS.values()} == set(GROUPS)
    assert len({(metric.group, metric.label) for metric in METRICS.values()}) == len(METRICS)


@pytest.mark.parametrize(
    ("value", "sign", "text"), [(31.237, "", "31.24"), (-0.001, "+", "+0.00"), (1.0, "+", "+1.00")]
)
def test_format(value: float, sign: str, text: str) -> None:
    assert METRICS["fastmri_psnr"].format(value, sign) == text
