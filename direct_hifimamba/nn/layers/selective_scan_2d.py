"""Selective scans over the pixels of an image: their base, and one whose matrices are steered by a second stream."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from direct_hifimamba.nn.layers.convolution import convolve
from direct_hifimamba.nn.layers.recompute import pixelwise
from direct_hifimamba.ops.selective_scan import selective_scan

#: Ratio of the inner channels d of the scan to its input channels c.
EXPANSION = 2
#: Ratio of the input channels c to the rank r of the projection to delta.
CHANNELS_PER_RANK = 16
#: Ratio of the hidden channels of a state gate to the states N.
GATE_EXPANSION = 6
#: Taps and dilation of the convolutions along the sequence.
TAPS, DILATION = 11, 2
#: Range of the initial delta.
SMALLEST_DELTA, LARGEST_DELTA = 1e-3, 1e-1


class StateSpace2D(nn.Module):
    """Base of modules that scan the pixels of an image with selective state spaces, in one or several directions.

    A subclass calls the methods that register and initialise parameters, in the order of its checkpoints.

    Parameters
    ----------
    inner : int
        Channels d that are scanned.
    rank : int
        Rank r of the projection to delta.
    state_size : int
        States N per channel.
    directions : int
        1: along rows; 2: also backwards; 4: also along columns, in both directions. Every direction has its own
        projections and state space, and their outputs are added. One call scans all of them.
    backend : str
        Backend of the selective scan.
    """

    def __init__(self, inner: int, rank: int, state_size: int, directions: int, backend: str) -> None:
        super().__init__()
        self.inner = inner
        self.sizes = [rank, state_size, state_size]  # of delta, B and C before the scan
        self.directions = directions
        self.backend = backend

    def _add_matrix_projection(self) -> None:
        """Register the projection to low-rank delta, B and C, without values."""
        self.matrix_projection = nn.Parameter(torch.empty(self.directions, sum(self.sizes), self.inner))

    def _add_state_space(self) -> None:
        """Register the projection to delta, its bias, A and D."""
        rank, state_size, _ = self.sizes
        self.step_size_projection = nn.Parameter(torch.empty(self.directions, self.inner, rank))
        self.step_size_bias = nn.Parameter(torch.empty(self.directions, self.inner))
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(self.directions * self.inner, 1))
        self.D = nn.Parameter(torch.ones(self.directions * self.inner))

    def initialise_matrices(self) -> None:
        """Initialise the projection to low-rank delta, B and C of every direction as PyTorch does a linear layer."""
        for weight in self.matrix_projection:
            nn.init.kaiming_uniform_(weight, a=5**0.5)

    def _initialise_delta(self) -> None:
        """Initialise the projection uniformly, and the bias so that delta is log-uniform in its range."""
        rank = self.sizes[0]
        nn.init.uniform_(self.step_size_projection, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            limits = math.log(SMALLEST_DELTA), math.log(LARGEST_DELTA)
            delta = torch.empty_like(self.step_size_bias).uniform_(*limits).exp()
            self.step_size_bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # inverse of softplus

    def _to_sequences(self, maps: torch.Tensor) -> torch.Tensor:
        """Order the pixels of (batch, height, width, directions, d) as (batch, length, directions, d)."""
        rows = maps.flatten(1, 2)
        if self.directions == 1:
            return rows
        orders = [rows[:, :, 0], rows[:, :, 1].flip(1)]
        if self.directions == 4:
            columns = maps[:, :, :, 2:].transpose(1, 2).flatten(1, 2)
            orders += [columns[:, :, 0], columns[:, :, 1].flip(1)]
        return torch.stack(orders, dim=2)

    def _from_sequences(self, sequences: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Add up the directions of (batch, length, directions, d) as (batch, height, width, d)."""
        image = sequences[:, :, 0].unflatten(1, (height, width))
        if self.directions > 1:
            image = image + sequences[:, :, 1].flip(1).unflatten(1, (height, width))
        if self.directions == 4:
            columns = sequences[:, :, 2] + sequences[:, :, 3].flip(1)
            image = image + columns.unflatten(1, (width, height)).transpose(1, 2)
        return image

    def _project(self, image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Map an image (batch, height, width, d) by weights (directions, m, d) to (..., directions, m)."""
        return F.linear(image, weight.flatten(0, 1)).unflatten(-1, (self.directions, -1))

    def _in_every_direction(self, image: torch.Tensor) -> torch.Tensor:
        """Order an image (batch, height, width, d) as sequences (batch, directions * d, length), views if possible."""
        copies = image.unsqueeze(3).expand(-1, -1, -1, self.directions, -1)
        return self._to_sequences(copies).flatten(2).transpose(1, 2)

    def _matrices(self, u: torch.Tensor) -> list[torch.Tensor]:
        """Return low-rank delta (batch, length, directions, r), B and C (batch, length, directions, N) of `u`."""
        return list(self._to_sequences(self._project(u, self.matrix_projection)).split(self.sizes, dim=-1))

    def _scan(
        self, u: torch.Tensor, matrices: Sequence[torch.Tensor], gate: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scan `u` and add up the directions; `u`, `gate` and the result have shape (batch, height, width, d).

        `matrices` are low-rank delta, B and C as :meth:`_matrices` returns them.
        """
        delta, B, C = matrices
        delta = torch.einsum("blkr,kir->blki", delta, self.step_size_projection)
        y = selective_scan(
            self._in_every_direction(u),
            delta.flatten(2).transpose(1, 2),
            -torch.exp(self.A_log),
            B.permute(0, 2, 3, 1),
            C.permute(0, 2, 3, 1),
            self.D,
            z=None if gate is None else self._in_every_direction(gate),  # multiplies the output by silu(z)
            delta_bias=self.step_size_bias.flatten(),
            delta_softplus=True,
            backend=self.backend,
        )
        y = y.transpose(1, 2).unflatten(-1, (self.directions, -1))
        return self._from_sequences(y, *u.shape[1:3])


class StateGate(nn.Module):
    """Gated MLP over the state channels of a steering matrix.

    Parameters
    ----------
    state_size : int
        Input and output channels.
    """

    def __init__(self, state_size: int) -> None:
        super().__init__()
        self.expand = nn.Linear(state_size, 2 * GATE_EXPANSION * state_size, bias=False)
        self.project = nn.Linear(GATE_EXPANSION * state_size, state_size, bias=False)

    def forward(self, steering: torch.Tensor) -> torch.Tensor:
        """Map (..., state_size) to (..., state_size)."""
        return pixelwise(self._map, steering)

    def _map(self, steering: torch.Tensor) -> torch.Tensor:
        gate, value = self.expand(steering).chunk(2, dim=-1)
        return self.project(F.gelu(gate) * value)


class SelectiveScan2D(StateSpace2D):
    """Selective scan of the low features along the pixels, its B and C matrices steered by the high features.

    Delta, B and C pass depthwise convolutions along the sequence, which are centred and cross the ends of rows, as in
    the authors' code.

    Parameters
    ----------
    channels : int
        Input and output channels c.
    state_size : int
        States N per channel.
    directions : int
        See :class:`StateSpace2D`.
    steering : bool
        Add the steering matrices of the high features to B and C.
    dropout : float
        Dropout rate on the output.
    backend : str
        Backend of the selective scan.
    """

    def __init__(
        self,
        channels: int,
        state_size: int,
        directions: int = 1,
        steering: bool = True,
        dropout: float = 0.0,
        backend: str = "auto",
    ) -> None:
        inner, rank = EXPANSION * channels, math.ceil(channels / CHANNELS_PER_RANK)
        super().__init__(inner, rank, state_size, directions, backend)
        self.steering = steering

        self.input_projection = nn.Linear(channels, 2 * inner, bias=False)
        self.depthwise = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self._add_matrix_projection()
        if steering:
            self.steering_input_projection = nn.Linear(channels, inner, bias=False)
            self.steering_matrix_projection = nn.Parameter(torch.empty(directions, 2 * state_size, inner))
            self.steering_gate_b = StateGate(state_size)
            self.steering_gate_c = StateGate(state_size)

        matrix_channels = directions * sum(self.sizes)
        # A 1-D convolution as a 2-D one of height 1, whose kernel is faster for channels-last data.
        self.sequence_convolution = nn.Conv2d(
            matrix_channels,
            matrix_channels,
            kernel_size=(1, TAPS),
            dilation=(1, DILATION),
            padding=(0, DILATION * (TAPS // 2)),
            groups=matrix_channels,
            bias=False,
        )
        self._add_state_space()
        self.output_projection = nn.Linear(inner, channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        self._initialise_delta()

    def _steered_matrices(self, u: torch.Tensor, high: torch.Tensor) -> list[torch.Tensor]:
        """Return low-rank delta (batch, length, directions, r), B and C (batch, length, directions, N)."""
        delta, B, C = self._project(u, self.matrix_projection).split(self.sizes, dim=-1)
        if self.steering:
            # The product of two linear maps, so that the d channels between them are not computed.
            projection = self.steering_matrix_projection @ self.steering_input_projection.weight
            high_B, high_C = self._project(high, projection).chunk(2, dim=-1)
            B, C = B + self.steering_gate_b(high_B), C + self.steering_gate_c(high_C)
        sequences = self._to_sequences(torch.cat([delta, B, C], dim=-1)).flatten(2)
        convolved = convolve(sequences.unsqueeze(1), self.sequence_convolution).squeeze(1)
        return list(convolved.unflatten(-1, (self.directions, -1)).split(self.sizes, dim=-1))

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Scan `low`, steered by `high`; both, and the result, of shape (batch, height, width, channels)."""
        u, gate = self.input_projection(low).chunk(2, dim=-1)
        u = F.silu(convolve(u, self.depthwise))
        return self.dropout(self.output_projection(self._scan(u, self._steered_matrices(u, high), gate)))
