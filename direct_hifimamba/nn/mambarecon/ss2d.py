"""The two-dimensional selective scan of VMamba."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from direct_hifimamba.nn.layers.convolution import convolve
from direct_hifimamba.nn.layers.selective_scan_2d import CHANNELS_PER_RANK, EXPANSION, StateSpace2D


class SS2D(StateSpace2D):
    """Gated selective scan of all pixels in four directions: SS2D of VMamba [1]_.

    Parameters
    ----------
    channels : int
        Input and output channels.
    state_size : int
        States per channel and direction.
    backend : str
        Backend of the selective scan.

    References
    ----------
    .. [1] Liu, Tian, Zhao, Yu, Xie, Wang, Ye, Liu. VMamba: Visual State Space Model. NeurIPS, 2024. arXiv:2401.10166.
    """

    def __init__(self, channels: int, state_size: int, backend: str = "auto") -> None:
        inner, rank = EXPANSION * channels, math.ceil(channels / CHANNELS_PER_RANK)
        super().__init__(inner, rank, state_size, directions=4, backend=backend)
        self.input_projection = nn.Linear(channels, 2 * inner, bias=False)
        self.depthwise = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self._add_matrix_projection()
        self._add_state_space()
        self.norm = nn.LayerNorm(inner)
        self.output_projection = nn.Linear(inner, channels, bias=False)
        self._initialise_delta()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (batch, height, width, channels) to the same shape."""
        u, gate = self.input_projection(features).chunk(2, dim=-1)
        u = F.silu(convolve(u, self.depthwise))
        scanned = self._scan(u, self._matrices(u))
        return self.output_projection(self.norm(scanned) * F.silu(gate))
