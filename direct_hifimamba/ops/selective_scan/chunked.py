"""Selective scan in plain PyTorch: the sequence is cut into chunks that are scanned simultaneously.

The recurrence is linear in the state, so a chunk maps its initial state `h` to the final state ``P * h + q``, where `P`
is the product of its decays and `q` its final state for the initial state zero. A scan therefore takes three passes:
all chunks simultaneously from zero (gives `q`), a short sequential pass over the chunks (gives their initial states),
and all chunks simultaneously from these states. Nothing is divided by a product of decays, which may underflow to zero.

The number of simultaneous chunks (lanes) is so small that the tensors of one step stay in cache; blocks of lanes are
computed in sequence. The forward pass stores only the initial state of each chunk; the backward pass recomputes the
others block by block. Every operation is elementwise or a sum, so results are reproducible bit by bit, and the global
precision of matrix products (TF32, bfloat16) has no effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from direct_hifimamba.ops.derivatives import gradients_of_definition
from direct_hifimamba.ops.selective_scan.arguments import ScanArguments
from direct_hifimamba.ops.selective_scan.reference import selective_scan_reference

#: Steps per chunk. Of all states, 1 / CHUNK are stored; those of one block are recomputed at a time.
CHUNK = 32


def _elements_per_step(device: torch.device) -> int:
    """Return the intended size of one step of a block: large beside the cost of a call, but within a core's cache."""
    return 2**16 if device.type == "cpu" else 2**22


