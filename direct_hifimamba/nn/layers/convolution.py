"""Convolutions of channels-last features."""

from __future__ import annotations

import torch
from torch import nn


def convolve(features: torch.Tensor, convolution: nn.Conv2d) -> torch.Tensor:
    """Apply a 2-D convolution to channels-last features; the permutations are views, nothing is copied."""
    return convolution(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
