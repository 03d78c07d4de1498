"""Coil sensitivities of one slice from all of its samples, by regularised nonlinear inversion (NLINV) [1]_.

Image x and coil sensitivities c_j are unknown together in the model y_j = P F (x c_j), with the sampling mask P and the
Fourier transform F. Gauss-Newton steps solve it. The sensitivities are kept smooth by the weights
(1 + a |k|^2)^b on their Fourier coefficients, and the regularisation is divided by two after every step, so that the
first steps determine what is smooth and large.

ESPIRiT takes the samples of the calibration region alone. Here all samples count, which makes a difference where that
region is narrow: in simulated slices at 8x, with 4 to 10 calibration columns, the energy of the error is a third to a
quarter of ESPIRiT's. Only the centre of k-space is used, since sensitivities are smooth, and so a slice takes less than
a second.

References
----------
.. [1] Uecker et al. Image reconstruction by regularized nonlinear inversion: joint estimation of coil sensitivities and
   image content. Magn Reson Med 60(3):674-682, 2008.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from direct_hifimamba.data.espirit import check_coils, fix_phase

GRID = 48
"""Largest height and width of the centre of k-space that is used."""

SMOOTHNESS = (220 / 128**2, 16)
"""Factor a and exponent b of the weights on Fourier coefficients of sensitivities, for |k| in cycles per field of view.

They are those of the reference implementation for an image of 128 pixels.
"""

NEWTON_STEPS = 12
"""Gauss-Newton steps. The regularisation begins at 1, relative to data of norm 100, and is halved after every step."""

MAX_CONJUGATE_GRADIENTS = 30
"""Largest number of conjugate-gradient iterations in a Gauss-Newton step."""

TOLERANCE = 0.1
"""Relative residual at which conjugate gradients stop."""


def nlinv(kspace: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.complex64]:
    """Estimate the coil sensitivities of one slice.

    Parameters
    ----------
    kspace : complex array of shape (coil, height, width)
        With the zero frequency at index length // 2. Samples outside the mask are not used.
    mask : bool array of shape (height, width) or (width,)
        Sampling mask.

    Returns
    -------
    complex64 array of shape (coil, height, width)
        The squared magnitudes add up to 1 over the coils. The phase in a pixel is that of
        :func:`direct_hifimamba.data.espirit.espirit`.

    Raises
    ------
    ValueError
        If k-space or mask have another shape or type, or if the samples are all zero or not finite.
    """
    check_coils(kspace)
    if mask.shape not in (kspace.shape[1:], kspace.shape[2:]):
        raise ValueError(f"The mask has the shape {mask.shape}; expected {kspace.shape[1:]} or {kspace.shape[2:]}.")
    size = kspace.shape[1:]
    rows, columns = center(size)
    sampled = torch.from_numpy(np.broadcast_to(mask.astype(np.float32), size)[rows, columns].copy())
    samples = torch.from_numpy(kspace[:, rows, columns].astype(np.complex64)) * sampled
    norm = torch.linalg.vector_norm(samples)
    if not norm.isfinite() or norm == 0:
        raise ValueError(
            f"The samples in the centre of k-space, {sampled.shape[0]} x {sampled.shape[1]}, have the norm {norm:g}; "
            "expected finite samples that are not all zero. Leave blank slices out."
        )
    coefficients = _invert(*(torch.fft.ifftshift(a, dim=(-2, -1)) for a in (samples * (100 / norm), sampled)))
    whole = samples.new_zeros(len(kspace), *size)
    whole[:, rows, columns] = torch.fft.fftshift(coefficients, dim=(-2, -1))
    maps = torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(whole, dim=(-2, -1))), dim=(-2, -1))
    maps = maps / torch.linalg.vector_norm(maps, dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    return np.ascontiguousarray(fix_phase(maps.permute(1, 2, 0), samples).permute(2, 0, 1).numpy())


def center(shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns of k-space of a given height and width that :func:`nlinv` uses."""
    lengths = [min(size, GRID) for size in shape]
    rows, columns = (
        slice(size // 2 - length // 2, size // 2 - length // 2 + length)
        for size, length in zip(shape, lengths, strict=True)
    )
    return rows, columns


def _invert(samples: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """Return the Fourier coefficients (coil, height, width) of sensitivities; zero frequencies are in the corner."""
    factor, exponent = SMOOTHNESS
    squares = [torch.fft.fftfreq(n, 1 / n).square() for n in sampled.shape]
    weights = (1 + factor * (squares[0][:, None] + squares[1])).pow(-exponent)
    # The image, followed by the weighted Fourier coefficients of the sensitivities.
    start = samples.new_zeros(len(samples) + 1, *sampled.shape)
    start[0] = 1
    unknown, regularisation = start, 1.0
    for _ in range(NEWTON_STEPS):
        unknown = unknown + _newton_step(samples, sampled, weights, unknown, start - unknown, regularisation)
        regularisation /= 2
    return weights * unknown[1:]


def _newton_step(
    samples: torch.Tensor,
    sampled: torch.Tensor,
    weights: torch.Tensor,
    unknown: torch.Tensor,
    deviation: torch.Tensor,
    regularisation: float,
) -> torch.Tensor:
    """Return the change of the unknowns that the model linearised about them gives, regularised to `deviation`."""
    image, maps = unknown[0], _to_image(weights * unknown[1:])

    def derivative(change: torch.Tensor) -> torch.Tensor:
        return sampled * _to_kspace(change[0] * maps + image * _to_image(weights * change[1:]))

    def adjoint(residual: torch.Tensor) -> torch.Tensor:
        coil_images = _to_image(residual)
        of_maps = weights * _to_kspace(image.conj() * coil_images)
        return torch.cat([(maps.conj() * coil_images).sum(0, keepdim=True), of_maps])

    residual = samples - sampled * _to_kspace(image * maps)
    right = adjoint(residual) + regularisation * deviation
    return _solve(lambda change: adjoint(derivative(change)) + regularisation * change, right)


def _solve(operator: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor) -> torch.Tensor:
    """Solve operator(x) = right by conjugate gradients, up to the relative residual `TOLERANCE`."""
    solution, residual, direction = torch.zeros_like(right), right, right
    energy = torch.linalg.vector_norm(residual).square()
    target = TOLERANCE**2 * energy
    for _ in range(MAX_CONJUGATE_GRADIENTS):
        applied = operator(direction)
        step = energy / torch.linalg.vecdot(direction.flatten(), applied.flatten()).real
        solution = solution + step * direction
        residual = residual - step * applied
        previous, energy = energy, torch.linalg.vector_norm(residual).square()
        if energy <= target:
            break
        direction = residual + energy / previous * direction
    return solution


def _to_image(values: torch.Tensor) -> torch.Tensor:
    return torch.fft.ifft2(values, norm="ortho")


def _to_kspace(values: torch.Tensor) -> torch.Tensor:
    return torch.fft.fft2(values, norm="ortho")
