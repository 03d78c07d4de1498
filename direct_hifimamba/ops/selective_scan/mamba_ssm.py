"""Selective scan by the CUDA kernels of mamba-ssm. Importing this module imports them."""

from __future__ import annotations

import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

from direct_hifimamba.ops.derivatives import refuse_tangents

#: Largest state dimension that the kernels are compiled for.
MAX_STATE = 256


def selective_scan_mamba_ssm(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
) -> torch.Tensor:
    """Selective scan on CUDA tensors in float32.

    Shapes are those of :func:`direct_hifimamba.ops.selective_scan.selective_scan` with `B` and `C` of shape
    (batch, groups, state, length). The kernels read along time with stride 1: mamba-ssm copies `u`, `delta`, `B`, `C`,
    `z` and `D` where their strides do not fit, but not `delta_bias`. Written for mamba-ssm 2.3.2; its forward pass is
    tested with that package's Python code and a substitute for the kernels. It has never run on a GPU.

    Raises
    ------
    ValueError
        If the state dimension is larger than `MAX_STATE`.
    """
    if A.shape[1] > MAX_STATE:
        raise ValueError(
            f"mamba_ssm supports state dimensions up to {MAX_STATE}, got {A.shape[1]}. Use the backend 'torch'."
        )
    bias = None if delta_bias is None else delta_bias.contiguous()
    y = selective_scan_fn(u, delta, A, B, C, D, z, bias, delta_softplus)
    if y.requires_grad:
        y.register_hook(_refuse_second_derivatives)
    return y


def _refuse_second_derivatives(grad: torch.Tensor) -> None:
    # The kernels treat their gradients as constants. Gradients are enabled here only with create_graph=True.
    if torch.is_grad_enabled():
        raise RuntimeError("mamba-ssm's selective scan has no second derivatives. Use the backend 'torch'.")
    refuse_tangents(grad)
