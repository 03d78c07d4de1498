from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from direct.data.transforms import expand_operator, fft2, ifft2, reduce_operator

from direct_hifimamba.nn.layers.sense import (
    Acquisition,
    FourierConvention,
    Measurement,
    check_shapes,
    check_values,
    find_fourier_convention,
)
from tests.helpers import measure

CONVENTIONS = [FourierConvention(*flags) for flags in product((True, False), repeat=2)]


def operators(convention: FourierConvention) -> tuple[Any, Any]:
    return partial(fft2, **convention._asdict()), partial(ifft2, **convention._asdict())


def complex_double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def double_acquisition(measurement: Measurement, centered: bool = True) -> Acquisition:
    return Acquisition.from_measurement(measurement, FourierConvention(centered, normalized=True), torch.float64)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_convention_of_directs_operators_is_found(convention: FourierConvention) -> None:
    assert find_fourier_convention(*operators(convention)) == convention


@pytest.mark.parametrize("pair", [(fft2, partial(ifft2, normalized=False)), (lambda data, dim: data,) * 2])
def test_other_operators_are_refused(pair: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match="expected DIRECT's fft2 and ifft2"):
        find_fourier_convention(*pair)


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (17, 20), (20, 17)])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_model_is_that_of_directs_operators(
    convention: FourierConvention, size: tuple[int, int], lines: bool
) -> None:
    measurement, image = measure(2, 3, *size), torch.randn(2, *size, 2)
    forward_operator, backward_operator = operators(convention)
    if not lines:
        mask = torch.rand(2, 1, *size, 1) < 0.5
        measurement = measurement._replace(sampling_mask=mask, masked_kspace=torch.randn(2, 3, *size, 2) * mask)
    masked_kspace, mask, maps = measurement
    reduced = measurement.reduce_mask()
    assert reduced.sampling_mask.shape[2] == (1 if lines else size[0])
    acquisition = Acquisition.from_measurement(reduced, convention)

    zero_filled = acquisition.leave(acquisition.adjoint(acquisition.kspace))
    expected = reduce_operator(backward_operator(masked_kspace, dim=(2, 3)), maps, dim=1)
    torch.testing.assert_close(zero_filled, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    normal = acquisition.leave(acquisition.normal(acquisition.enter(image)))
    sampled = forward_operator(expand_operator(image, maps, dim=1), dim=(2, 3)) * mask
    expected = reduce_operator(backward_operator(sampled, dim=(2, 3)), maps, dim=1)
    torch.testing.assert_close(normal, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_shape", [(2, 1, 9, 12, 1), (1, 1, 1, 12, 1), (2, 1, 9, 1, 1)])
@pytest.mark.parametrize("centered", [True, False])
def test_the_adjoint_is_the_adjoint(mask_shape: tuple[int, ...], centered: bool) -> None:
    # Adjointness needs no normalised maps.
    measurement = Measurement(torch.randn(2, 3, 9, 12, 2), torch.rand(mask_shape) < 0.5, torch.randn(2, 3, 9, 12, 2))
    acquisition = double_acquisition(measurement, centered)
    image, kspace = complex_double(2, 9, 12), complex_double(2, 3, 9, 12)
    torch.testing.assert_close(
        torch.vdot(acquisition.forward(image).flatten(), kspace.flatten()),
        torch.vdot(image.flatten(), acquisition.adjoint(kspace).flatten()),
        rtol=1e-12,
        atol=1e-12,
    )
    torch.testing.assert_close(acquisition.enter(acquisition.leave(image)), image, rtol=0, atol=0)


def test_samples_outside_the_mask_are_ignored() -> None:
    measurement = measure(coils=2)
    leaking = measurement._replace(masked_kspace=measurement.masked_kspace.where(measurement.sampling_mask, torch.nan))
    convention = FourierConvention(centered=True, normalized=True)
    for ours, theirs in zip(
        *(Acquisition.from_measurement(m, convention) for m in (measurement, leaking)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("zeros", [0.0, 0.4])
@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("centered", [True, False])
def test_noise_is_estimated_at_the_edge_of_kspace(centered: bool, lines: bool, zeros: float) -> None:
    """The object covers the centre of k-space alone. Zeros, as of a partial Fourier scan, are no noise."""
    kspace = 0.3 * complex_double(2, 4, 64, 64)
    kspace[1] *= 2
    kspace[..., 24:40, 24:40] += 50 * complex_double(2, 4, 16, 16)
    kspace[..., : int(zeros * 64), :] = 0
    mask = torch.ones(1, 1, 1 if lines else 64, 64, 1)
    if not centered:
        kspace = torch.fft.ifftshift(kspace, dim=(-2, -1))
    maps = torch.zeros(2, 4, 64, 64, 2, dtype=torch.float64)
    maps[..., 0] = 0.5
    acquisition = double_acquisition(Measurement(torch.view_as_real(kspace), mask, maps), centered)
    signal = acquisition.adjoint(acquisition.kspace).abs().square().mean(dim=(1, 2))
    variance = acquisition.noise_to_signal.flatten() * signal
    torch.testing.assert_close(variance, torch.tensor([0.09, 0.36], dtype=torch.float64), rtol=0.1, atol=0)


def test_dividing_the_samples_is_dividing_the_measurement() -> None:
    measurement, convention = measure(2, 2), FourierConvention(True, True)
    scale = torch.tensor([2.0, 5.0]).reshape(2, 1, 1)
    divided = measurement._replace(masked_kspace=measurement.masked_kspace / scale[..., None, None])
    expected = Acquisition.from_measurement(divided, convention)
    actual = Acquisition.from_measurement(measurement, convention).divide(scale)
    torch.testing.assert_close(actual.kspace, expected.kspace)
    torch.testing.assert_close(actual.noise_to_signal, expected.noise_to_signal)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"masked_kspace": torch.zeros(1, 1, 16, 16, 2, dtype=torch.int32)}, TypeError, "masked_kspace is torch.int32"),
        ({"masked_kspace": torch.zeros(1, 16, 16, 2)}, ValueError, r"masked_kspace has shape \(1, 16, 16, 2\)"),
        (
            {"masked_kspace": torch.zeros(1, 0, 16, 16, 2), "sensitivity_map": torch.zeros(1, 0, 16, 16, 2)},
            ValueError,
            "1 slices and 0 coils",
        ),
        ({"sensitivity_map": torch.zeros(1, 2, 16, 16, 2)}, ValueError, "expected the same batch, coils"),
        ({"sampling_mask": torch.ones(1, 16, 16, 1)}, ValueError, r"sampling_mask has shape \(1, 16, 16, 1\)"),
    ],
)
def test_wrong_shapes_are_refused(changes: dict[str, torch.Tensor], error: type[Exception], message: str) -> None:
    check_shapes(measure(), 16)
    with pytest.raises(error, match=message):
        check_shapes(measure()._replace(**changes), 16)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="masked_kspace is 16 x 16; expected at least 17 x 17"):
        check_shapes(measure(), 17)


@pytest.mark.parametrize("name", ["masked_kspace", "sensitivity_map"])
def test_values_that_are_not_finite_are_refused(name: str) -> None:
    measurement = measure(2)
    check_values(measurement)
    getattr(measurement, name)[1, 0, 3, 3, 0] = float("nan")
    with pytest.raises(ValueError, match=f"{name} has values that are not finite"):
        check_values(measurement)


def test_a_slice_without_samples_is_refused() -> None:
    measurement = measure(2)
    measurement.sampling_mask[1] = False
    with pytest.raises(ValueError, match="samples nothing in at least one slice"):
        check_values(measurement)
