"""HiFi-MambaV2: unrolled MRI reconstruction with frequency-split state space blocks and a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from direct.types import FFTOperator
from torch import nn

from direct_hifimamba.nn.hifimamba.block import HiFiMambaBlock
from direct_hifimamba.nn.hifimamba.config import HiFiMambaV2Config
from direct_hifimamba.nn.hifimamba.initialisation import initialise
from direct_hifimamba.nn.hifimamba.moe import build_mixtures
from direct_hifimamba.nn.layers.data_consistency import DataConsistency, Measurement, SenseOperator, check_measurement
from direct_hifimamba.nn.layers.patch import PatchEmbedding, PatchProjection
from direct_hifimamba.nn.layers.recompute import recompute


class HiFiMambaV2Output(NamedTuple):
    """What the network returns."""

    image: torch.Tensor  #: (batch, H, W, 2) float32, in the scale of the measured k-space
    load_balancing_loss: torch.Tensor  #: scalar float32


class ImageUpdate(nn.Module):
    """The image that features predict, made consistent with the measurement.

    Parameters
    ----------
    config : HiFiMambaV2Config
        Sizes and options.
    operator : SenseOperator
        The measurement model.
    """

    def __init__(self, config: HiFiMambaV2Config, operator: SenseOperator) -> None:
        super().__init__()
        self.residual = config.image_residual
        # A correction starts small: what it is added to is an image already.
        initial_scale = 0.1 if self.residual else 1.0
        self.prediction = PatchProjection(config.hidden_channels, config.patch_size, initial_scale)
        self.data_consistency = DataConsistency(
            operator, soft=config.data_consistency == "soft", steps=config.data_consistency_steps
        )

    def forward(self, features: torch.Tensor, image: torch.Tensor, measurement: Measurement) -> torch.Tensor:
        """Replace `image` (batch, H, W, 2), or correct it under `image_residual`, by what `features` predict."""
        prediction = self.prediction(features, *image.shape[1:3]).float()
        return self.data_consistency(image + prediction if self.residual else prediction, measurement)


class Stage(nn.Module):
    """Blocks, an image update, and the updated image embedded again.

    Parameters
    ----------
    config : HiFiMambaV2Config
        Sizes and options.
    operator : SenseOperator
        The measurement model.
    blocks : Iterable[HiFiMambaBlock]
        The stage's blocks.
    """

    def __init__(self, config: HiFiMambaV2Config, operator: SenseOperator, blocks: Iterable[HiFiMambaBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.update = ImageUpdate(config, operator)
        self.activation = nn.SiLU() if config.data_consistency_activation == "silu" else nn.Identity()
        self.embedding = PatchEmbedding(config.hidden_channels, config.patch_size)
        self.checkpointing = config.activation_checkpointing

    def forward(
        self, features: torch.Tensor, image: torch.Tensor, measurement: Measurement
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map features (batch, h, w, C) and image (batch, H, W, 2) to new ones and the mean load-balancing loss."""
        losses = []
        for block in self.blocks:
            features, loss = recompute(block, features) if self.checkpointing else block(features)
            losses.append(loss)
        image = self.update(features, image, measurement)
        return features + self.embedding(self.activation(image)), image, torch.stack(losses).mean()


class HiFiMambaV2(nn.Module):
    """HiFi-MambaV2 [1]_, after the authors' research code where the paper leaves a choice.

    Differences to that code: the measured multi-coil k-space and the host's sensitivity maps enter data consistency,
    any image size and number of coils is taken, and there is no parameter that never acts.

    Parameters
    ----------
    forward_operator, backward_operator : FFTOperator
        Fourier transform of DIRECT (float32, complex axis last) and its inverse.
    **options : Any
        Keys of :class:`HiFiMambaV2Config`.

    Raises
    ------
    TypeError, ValueError
        If a key or value of `options` does not fit; the message names it.

    References
    ----------
    .. [1] HiFi-MambaV2. arXiv:2511.18534.
    """

    def __init__(self, forward_operator: FFTOperator, backward_operator: FFTOperator, **options: Any) -> None:
        super().__init__()
        self.config = config = HiFiMambaV2Config(**options)
        self.operator = SenseOperator(forward_operator, backward_operator)
        # SF-Lap reflects two of at least three feature pixels, of a patch each.
        self.smallest_size = max(16, 2 * config.patch_size + 1)

        rates = torch.linspace(0, config.stochastic_depth, sum(config.blocks_per_stage)).tolist()
        blocks = (HiFiMambaBlock(config, moe, rate) for moe, rate in zip(build_mixtures(config), rates, strict=True))
        self.embedding = PatchEmbedding(config.hidden_channels, config.patch_size)
        self.stages = nn.ModuleList(
            Stage(config, self.operator, islice(blocks, count)) for count in config.blocks_per_stage
        )
        self.norm = nn.LayerNorm(config.hidden_channels)
        self.update = ImageUpdate(config, self.operator)

        initialise(self, config.initialisation)

    def forward(
        self, masked_kspace: torch.Tensor, sampling_mask: torch.Tensor, sensitivity_map: torch.Tensor
    ) -> HiFiMambaV2Output:
        """Reconstruct a batch of slices.

        Parameters
        ----------
        masked_kspace : torch.Tensor
            Measured k-space of shape (batch, coil, H, W, 2), zero where not sampled; H and W from 16 up, and
            more than two patches.
        sampling_mask : torch.Tensor
            Non-zero where sampled, of shape (batch or 1, 1, H or 1, W, 1), any dtype.
        sensitivity_map : torch.Tensor
            Sensitivity maps of shape (batch, coil, H, W, 2), their squared magnitudes adding up to 1 over coils.

        Returns
        -------
        HiFiMambaV2Output
            The coil-combined image and the load-balancing loss.

        Raises
        ------
        TypeError
            If k-space or maps are no real floating tensors.
        ValueError
            If shapes do not fit, k-space is not finite, or nothing is sampled.
        """
        measurement = check_measurement(masked_kspace, sampling_mask, sensitivity_map, self.smallest_size)
        image = self.operator.combine(measurement.masked_kspace, measurement.sensitivity_map)
        if not self.config.image_normalisation:
            return self._reconstruct(image, measurement)
        scale = _largest_magnitude(image)
        normalised = measurement._replace(masked_kspace=measurement.masked_kspace / scale.unsqueeze(1))
        output = self._reconstruct(image / scale, normalised)
        return output._replace(image=output.image * scale)

    def _reconstruct(self, image: torch.Tensor, measurement: Measurement) -> HiFiMambaV2Output:
        """Reconstruct, beginning with the zero-filled `image` (batch, H, W, 2)."""
        features = self.embedding(image)
        losses = []
        for stage in self.stages:
            features, image, loss = stage(features, image, measurement)
            losses.append(loss)
        image = self.update(self.norm(features), image, measurement)
        # Half of the mean over stages: the reference counts its data-consistency modules, which add 0, as well.
        return HiFiMambaV2Output(image, torch.stack(losses).mean() / 2)


def _largest_magnitude(image: torch.Tensor) -> torch.Tensor:
    """Of every complex image (batch, H, W, 2), as (batch, 1, 1, 1); 1 for an image that is zero."""
    largest = image.norm(dim=-1, keepdim=True).amax(dim=(1, 2), keepdim=True)
    return largest.where(largest > 0, 1.0)
