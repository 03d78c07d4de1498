"""Global gates: squeeze-and-excitation context at the start of a block, channel attention at its end."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

#: Ratio of the channels of a squeeze-and-excitation gate to those of its hidden layer.
REDUCTION = 8


class GlobalContext(nn.Module):
    """Squeeze-and-excitation gate.

    Parameters
    ----------
    channels : int
        Input and output channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.squeeze = nn.Linear(channels, hidden, bias=False)
        self.excite = nn.Linear(hidden, channels, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Scale the channels of features (batch, height, width, channels) by gates from their mean over the image."""
        mean = features.mean(dim=(1, 2), keepdim=True)
        return features * torch.sigmoid(self.excite(F.relu(self.squeeze(mean))))


class ChannelAttention(nn.Module):
    """Channel gate of the reference: pointwise convolution, GELU, 3 x 3 depthwise convolution, sigmoid.

    The depthwise convolution acts on a zero-padded 1 x 1 map, where only its central tap has an effect. So it is stored
    as a scale and an offset per channel.

    Parameters
    ----------
    channels : int
        Input and output channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pointwise = nn.Linear(channels, channels)
        self.scale = nn.Parameter(torch.empty(channels))
        self.offset = nn.Parameter(torch.empty(channels))
        bound = 1 / 3  # PyTorch's default for a 3 x 3 convolution of fan-in 9
        nn.init.uniform_(self.scale, -bound, bound)
        nn.init.uniform_(self.offset, -bound, bound)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the gate (batch, 1, 1, channels) by which features (batch, height, width, channels) are multiplied."""
        mean = features.mean(dim=(1, 2), keepdim=True)
        return torch.sigmoid(F.gelu(self.pointwise(mean)) * self.scale + self.offset)