@dataclass(frozen=True)
class _Tiling:
    """How sequences are cut into blocks of `lanes` chunks of `chunk` steps, the last block padded with zeros.

    A block of a tensor is held time first. One step of a sequence such as `u` has the shape (batch, lanes, groups,
    channels per group), one step of the states (state, batch, lanes, groups, channels per group).
    """

    state: int
    batch: int
    groups: int
    channels: int
    length: int
    chunk: int
    lanes: int

    @classmethod
    def of(cls, u: torch.Tensor, B: torch.Tensor) -> _Tiling:
        batch, channels, length = u.shape
        groups, state = B.shape[1:3]
        chunk = min(CHUNK, length)
        chunks = -(-length // chunk)
        blocks = -(-chunks // max(1, _elements_per_step(u.device) // (batch * channels * state)))
        return cls(state, batch, groups, channels // groups, length, chunk, lanes=-(-chunks // blocks))

    @property
    def states_shape(self) -> tuple[int, ...]:
        return self.state, self.batch, self.lanes, self.groups, self.channels

    @property
    def blocks(self) -> list[slice]:
        steps = self.lanes * self.chunk
        return [slice(start, min(start + steps, self.length)) for start in range(0, self.length, steps)]

    def load(self, x: torch.Tensor) -> torch.Tensor:
        """Copy a block of `u` or the like, (batch, channels, time), to (chunk, *step of a sequence)."""
        missing = self.lanes * self.chunk - x.shape[-1]
        if missing:
            x = F.pad(x, (0, missing))
        x = x.unflatten(1, (self.groups, -1)).unflatten(-1, (self.lanes, self.chunk))
        return x.permute(4, 0, 3, 1, 2).contiguous()

    def load_matrix(self, x: torch.Tensor) -> torch.Tensor:
        """Copy a block of `B` or `C`, (batch, groups, state, time), to (chunk, *step of the states), channels = 1."""
        return self.load(x.flatten(1, 2)).movedim(-1, 1).unsqueeze(-1)

    def store(self, x: torch.Tensor, target: torch.Tensor) -> None:
        """Copy (chunk, *step of a sequence) to the block `target`, (batch, channels, time): the reverse of `load`."""
        x = x.permute(1, 3, 4, 2, 0)
        if target.shape[-1] < self.lanes * self.chunk:
            x = x.reshape(*x.shape[:3], 1, -1)[..., : target.shape[-1]]
        target.unflatten(1, x.shape[1:3]).unflatten(-1, x.shape[3:]).copy_(x)

    def store_matrix(self, x: torch.Tensor, target: torch.Tensor) -> None:
        """Copy (chunk, *step of the states), channels = 1, to the block `target`, (batch, groups, state, time)."""
        x = x.squeeze(-1).permute(2, 4, 1, 3, 0).flatten(3)
        target.copy_(x[..., : target.shape[-1]])

    def per_channel(self, x: torch.Tensor) -> torch.Tensor:
        """Make (channels,) or (channels, state) broadcast with a step of a sequence or of the states."""
        x = x.movedim(0, -1).unflatten(-1, (self.groups, -1))
        return x if x.ndim == 2 else x[:, None, None].contiguous()


class _Block(NamedTuple):
    """Inputs of one block, time first; `delta` is that after bias and softplus, `drive` is delta times u."""

    u: torch.Tensor
    delta: torch.Tensor
    drive: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    z: torch.Tensor | None

    @classmethod
    def load(cls, tiling: _Tiling, time: slice, scan: ScanArguments) -> _Block:
        delta = scan.delta[..., time]
        if scan.delta_bias is not None:
            delta = delta + scan.delta_bias[:, None]
        if scan.delta_softplus:
            delta = F.softplus(delta)
        u, delta = tiling.load(scan.u[..., time]), tiling.load(delta)
        B, C = tiling.load_matrix(scan.B[..., time]), tiling.load_matrix(scan.C[..., time])
        return cls(u, delta, delta * u, B, C, None if scan.z is None else tiling.load(scan.z[..., time]))


def _chain_lanes(local: torch.Tensor, decay: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Return the initial state of each lane, a step of the states.

    Parameters
    ----------
    local, decay : torch.Tensor
        Final state of each lane for the initial state zero, and product of its decays: one step of the states each.
    first : torch.Tensor
        Initial state of lane 0, (state, batch, groups, channels per group).
    """
    entering = [first]
    for end, product in zip(local.unbind(2)[:-1], decay.unbind(2)[:-1], strict=True):
        entering.append(torch.addcmul(end, product, entering[-1]))
    return torch.stack(entering, dim=2)


def _product_of_decays(x: _Block, A: torch.Tensor) -> torch.Tensor:
    """Return the product over the steps of each lane, a step of the states. exp2 is fast also where it is zero."""
    return torch.exp2(x.delta.sum(0) * (A / math.log(2)))


def _enter_forward(tiling: _Tiling, x: _Block, A: torch.Tensor, carry: torch.Tensor) -> torch.Tensor:
    """Return the initial states of the lanes of a block, given `carry`, that of the first lane."""
    local = A.new_zeros(tiling.states_shape)
    if tiling.lanes > 1:
        scratch = torch.empty_like(local)
        for delta, drive, B in zip(x.delta, x.drive, x.B, strict=True):
            decay = torch.mul(delta, A, out=scratch).exp_()
            local.mul_(decay).addcmul_(B, drive)
    return _chain_lanes(local, _product_of_decays(x, A), carry)


def _scan(x: _Block, A: torch.Tensor, entering: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output without skip and gate, and the final states of the lanes."""
    state, scratch = entering.clone(), torch.empty_like(entering)
    output = torch.empty_like(x.u)
    for delta, drive, B, C, y in zip(x.delta, x.drive, x.B, x.C, output, strict=True):
        decay = torch.mul(delta, A, out=scratch).exp_()
        state.mul_(decay).addcmul_(B, drive)
        torch.sum(torch.mul(state, C, out=scratch), 0, out=y)
    return output, state


def _forward(scan: ScanArguments) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the output of the scan, and the initial states of the lanes of each block."""
    tiling = _Tiling.of(scan.u, scan.B)
    A = tiling.per_channel(scan.A)
    carry = A.new_zeros(tiling.states_shape)[:, :, 0]
    y = torch.empty_like(scan.u)
    entering = []
    for time in tiling.blocks:
        x = _Block.load(tiling, time, scan)
        entering.append(_enter_forward(tiling, x, A, carry))
        y_block, final = _scan(x, A, entering[-1])
        carry = final[:, :, -1]
        if scan.D is not None:
            y_block.addcmul_(x.u, tiling.per_channel(scan.D))
        if x.z is not None:
            y_block.mul_(F.silu(x.z))
        tiling.store(y_block, y[..., time])
    return y, entering


class _Trajectory:
    """Decays and states at every step of one block, recomputed for the backward pass, and the gradients from them."""

    def __init__(self, tiling: _Tiling, A: torch.Tensor) -> None:
        self.A = A
        self.scratch = A.new_empty(tiling.states_shape)
        self.decays = A.new_empty(tiling.chunk, *tiling.states_shape).unbind()
        self.states = A.new_empty(tiling.chunk + 1, *tiling.states_shape).unbind()  # before each step, and the final

    def recompute(self, x: _Block, entering: torch.Tensor) -> None:
        """Recompute decays and states of the block `x` from the initial states `entering` of its lanes."""
        self.states[0].copy_(entering)
        steps = zip(x.delta, x.drive, x.B, self.decays, self.states[:-1], self.states[1:], strict=True)
        for delta, drive, B, decay, before, after in steps:
            torch.mul(delta, self.A, out=decay).exp_()
            torch.mul(decay, before, out=after).addcmul_(B, drive)

    def output(self, x: _Block) -> torch.Tensor:
        """Return the output without skip and gate."""
        output = torch.empty_like(x.u)
        for state, C, y in zip(self.states[1:], x.C, output, strict=True):
            torch.sum(torch.mul(state, C, out=self.scratch), 0, out=y)
        return output

    def enter_backward(self, x: _Block, grad: torch.Tensor, carry: torch.Tensor) -> torch.Tensor:
        """Return gradients of the final states of the lanes, given `carry`, that of the last lane."""
        local = torch.zeros_like(self.scratch)
        if local.shape[2] > 1:
            for C, dy, decay in reversed(list(zip(x.C, grad, self.decays, strict=True))):
                local.addcmul_(C, dy).mul_(decay)
        return _chain_lanes(local.flip(2), _product_of_decays(x, self.A).flip(2), carry).flip(2)

    def gradients(self, x: _Block, grad: torch.Tensor, adjoint: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return gradients of a block, and turn `adjoint`, those of the final states, into those of the initial states.

        The gradients are those of `drive`, of `delta` and A as the factors of the decay's exponent, of `B` and of `C`.
        """
        d_drive, d_delta, d_B, d_C = (torch.empty_like(part) for part in (x.drive, x.delta, x.B, x.C))
        d_A = torch.zeros_like(self.scratch)
        steps = enumerate(zip(x.delta, x.drive, x.B, x.C, grad, self.decays, strict=True))
        for t, (delta, drive, B, C, dy, decay) in reversed(list(steps)):
            adjoint.addcmul_(C, dy)
            torch.sum(torch.mul(self.states[t + 1], dy, out=self.scratch), -1, keepdim=True, out=d_C[t])
            torch.sum(torch.mul(adjoint, drive, out=self.scratch), -1, keepdim=True, out=d_B[t])
            torch.sum(torch.mul(adjoint, B, out=self.scratch), 0, out=d_drive[t])
            exponent = torch.mul(adjoint.mul_(decay), self.states[t], out=self.scratch)
            d_A.addcmul_(exponent, delta)
            torch.sum(exponent.mul_(self.A), 0, out=d_delta[t])
        return d_drive, d_delta, d_A, d_B, d_C


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        scan = ScanArguments(*arguments)
        y, entering = _forward(scan)
        ctx.save_for_backward(*scan.tensors, *entering)
        ctx.delta_softplus = scan.delta_softplus
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once, as checkpointing allows no more
        if torch.is_grad_enabled():
            definition = partial(selective_scan_reference, delta_softplus=ctx.delta_softplus)
            return *gradients_of_definition(definition, saved[:8], grad), None
        scan, entering = ScanArguments._make((*saved[:8], ctx.delta_softplus)), saved[8:]
        grads: list[Any] = [None if tensor is None else torch.zeros_like(tensor) for tensor in scan.tensors]
        du, ddelta, dA, dB, dC, dD, dz, dbias = grads

        tiling = _Tiling.of(scan.u, scan.B)
        trajectory = _Trajectory(tiling, tiling.per_channel(scan.A))
        D = None if scan.D is None else tiling.per_channel(scan.D)
        carry = torch.zeros_like(trajectory.scratch[:, :, 0])
        for time, states in zip(reversed(tiling.blocks), reversed(entering), strict=True):
            x = _Block.load(tiling, time, scan)
            trajectory.recompute(x, states)

            dy = tiling.load(grad[..., time])
            if x.z is not None:
                gate = torch.sigmoid(x.z)
                y = trajectory.output(x)
                if D is not None:
                    y.addcmul_(x.u, D)
                tiling.store(dy * y * gate * (1 + x.z * (1 - gate)), dz[..., time])
                dy *= x.z * gate

            adjoint = trajectory.enter_backward(x, dy, carry)
            drive_grad, delta_grad, A_grad, B_grad, C_grad = trajectory.gradients(x, dy, adjoint)
            carry = adjoint[:, :, 0]

            dA += A_grad.sum((1, 2)).flatten(1).t()
            tiling.store_matrix(B_grad, dB[..., time])
            tiling.store_matrix(C_grad, dC[..., time])
            delta_grad += drive_grad * x.u
            if scan.delta_softplus:
                delta_grad *= -torch.expm1(-x.delta)  # the derivative of softplus, by its value
            tiling.store(delta_grad, ddelta[..., time])
            if dbias is not None:
                dbias += delta_grad.sum((0, 1, 2)).flatten()
            u_grad = drive_grad * x.delta
            if D is not None:
                dD += (dy * x.u).sum((0, 1, 2)).flatten()
                u_grad.addcmul_(dy, D)
            tiling.store(u_grad, du[..., time])
        return *grads, None


def selective_scan_torch(*arguments: Any) -> torch.Tensor:
    """Compute the selective scan in chunks, on any device, in float32 or float64; the output has the strides of `u`.

    The arguments are those of :class:`ScanArguments`. For the backward pass it stores them and 1 / `CHUNK` of the
    states; second derivatives are those of the sequential scan.
    """
    scan = ScanArguments(*arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in scan.tensors):
        return _ChunkedScan.apply(*scan)
    return _forward(scan)[0]
