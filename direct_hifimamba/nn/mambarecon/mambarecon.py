"""MambaRecon: unrolled MRI reconstruction with the state-space blocks of VMamba."""

from __future__ import annotations

from typing import Any

import torch
from direct.types import FFTOperator
from torch import nn
from torch.nn import functional as F

from direct_hifimamba.nn.layers.data_consistency import HardDataConsistency
from direct_hifimamba.nn.layers.image_update import ImageUpdate
from direct_hifimamba.nn.layers.network import SenseNetwork
from direct_hifimamba.nn.layers.patch import PatchEmbedding, PatchProjection
from direct_hifimamba.nn.layers.recompute import recompute
from direct_hifimamba.nn.layers.sense import Acquisition, Measurement
from direct_hifimamba.nn.mambarecon.config import MambaReconConfig
from direct_hifimamba.nn.mambarecon.ss2d import SS2D


class Block(nn.Module):
    """Block: LayerNorm and selective scan in four directions, with a skip connection.

    Parameters
    ----------
    config : MambaReconConfig
        Sizes and options.
    """

    def __init__(self, config: MambaReconConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_channels)
        self.scan = SS2D(config.hidden_channels, config.state_size, config.scan_backend)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features (batch, h, w, channels) to the same shape."""
        return features + self.scan(self.norm(features))


def _build_update(config: MambaReconConfig) -> ImageUpdate:
    return ImageUpdate(config.hidden_channels, config.patch_size, HardDataConsistency(), config.image_residual)


class Stage(nn.Module):
    """Stage of the unrolled network: blocks, a data-consistent image, and its embedding added to the features.

    Parameters
    ----------
    config : MambaReconConfig
        Sizes and options.
    num_blocks : int
        Number of blocks.
    """

    def __init__(self, config: MambaReconConfig, num_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config) for _ in range(num_blocks))
        self.update = _build_update(config)
        self.embedding = PatchEmbedding(config.hidden_channels, config.patch_size)
        self.checkpointing = config.activation_checkpointing

    def forward(
        self, features: torch.Tensor, image: torch.Tensor, acquisition: Acquisition
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (batch, h, w, channels) and image (batch, H, W, 2) to new ones."""
        for block in self.blocks:
            features = recompute(block, features, is_random=False) if self.checkpointing else block(features)
        image = self.update(features, image, acquisition)
        return features + self.embedding(F.silu(image)), image


class MambaRecon(SenseNetwork):
    """MambaRecon [1]_, written from a description of it (docs/mamba_baselines.md), not from its code.

    Parameters
    ----------
    forward_operator, backward_operator : FFTOperator
        Fourier transform of DIRECT (float32, complex axis last) and its inverse.
    **options : Any
        Keys of :class:`MambaReconConfig`.

    Raises
    ------
    TypeError, ValueError
        If a key or value of `options` does not fit; the message names it.

    References
    ----------
    .. [1] Korkmaz, Patel. MambaRecon: MRI Reconstruction with Structured State Space Models. arXiv:2409.12401, 2024.
    """

    def __init__(self, forward_operator: FFTOperator, backward_operator: FFTOperator, **options: Any) -> None:
        config = MambaReconConfig(**options)
        super().__init__(config, forward_operator, backward_operator, smallest_size=config.patch_size)
        self.embedding = PatchEmbedding(config.hidden_channels, config.patch_size)
        self.stages = nn.ModuleList(Stage(config, num_blocks) for num_blocks in config.blocks_per_stage)
        self.norm = nn.LayerNorm(config.hidden_channels)
        self.update = _build_update(config)
        _initialise(self)

    def forward(
        self, masked_kspace: torch.Tensor, sampling_mask: torch.Tensor, sensitivity_map: torch.Tensor
    ) -> torch.Tensor:
        """Reconstruct a batch of slices.

        Parameters
        ----------
        masked_kspace : torch.Tensor
            Measured k-space of shape (batch, coil, H, W, 2), H and W from 16 up; ignored outside the mask.
        sampling_mask : torch.Tensor
            Non-zero where sampled, of shape (batch or 1, 1, H or 1, W or 1, 1), any dtype.
        sensitivity_map : torch.Tensor
            Sensitivity maps of shape (batch, coil, H, W, 2), their squared magnitudes adding up to 1 over coils, or to
            0 where there is no object.

        Returns
        -------
        torch.Tensor
            Coil-combined image of shape (batch, H, W, 2), in the scale of the measured k-space; dtype of the
            parameters.

        Raises
        ------
        TypeError
            If k-space or maps are not real floating-point tensors, or parameters are neither float32 nor float64.
        ValueError
            If shapes do not fit, or if a tensor is on the meta device.
        """
        image, acquisition, scale = self._begin(Measurement(masked_kspace, sampling_mask, sensitivity_map))
        features = self.embedding(image)
        for stage in self.stages:
            features, image = stage(features, image, acquisition)
        return self.update(self.norm(features), image, acquisition) * scale


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    """Initialise all linear maps by Xavier's scheme, so that every branch learns from the first step."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, SS2D):
            for weight in module.matrix_projection:
                nn.init.xavier_uniform_(weight)
    for module in network.modules():
        if isinstance(module, PatchProjection):
            module.projection.weight.mul_(module.initial_scale)
