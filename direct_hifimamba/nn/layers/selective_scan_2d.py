"""Selective state space scan over the pixels of an image, its matrices steered by a second stream."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from direct_hifimamba.nn.layers.convolution import convolve
from direct_hifimamba.nn.layers.recompute import pixelwise
from direct_hifimamba.ops import pixels as kernels
from direct_hifimamba.ops.selective_scan import selective_scan


class StateGate(nn.Module):
    """Gated MLP over the state channels of a steering matrix.

    Parameters
    ----------
    state_size, expansion : int
        Input and output channels; hidden channels over them.
    """

    def __init__(self, state_size: int, expansion: int) -> None:
        super().__init__()
        self.expand = nn.Linear(state_size, 2 * expansion * state_size, bias=False)
        self.project = nn.Linear(expansion * state_size, state_size, bias=False)

    def forward(self, steering: torch.Tensor) -> torch.Tensor:
        """Map (..., state_size) to (..., state_size)."""
        return pixelwise(self._map, steering)

    def _map(self, steering: torch.Tensor) -> torch.Tensor:
        gate, value = self.expand(steering).chunk(2, dim=-1)
        return self.project(F.gelu(gate) * value)

    def add_to(self, matrix: torch.Tensor, steering: torch.Tensor) -> None:
        """Add what `steering` is mapped to, both (..., state_size), by a compiled kernel and without gradients."""
        kernels.add_gated_mlp(matrix, steering, *self.expand.weight.chunk(2), self.project.weight)


def fold_columns(width: int, folds: float, device: torch.device | None = None) -> torch.Tensor:
    """An order of columns in which those that lie width / folds apart, to the next integer, follow one another.

    Returns
    -------
    torch.Tensor
        Indices of shape (width,), int64.
    """
    columns = torch.arange(width, dtype=torch.float64, device=device)
    # The remainder by width / folds, times folds: exact for integers.
    return (columns * folds).remainder(width).div(folds).floor().argsort(stable=True)


class SelectiveScan2D(nn.Module):
    """Selective scan of the low features along the pixels, its B and C matrices steered by the high features.

    Parameters
    ----------
    channels : int
        Input and output channels c.
    state_size : int
        States N per channel.
    expansion : int
        Inner channels d over `channels`.
    step_size_rank : int
        Rank r of the step size before its projection to d channels.
    convolution_kernel, convolution_dilation : int
        Taps and dilation of the depthwise convolutions of step size, B and C along the sequence. They are centred and
        run across row ends, as in the reference.
    directions : int
        1: in `order`; 2: and backwards; 4: and in the other order, both ways. Every direction has its own projections
        and state space, and their outputs are added. All are scanned in one call.
    order : str
        "rows": row by row; "columns": column by column, the layer acts on the transposed image, its 3 x 3 convolution
        too.
    folds : float
        Columns (rows, if `order` says so) are scanned in the order of :func:`fold_columns`. 1: one after the other.
    step_sizes : tuple of float
        Smallest and largest step size at the start, drawn log-uniformly.
    steering : bool
        Add the steering matrices of the high features to B and C.
    steering_expansion : int
        Hidden size of the :class:`StateGate` over N.
    output_norm : bool
        LayerNorm before the output projection.
    dropout : float
        Dropout rate on the output.
    backend : str
        Backend of the selective scan.
    """

    def __init__(
        self,
        channels: int,
        state_size: int,
        expansion: int,
        step_size_rank: int,
        convolution_kernel: int,
        convolution_dilation: int,
        directions: int,
        order: str,
        folds: float,
        step_sizes: tuple[float, ...],
        steering: bool,
        steering_expansion: int,
        output_norm: bool,
        dropout: float,
        backend: str,
    ) -> None:
        super().__init__()
        self.state_size = state_size
        self.step_size_rank = step_size_rank
        self.directions = directions
        self.order = order
        self.folds = folds
        self.backend = backend
        inner = channels * expansion

        self.input_projection = nn.Linear(channels, 2 * inner, bias=False)
        self.depthwise = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        # Rows per direction: step size (r), B (N), C (N).
        self.matrix_projection = nn.Parameter(torch.empty(directions, step_size_rank + 2 * state_size, inner))
        if steering:
            self.steering_input_projection = nn.Linear(channels, inner, bias=False)
            self.steering_matrix_projection = nn.Parameter(torch.empty(directions, 2 * state_size, inner))
            self.steering_gate_b = StateGate(state_size, steering_expansion)
            self.steering_gate_c = StateGate(state_size, steering_expansion)
        self.steering = steering

        matrix_channels = directions * (step_size_rank + 2 * state_size)
        # A 1-D convolution, written as a 2-D one of height 1: that kernel is the fast one for channels-last data.
        self.sequence_convolution = nn.Conv2d(
            matrix_channels,
            matrix_channels,
            kernel_size=(1, convolution_kernel),
            dilation=(1, convolution_dilation),
            padding=(0, convolution_dilation * (convolution_kernel - 1) // 2),
            groups=matrix_channels,
            bias=False,
        )
        self.step_size_projection = nn.Parameter(torch.empty(directions, inner, step_size_rank))
        self.step_size_bias = nn.Parameter(torch.empty(directions, inner))
        self.A_log = nn.Parameter(torch.arange(1, state_size + 1).float().log().repeat(directions * inner, 1))
        self.D = nn.Parameter(torch.ones(directions * inner))
        self.output_norm = nn.LayerNorm(inner) if output_norm else nn.Identity()
        self.output_projection = nn.Linear(inner, channels, bias=False)
        self.dropout = nn.Dropout(dropout)
        self._initialise_step_size(*step_sizes)

    def _initialise_step_size(self, smallest: float, largest: float) -> None:
        bound = self.step_size_rank**-0.5
        nn.init.uniform_(self.step_size_projection, -bound, bound)
        with torch.no_grad():
            step_size = torch.empty_like(self.step_size_bias).uniform_(math.log(smallest), math.log(largest)).exp()
            self.step_size_bias.copy_(step_size + torch.log(-torch.expm1(-step_size)))  # inverse of softplus

    def _to_sequences(self, maps: torch.Tensor) -> torch.Tensor:
        """(batch, height, width, directions, d) to (batch, height * width, directions, d), each in its own order."""
        rows = maps.flatten(1, 2)
        if self.directions == 1:
            return rows
        orders = [rows[:, :, 0], rows[:, :, 1].flip(1)]
        if self.directions == 4:
            columns = maps[:, :, :, 2:].transpose(1, 2).flatten(1, 2)
            orders += [columns[:, :, 0], columns[:, :, 1].flip(1)]
        return torch.stack(orders, dim=2)

    def _from_sequences(self, sequences: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Add up the directions of (batch, height * width, directions, d) as (batch, height, width, d)."""
        image = sequences[:, :, 0].unflatten(1, (height, width))
        if self.directions > 1:
            image = image + sequences[:, :, 1].flip(1).unflatten(1, (height, width))
        if self.directions == 4:
            columns = sequences[:, :, 2] + sequences[:, :, 3].flip(1)
            image = image + columns.unflatten(1, (width, height)).transpose(1, 2)
        return image

    def _convolve(self, inner: torch.Tensor) -> torch.Tensor:
        """Depthwise convolution and SiLU of (batch, height, width, d)."""
        weight, bias = self.depthwise.weight, self.depthwise.bias
        if kernels.predicts(inner, len(weight)):
            return kernels.as_batch([kernels.depthwise_silu(image, weight, bias) for image in inner])
        return F.silu(convolve(inner, self.depthwise))

    def _convolve_sequences(self, sequences: torch.Tensor) -> torch.Tensor:
        """Depthwise convolution of (batch, length, channels)."""
        convolution = self.sequence_convolution
        if kernels.predicts(sequences):
            weight, dilation = convolution.weight.flatten(1), convolution.dilation[1]
            return kernels.as_batch([kernels.convolve_sequence(x, weight, dilation) for x in sequences])
        # (batch, 1, length, channels): an image of height 1
        return convolve(sequences.unsqueeze(1), convolution).squeeze(1)

    def _per_direction(self, image: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Project an image (batch, height, width, d) by weights (directions, m, d) to (..., directions, m)."""
        return F.linear(image, weight.flatten(0, 1)).unflatten(-1, (self.directions, -1))

    def _matrices(self, inner: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Step size (batch, length, directions, r), B and C (batch, length, directions, N)."""
        sizes = [self.step_size_rank, self.state_size, self.state_size]
        matrices = self._per_direction(inner, self.matrix_projection)
        if self.steering:
            # Two linear maps in a row, as one: the d channels between them are never made.
            projection = self.steering_matrix_projection @ self.steering_input_projection.weight
            steering_b, steering_c = self._per_direction(high, projection).chunk(2, dim=-1)
            step_size, B, C = matrices.split(sizes, dim=-1)
            if kernels.predicts(matrices, *self.steering_gate_b.project.weight.shape):
                self.steering_gate_b.add_to(B, steering_b)
                self.steering_gate_c.add_to(C, steering_c)
            else:
                B, C = B + self.steering_gate_b(steering_b), C + self.steering_gate_c(steering_c)
                matrices = torch.cat([step_size, B, C], dim=-1)
        convolved = self._convolve_sequences(self._to_sequences(matrices).flatten(2))
        step_size, B, C = convolved.unflatten(-1, (self.directions, -1)).split(sizes, dim=-1)
        return step_size, B, C

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Scan `low`, steered by `high`; both, and the result, of shape (batch, height, width, channels)."""
        if self.order == "columns":
            return self._scan_rows(low.transpose(1, 2), high.transpose(1, 2)).transpose(1, 2)
        return self._scan_rows(low, high)

    def _scan_rows(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        height, width = low.shape[1:3]
        inner, gate = self.input_projection(low).chunk(2, dim=-1)
        inner = self._convolve(inner)
        columns = fold_columns(width, self.folds, low.device) if self.folds > 1 else None
        if columns is not None:
            inner, gate, high = (maps.index_select(2, columns) for maps in (inner, gate, high))
        step_size, B, C = self._matrices(inner, high)
        step_size = torch.einsum("blkr,kir->blki", step_size, self.step_size_projection)
        inner = self._to_sequences(inner.unsqueeze(3).expand(-1, -1, -1, self.directions, -1))

        # The scan takes (batch, channels, length) and reads these transposed views in place.
        scanned = selective_scan(
            inner.flatten(2).transpose(1, 2),
            step_size.flatten(2).transpose(1, 2),
            -torch.exp(self.A_log.float()),
            B.permute(0, 2, 3, 1),
            C.permute(0, 2, 3, 1),
            self.D.float(),
            # One direction is gated inside the scan, more of them after they have been added up.
            z=gate.flatten(1, 2).transpose(1, 2) if self.directions == 1 else None,
            delta_bias=self.step_size_bias.flatten().float(),
            delta_softplus=True,
            backend=self.backend,
        )
        scanned = scanned.transpose(1, 2).unflatten(-1, (self.directions, -1))
        merged = self._from_sequences(scanned, height, width)
        if self.directions > 1:
            merged = merged * F.silu(gate)
        if columns is not None:
            merged = merged.index_select(2, columns.argsort())
        return self.dropout(self.output_projection(self.output_norm(merged)))
