"""Data consistency with measured multi-coil k-space."""

from __future__ import annotations

from typing import NamedTuple

import torch
from direct.data.transforms import expand_operator, reduce_operator
from direct.types import FFTOperator
from torch import nn

_COIL_DIM = 1
_SPATIAL_DIMS = (2, 3)


class Measurement(NamedTuple):
    """What the scanner measured, float32."""

    masked_kspace: torch.Tensor  #: (batch, coil, H, W, 2), zero where not sampled
    sampling_mask: torch.Tensor  #: (batch, 1, H, W, 1), non-zero where sampled
    sensitivity_map: torch.Tensor  #: (batch, coil, H, W, 2)


def check_measurement(
    masked_kspace: torch.Tensor, sampling_mask: torch.Tensor, sensitivity_map: torch.Tensor, smallest_size: int
) -> Measurement:
    """Check what the host hands over; shapes as in :class:`Measurement`, the mask broadcastable to k-space.

    Height and width have to be `smallest_size` at least.

    Raises
    ------
    TypeError
        If k-space or maps are no real floating tensors.
    ValueError
        If shapes do not fit, k-space or maps are not finite, or nothing is sampled in a slice.
    """
    for name, tensor in (("masked_kspace", masked_kspace), ("sensitivity_map", sensitivity_map)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name} is {tensor.dtype}; expected real floating numbers, complex as a last axis of 2.")
        if tensor.ndim != 5 or tensor.shape[-1] != 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (batch, coil, height, width, 2).")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite (NaN or infinity); clean the data first.")
    if sensitivity_map.shape != masked_kspace.shape:
        raise ValueError(
            f"sensitivity_map has shape {tuple(sensitivity_map.shape)} and masked_kspace {tuple(masked_kspace.shape)}; "
            "expected the same batch, coils, height and width."
        )
    batch, _, height, width, _ = masked_kspace.shape
    mask_shape, full_mask_shape = tuple(sampling_mask.shape), (batch, 1, height, width, 1)
    if min(height, width) < smallest_size:
        raise ValueError(f"masked_kspace is {height} x {width}; expected at least {smallest_size} x {smallest_size}.")
    if len(mask_shape) != 5 or any(
        size not in (1, full) for size, full in zip(mask_shape, full_mask_shape, strict=True)
    ):
        raise ValueError(
            f"sampling_mask has shape {mask_shape}; expected (batch, 1, height, width, 1) = {full_mask_shape}, where "
            "batch, height and width may be 1."
        )
    if not (sampling_mask != 0).flatten(1).any(dim=1).all():
        raise ValueError("sampling_mask samples nothing in at least one slice; expected at least one sample in each.")
    return Measurement(masked_kspace.float(), sampling_mask, sensitivity_map.float())


class SenseOperator(nn.Module):
    """Image to multi-coil k-space and back, in float32 also under autocast.

    Parameters
    ----------
    forward_operator, backward_operator : FFTOperator
        Fourier transform of DIRECT and its inverse, called with `dim=(2, 3)`.
    """

    def __init__(self, forward_operator: FFTOperator, backward_operator: FFTOperator) -> None:
        super().__init__()
        self.forward_operator = forward_operator
        self.backward_operator = backward_operator

    def forward(self, image: torch.Tensor, sensitivity_map: torch.Tensor) -> torch.Tensor:
        """Map an image (batch, H, W, 2) to k-space (batch, coil, H, W, 2)."""
        with torch.autocast(image.device.type, enabled=False):
            return self.forward_operator(
                expand_operator(image.float(), sensitivity_map, dim=_COIL_DIM), dim=_SPATIAL_DIMS
            )

    def combine(self, kspace: torch.Tensor, sensitivity_map: torch.Tensor) -> torch.Tensor:
        """Map k-space (batch, coil, H, W, 2) to the coil-combined image (batch, H, W, 2)."""
        with torch.autocast(kspace.device.type, enabled=False):
            return reduce_operator(
                self.backward_operator(kspace.float(), dim=_SPATIAL_DIMS), sensitivity_map, dim=_COIL_DIM
            )


class DataConsistency(nn.Module):
    """Put the measured samples back into the k-space of a predicted image.

    Parameters
    ----------
    operator : SenseOperator
        The measurement model.
    soft : bool
        Blend measured and predicted samples by a learned weight, sigmoid(weight_logit), instead of replacing them.
        It starts at 0.98 for the measured ones.
    steps : int
        How often. A step is one of gradient descent, of length 1, on the squared distance to the measurement.
    """

    def __init__(self, operator: SenseOperator, soft: bool, steps: int = 1) -> None:
        super().__init__()
        self.operator = operator
        self.steps = steps
        self.weight_logit = nn.Parameter(torch.tensor(4.0)) if soft else None

    def forward(self, image: torch.Tensor, measurement: Measurement) -> torch.Tensor:
        """Map a predicted image (batch, H, W, 2) to a consistent one of the same shape, float32."""
        for _ in range(self.steps):
            image = self._step(image, measurement)
        return image

    def _step(self, image: torch.Tensor, measurement: Measurement) -> torch.Tensor:
        masked_kspace, sampling_mask, sensitivity_map = measurement
        predicted = self.operator(image, sensitivity_map)
        measured = masked_kspace
        if self.weight_logit is not None:
            measured = torch.lerp(predicted, masked_kspace, torch.sigmoid(self.weight_logit.float()))
        return self.operator.combine(torch.where(sampling_mask == 0, predicted, measured), sensitivity_map)
