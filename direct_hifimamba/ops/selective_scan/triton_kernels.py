"""Selective scan in Triton, for CUDA devices without mamba-ssm. Importing this module imports Triton.

The kernels are tested in Triton's interpreter on a CPU and compiled ahead of time for compute capabilities 7.5, 8.0 and
9.0. They have never run on a GPU.

The sequence is cut into chunks that all run in parallel, as in :mod:`direct_hifimamba.ops.selective_scan.chunked`: one
kernel computes the final state of each chunk for the initial state zero, a second one derives from these the true
initial states, and a third one scans from there. The backward pass does the same in reverse; it recomputes the states
from the initial ones, the only ones that are stored. Several programs contribute to the gradients of `A`, `B` and `C`:
they write partial sums, which `torch.sum` adds up, so that there are no atomic additions and results are reproducible.
Softplus of delta, skip and gate are elementwise and left to PyTorch.

A program has one chunk of some channels of one group. Its tiles are (time, channels, state).
"""
# Kernels are typed by what they are launched with; their compile-time constants are upper case.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from direct_hifimamba.ops.derivatives import gradients_of_definition, refuse_tangents
from direct_hifimamba.ops.selective_scan.arguments import ScanArguments
from direct_hifimamba.ops.selective_scan.reference import selective_scan_reference

_CHUNK = 64
#: Larger tiles need more registers or shared memory than there are; smaller ones more memory for the partial sums.
_TILE_ELEMENTS = 4096
#: Fused multiply-adds are asked for by name, as Triton's default is about to change.
_OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}


