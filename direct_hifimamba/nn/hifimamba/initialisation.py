"""Initialisation of the network's weights, by two schemes."""

from __future__ import annotations

import torch
from torch import nn

from direct_hifimamba.nn.hifimamba.attention import ChannelAttention
from direct_hifimamba.nn.hifimamba.bottleneck import InvertedBottleneck
from direct_hifimamba.nn.hifimamba.moe import Router
from direct_hifimamba.nn.layers.patch import PatchProjection
from direct_hifimamba.nn.layers.selective_scan_2d import SelectiveScan2D

_STD = 0.02


@torch.no_grad()
def initialise(network: nn.Module, scheme: str) -> None:
    """Initialise all projections of `network`, and the depthwise convolutions of its bottlenecks.

    Norms, state matrices, patch embeddings and the convolutions around the scan keep the defaults of PyTorch and their
    layers.

    "reference" draws weights from a truncated normal distribution of standard deviation 0.02, except the projections to
    delta, B and C and the channel attention, which keep PyTorch's default. The state part of the selective scan is then
    initially about a thousand times smaller than its skip connection. "balanced" preserves the scale of the signal:
    Xavier for projections, Kaiming for depthwise convolutions. The weights of routers stay small, so that their initial
    probabilities are almost uniform.

    Parameters
    ----------
    network : nn.Module
        Any composition of this package's layers.
    scheme : str
        "reference" or "balanced".
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            if scheme == "balanced":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.trunc_normal_(module.weight, std=_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, InvertedBottleneck):
            if scheme == "balanced":
                nn.init.kaiming_normal_(module.depthwise.weight, nonlinearity="relu")
            else:
                nn.init.trunc_normal_(module.depthwise.weight, std=_STD)
        elif isinstance(module, SelectiveScan2D):
            if scheme == "balanced":
                for weight in module.matrix_projection:
                    nn.init.xavier_uniform_(weight)
            else:
                # Not the truncated normal: the reference keeps these outside of its linear layers.
                module.initialise_matrices()
            if module.steering:
                # Both streams start with the same B and C projections.
                module.steering_matrix_projection.copy_(module.matrix_projection[:, module.sizes[0] :])

    for module in network.modules():
        if isinstance(module, Router):
            nn.init.trunc_normal_(module.projection.weight, std=_STD)
        elif isinstance(module, PatchProjection):
            module.projection.weight.mul_(module.initial_scale)
        elif isinstance(module, ChannelAttention) and scheme == "reference":
            # A convolution in the reference, left at PyTorch's default.
            module.pointwise.reset_parameters()
