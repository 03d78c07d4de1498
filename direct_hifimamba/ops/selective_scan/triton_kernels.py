"""Selective scan in Triton, for CUDA devices without mamba-ssm. Importing this module imports Triton.

The kernels are tested in Triton's interpreter on a CPU and compiled ahead of time for compute capabilities 7.5, 8.0 and
9.0. They have never run on a GPU.

The sequence is cut into chunks that all run in parallel, as in :mod:`direct_hifimamba.ops.selective_scan.chunked`: one
kernel computes the final state of each chunk for the initial state zero, a second one derives from these the true
initial states, and a third one scans from there. The backward pass does the same in reverse; it recomputes the states
from the initial ones, the only ones that are stored. Several programs contribute to the gradients of `A`, `B` and `C`:
they write partial sums, which `torch.sum` adds up, so that there are no atomic additions and results are reproducible.
Softplus of delta, skip and gate are elementwise and left to PyTorch.

A program has one chunk of some channels of one group. Its tiles are (time, channels, state). Kernels take tensors of
any strides as pairs of tensor and strides, and `sizes`: channels of a group, blocks of these, length and states.
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
def _place(sizes, CHUNK: tl.constexpr, CHANNELS: tl.constexpr):
    """Return chunk, batch index, group, block of the group, channels and steps of this program, and masks of both."""
    channels, blocks, length, _ = sizes
    chunk = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    group = (tl.program_id(2) // blocks).to(tl.int64)
    block = (tl.program_id(2) % blocks).to(tl.int64)
    channel = block * CHANNELS + tl.arange(0, CHANNELS)
    time = chunk * CHUNK + tl.arange(0, CHUNK)
    return chunk, batch, group, block, group * channels + channel, time, channel < channels, time < length


@triton.jit
def _place_states(chunk, batch, channel, channel_ok, sizes, STATE: tl.constexpr):
    """Return the states, (channels, state) in `A` and in what is kept of each chunk, and masks of the first two."""
    channels, blocks, _, state = sizes
    n = tl.arange(0, STATE)
    n_ok = n < state
    rows = channel[:, None] * state + n[None, :]
    all_channels = channels * (tl.num_programs(2) // blocks)
    kept = (chunk * tl.num_programs(1) + batch) * all_channels * state + rows
    return n, n_ok, rows, channel_ok[:, None] & n_ok[None, :], kept


@triton.jit
def _pointers(x, batch, channel, time):
    """Return pointers to (time, channels) of a tensor (batch, channels, length)."""
    pointer, strides = x
    return pointer + (batch * strides[0] + channel[None, :] * strides[1] + time[:, None] * strides[2])


@triton.jit
def _load_sequence(x, batch, channel, time, channel_ok, time_ok):
    """Load (time, channels) of a tensor (batch, channels, length); zeros where masked."""
    return tl.load(_pointers(x, batch, channel, time), mask=time_ok[:, None] & channel_ok[None, :], other=0.0)


@triton.jit
def _load_matrix(x, batch, group, n, time, n_ok, time_ok):
    """Load (time, 1, state) of a tensor (batch, groups, state, length); zeros where masked."""
    pointer, strides = x
    offsets = batch * strides[0] + group * strides[1] + n[None, :] * strides[2] + time[:, None] * strides[3]
    return tl.load(pointer + offsets, mask=time_ok[:, None] & n_ok[None, :], other=0.0)[:, None, :]


@triton.jit
def _follow(decay_1, drive_1, decay_2, drive_2):
    """Return decay and drive of ``h -> decay_1 * h + drive_1`` followed by ``h -> decay_2 * h + drive_2``."""
    return decay_1 * decay_2, decay_2 * drive_1 + drive_2


@triton.jit
def _ends_kernel(
    x,
    delta,
    A,
    matrix,
    ends,
    decays,
    sizes,
    REVERSE: tl.constexpr,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
):
    """Store the final state of each chunk for the initial state zero, and the product of its decays.

    With `REVERSE` these are of the adjoint: `x` is the gradient of the output, `matrix` is `C`, and the adjoint runs
    from the end of the chunk to its beginning.
    """
    chunk, batch, group, _, channel, time, channel_ok, time_ok = _place(sizes, CHUNK, CHANNELS)
    n, n_ok, rows, rows_ok, kept = _place_states(chunk, batch, channel, channel_ok, sizes, STATE)
    local = tl.arange(0, CHUNK)

    drive = _load_sequence(x, batch, channel, time, channel_ok, time_ok)
    deltas = _load_sequence(delta, batch, channel, time, channel_ok, time_ok)
    if REVERSE:
        remaining = tl.cumsum(deltas, 0)
    else:
        drive *= deltas
        next_ok = (local < CHUNK - 1) & (time + 1 < sizes[2])
        next_deltas = _load_sequence(delta, batch, channel, time + 1, channel_ok, next_ok)
        remaining = tl.cumsum(next_deltas, 0, reverse=True)
    A_tile = tl.load(A + rows, mask=rows_ok, other=0.0)
    driven = drive[:, :, None] * _load_matrix(matrix, batch, group, n, time, n_ok, time_ok)
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
    u, delta, A, B, C, entering, y, sizes, CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STATE: tl.constexpr
):
    """Store the output of each chunk."""
    chunk, batch, group, _, channel, time, channel_ok, time_ok = _place(sizes, CHUNK, CHANNELS)
    n, n_ok, rows, rows_ok, kept = _place_states(chunk, batch, channel, channel_ok, sizes, STATE)

    deltas = _load_sequence(delta, batch, channel, time, channel_ok, time_ok)
    drive = deltas * _load_sequence(u, batch, channel, time, channel_ok, time_ok)
    A_tile = tl.load(A + rows, mask=rows_ok, other=0.0)
    B_tile = _load_matrix(B, batch, group, n, time, n_ok, time_ok)
    C_tile = _load_matrix(C, batch, group, n, time, n_ok, time_ok)
    decay = tl.exp(deltas[:, :, None] * A_tile[None, :, :])
    decay, driven = tl.associative_scan((decay, drive[:, :, None] * B_tile), 0, _follow)
    states = decay * tl.load(entering + kept, mask=rows_ok, other=0.0)[None, :, :] + driven

    ok = time_ok[:, None] & channel_ok[None, :]
    tl.store(_pointers(y, batch, channel, time), tl.sum(states * C_tile, 2), mask=ok)


@triton.jit
def _backward_kernel(
    dy,
    u,
    delta,
    A,
    B,
    C,
    entering,
    entering_adjoint,
    du,
    ddelta,
    dA,
    dB,
    dC,
    sizes,
    CHUNK: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
):
    """Store the gradients of each chunk.

    Those of matrices are partial sums: `dA` of shape (chunks, batch, channels, state), `dB` and `dC` of shape (blocks,
    batch, groups, state, length).
    """
    chunk, batch, group, block, channel, time, channel_ok, time_ok = _place(sizes, CHUNK, CHANNELS)
    n, n_ok, rows, rows_ok, kept = _place_states(chunk, batch, channel, channel_ok, sizes, STATE)
    _, blocks, length, state = sizes
    local = tl.arange(0, CHUNK)
    last_ok = (local > 0) & (time - 1 < length)
    next_ok = (local < CHUNK - 1) & (time + 1 < length)

    A_tile = tl.load(A + rows, mask=rows_ok, other=0.0)

    # The state before each step is the scan up to the step before.
    deltas = _load_sequence(delta, batch, channel, time - 1, channel_ok, last_ok)
    drive = deltas * _load_sequence(u, batch, channel, time - 1, channel_ok, last_ok)
    driven = drive[:, :, None] * _load_matrix(B, batch, group, n, time - 1, n_ok, last_ok)
    decay = tl.exp(deltas[:, :, None] * A_tile[None, :, :])
    decay, driven = tl.associative_scan((decay, driven), 0, _follow)
    before = decay * tl.load(entering + kept, mask=rows_ok, other=0.0)[None, :, :] + driven

    # The adjoint of the state after each step is the reverse scan with the decays of the next step.
    grad = _load_sequence(dy, batch, channel, time, channel_ok, time_ok)[:, :, None]
    C_tile = _load_matrix(C, batch, group, n, time, n_ok, time_ok)
    deltas = _load_sequence(delta, batch, channel, time + 1, channel_ok, next_ok)
    decay = tl.exp(deltas[:, :, None] * A_tile[None, :, :])
    decay, driven = tl.associative_scan((decay, grad * C_tile), 0, _follow, reverse=True)
    adjoint = decay * tl.load(entering_adjoint + kept, mask=rows_ok, other=0.0)[None, :, :] + driven

    deltas = _load_sequence(delta, batch, channel, time, channel_ok, time_ok)
    u_tile = _load_sequence(u, batch, channel, time, channel_ok, time_ok)
    B_tile = _load_matrix(B, batch, group, n, time, n_ok, time_ok)
    drive = (deltas * u_tile)[:, :, None]
    remaining = tl.exp(deltas[:, :, None] * A_tile[None, :, :]) * before
    exponent = remaining * adjoint
    ddrive = tl.sum(adjoint * B_tile, 2)

    ok = time_ok[:, None] & channel_ok[None, :]
    tl.store(_pointers(du, batch, channel, time), ddrive * deltas, mask=ok)
    gradient = ddrive * u_tile + tl.sum(exponent * A_tile[None, :, :], 2)
    tl.store(_pointers(ddelta, batch, channel, time), gradient, mask=ok)
    tl.store(dA + kept, tl.sum(exponent * deltas[:, :, None], 0), mask=rows_ok)
    partial = ((block * tl.num_programs(1) + batch) * (tl.num_programs(2) // blocks) + group) * state
    offsets = (partial + n[None, :]) * length + time[:, None]
    ok = time_ok[:, None] & n_ok[None, :]
    tl.store(dB + offsets, tl.sum(adjoint * drive, 1), mask=ok)
    tl.store(dC + offsets, tl.sum((remaining + drive * B_tile) * grad, 1), mask=ok)


def _with_strides(*tensors: torch.Tensor) -> list[tuple[torch.Tensor, tuple[int, ...]]]:
    """Return each tensor with its strides, as kernels take it."""
    return [(tensor, tensor.stride()) for tensor in tensors]


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
        sizes = channels, self.blocks, length, state
        self.options = {"sizes": sizes, "CHUNK": chunk, "CHANNELS": channels_tile, "STATE": state_tile} | _OPTIONS

    def entering(
        self, x: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, matrix: torch.Tensor, reverse: bool
    ) -> torch.Tensor:
        """Return the chunks' initial states, (chunks, batch, channels, state), or with `reverse` the final adjoints."""
        ends, decays = A.new_empty(self.kept_shape), A.new_empty(self.kept_shape)
        _ends_kernel[self.grid](
            *_with_strides(x, delta), A, *_with_strides(matrix), ends, decays, REVERSE=reverse, **self.options
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
            *_with_strides(u, delta), A, *_with_strides(B, C), entering, *_with_strides(y), **launch.options
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
            **launch.options,
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
