"""Selective scan by the CUDA kernels of mamba-ssm. Importing this module imports them."""

from __future__ import annotations

from typing import Any

import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

from direct_hifimamba.ops.derivatives import refuse_tangents
from direct_hifimamba.ops.selective_scan.arguments import ScanArguments

#: Largest state dimension that the kernels are compiled for.
MAX_STATE = 256


def selective_scan_mamba_ssm(*arguments: Any) -> torch.Tensor:
    """Selective scan on CUDA tensors in float32.

    The arguments are those of :class:`ScanArguments`. The kernels read along time with stride 1: mamba-ssm copies `u`,
    `delta`, `B`, `C`, `z` and `D` where their strides do not fit, but not `delta_bias`. Written for mamba-ssm 2.3.2;
    its forward pass is tested with that package's Python code and a substitute for the kernels. It has never run on a
    GPU.

    Raises
    ------
    ValueError
        If the state dimension is larger than `MAX_STATE`.
    """
    scan = ScanArguments(*arguments)
    states = scan.A.shape[1]
    if states > MAX_STATE:
        raise ValueError(
            f"mamba_ssm supports state dimensions up to {MAX_STATE}, got {states}. Use the backend 'torch'."
        )
    if scan.delta_bias is not None:
        scan = scan._replace(delta_bias=scan.delta_bias.contiguous())
    y = selective_scan_fn(*scan)
    if y.requires_grad:
        y.register_hook(_refuse_second_derivatives)
    return y


def _refuse_second_derivatives(grad: torch.Tensor) -> None:
    # The kernels treat their gradients as constants. Gradients are enabled here only with create_graph=True.
    if torch.is_grad_enabled():
        raise RuntimeError("mamba-ssm's selective scan has no second derivatives. Use the backend 'torch'.")
    refuse_tangents(grad)
