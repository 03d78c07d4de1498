from __future__ import annotations

import itertools

import pytest
import torch

from direct_hifimamba.nn.hifimamba.sf_lap import CrossFrequencyRouting, LaplacianPyramid, SFLap

MODES = [("binomial", "bilinear"), ("binomial", "binomial"), ("haar", "bilinear")]
SIZES = [(16, 24), (17, 24), (16, 23), (9, 7), (4, 4), (3, 5)]
TAPS = [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]


def reflect(index: int, size: int) -> int:
    """The position that a reflecting boundary, without repeating the edge, puts at `index`."""
    index = abs(index)
    return 2 * (size - 1) - index if index >= size else index


def slow_blur(image: torch.Tensor) -> torch.Tensor:
    """Binomial filter of an image (height, width), pixel by pixel."""
    height, width = image.shape
    blurred = torch.zeros_like(image)
    for y, x, dy, dx in itertools.product(range(height), range(width), range(-2, 3), range(-2, 3)):
        blurred[y, x] += TAPS[dy + 2] * TAPS[dx + 2] * image[reflect(y + dy, height), reflect(x + dx, width)]
    return blurred


def slow_low_band(image: torch.Tensor, expand: str) -> torch.Tensor:
    """The low band of the binomial pyramid of an image (height, width), pixel by pixel."""
    height, width = image.shape
    coarse = slow_blur(image)[::2, ::2]
    if expand == "binomial":
        spread = torch.zeros_like(image)
        spread[::2, ::2] = coarse
        return 4 * slow_blur(spread)
    low = torch.empty_like(image)
    for y, x in itertools.product(range(height), range(width)):
        value = 0.0
        # Coarse sample i lies at 2 i + 1/2; the nearest two along each axis weigh 3/4 and 1/4, edges are repeated.
        for i, wy in ((y // 2, 0.75), (y // 2 + (1 if y % 2 else -1), 0.25)):
            for j, wx in ((x // 2, 0.75), (x // 2 + (1 if x % 2 else -1), 0.25)):
                value += wy * wx * coarse[min(max(i, 0), len(coarse) - 1), min(max(j, 0), coarse.shape[1] - 1)]
        low[y, x] = value
    return low


def split(image: torch.Tensor, pyramid: str, expand: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Bands of an image (height, width)."""
    low, detail = LaplacianPyramid(pyramid, expand).to(image.dtype)(image[None, ..., None])
    return low[0, ..., 0], detail[0, ..., 0]


def ramp(height: int, width: int, slope_y: float, slope_x: float) -> torch.Tensor:
    rows, columns = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    return slope_y * rows[:, None] + slope_x * columns


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("expand", ["bilinear", "binomial"])
def test_the_binomial_low_band_is_the_slow_one(size: tuple[int, int], expand: str) -> None:
    image = torch.randn(size, dtype=torch.float64)
    low, _ = split(image, "binomial", expand)
    torch.testing.assert_close(low, slow_low_band(image, expand))


@pytest.mark.parametrize("size", SIZES)
def test_the_haar_low_band_is_the_mean_of_a_cell(size: tuple[int, int]) -> None:
    image = torch.randn(size)
    low, _ = split(image, "haar", "bilinear")
    for y, x in itertools.product(range(0, size[0], 2), range(0, size[1], 2)):
        cell = image[y : y + 2, x : x + 2]
        torch.testing.assert_close(low[y : y + 2, x : x + 2], cell.mean().expand_as(cell))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("pyramid", "expand"), MODES)
def test_bands_add_up_and_keep_the_shape(size: tuple[int, int], pyramid: str, expand: str) -> None:
    features = torch.randn(2, *size, 3)
    low, detail = LaplacianPyramid(pyramid, expand)(features)
    assert detail is not None
    assert low.shape == detail.shape == features.shape
    torch.testing.assert_close(low + detail, features)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("pyramid", "expand"), MODES)
def test_constants_stay_in_the_low_band(size: tuple[int, int], pyramid: str, expand: str) -> None:
    _, detail = split(torch.full(size, 3.0), pyramid, expand)
    assert detail.abs().max() < 1e-5


@pytest.mark.parametrize("size", [(20, 24), (21, 23)])
def test_ramps_leak_nothing_from_the_consistent_pyramid_and_half_their_slope_from_the_reference(
    size: tuple[int, int],
) -> None:
    slope_y, slope_x = 0.7, -0.3
    for expand, leak in (("binomial", 0.0), ("bilinear", 0.5 * (slope_y + slope_x))):
        _, detail = split(ramp(*size, slope_y, slope_x), "binomial", expand)
        interior = detail[5:-5, 5:-5]
        torch.testing.assert_close(interior, torch.full_like(interior, leak), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("pyramid", "expand"), MODES)
def test_the_low_band_is_low_pass(pyramid: str, expand: str) -> None:
    rows = torch.arange(64, dtype=torch.float64)
    passed = []
    for frequency in (0.02, 0.1, 0.25, 0.5):
        wave = torch.cos(2 * torch.pi * frequency * rows)[:, None].expand(64, 8)
        low, _ = split(wave, pyramid, expand)
        passed.append((low[8:-8].norm() / wave[8:-8].norm()).item())
    assert passed == sorted(passed, reverse=True)
    assert passed[0] > 0.97
    assert passed[-1] < 1e-12


def test_channels_and_samples_are_split_separately() -> None:
    features = torch.randn(2, 8, 8, 3)
    low, _ = LaplacianPyramid("binomial", "bilinear")(features)
    for sample, channel in itertools.product(range(2), range(3)):
        torch.testing.assert_close(
            low[sample, ..., channel], split(features[sample, ..., channel], "binomial", "bilinear")[0]
        )


def test_without_pyramid_everything_is_low() -> None:
    features = torch.randn(1, 5, 4, 2)
    low, detail = LaplacianPyramid("none", "bilinear")(features)
    assert low is features
    assert detail is None


def test_filters_are_no_parameters_and_not_stored() -> None:
    pyramid = LaplacianPyramid("binomial", "bilinear")
    assert not list(pyramid.parameters())
    assert not pyramid.state_dict()


def test_the_bottleneck_is_what_is_split() -> None:
    sf_lap, features = SFLap(4, "binomial", "bilinear"), torch.randn(2, 6, 8, 4)
    low, detail = sf_lap(features)
    assert detail is not None
    torch.testing.assert_close(low + detail, sf_lap.bottleneck(features))


@pytest.mark.parametrize(("channels", "gradients"), [(5, True), (5, False), (16, True), (16, False), (48, False)])
def test_routing_takes_the_detail_where_it_agrees(channels: int, gradients: bool) -> None:
    routing = CrossFrequencyRouting()
    with torch.no_grad():
        routing.log_gamma.fill_(1.1)
    high, detail = torch.randn(2, 3, 4, 2 * channels)[..., channels:], torch.randn(2, 3, 4, channels)
    with torch.set_grad_enabled(gradients):
        routed = routing(high, detail)
    for pixel in itertools.product(range(2), range(3), range(4)):
        h, d = high[pixel] + detail[pixel], detail[pixel]
        similarity = torch.dot(h, d) / (h.norm() * d.norm() + 1e-6)
        weight = 1 / (1 + torch.exp(-torch.exp(torch.tensor(1.1)) * similarity))
        torch.testing.assert_close(routed[pixel], weight * d + (1 - weight) * h)


def test_routing_starts_at_gamma_2_and_takes_zeros() -> None:
    routing = CrossFrequencyRouting()
    assert routing.log_gamma.exp().item() == pytest.approx(2)
    high, detail = torch.zeros(1, 2, 2, 3, requires_grad=True), torch.zeros(1, 2, 2, 3, requires_grad=True)
    routing(high, detail).sum().backward()
    assert high.grad is not None
    assert high.grad.isfinite().all()
    assert routing.log_gamma.grad == 0
