"""HiFi-MambaV2: unrolled MRI reconstruction with frequency-split state-space blocks and a mixture of experts."""

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
from direct_hifimamba.nn.layers.data_consistency import (
    HardDataConsistency,
    ProximalDataConsistency,
    undo_shrinkage,
)
from direct_hifimamba.nn.layers.image_update import ImageUpdate
from direct_hifimamba.nn.layers.patch import PatchEmbedding
from direct_hifimamba.nn.layers.recompute import recompute
from direct_hifimamba.nn.layers.sense import (
    COIL_DIM,
    Acquisition,
    Measurement,
    check_shapes,
    find_dtype,
    find_fourier_convention,
)

#: Conjugate-gradient iterations for the initial image, which start from zero.
FIRST_ITERATIONS = 10


class HiFiMambaV2Output(NamedTuple):
    """Output of :class:`HiFiMambaV2`."""

    #: (batch, H, W, 2), or (batch, coil, H, W, 2) if `coil_mode` is "channels", in the scale of the measured k-space;
    #: dtype of the parameters
    image: torch.Tensor
    load_balancing_loss: torch.Tensor  #: scalar


def _build_update(config: HiFiMambaV2Config) -> ImageUpdate:
    proximal = config.data_consistency == "proximal"
    data_consistency = ProximalDataConsistency if proximal else HardDataConsistency
    return ImageUpdate(
        config.hidden_channels,
        config.patch_size,
        data_consistency(config.data_consistency_steps),
        residual=config.image_residual,
        coils=config.stacked_coils,
    )


