"""Refinement of coil sensitivities by a small U-Net that starts as the identity."""

from __future__ import annotations

from typing import Any

import torch
from direct.nn.unet.unet_2d import UnetModel2d
from direct.types import FFTOperator
from torch import nn
from torch.nn import functional as F

from direct_hifimamba.nn.sensitivity.config import SensitivityRefinementConfig


class SensitivityRefinement(nn.Module):
    """Add a smooth correction to the sensitivity of one coil.

    DIRECT's engines call it coil by coil and normalise the result over the coils. Sensitivities are smooth, so that
    DIRECT's U-Net predicts the correction on a coarse grid, which is then interpolated. The correction is zero at the
    beginning: the training starts from the estimate as it is, unlike with a plain U-Net as sensitivity model.

    Parameters
    ----------
    forward_operator, backward_operator : FFTOperator
        Not used; DIRECT hands them to every model.
    **options : Any
        Keys of :class:`SensitivityRefinementConfig`.
    """

    def __init__(self, forward_operator: FFTOperator, backward_operator: FFTOperator, **options: Any) -> None:
        super().__init__()
        config = SensitivityRefinementConfig(**options)
        self.reduction = config.reduction
        self.multiple = 2**config.num_pool_layers
        self.unet = UnetModel2d(2, 2, config.num_filters, config.num_pool_layers, dropout_probability=0.0)
        # Zero at first; the U-Net learns from the second step on.
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, sensitivity_map: torch.Tensor) -> torch.Tensor:
        """Refine sensitivities of shape (batch, complex=2, height, width), to the same shape."""
        size = sensitivity_map.shape[-2:]
        # Whole numbers of pixels at every level of the U-Net, and several at the lowest for its instance norm.
        coarse = [max(2, round(length / (self.reduction * self.multiple))) * self.multiple for length in size]
        correction = self.scale * self.unet(F.interpolate(sensitivity_map, coarse, mode="area"))
        return sensitivity_map + F.interpolate(correction, size, mode="bilinear")