@triton.jit
def _place(channels, blocks, length, CHUNK: tl.constexpr, CHANNELS: tl.constexpr):
    """Return chunk, batch index, group, block of the group, channels and steps of this program, and masks of both."""
    chunk = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    group = (tl.program_id(2) // blocks).to(tl.int64)
    block = (tl.program_id(2) % blocks).to(tl.int64)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    time = chunk * CHUNK + tl.arange(0, CHUNK)
    return chunk, batch, group, block, group * channels + channel, time, channel < channels, time < length


@triton.jit
def _place_states(chunk, batch, channel, channel_ok, channels, blocks, state, STATE: tl.constexpr):
    """Return the states, (channels, state) in `A` and in what is kept of each chunk, and masks of the first two."""
    n = tl.arange(0, STATE)
    n_ok = n < state
    rows = channel[:, None] * state + n[None, :]
    all_channels = channels * (tl.num_programs(2) // blocks)
    kept = (chunk * tl.num_programs(1) + batch) * all_channels * state + rows
    return n, n_ok, rows, channel_ok[:, None] & n_ok[None, :], kept


@triton.jit
def _offsets_2d(strides, batch, channel, time):
    """Return offsets of (time, channels) in a tensor (batch, channels, length)."""
    return batch * strides[0] + channel[None, :] * strides[1] + time[:, None] * strides[2]


@triton.jit
def _load_sequence(pointer, strides, batch, channel, time, channel_ok, time_ok):
    """Load (time, channels) of a tensor (batch, channels, length); zeros where masked."""
    offsets = _offsets_2d(strides, batch, channel, time)
    return tl.load(pointer + offsets, mask=time_ok[:, None] & channel_ok[None, :], other=0.0)


@triton.jit
def _load_matrix(pointer, strides, batch, group, n, time, n_ok, time_ok):
    """Load (time, 1, state) of a tensor (batch, groups, state, length); zeros where masked."""
    offsets = batch * strides[0] + group * strides[1] + n[None, :] * strides[2] + time[:, None] * strides[3]
    return tl.load(pointer + offsets, mask=time_ok[:, None] & n_ok[None, :], other=0.0)[:, None, :]


@triton.jit
def _follow(decay_1, drive_1, decay_2, drive_2):
    """Return decay and drive of ``h -> decay_1 * h + drive_1`` followed by ``h -> decay_2 * h + drive_2``."""
    return decay_1 * decay_2, decay_2 * drive_1 + drive_2


@triton.jit
def _ends_kernel(
    x,
    x_strides,
    delta,
    delta_strides,
    A,
    matrix,
    matrix_strides,
    ends,
    decays,
    channels,
    blocks,
    length,
    state,
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
):
    """Store the final state of each chunk for the initial state zero, and the product of its decays.

    With `REVERSE` these are of the adjoint: `x` is the gradient of the output, `matrix` is `C`, and the adjoint runs
    from the end of the chunk to its beginning.
    """
    chunk, batch, group, _, channel, time, channel_ok, time_ok = _place(channels, blocks, length, CHUNK, CHANNELS)
    n, n_ok, rows, rows_ok, kept = _place_states(chunk, batch, channel, channel_ok, channels, blocks, state, STATE)
    local = tl.arange(0, CHUNK)

    drive = _load_sequence(x, x_strides, batch, channel, time, channel_ok, time_ok)
    deltas = _load_sequence(delta, delta_strides, batch, channel, time, channel_ok, time_ok)
    if REVERSE:
        remaining = tl.cumsum(deltas, 0)
    else:
        drive *= deltas
        next_ok = (local < CHUNK - 1) & (time + 1 < length)
        next_deltas = _load_sequence(delta, delta_strides, batch, channel, time + 1, channel_ok, next_ok)
        remaining = tl.cumsum(next_deltas, 0, reverse=True)
    A_tile = tl.load(A + rows, mask=rows_ok, other=0.0)
    driven = drive[:, :, None] * _load_matrix(matrix, matrix_strides, batch, group, n, time, n_ok, time_ok)
    end = tl.sum(tl.exp(remaining[:, :, None] * A_tile[None, :, :]) * driven, 0)
    decay = tl.exp(tl.sum(deltas, 0)[:, None] * A_tile)

    tl.store(ends + kept, end, mask=rows_ok)
    tl.store(decays + kept, decay, mask=rows_ok)


@triton.jit
def _chain_kernel(ends, decays, chunks, lanes, REVERSE: tl.constexpr, LANES: tl.constexpr):
    """Replace the final state of each chunk for the initial state zero, in `ends`, by its true initial state."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    ok = lane < lanes
    entering = tl.zeros((LANES,), tl.float32)
    for i in range(chunks):
        chunk = chunks - 1 - i if REVERSE else i
        offsets = tl.cast(chunk, tl.int64) * lanes + lane
        end = tl.load(ends + offsets, mask=ok)
        decay = tl.load(decays + offsets, mask=ok)
        tl.store(ends + offsets, entering, mask=ok)
        entering = decay * entering + end


@triton.jit
def _scan_kernel(
    u,
    u_strides,
    delta,
    delta_strides,
    A,
    B,
    B_strides,
    C,
    C_strides,
    entering,
    y,
    y_strides,
    channels,
    blocks,
    length,
    state,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
):
    """Store the output of each chunk."""
    chunk, batch, group, _, channel, time, channel_ok, time_ok = _place(channels, blocks, length, CHUNK, CHANNELS)
    n, n_ok, rows, rows_ok, kept = _place_states(chunk, batch, channel, channel_ok, channels, blocks, state, STATE)

    deltas = _load_sequence(delta, delta_strides, batch, channel, time, channel_ok, time_ok)
    drive = deltas * _load_sequence(u, u_strides, batch, channel, time, channel_ok, time_ok)
    A_tile = tl.load(A + rows, mask=rows_ok, other=0.0)
    B_tile = _load_matrix(B, B_strides, batch, group, n, time, n_ok, time_ok)
    C_tile = _load_matrix(C, C_strides, batch, group, n, time, n_ok, time_ok)
    decay = tl.exp(deltas[:, :, None] * A_tile[None, :, :])
    decay, driven = tl.associative_scan((decay, drive[:, :, None] * B_tile), 0, _follow)
    states = decay * tl.load(entering + kept, mask=rows_ok, other=0.0)[None, :, :] + driven

    offsets = _offsets_2d(y_strides, batch, channel, time)
    tl.store(y + offsets, tl.sum(states * C_tile, 2), mask=time_ok[:, None] & channel_ok[None, :])


@triton.jit
def _backward_kernel(
    dy,
    dy_strides,
    u,
    u_strides,
    delta,
    delta_strides,
    A,
    B,
    B_strides,
    C,
    C_strides,
    entering,
    entering_adjoint,
    du,
    du_strides,
    ddelta,
    ddelta_strides,
    dA,
    dB,
    dC,
    channels,
    blocks,
    length,
    state,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
):
    """Store the gradients of each chunk.

    Those of matrices are partial sums: `dA` of shape (chunks, batch, channels, state), `dB` and `dC` of shape (blocks,
    batch, groups, state, length).
    """
    chunk, batch, group, block, channel, time, channel_ok, time_ok = _place(channels, blocks, length, CHUNK, CHANNELS)
    n, n_ok, rows, rows_ok, kept = _place_states(chunk, batch, channel, channel_ok, channels, blocks, state, STATE)
    local = tl.arange(0, CHUNK)
    last_ok = (local > 0) & (time - 1 < length)
    next_ok = (local < CHUNK - 1) & (time + 1 < length)

    A_tile = tl.load(A + rows, mask=rows_ok, other=0.0)

    # The state before each step is the scan up to the step before.
    deltas = _load_sequence(delta, delta_strides, batch, channel, time - 1, channel_ok, last_ok)
    drive = deltas * _load_sequence(u, u_strides, batch, channel, time - 1, channel_ok, last_ok)
    driven = drive[:, :, None] * _load_matrix(B, B_strides, batch, group, n, time - 1, n_ok, last_ok)
    decay = tl.exp(deltas[:, :, None] * A_tile[None, :, :])
    decay, driven = tl.associative_scan((decay, driven), 0, _follow)
    before = decay * tl.load(entering + kept, mask=rows_ok, other=0.0)[None, :, :] + driven

    # The adjoint of the state after each step is the reverse scan with the decays of the next step.
    grad = _load_sequence(dy, dy_strides, batch, channel, time, channel_ok, time_ok)[:, :, None]
    C_tile = _load_matrix(C, C_strides, batch, group, n, time, n_ok, time_ok)
    deltas = _load_sequence(delta, delta_strides, batch, channel, time + 1, channel_ok, next_ok)
    decay = tl.exp(deltas[:, :, None] * A_tile[None, :, :])
    decay, driven = tl.associative_scan((decay, grad * C_tile), 0, _follow, reverse=True)
    adjoint = decay * tl.load(entering_adjoint + kept, mask=rows_ok, other=0.0)[None, :, :] + driven

    deltas = _load_sequence(delta, delta_strides, batch, channel, time, channel_ok, time_ok)
    u_tile = _load_sequence(u, u_strides, batch, channel, time, channel_ok, time_ok)
    B_tile = _load_matrix(B, B_strides, batch, group, n, time, n_ok, time_ok)
    drive = (deltas * u_tile)[:, :, None]
    remaining = tl.exp(deltas[:, :, None] * A_tile[None, :, :]) * before
    exponent = remaining * adjoint
    ddrive = tl.sum(adjoint * B_tile, 2)

    ok = time_ok[:, None] & channel_ok[None, :]
    tl.store(du + _offsets_2d(du_strides, batch, channel, time), ddrive * deltas, mask=ok)
    gradient = ddrive * u_tile + tl.sum(exponent * A_tile[None, :, :], 2)
    tl.store(ddelta + _offsets_2d(ddelta_strides, batch, channel, time), gradient, mask=ok)
    tl.store(dA + kept, tl.sum(exponent * deltas[:, :, None], 0), mask=rows_ok)
    partial = ((block * tl.num_programs(1) + batch) * (tl.num_programs(2) // blocks) + group) * state
    offsets = (partial + n[None, :]) * length + time[:, None]
    ok = time_ok[:, None] & n_ok[None, :]
    tl.store(dB + offsets, tl.sum(adjoint * drive, 1), mask=ok)
    tl.store(dC + offsets, tl.sum((remaining + drive * B_tile) * grad, 1), mask=ok)


def _with_strides(*tensors: torch.Tensor) -> list[Any]:
    """Return each tensor followed by its strides, as kernels take it."""
    return [argument for tensor in tensors for argument in (tensor, tensor.stride())]


class _Launch:
    """Sizes, tiles and grid that the kernels have in common."""

    def __init__(self, u: torch.Tensor, B: torch.Tensor) -> None:
        batch, all_channels, length = u.shape
        groups, state = B.shape[1:3]
        channels = all_channels // groups
        state_tile = triton.next_power_of_2(state)
        chunk = min(_CHUNK, triton.next_power_of_2(length), max(1, _TILE_ELEMENTS // state_tile))
        channels_tile = min(triton.next_power_of_2(channels), max(1, _TILE_ELEMENTS // (chunk * state_tile)))
        self.blocks = triton.cdiv(channels, channels_tile)
        self.chunks = triton.cdiv(length, chunk)
        self.kept_shape = (self.chunks, batch, all_channels, state)
        self.grid = (self.chunks, batch, groups * self.blocks)
        self.sizes = {
            "channels": channels,
            "blocks": self.blocks,
            "length": length,
            "state": state,
            "CHUNK": chunk,
            "CHANNELS": channels_tile,
            "STATE": state_tile,
        } | _OPTIONS

    def entering(
        self, x: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, matrix: torch.Tensor, reverse: bool
    ) -> torch.Tensor:
        """Return the chunks' initial states, (chunks, batch, channels, state), or with `reverse` the final adjoints."""
        ends, decays = A.new_empty(self.kept_shape), A.new_empty(self.kept_shape)
        _ends_kernel[self.grid](
            *_with_strides(x, delta), A, *_with_strides(matrix), ends, decays, REVERSE=reverse, **self.sizes
        )
        lanes = ends[0].numel()
        _chain_kernel[(triton.cdiv(lanes, 128),)](
            ends, decays, self.chunks, lanes, REVERSE=reverse, LANES=128, **(_OPTIONS | {"num_warps": 4})
        )
        return ends


def _definition(*tensors: torch.Tensor) -> torch.Tensor:
    u, delta, A, B, C = tensors
    return selective_scan_reference(u, delta, A, B, C, None, None, None, False)


class _TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor
    ) -> torch.Tensor:
        launch = _Launch(u, B)
        entering = launch.entering(u, delta, A, B, reverse=False)
        y = torch.empty_like(u)
        _scan_kernel[launch.grid](
            *_with_strides(u, delta), A, *_with_strides(B, C), entering, *_with_strides(y), **launch.sizes
        )
        ctx.save_for_backward(u, delta, A, B, C, entering)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        u, delta, A, B, C, entering = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(gradients_of_definition(_definition, (u, delta, A, B, C), dy))
        refuse_tangents(dy)
        launch = _Launch(u, B)
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        dA = A.new_empty(launch.kept_shape)
        dB, dC = B.new_empty(2, launch.blocks, *B.shape)
        _backward_kernel[launch.grid](
            *_with_strides(dy, u, delta),
            A,
            *_with_strides(B, C),
            entering,
            launch.entering(dy, delta, A, C, reverse=True),
            *_with_strides(du, ddelta),
            *(dA, dB, dC),
            **launch.sizes,
        )
        return du, ddelta, dA.sum((0, 1)), dB.sum(0), dC.sum(0)


def selective_scan_triton(*arguments: Any) -> torch.Tensor:
    """Compute the selective scan in float32 on CUDA tensors of any strides; the output has the strides of `u`.

    The arguments are those of :class:`ScanArguments`. Second derivatives are those of the sequential scan.
    """
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = ScanArguments(*arguments)
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    with torch.cuda.device_of(u):  # Triton launches on the current device, which may be another GPU
        y = _TritonScan.apply(u, delta, A.contiguous(), B, C)
    if D is not None:
        y = torch.addcmul(y, u, D[:, None])
    if z is not None:
        y = y * F.silu(z)
    return y
