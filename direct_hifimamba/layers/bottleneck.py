"""Depthwise inverted bottleneck."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def convolve(features: torch.Tensor, convolution: nn.Conv2d) -> torch.Tensor:
    """Apply a 2-D convolution to channels-last features; the permutations are views, nothing is copied."""
    return convolution(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ImageNorm(nn.GroupNorm):
    """GroupNorm with one group for channels-last features (batch, height, width, channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise every image by its mean and variance over pixels and channels."""
        return super().forward(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class InvertedBottleneck(nn.Module):
    """Pointwise expansion, 3 x 3 depthwise convolution and pointwise projection around a skip connection.

    Parameters
    ----------
    channels : int
        Input and output channels.
    expansion : int
        Inner channels over `channels`.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = nn.Linear(channels, inner, bias=False)
        self.expand_norm = ImageNorm(inner)
        self.depthwise = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner, bias=False)
        self.depthwise_norm = ImageNorm(inner)
        self.project = nn.Linear(inner, channels, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features of shape (batch, height, width, channels) to the same shape."""
        inner = F.gelu(self.expand_norm(self.expand(features)))
        inner = F.gelu(self.depthwise_norm(convolve(inner, self.depthwise)))
        return features + F.gelu(self.project(inner))
