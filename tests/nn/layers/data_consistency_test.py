from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from direct_hifimamba.nn.layers.data_consistency import (
    HardDataConsistency,
    ProximalDataConsistency,
    conjugate_gradient,
    undo_shrinkage,
)
from direct_hifimamba.nn.layers.sense import Acquisition, FourierConvention, Measurement
from tests.helpers import measure
from tests.nn.layers.sense_test import complex_double, double_acquisition


def dense_normal_matrix(acquisition: Acquisition) -> torch.Tensor:
    """Matrix of A^H A for the first image of the batch."""
    height, width = acquisition.kspace.shape[-2:]
    pixels = torch.eye(height * width, dtype=torch.complex128).reshape(-1, height, width)
    columns = [acquisition.normal(pixel[None]).flatten() for pixel in pixels]
    return torch.stack(columns, dim=1)


def test_hard_data_consistency_replaces_the_measured_samples() -> None:
    acquisition = double_acquisition(measure(2, 1, 17, 20))
    image = complex_double(2, 17, 20)
    # A map of magnitude 1 makes the operator unitary, so that k-space can be compared.
    consistent = HardDataConsistency()(image, acquisition)
    expected = torch.where(acquisition.sampled, acquisition.kspace, acquisition.forward(image))
    torch.testing.assert_close(acquisition.forward(consistent), expected, rtol=1e-6, atol=1e-6)


def test_every_hard_step_comes_closer_to_the_measurement() -> None:
    acquisition = double_acquisition(measure(coils=3))
    images = [complex_double(1, 16, 16)]
    for _ in range(4):
        images.append(HardDataConsistency()(images[-1], acquisition))

    def distance(image: torch.Tensor) -> float:
        residual = (acquisition.forward(image) - acquisition.kspace) * acquisition.sampled
        return residual.abs().square().sum().item()

    assert all(after < 0.9 * before for before, after in pairwise(map(distance, images)))
    torch.testing.assert_close(HardDataConsistency(steps=4)(images[0], acquisition), images[-1])


@pytest.mark.parametrize("coils", [1, 3])
def test_the_proximal_step_solves_its_equation(coils: int) -> None:
    acquisition = double_acquisition(measure(1, coils, 8, 10))
    layer = ProximalDataConsistency(iterations=60).double()
    prediction = complex_double(1, 8, 10)
    weight = layer.weight(acquisition).item()
    matrix = dense_normal_matrix(acquisition) + weight * torch.eye(80, dtype=torch.complex128)
    right_hand_side = acquisition.adjoint(acquisition.kspace) + weight * prediction
    expected = torch.linalg.solve(matrix, right_hand_side.flatten()).reshape(1, 8, 10)
    torch.testing.assert_close(layer(prediction, acquisition), expected, rtol=1e-9, atol=1e-9)


def test_the_weight_follows_the_noise() -> None:
    acquisition = double_acquisition(measure(3, 3))
    ratios = torch.tensor([1e-3, 1e-1, 1e-5], dtype=torch.float64)[:, None, None]
    layer = ProximalDataConsistency(iterations=1, initial_weight=0.2).double()
    nn.init.constant_(layer.noise_exponent, 0.5)
    weight = layer.weight(acquisition._replace(noise_to_signal=ratios)).flatten()
    torch.testing.assert_close(weight.real, torch.tensor([0.2, 2.0, 0.02], dtype=torch.float64))


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("iterations", [1, 4, 20])
def test_gradients_of_the_proximal_step(iterations: int, lines: bool) -> None:
    """Against finite differences, also where the iterations have converged before their end."""
    measurement = measure(2, 2, 4, 3)
    if lines:
        measurement = measurement.reduce_mask()
    layer = ProximalDataConsistency(iterations).double()

    def solve(
        image: torch.Tensor, kspace: torch.Tensor, maps: torch.Tensor, a: torch.Tensor, b: torch.Tensor
    ) -> torch.Tensor:
        doubles = Measurement(kspace, measurement.sampling_mask, maps)
        acquisition = double_acquisition(doubles)
        # The estimate of the noise is a constant to the gradient.
        acquisition = acquisition._replace(noise_to_signal=torch.full((2, 1, 1), 0.3, dtype=torch.float64))
        result: torch.Tensor = torch.func.functional_call(
            layer, {"log_weight": a, "noise_exponent": b}, (image, acquisition)
        )
        return torch.view_as_real(result)

    inputs = (
        complex_double(2, 4, 3),
        measurement.masked_kspace.double(),
        measurement.sensitivity_map.double(),
        torch.tensor(-1.5, dtype=torch.float64),
        torch.tensor(0.4, dtype=torch.float64),
    )
    for value in inputs:
        value.requires_grad_()
    assert torch.autograd.gradcheck(solve, inputs, atol=1e-5)