class Stage(nn.Module):
    """Stage of the unrolled network: blocks, an image update, and an embedding of the new image.

    Parameters
    ----------
    config : HiFiMambaV2Config
        Sizes and options.
    blocks : Iterable[HiFiMambaBlock]
        The stage's blocks.
    """

    def __init__(self, config: HiFiMambaV2Config, blocks: Iterable[HiFiMambaBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.update = _build_update(config)
        self.activation = nn.SiLU() if config.data_consistency_activation == "silu" else nn.Identity()
        self.embedding = PatchEmbedding(config.hidden_channels, config.patch_size, config.stacked_coils)
        self.checkpointing = config.activation_checkpointing

    def forward(
        self, features: torch.Tensor, image: torch.Tensor, acquisition: Acquisition
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map features (batch, h, w, C) and image (batch, H, W, 2) to new ones and the mean load-balancing loss."""
        losses = []
        for block in self.blocks:
            features, loss = recompute(block, features) if self.checkpointing else block(features)
            losses.append(loss)
        image = self.update(features, image, acquisition)
        return features + self.embedding(self.activation(image)), image, torch.stack(losses).mean()


class HiFiMambaV2(nn.Module):
    """HiFi-MambaV2 [1]_; where the paper leaves a choice, it follows the authors' research code.

    Differences to that code: data consistency uses the measured multi-coil k-space and DIRECT's sensitivity maps, any
    image size and number of coils is possible, and there are no parameters without effect.

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
    .. [1] Fang, P., Chen, H., Yao, G., Shi, J., Tang, F., Cai, X., Shan, S., Liu, F.: HiFi-MambaV2: Hierarchical
       Shared-Routed MoE for High-Fidelity MRI Reconstruction. arXiv:2511.18534, 2025.
    """

    def __init__(self, forward_operator: FFTOperator, backward_operator: FFTOperator, **options: Any) -> None:
        super().__init__()
        self.config = config = HiFiMambaV2Config(**options)
        self.fourier_convention = find_fourier_convention(forward_operator, backward_operator)
        # SF-Lap reflects two of at least three feature pixels, of a patch each.
        self.smallest_size = max(16, 2 * config.patch_size + 1)

        last = sum(config.blocks_per_stage) - 1
        rates = [config.stochastic_depth * index / max(last, 1) for index in range(last + 1)]
        blocks = (HiFiMambaBlock(config, moe, rate) for moe, rate in zip(build_mixtures(config), rates, strict=True))
        self.first_update = None
        if config.data_consistency == "proximal":
            self.first_update = ProximalDataConsistency(FIRST_ITERATIONS)
        self.embedding = PatchEmbedding(config.hidden_channels, config.patch_size, config.stacked_coils)
        self.stages = nn.ModuleList(Stage(config, islice(blocks, count)) for count in config.blocks_per_stage)
        self.norm = nn.LayerNorm(config.hidden_channels)
        self.update = _build_update(config)

        initialise(self, config.initialisation)

    def forward(
        self, masked_kspace: torch.Tensor, sampling_mask: torch.Tensor, sensitivity_map: torch.Tensor
    ) -> HiFiMambaV2Output:
        """Reconstruct a batch of slices.

        Parameters
        ----------
        masked_kspace : torch.Tensor
            Measured k-space of shape (batch, coil, H, W, 2); H and W from 16 up, and more than two patches. Samples
            outside the mask are ignored.
        sampling_mask : torch.Tensor
            Non-zero where sampled, of shape (batch or 1, 1, H or 1, W or 1, 1), any dtype. A height or width of 1 means
            that all rows or columns have the same samples, which saves Fourier transforms.
        sensitivity_map : torch.Tensor
            Sensitivity maps of shape (batch, coil, H, W, 2), their squared magnitudes adding up to 1 over coils, or to
            0 where there is no object. Ignored if `coil_mode` is "channels".

        Returns
        -------
        HiFiMambaV2Output
            The coil-combined image, or the images of all coils if `coil_mode` is "channels", and the load-balancing
            loss.

        Raises
        ------
        TypeError
            If k-space or maps are not real floating-point tensors, or parameters are neither float32 nor float64.
        ValueError
            If shapes do not fit, if coils are channels and not as many as `num_coils`, or if a tensor is on the meta
            device.
        """
        measurement = Measurement(masked_kspace, sampling_mask, sensitivity_map)
        check_shapes(measurement, self.smallest_size)
        stacks_coils = self.config.coil_mode == "channels"
        if stacks_coils:
            if masked_kspace.shape[COIL_DIM] != self.config.num_coils:
                raise ValueError(
                    f"masked_kspace has {masked_kspace.shape[COIL_DIM]} coils; expected {self.config.num_coils}, the "
                    'value of num_coils, as coil_mode is "channels".'
                )
            measurement = measurement.separate_coils()
        dtype = find_dtype(self)
        proximal = self.first_update is not None  # hard replacement weighs no noise
        acquisition = Acquisition.from_measurement(measurement, self.fourier_convention, dtype, estimate_noise=proximal)
        image = self._first_image(acquisition)
        if self.config.image_normalisation:
            image, acquisition, scale = acquisition.normalise(image, self.config.stacked_coils)
            output = self._reconstruct(image, acquisition)
            output = output._replace(image=output.image * scale)
        else:
            output = self._reconstruct(image, acquisition)
        if stacks_coils:
            output = output._replace(image=output.image.unflatten(0, (-1, self.config.num_coils)))
        return output

    def _first_image(self, acquisition: Acquisition) -> torch.Tensor:
        """Return the image (batch, H, W, 2) that the unrolled iterations start from: zero-filled or CG-SENSE."""
        if self.first_update is None:
            return acquisition.zero_filled()
        return acquisition.leave(self.first_update(torch.zeros_like(acquisition.kspace[:, 0]), acquisition))

    def _reconstruct(self, image: torch.Tensor, acquisition: Acquisition) -> HiFiMambaV2Output:
        """Run the unrolled stages from an initial `image` (batch, H, W, 2)."""
        features = self.embedding(image)
        losses = []
        for stage in self.stages:
            features, image, loss = stage(features, image, acquisition)
            losses.append(loss)
        image = self.update(self.norm(features), image, acquisition)
        if self.first_update is not None:
            image = acquisition.leave(undo_shrinkage(acquisition.enter(image), acquisition))
        # Half of the mean over stages, as the reference also counts its data-consistency modules, which add 0.
        return HiFiMambaV2Output(image, torch.stack(losses).mean() / 2)
