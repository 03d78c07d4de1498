"""The selective scan of MambaRoll, over blocks of pixels."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import nn

from direct_hifimamba.nn.layers.selective_scan_2d import CHANNELS_PER_RANK, StateSpace2D

#: Side of the blocks of pixels that are scanned as one.
SHUFFLE = 4


class ShuffledScan(StateSpace2D):
    """Selective scan in one direction, without a gate, of 4 x 4 pixels at a time, with a skip connection.

    Parameters
    ----------
    channels : int
        Input and output channels.
    state_size : int
        States per scanned channel.
    backend : str
        Backend of the selective scan.
    """

    def __init__(self, channels: int, state_size: int, backend: str = "auto") -> None:
        inner = channels * SHUFFLE**2
        super().__init__(inner, math.ceil(inner / CHANNELS_PER_RANK), state_size, directions=1, backend=backend)
        self.norm = nn.LayerNorm(inner)
        self._add_matrix_projection()
        self._add_state_space()
        for weight in self.matrix_projection:
            nn.init.xavier_uniform_(weight)
        self._initialise_delta()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (batch, height, width, channels), sizes multiples of 4, to the same shape."""
        u = self.norm(
            rearrange(features, "b (h row) (w column) c -> b h w (c row column)", row=SHUFFLE, column=SHUFFLE)
        )
        scanned = self._scan(u, self._matrices(u))
        return features + rearrange(
            scanned, "b h w (c row column) -> b (h row) (w column) c", row=SHUFFLE, column=SHUFFLE
        )
