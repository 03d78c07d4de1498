"""SENSE measurement model A = M F C of multi-coil k-space, in complex arithmetic and without Fourier shifts.

M selects the measured samples, F is the orthonormal Fourier transform, C multiplies by the coil sensitivities. The
operators of DIRECT may centre and scale differently. :func:`find_fourier_convention` determines their convention once,
and :meth:`Acquisition.from_measurement` converts every batch to the uncentred orthonormal form, so that iterative
solvers need no shifts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from direct.types import FFTOperator
from torch import nn

COIL_DIM = 1
_SPATIAL = (-2, -1)

#: Largest fraction of the sampled lines, or central samples, that may be zero: DIRECT's transforms clear weak ones.
_MOST_EMPTY = 0.25

#: Quantile of the distance from the zero frequency from which on samples belong to the edge of k-space.
_EDGE = 0.9


class FourierConvention(NamedTuple):
    """How a Fourier transform of DIRECT orders and scales k-space."""

    centered: bool  #: Zero frequency and image centre at index length // 2 instead of 0.
    normalized: bool  #: Orthonormal; otherwise the forward transform is unscaled and the inverse has 1 / (H W).


def find_fourier_convention(forward_operator: FFTOperator, backward_operator: FFTOperator) -> FourierConvention:
    """Find the convention of a pair of DIRECT's Fourier operators by applying them to a small image.

    Raises
    ------
    ValueError
        If they are not a two-dimensional Fourier transform and its inverse.
    """
    generator = torch.Generator(device="cpu").manual_seed(0)
    # An odd and an even length: for even lengths alone, the two directions of shifting are the same.
    image = torch.randn(1, 1, 5, 6, 2, generator=generator, device="cpu", dtype=torch.float32)
    kspace = forward_operator(image, dim=(2, 3))
    if torch.allclose(backward_operator(kspace, dim=(2, 3)), image, atol=1e-4):
        for centered in (True, False):
            for normalized in (True, False):
                transformed = _fft(torch.view_as_complex(image), centered, normalized)
                if torch.allclose(torch.view_as_real(transformed), kspace, atol=1e-4):
                    return FourierConvention(centered, normalized)
    raise ValueError(
        f"forward_operator is {forward_operator} and backward_operator {backward_operator}; expected DIRECT's fft2 and "
        "ifft2 with the same values of centered and normalized."
    )


def _fft(image: torch.Tensor, centered: bool, normalized: bool) -> torch.Tensor:
    norm = "ortho" if normalized else "backward"
    if not centered:
        return torch.fft.fft2(image, norm=norm)
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, dim=_SPATIAL), norm=norm), dim=_SPATIAL)


class Measurement(NamedTuple):
    """One batch in the form of DIRECT; complex numbers have a last axis of 2."""

    masked_kspace: torch.Tensor  #: (batch, coil, H, W, 2)
    sampling_mask: torch.Tensor  #: (batch or 1, 1, H or 1, W or 1, 1), non-zero where sampled
    sensitivity_map: torch.Tensor  #: (batch, coil, H, W, 2), squared magnitudes adding up to 1 (or 0) over coils

    def separate_coils(self) -> Measurement:
        """Return a batch in which every coil is a measurement of its own, of a coil whose sensitivity is 1."""
        coils = self.masked_kspace.shape[COIL_DIM]
        kspace = self.masked_kspace.flatten(0, 1).unsqueeze(COIL_DIM)
        mask = self.sampling_mask.repeat_interleave(coils, dim=0) if len(self.sampling_mask) > 1 else self.sampling_mask
        return Measurement(kspace, mask, kspace.new_tensor([1.0, 0.0]).expand_as(kspace))

    def reduce_mask(self) -> Measurement:
        """Return the measurement with a mask of one row, or column, if all of them are equal, else unchanged.

        The network then needs Fourier transforms along one axis only.
        """
        mask = self.sampling_mask
        for dim in (2, 3):
            first = mask.narrow(dim, 0, 1)
            if torch.equal(mask, first.expand_as(mask)):
                return self._replace(sampling_mask=first)
        return self


def find_dtype(network: nn.Module) -> torch.dtype:
    """Return the type of a network's parameters.

    Raises
    ------
    TypeError
        If they have several.
    ValueError
        If they are on the meta device.
    """
    parameters = list(network.parameters())
    if any(parameter.is_meta for parameter in parameters):
        raise ValueError(
            "The network's parameters are on the meta device, without values; allocate them with "
            "to_empty(device=...) and load weights."
        )
    dtype, *others = {parameter.dtype for parameter in parameters}
    if others:
        raise TypeError(
            f"The network's parameters are {' and '.join(sorted(map(str, (dtype, *others))))}; expected the same type."
        )
    return dtype


def check_shapes(measurement: Measurement, smallest_size: int) -> None:
    """Check types and shapes of a measurement; its values are checked by :func:`check_values`.

    Raises
    ------
    TypeError
        If k-space or maps are not real floating-point tensors.
    ValueError
        If shapes do not fit each other, if height or width is below `smallest_size`, or if there are no values.
    """
    masked_kspace, sampling_mask, sensitivity_map = measurement
    if any(tensor.is_meta for tensor in measurement):
        raise ValueError("The input is on the meta device, without values, which decide on experts and noise.")
    for name, tensor in (("masked_kspace", masked_kspace), ("sensitivity_map", sensitivity_map)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}; expected real floating numbers, complex as a last axis of 2.")
        if tensor.ndim != 5 or tensor.shape[-1] != 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (batch, coil, height, width, 2).")
    if sensitivity_map.shape != masked_kspace.shape:
        raise ValueError(
            f"sensitivity_map has shape {tuple(sensitivity_map.shape)} and masked_kspace {tuple(masked_kspace.shape)}; "
            "expected the same batch, coils, height and width."
        )
    batch, coils, height, width, _ = masked_kspace.shape
    if 0 in (batch, coils):
        raise ValueError(f"masked_kspace has {batch} slices and {coils} coils; expected at least one of each.")
    if min(height, width) < smallest_size:
        raise ValueError(f"masked_kspace is {height} x {width}; expected at least {smallest_size} x {smallest_size}.")
    mask_shape, full_mask_shape = tuple(sampling_mask.shape), (batch, 1, height, width, 1)
    if len(mask_shape) != 5 or any(
        size not in (1, full) for size, full in zip(mask_shape, full_mask_shape, strict=True)
    ):
        raise ValueError(
            f"sampling_mask has shape {mask_shape}; expected (batch, 1, height, width, 1) = {full_mask_shape}, where "
            "batch, height and width may be 1."
        )


def check_values(measurement: Measurement) -> None:
    """Check that all values are finite, that the mask samples every slice, and that k-space is not zero there.

    Raises
    ------
    ValueError
        If a value is not finite, if a slice has no sample, or if more than a quarter of the samples between non-zero
        ones are zero in all coils, so that k-space was probably undersampled before the mask was drawn.
    """
    for name, tensor in measurement._asdict().items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite (NaN or infinity); clean the data first.")
    if not (measurement.sampling_mask != 0).flatten(1).any(dim=1).all():
        raise ValueError("sampling_mask samples nothing in at least one slice; expected at least one sample in each.")
    acquired = (measurement.masked_kspace != 0).any(dim=-1).any(dim=COIL_DIM)
    _check_acquired(acquired, (measurement.reduce_mask().sampling_mask != 0)[:, 0, ..., 0])


def check_fully_sampled(acquired: torch.Tensor) -> None:
    """Check that k-space was fully sampled when a mask was drawn for it.

    Parameters
    ----------
    acquired : torch.Tensor
        Where k-space is not (almost) zero, bool of shape (batch, 1, H, W, 1).

    Raises
    ------
    ValueError
        If more than a quarter of the lines between others, or of the samples near the centre, are missing.
    """
    acquired = acquired[:, 0, ..., 0]
    for axis in (1, 2):
        _check_acquired(acquired, torch.ones_like(acquired.narrow(axis, 0, 1)))


def _check_acquired(acquired: torch.Tensor, sampled: torch.Tensor) -> None:
    """Raise an error if too many sampled values of a slice were not acquired.

    The outer part of k-space may be zero-padded by the scanner, very weak without noise, or have no corners. So lines
    count only between acquired lines, and single samples only in the central half of both axes.

    Parameters
    ----------
    acquired : torch.Tensor
        Where k-space is not zero, bool of shape (batch, H, W).
    sampled : torch.Tensor
        The mask, bool of shape (batch or 1, H or 1, W or 1).
    """
    inside = []
    for axis, other in ((1, 2), (2, 1)):
        line = acquired.any(dim=other, keepdim=True)
        before, behind = line.int().cummax(axis).values, line.int().flip(axis).cummax(axis).values.flip(axis)
        inside.append((before * behind).bool())
        if sampled.shape[other] == 1:
            _check_share(line, sampled & inside[-1])
    height, width = acquired.shape[-2:]
    center = torch.zeros_like(acquired)
    center[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    _check_share(acquired, sampled & center & inside[0] & inside[1])


def _check_share(acquired: torch.Tensor, sampled: torch.Tensor) -> None:
    empty = (sampled & ~acquired).flatten(1).sum(dim=1) / sampled.flatten(1).sum(dim=1).clamp(min=1)
    if (empty > _MOST_EMPTY).any():
        raise ValueError(
            f"k-space is zero in {empty.max():.0%} of what would be sampled: was it undersampled already when the mask "
            "was drawn? Use the mask that belongs to it (in the data set's configuration pass_mask: true and "
            "transforms.masking: null), or direct-hifimamba reconstruct."
        )


class Acquisition(NamedTuple):
    """Samples and measurement model of one batch, uncentred and orthonormal, complex.

    If every slice samples whole columns (or rows), the Fourier transform along them cancels in A^H A. k-space is then
    stored in hybrid space, transformed along `dims` only.
    """

    kspace: torch.Tensor  #: (batch, coil, H, W), zero where not sampled
    sampled: torch.Tensor  #: (batch or 1, 1, H or 1, W or 1), bool
    sensitivity_map: torch.Tensor  #: (batch, coil, H, W)
    #: (batch, 1, 1), variance of noise over mean squared magnitude of A^H y, >= 1e-8; None if it was not asked for
    noise_to_signal: torch.Tensor | None
    dims: tuple[int, ...]  #: Axes along which image and k-space differ.
    centered: bool

    @classmethod
    def from_measurement(
        cls,
        measurement: Measurement,
        convention: FourierConvention,
        dtype: torch.dtype = torch.float32,
        estimate_noise: bool = True,
    ) -> Acquisition:
        """Convert a batch to this form, with real and imaginary parts of type `dtype`, that of a network's parameters.

        A mask whose height or width is 1 means that all rows or columns have the same samples. Values outside the mask
        are ignored.

        Raises
        ------
        TypeError
            If `dtype` is neither float32 nor float64.
        """
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"The network's parameters are {dtype}; expected torch.float32 or torch.float64. For mixed precision "
                "keep them in float32 and call the network under torch.autocast."
            )
        kspace, maps = (
            torch.view_as_complex(tensor.to(dtype).contiguous())
            for tensor in (measurement.masked_kspace, measurement.sensitivity_map)
        )
        sampled = measurement.sampling_mask.squeeze(-1) != 0
        if convention.centered:
            kspace, maps, sampled = (torch.fft.ifftshift(tensor, dim=_SPATIAL) for tensor in (kspace, maps, sampled))
        if not convention.normalized:
            kspace = kspace / (kspace.shape[-2] * kspace.shape[-1]) ** 0.5
        kspace = kspace.where(sampled, 0)
        noise_variance = estimate_noise_variance(kspace) if estimate_noise else None
        dims = tuple(dim for dim in _SPATIAL if sampled.shape[dim] > 1) or (-1,)
        if constant := [dim for dim in _SPATIAL if dim not in dims]:
            kspace = torch.fft.ifftn(kspace, dim=constant, norm="ortho")
        acquisition = cls(kspace, sampled, maps, None, dims, convention.centered)
        if noise_variance is None:
            return acquisition
        signal = _squared_magnitude(acquisition.adjoint(kspace)).mean(dim=(1, 2), keepdim=True)
        ratio = noise_variance / signal.where(signal > 0, 1.0)
        return acquisition._replace(noise_to_signal=ratio.clamp(min=1e-8))

    def divide(self, scale: torch.Tensor) -> Acquisition:
        """Return the acquisition with samples divided by `scale`, shape (batch, 1, 1)."""
        return self._replace(kspace=self.kspace / scale.unsqueeze(COIL_DIM))

    def normalise(self, image: torch.Tensor, coils: int = 1) -> tuple[torch.Tensor, Acquisition, torch.Tensor]:
        """Divide images (batch, H, W, 2) and samples by the largest magnitude of `coils` successive images each.

        Also returns the divisor, shape (batch, 1, 1, 1), which is 1 where the images are zero.
        """
        largest = image.square().sum(dim=-1, keepdim=True).amax(dim=(1, 2), keepdim=True)
        largest = largest.unflatten(0, (-1, coils)).amax(dim=1).repeat_interleave(coils, dim=0)
        scale = largest.where(largest > 0, 1.0).sqrt()  # the root of zeros has no second derivative
        return image / scale, self.divide(scale[..., 0]), scale

    def zero_filled(self) -> torch.Tensor:
        """Return the zero-filled image A^H y, shape (batch, H, W, 2)."""
        return self.leave(self.adjoint(self.kspace))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map an image (batch, H, W) to k-space of all coils (batch, coil, H, W), without sampling."""
        coil_images = self.sensitivity_map * image.unsqueeze(COIL_DIM)
        return torch.fft.fftn(coil_images, dim=self.dims, norm="ortho")

    def adjoint(self, kspace: torch.Tensor) -> torch.Tensor:
        """Map k-space (batch, coil, H, W) to the coil-combined image (batch, H, W)."""
        coil_images = torch.fft.ifftn(kspace, dim=self.dims, norm="ortho")
        return (self.sensitivity_map.conj() * coil_images).sum(COIL_DIM)

    def normal(self, image: torch.Tensor) -> torch.Tensor:
        """Apply A^H A to an image (batch, H, W)."""
        return self.adjoint(self.forward(image) * self.sampled)

    def enter(self, image: torch.Tensor) -> torch.Tensor:
        """Convert an image of the network (batch, H, W, 2) to the form here, complex (batch, H, W)."""
        entered = torch.view_as_complex(image.contiguous())
        return torch.fft.ifftshift(entered, dim=_SPATIAL) if self.centered else entered

    def leave(self, image: torch.Tensor) -> torch.Tensor:
        """Convert a complex image (batch, H, W) back to (batch, H, W, 2); the inverse of :meth:`enter`."""
        return torch.view_as_real(torch.fft.fftshift(image, dim=_SPATIAL) if self.centered else image)


def _squared_magnitude(values: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(values).square().sum(dim=-1)


def estimate_noise_variance(kspace: torch.Tensor) -> torch.Tensor:
    """Estimate the variance of complex noise at the edge of uncentred k-space, shape (batch, 1, 1).

    The squared magnitude of complex Gaussian noise is exponentially distributed; its median is log(2) times the
    variance. Signal at the edge makes the estimate too large: by at most a quarter at signal-to-noise ratios up to 30,
    by a factor of two at 60. Without noise the estimate is the energy of the signal at the edge.
    """
    energy = _squared_magnitude(kspace)
    acquired = energy > 0  # scanners fill in zeros
    rows, columns = (torch.fft.fftfreq(n, device=kspace.device).square() for n in kspace.shape[-2:])
    radius = (rows[:, None] + columns).where(acquired.any(COIL_DIM), torch.nan)
    edge = radius >= radius.flatten(1).nanquantile(_EDGE, dim=1)[:, None, None]
    median = energy.where(acquired & edge.unsqueeze(COIL_DIM), torch.nan).flatten(1).nanmedian(dim=1).values
    return median.nan_to_num()[:, None, None] / math.log(2)
