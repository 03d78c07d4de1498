"""Convolutions of channels-last features."""

from __future__ import annotations

import torch
from torch import nn


def convolve(features: torch.Tensor, convolution: nn.Conv2d | nn.ConvTranspose2d) -> torch.Tensor:
    """Apply a 2-D convolution, or a transposed one, to channels-last features, which are not copied for it."""
    return convolution(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
