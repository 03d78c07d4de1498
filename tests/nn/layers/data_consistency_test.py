from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from direct.data.transforms import complex_multiplication, conjugate, fft2, ifft2

from direct_hifimamba.nn.layers.data_consistency import DataConsistency, SenseOperator
from tests.helpers import measure


def inner_product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Sum of the conjugate of `first` times `second`, as real and imaginary part."""
    return complex_multiplication(conjugate(first), second).flatten(0, -2).sum(dim=0)


@pytest.mark.parametrize("coils", [1, 4])
@pytest.mark.parametrize("size", [(16, 16), (17, 20)])
def test_combine_is_the_adjoint(coils: int, size: tuple[int, int]) -> None:
    operator = SenseOperator(fft2, ifft2)
    sensitivity_map = 2 * measure(2, coils, *size).sensitivity_map  # adjointness needs no normalisation
    image, kspace = torch.randn(2, *size, 2), torch.randn(2, coils, *size, 2)
    forward = inner_product(operator(image, sensitivity_map), kspace)
    adjoint = inner_product(image, operator.combine(kspace, sensitivity_map))
    torch.testing.assert_close(forward, adjoint, rtol=1e-4, atol=1e-3)


def test_combine_inverts_the_operator_for_normalised_maps() -> None:
    operator, image = SenseOperator(fft2, ifft2), torch.randn(2, 17, 20, 2)
    sensitivity_map = measure(2, 3, 17, 20).sensitivity_map
    torch.testing.assert_close(operator.combine(operator(image, sensitivity_map), sensitivity_map), image)


def test_coils_are_weighted_by_their_maps() -> None:
    operator, image = SenseOperator(fft2, ifft2), torch.randn(1, 16, 16, 2)
    sensitivity_map = measure(1, 2).sensitivity_map
    kspace = operator(image, sensitivity_map)
    for coil in range(2):
        coil_image = torch.view_as_complex(image[0]) * torch.view_as_complex(sensitivity_map[0, coil])
        expected = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(coil_image), norm="ortho"))
        torch.testing.assert_close(torch.view_as_complex(kspace[0, coil]), expected)


def test_maps_of_a_sensitivity_model_are_taken() -> None:
    # DIRECT moves the complex axis to the end by a permutation, which leaves the memory as it was.
    operator, measurement = SenseOperator(fft2, ifft2), measure(1, 2)
    permuted = measurement.sensitivity_map.permute(0, 1, 4, 2, 3).contiguous().permute(0, 1, 3, 4, 2)
    expected = operator.combine(measurement.masked_kspace, measurement.sensitivity_map)
    torch.testing.assert_close(operator.combine(measurement.masked_kspace, permuted), expected)
    torch.testing.assert_close(operator(expected, permuted), operator(expected, measurement.sensitivity_map))


@pytest.mark.parametrize("logit", [None, -2.0, 0.0, 3.0])
def test_measured_samples_are_replaced_or_blended(logit: float | None) -> None:
    operator, measurement, image = SenseOperator(fft2, ifft2), measure(2, 1, 17, 20), torch.randn(2, 17, 20, 2)
    layer = DataConsistency(operator, soft=logit is not None)
    weight = 1.0
    if logit is not None:
        assert layer.weight_logit is not None
        torch.nn.init.constant_(layer.weight_logit, logit)
        weight = torch.sigmoid(torch.tensor(logit)).item()
    # A map of magnitude 1 makes the operator unitary, so that k-space can be looked at.
    kspace = operator(layer(image, measurement), measurement.sensitivity_map)
    predicted = operator(image, measurement.sensitivity_map)
    blended = weight * measurement.masked_kspace + (1 - weight) * predicted
    expected = torch.where(measurement.sampling_mask, blended, predicted)
    torch.testing.assert_close(kspace, expected, rtol=1e-4, atol=1e-5)


def test_hard_data_consistency_of_one_coil_is_a_projection() -> None:
    layer, measurement = DataConsistency(SenseOperator(fft2, ifft2), soft=False), measure()
    once = layer(torch.randn(1, 16, 16, 2), measurement)
    torch.testing.assert_close(layer(once, measurement), once)


def test_the_learned_weight_starts_close_to_1() -> None:
    layer = DataConsistency(SenseOperator(fft2, ifft2), soft=True)
    assert layer.weight_logit is not None
    assert torch.sigmoid(layer.weight_logit).item() == pytest.approx(0.98, abs=0.005)
    assert not list(DataConsistency(SenseOperator(fft2, ifft2), soft=False).parameters())


def test_every_step_comes_closer_to_the_measurement() -> None:
    operator, measurement = SenseOperator(fft2, ifft2), measure(coils=3)
    image = torch.randn_like(measurement.masked_kspace[:, 0])

    def distance(image: torch.Tensor) -> float:
        difference = operator(image, measurement.sensitivity_map) - measurement.masked_kspace
        return (difference * measurement.sampling_mask).square().sum().item()

    one = DataConsistency(operator, soft=False)
    images = [image]
    for _ in range(4):
        images.append(one(images[-1], measurement))
    distances = [distance(image) for image in images]
    assert all(after < 0.9 * before for before, after in pairwise(distances))
    torch.testing.assert_close(DataConsistency(operator, soft=False, steps=4)(image, measurement), images[-1])
