"""Where k-space differs from that of a training: tried on simulated slices of the training's own ranges."""

from __future__ import annotations

import numpy as np
import pytest
from direct.common.subsample import FastMRIEquispacedMaskFunc, FastMRIRandomMaskFunc, RadialMaskFunc, SpiralMaskFunc
from numpy.typing import NDArray
from omegaconf import OmegaConf

from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample
from direct_hifimamba.reconstruction.domain import Domain, classify_sampling, estimate_snr
from direct_hifimamba.reconstruction.pretrained import find_pretrained, list_pretrained

DOMAIN = Domain((32, 64), (2, 4), (2, 8), 4, 10.0, ("whole columns", "single points"))
SHAPE = (48, 64)


def slices(**options: object) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """Undersampled k-space (1, coil, height, width) of a simulated slice, and its mask."""
    defaults = {"shape": SHAPE, "num_coils": (3, 3), "accelerations": (4,), "snr": (30, 30), "noiseless_fraction": 0}
    sample = draw_sample(3, SampleOptions(**defaults | {"masks": ("equispaced",)} | options))  # type: ignore[arg-type]
    return (sample.kspace * sample.mask)[None], sample.mask


@pytest.mark.parametrize("mask", ["equispaced", "random", "poisson"])
def test_what_the_training_had_is_inside(mask: str) -> None:
    assert DOMAIN.find_departures(*slices(masks=(mask,))) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (28, 64)}, "The height is 28 pixels; the training had 32 to 64."),
        ({"shape": (48, 80)}, "The width is 80 pixels; the training had 32 to 64."),
        ({"num_coils": (6, 6)}, "The number of coils is 6; the training had 2 to 4."),
        ({"accelerations": (12,)}, "The acceleration is 1"),
        ({"accelerations": (1.4,)}, "The acceleration is 1.4; the training had 2 to 8."),
        ({"snr": (3, 3)}, "The signal-to-noise ratio of the middle slice is about 2."),
    ],
)
def test_every_departure_is_one_sentence(options: dict[str, object], message: str) -> None:
    (departure,) = DOMAIN.find_departures(*slices(**options))
    assert departure.startswith(message)


def test_calibration_and_kind_of_sampling_are_departures() -> None:
    kspace, mask = slices()
    center = SHAPE[1] // 2
    without = mask & (abs(np.arange(SHAPE[1]) - center) > 4)
    without[:, center] = True
    (departure,) = DOMAIN.find_departures(kspace * without, without)
    assert departure.startswith("The block around the centre that is sampled without gaps is 1 samples wide")
    rows = np.repeat(mask[:1, 8:56].T, SHAPE[1], axis=1)
    (departure,) = DOMAIN.find_departures(kspace * rows, rows)
    assert departure == "The mask samples whole rows; the training had whole columns or single points."


@pytest.mark.parametrize("acceleration", [3, 6])
def test_masks_are_classified(acceleration: int) -> None:
    def draw(function: type) -> NDArray[np.bool_]:
        fractions = () if function in (RadialMaskFunc, SpiralMaskFunc) else ([0.1],)
        mask = function([acceleration], *fractions)(shape=(96, 96, 1), seed=1).numpy()[0, :, :, 0]
        return np.broadcast_to(mask, (96, 96)).astype(bool)

    for function in (FastMRIEquispacedMaskFunc, FastMRIRandomMaskFunc):
        columns = draw(function)
        partial = columns & (np.arange(96)[:, None] > 30)  # partial Fourier
        assert {classify_sampling(columns), classify_sampling(partial)} == {"whole columns"}
        assert {classify_sampling(columns.T), classify_sampling(partial.T)} == {"whole rows"}
        assert classify_sampling(columns & columns.T) == "single points"
    assert classify_sampling(draw(RadialMaskFunc)) == "lines through the centre"
    assert classify_sampling(draw(SpiralMaskFunc)) == "single points"
    _, poisson = slices(masks=("poisson",), accelerations=(acceleration,))
    assert classify_sampling(poisson) == "single points"
    corners = np.hypot(*np.ogrid[-1:1:96j, -1:1:96j]) < 1  # corners were not measured
    assert classify_sampling(corners) == "single points"


@pytest.mark.parametrize("snr", [5, 10, 20])
def test_the_signal_to_noise_ratio_is_estimated(snr: float) -> None:
    for coils in (1, 4):
        kspace, mask = slices(snr=(snr, snr), num_coils=(coils, coils), whitened_fraction=1.0)
        assert estimate_snr(kspace[0], mask) == pytest.approx(snr, rel=0.3)
    assert estimate_snr(kspace[0] * (np.arange(64) % 40 == 32), mask) > 0  # most samples of the mask are zero
    assert np.isinf(estimate_snr(np.zeros_like(kspace[0]), mask))


@pytest.mark.parametrize("name", list_pretrained())
def test_the_domain_of_the_shipped_weights_is_that_of_their_configuration(name: str) -> None:
    pretrained = find_pretrained(name)
    domain, (data,) = pretrained.domain, OmegaConf.load(pretrained.config_path).training.datasets
    # An earlier part of the training had the smaller images.
    assert domain.size[0] <= data["size"][0] and domain.size[1] == data["size"][1]
    assert domain.coils == tuple(data.num_coils)
    assert domain.acceleration == (min(data.accelerations), max(data.accelerations))
    assert domain.snr == data.snr[0]
