"""NLINV against BART, against exact sensitivities, and against ESPIRiT where few columns calibrate."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from direct_hifimamba.data import nlinv as module
from direct_hifimamba.data.espirit import espirit
from direct_hifimamba.data.formats.bart import from_slices, read_cfl, to_slices, write_cfl
from direct_hifimamba.data.nlinv import nlinv
from direct_hifimamba.data.simulation.sample import Sample, SampleOptions, draw_sample


def draw(
    seed: int, acceleration: float = 8, coils: int = 8, shape: tuple[int, int] = (96, 80), **options: Any
) -> Sample:
    chosen = {"masks": ("equispaced",), "snr": (30, 60), "noiseless_fraction": 0.0, "pixel_size": (2.0, 2.0)} | options
    return draw_sample(
        seed, SampleOptions(shape=shape, num_coils=(coils, coils), accelerations=(acceleration,), **chosen)
    )


def error(maps: NDArray[Any], sample: Sample) -> float:
    """Fraction of the image's energy that the maps cannot describe: 1 - cos^2 of the angle to the exact ones."""
    energy = np.square(sample.target)
    cosine = np.abs((sample.sensitivity_map.conj() * maps).sum(axis=0))
    return float(((1 - np.square(cosine)) * energy).sum() / energy.sum())


def test_better_than_espirit_where_few_columns_calibrate() -> None:
    samples = [draw(seed) for seed in range(6)]
    errors = np.array(
        [(error(nlinv(s.kspace, s.mask), s), error(espirit(s.kspace, s.calibration_mask), s)) for s in samples]
    )
    assert (errors[:, 0] < errors[:, 1]).all()
    assert np.median(errors[:, 0]) < 0.6 * np.median(errors[:, 1])


@pytest.mark.parametrize(("coils", "shape"), [(2, (112, 112)), (4, (111, 125)), (12, (128, 97))])
@pytest.mark.parametrize("mask", ["equispaced", "random", "poisson"])
def test_close_to_the_exact_maps_at_low_acceleration(coils: int, shape: tuple[int, int], mask: str) -> None:
    sample = draw(3, 2, coils, shape, masks=(mask,), snr=(200, 300))
    maps = nlinv(sample.kspace, sample.mask)
    assert maps.shape == sample.kspace.shape
    assert maps.dtype == np.complex64
    np.testing.assert_allclose(np.linalg.norm(maps, axis=0), 1, atol=1e-5)
    assert error(maps, sample) < 0.001


@pytest.mark.skipif(shutil.which("bart") is None, reason="there is no program bart on the PATH")
def test_agrees_with_bart(tmp_path: Path) -> None:
    sample = draw(1, 4, 4, (96, 96))
    write_cfl(tmp_path / "kspace", from_slices((sample.kspace * sample.mask)[None]))
    command = ["bart", "nlinv", f"-i{module.NEWTON_STEPS}", "kspace", "image", "maps"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = to_slices(read_cfl(tmp_path / "maps"))[0]
    theirs = theirs / np.linalg.norm(theirs, axis=0)
    # The weights there depend on the number of pixels, and here on the field of view.
    ours = nlinv(sample.kspace, sample.mask)
    assert abs(error(ours, sample) - error(theirs, sample)) < 0.001
    cosine = np.abs((ours.conj() * theirs).sum(axis=0))[sample.target > 0.2 * sample.target.max()]
    assert np.arccos(np.minimum(1, cosine)).mean() < 0.03


def test_newton_step_solves_the_linearised_model() -> None:
    generator = torch.Generator().manual_seed(0)
    size, coils = (6, 5), 3
    samples = torch.randn(coils, *size, dtype=torch.complex128, generator=generator)
    sampled = (torch.rand(size, generator=generator) > 0.4).double()
    weights = torch.rand(size, generator=generator, dtype=torch.float64) + 0.5
    unknown = torch.randn(coils + 1, *size, dtype=torch.complex128, generator=generator)
    deviation = torch.randn_like(unknown)

    def model(x: torch.Tensor) -> torch.Tensor:
        maps = torch.fft.ifft2(weights * x[1:], norm="ortho")
        return sampled * torch.fft.fft2(x[0] * maps, norm="ortho")

    def objective(change: torch.Tensor) -> torch.Tensor:
        derivative = torch.func.jvp(model, (unknown,), (change,))[1]
        residual = sampled * samples - model(unknown) - derivative
        return residual.abs().square().sum() + 0.3 * (change - deviation).abs().square().sum()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TOLERANCE", 1e-10)
        patch.setattr(module, "MAX_CONJUGATE_GRADIENTS", 500)
        change = module._newton_step(sampled * samples, sampled, weights, unknown, deviation, 0.3)
    gradient = torch.autograd.functional.jacobian(objective, change)
    assert gradient.abs().max() < 1e-7


def test_only_the_mask_and_not_the_scale_decides() -> None:
    sample = draw(5, 4, 4)
    maps = nlinv(sample.kspace * sample.mask, sample.mask)
    np.testing.assert_array_equal(nlinv(sample.kspace, sample.mask), maps)
    np.testing.assert_allclose(nlinv(1e-6 * sample.kspace, sample.mask), maps, atol=0.01)


@pytest.mark.parametrize(
    ("kspace", "mask", "message"),
    [
        (np.ones((4, 8, 8)), np.ones(8, bool), "type float64; expected complex"),
        (np.ones((8, 8), np.complex64), np.ones(8, bool), r"shape \(8, 8\)"),
        (np.ones((4, 8, 6), np.complex64), np.ones(8, bool), r"mask has the shape \(8,\); expected \(8, 6\) or \(6,\)"),
        (np.zeros((4, 8, 8), np.complex64), np.ones(8, bool), "Leave blank slices out"),
        (np.full((4, 8, 8), np.nan, np.complex64), np.ones(8, bool), "norm nan; expected finite"),
    ],
)
def test_invalid_input(kspace: NDArray[Any], mask: NDArray[np.bool_], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nlinv(kspace, mask)