def test_shrinkage_is_undone_in_every_image() -> None:
    acquisition = double_acquisition(measure(3, 3, 16, 18))
    image = complex_double(3, 16, 18)
    image[2] = 0
    fitted = undo_shrinkage(image, acquisition)
    residual = (acquisition.kspace - acquisition.forward(fitted)) * acquisition.sampled
    projection = (residual.conj() * acquisition.forward(fitted)).real.sum(dim=(1, 2, 3))
    torch.testing.assert_close(projection, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(undo_shrinkage(0.3 * image, acquisition), fitted)
    assert not fitted[2].any() and fitted[:2].abs().amax(dim=(1, 2)).min() > 0
    images = image[:2].requires_grad_()
    pair = acquisition._replace(
        kspace=acquisition.kspace[:2],
        sampled=acquisition.sampled[:2],
        sensitivity_map=acquisition.sensitivity_map[:2],
    )
    assert torch.autograd.gradcheck(lambda x: torch.view_as_real(undo_shrinkage(x, pair)), images, fast_mode=True)


def test_conjugate_gradients_solve_every_image_by_itself() -> None:
    """Systems of different condition; one is solved at once and one has a right-hand side of zeros."""
    scales = torch.stack([torch.ones(4, 4), torch.linspace(1, 50, 16).reshape(4, 4), torch.ones(4, 4)]).double()
    right_hand_side = complex_double(3, 4, 4)
    right_hand_side[2] = 0
    solution = conjugate_gradient(lambda x: scales * x, right_hand_side, 40)
    torch.testing.assert_close(solution, right_hand_side / scales, rtol=1e-9, atol=1e-9)


def edge_cases() -> dict[str, Measurement]:
    usual = measure(2, 4)
    coil_off, outside = usual.sensitivity_map.clone(), usual.sensitivity_map.clone()
    coil_off[:, 1] = 0
    outside[:, :, :5] = 0
    without_coil = usual.masked_kspace.clone()
    without_coil[:, 1] = 0
    everything = torch.ones_like(usual.sampling_mask)
    return {
        "one coil": measure(2, 1),
        "a coil without signal": usual._replace(masked_kspace=without_coil, sensitivity_map=coil_off),
        "maps that are zero outside": usual._replace(sensitivity_map=outside),
        "fully sampled": usual._replace(sampling_mask=everything, masked_kspace=torch.randn(2, 4, 16, 16, 2)),
        "k-space of zeros": usual._replace(masked_kspace=torch.zeros(2, 4, 16, 16, 2)),
    }


@pytest.mark.parametrize("case", edge_cases())
def test_edge_cases_of_the_proximal_step(case: str) -> None:
    acquisition = Acquisition.from_measurement(edge_cases()[case].reduce_mask(), FourierConvention(True, True))
    layer = ProximalDataConsistency(10)
    prediction = torch.randn(2, 16, 16, 2).requires_grad_()
    result = acquisition.leave(layer(acquisition.enter(prediction), acquisition))
    result.square().sum().backward()
    assert torch.isfinite(result).all()
    assert prediction.grad is not None
    assert all(torch.isfinite(g).all() for g in (prediction.grad, layer.log_weight.grad, layer.noise_exponent.grad))
    if case == "maps that are zero outside":  # nothing was measured there: the prediction stays
        torch.testing.assert_close(result[:, :5], prediction[:, :5])


@pytest.mark.slow
def test_a_large_acquisition_is_solved() -> None:
    """32 coils of 640 x 368; its time and memory are in docs/performance.md."""
    coils, height, width = 32, 640, 368
    maps = torch.ones(1, coils, height, width, 2) * (2 * coils) ** -0.5
    mask = (torch.arange(width) % 4 == 0).reshape(1, 1, 1, width, 1)
    measurement = Measurement(torch.randn(1, coils, height, width, 2) * mask, mask, maps)
    acquisition = Acquisition.from_measurement(measurement, FourierConvention(True, True))
    with torch.no_grad():
        image = ProximalDataConsistency(6, initial_weight=1e-4)(torch.zeros(1, height, width), acquisition)
    # Equal maps make A^H A a projection, so that two iterations solve the equation.
    weight = ProximalDataConsistency(6, initial_weight=1e-4).weight(acquisition)
    expected = acquisition.adjoint(acquisition.kspace) / (1 + weight)
    torch.testing.assert_close(image, expected, rtol=1e-3, atol=1e-5)
