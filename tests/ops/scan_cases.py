"""Inputs of the selective scan, shared by the tests of its backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from direct_hifimamba.ops.selective_scan.reference import selective_scan_reference


class ScanInputs(NamedTuple):
    """Arguments of `selective_scan`, in its order: call it as ``selective_scan(*inputs, delta_softplus)``."""

    u: torch.Tensor
    delta: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    D: torch.Tensor | None
    z: torch.Tensor | None
    delta_bias: torch.Tensor | None

    def to(self, dtype: torch.dtype) -> ScanInputs:
        """A detached copy in `dtype`; strides and `requires_grad` stay."""
        return ScanInputs(
            *(None if t is None else t.detach().to(dtype, copy=True).requires_grad_(t.requires_grad) for t in self)
        )

    def tensors(self) -> list[torch.Tensor]:
        """The arguments that are not None."""
        return [t for t in self if t is not None]


def make_inputs(
    batch: int = 2,
    channels: int = 6,
    length: int = 17,
    state: int = 3,
    groups: int = 1,
    *,
    optional: bool = True,
    dtype: torch.dtype = torch.float32,
    layout: str = "channels_first",
    requires_grad: bool = False,
    seed: int = 0,
) -> ScanInputs:
    """Draw arguments as they occur in a Mamba layer; `delta` suits softplus and, being positive, no softplus too.

    Parameters
    ----------
    batch, channels, length, state, groups : int
        Sizes; `B` and `C` have the group axis.
    optional : bool
        Draw `D`, `z` and `delta_bias`; otherwise they are None. Default: True.
    dtype : torch.dtype
        Drawn in float64 and then rounded, so that a seed means the same inputs in every dtype. Default: float32.
    layout : str
        "channels_first": contiguous (batch, channels, length). "channels_last": the same shapes as transposed views
        of (batch, length, channels), and `B`, `C` of (batch, length, groups, state). Default: "channels_first".
    requires_grad : bool
        Make all of them leaves that require gradients. Default: False.
    seed : int
        Seed of the draw. Default: 0.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def with_layout(tensor: torch.Tensor) -> torch.Tensor:
        if layout == "channels_first":
            return tensor
        if layout == "channels_last":
            return tensor.movedim(-1, 1).contiguous().movedim(1, -1)
        raise ValueError(f"Unknown layout {layout!r}; expected 'channels_first' or 'channels_last'.")

    drawn = (
        with_layout(normal(batch, channels, length)),
        with_layout(normal(batch, channels, length).abs()),
        -torch.exp(0.5 * normal(channels, state)),
        with_layout(normal(batch, groups, state, length)),
        with_layout(normal(batch, groups, state, length)),
        normal(channels) if optional else None,
        with_layout(normal(batch, channels, length)) if optional else None,
        0.1 * normal(channels).abs() if optional else None,
    )
    return ScanInputs(*(None if t is None else t.to(dtype).requires_grad_(requires_grad) for t in drawn))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected magnitude; infinite where only one of both is NaN or infinite."""
    actual, expected = actual.detach().double(), expected.detach().double()
    finite = expected.isfinite()
    if not torch.equal(actual.isfinite(), finite):
        return float("inf")
    difference = (actual - expected)[finite].abs()
    if difference.numel() == 0:
        return 0.0
    scale = expected[finite].abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return (difference.max() / scale).item()


def assert_matches_oracle(
    scan: Callable[..., torch.Tensor],
    inputs: ScanInputs,
    delta_softplus: bool,
    tolerance: float = 1e-6,
    gradient_tolerance: float = 5e-6,
) -> None:
    """Compare the output of `scan`, and the gradients of what requires them, with the sequential scan in float64."""
    oracle_inputs = inputs.to(torch.float64)
    actual, expected = scan(*inputs, delta_softplus), selective_scan_reference(*oracle_inputs, delta_softplus)
    assert relative_error(actual, expected) <= tolerance

    cotangent = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = [
        torch.autograd.grad(y, [t for t in x if t is not None and t.requires_grad], cotangent.to(y.dtype))
        for y, x in ((actual, inputs), (expected, oracle_inputs))
    ]
    names = [name for name, t in inputs._asdict().items() if t is not None and t.requires_grad]
    errors = {name: relative_error(*pair) for name, *pair in zip(names, *gradients, strict=True)}
    assert max(errors.values()) <= gradient_tolerance, errors
