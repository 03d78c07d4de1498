"""Depthwise inverted bottleneck."""

from __future__ import annotations

import torch
from torch import nn

from direct_hifimamba.ops.inverted_bottleneck import BottleneckWeights, inverted_bottleneck

#: Ratio of the inner channels of a bottleneck to its channels.
EXPANSION = 5


class InvertedBottleneck(nn.Module):
    """Bottleneck of pointwise expansion, 3 x 3 depthwise convolution and projection, with a skip connection.

    Parameters
    ----------
    channels : int
        Input and output channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.expand = nn.Linear(channels, inner, bias=False)
        self.expand_norm = nn.GroupNorm(1, inner)
        self.depthwise = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner, bias=False)
        self.depthwise_norm = nn.GroupNorm(1, inner)
        self.project = nn.Linear(inner, channels, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features of shape (batch, height, width, channels) to the same shape."""
        weights = BottleneckWeights(
            self.expand.weight,
            self.expand_norm.weight,
            self.expand_norm.bias,
            self.depthwise.weight,
            self.depthwise_norm.weight,
            self.depthwise_norm.bias,
            self.project.weight,
        )
        return inverted_bottleneck(features, weights)
