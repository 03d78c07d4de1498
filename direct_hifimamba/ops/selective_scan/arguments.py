"""Arguments of the selective scan, as its backends take them."""

from __future__ import annotations

from typing import NamedTuple

import torch


class ScanArguments(NamedTuple):
    """Arguments of a backend, in their order, see :func:`direct_hifimamba.ops.selective_scan.selective_scan`."""

    u: torch.Tensor  #: (batch, channels, length), and so are `delta` and `z`
    delta: torch.Tensor
    A: torch.Tensor  #: (channels, state)
    B: torch.Tensor  #: (batch, groups, state, length), and so is `C`
    C: torch.Tensor
    D: torch.Tensor | None  #: (channels,), and so is `delta_bias`
    z: torch.Tensor | None
    delta_bias: torch.Tensor | None
    delta_softplus: bool

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """All of them but `delta_softplus`."""
        return self[:8]

    def check(self) -> None:
        """Check shapes, dtypes and devices.

        Raises
        ------
        ValueError
            If a shape or device does not fit.
        TypeError
            If a dtype is not a real floating one.
        """
        u, A, B = self.u, self.A, self.B
        if u.ndim != 3 or 0 in u.shape:
            raise ValueError(f"u has shape {tuple(u.shape)}; expected a non-empty (batch, channels, length).")
        batch, channels, length = u.shape
        if A.ndim != 2 or A.shape[0] != channels or A.shape[1] == 0:
            raise ValueError(f"A has shape {tuple(A.shape)}; expected (channels, state) with channels = {channels}.")
        groups = B.shape[1] if B.ndim == 4 else 0
        if groups == 0 or channels % groups:
            raise ValueError(
                f"B has shape {tuple(B.shape)}; expected (batch, state, length) or (batch, groups, state, length) with "
                f"a number of groups that divides the {channels} channels."
            )
        sequence, matrix = (batch, channels, length), (batch, groups, A.shape[1], length)
        expected = {
            "delta": (sequence, "the shape of u"),
            "B": (matrix, "(batch, groups, state, length)"),
            "C": (matrix, "the shape of B"),
            "z": (sequence, "the shape of u"),
            "D": ((channels,), "(channels,)"),
            "delta_bias": ((channels,), "(channels,)"),
        }
        for name, tensor in zip(self._fields, self.tensors, strict=False):
            if tensor is None:
                continue
            shape, meaning = expected.get(name, (tuple(tensor.shape), ""))
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {meaning} = {shape}.")
            if not tensor.is_floating_point():
                raise TypeError(f"{name} is {tensor.dtype}; expected a real floating dtype.")
            if tensor.device != u.device:
                raise ValueError(f"{name} is on {tensor.device} and u on {u.device}; expected one device.")
