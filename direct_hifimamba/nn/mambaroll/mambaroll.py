"""MambaRoll: MRI reconstruction from coarse to fine with selective scans, unrolled."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from direct.types import FFTOperator
from torch import nn
from torch.nn import functional as F

from direct_hifimamba.nn.layers.convolution import convolve
from direct_hifimamba.nn.layers.data_consistency import HardDataConsistency
from direct_hifimamba.nn.layers.network import SenseNetwork
from direct_hifimamba.nn.layers.patch import pad_to_patches
from direct_hifimamba.nn.layers.recompute import recompute
from direct_hifimamba.nn.layers.sense import Acquisition, Measurement
from direct_hifimamba.nn.mambaroll.config import MambaRollConfig
from direct_hifimamba.nn.mambaroll.shuffled_scan import SHUFFLE, ShuffledScan


class MambaRollOutput(NamedTuple):
    """Output of :class:`MambaRoll`, in the scale of the measured k-space; dtype of the parameters."""

    image: torch.Tensor  #: (batch, H, W, 2), coil-combined
    scale_images: torch.Tensor  #: (batch, scales, H, W, 2), of the last roll before data consistency, coarse to fine


class ScaleModule(nn.Module):
    """Prediction of an image at one scale: encoder, selective scan and decoder.

    Parameters
    ----------
    images : int
        Images of the input.
    channels : int
        Feature channels.
    stride : int
        Pixels of the image, each way, per feature pixel.
    config : MambaRollConfig
        Sizes and options.
    """

    def __init__(self, images: int, channels: int, stride: int, config: MambaRollConfig) -> None:
        super().__init__()
        self.multiple = stride * SHUFFLE
        self.convolution = nn.Conv2d(2 * images, channels, kernel_size=3, padding=1)
        # Neighbouring kernels overlap by two pixels, and sizes are divided exactly.
        self.encoder = nn.Conv2d(channels, channels, kernel_size=stride + 2, stride=stride, padding=1)
        self.scan = ShuffledScan(channels, config.state_size, config.scan_backend)
        self.decoder = nn.ConvTranspose2d(channels, 2, kernel_size=stride + 2, stride=stride, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images stacked as channels (batch, H, W, 2 * images) to one image (batch, H, W, 2)."""
        height, width = images.shape[1:3]
        features = F.silu(convolve(pad_to_patches(images, self.multiple), self.convolution))
        features = F.silu(convolve(features, self.encoder))
        return convolve(self.scan(features), self.decoder)[:, :height, :width]


class Refinement(nn.Module):
    """Prediction of a roll's image by two convolutions from the images of its finest scale.

    Parameters
    ----------
    channels : int
        Channels between the convolutions.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, channels, kernel_size=3, padding=1)
        self.second = nn.Conv2d(channels, 2, kernel_size=3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map two images stacked as channels (batch, H, W, 4) to one image (batch, H, W, 2)."""
        return convolve(F.silu(convolve(images, self.first)), self.second)


class Roll(nn.Module):
    """Roll: scales from coarse to fine and a refinement, each followed by data consistency.

    Parameters
    ----------
    config : MambaRollConfig
        Sizes and options.
    """

    def __init__(self, config: MambaRollConfig) -> None:
        super().__init__()
        channels = config.channels_per_scale
        scales = [
            ScaleModule(2 if index else 1, size, 2 ** (len(channels) - 1 - index), config)
            for index, size in enumerate(channels)
        ]
        self.scales = nn.ModuleList(scales)
        self.refinement = Refinement(channels[-1])
        self.data_consistency = HardDataConsistency()
        self.residual = config.image_residual
        self.checkpointing = config.activation_checkpointing
        if self.residual:  # a correction starts small
            with torch.no_grad():
                for convolution in (*(scale.decoder for scale in scales), self.refinement.second):
                    convolution.weight.mul_(0.1)

    def forward(self, image: torch.Tensor, acquisition: Acquisition) -> tuple[torch.Tensor, torch.Tensor]:
        """Map an image (batch, H, W, 2) to a new one, and to those of the scales (batch, scales, H, W, 2)."""
        inputs, predictions = image, []
        for module in (*self.scales, self.refinement):
            prediction = recompute(module, inputs, is_random=False) if self.checkpointing else module(inputs)
            prediction = prediction.to(image.dtype)
            if self.residual:
                prediction = image + prediction
            image = acquisition.leave(self.data_consistency(acquisition.enter(prediction), acquisition))
            predictions.append(prediction)
            inputs = torch.cat([prediction, image], dim=-1)
        return image, torch.stack(predictions[:-1], dim=1)


class MambaRoll(SenseNetwork):
    """MambaRoll [1]_, written from a description of it (docs/mamba_baselines.md), not from its code.

    Parameters
    ----------
    forward_operator, backward_operator : FFTOperator
        Fourier transform of DIRECT (float32, complex axis last) and its inverse.
    **options : Any
        Keys of :class:`MambaRollConfig`.

    Raises
    ------
    TypeError, ValueError
        If a key or value of `options` does not fit; the message names it.

    References
    ----------
    .. [1] Kabas, Arslan, Nezhad, Ozturk, Saritas, Çukur. Physics-Driven Autoregressive State Space Models for Medical
       Image Reconstruction. arXiv:2412.09331, 2024.
    """

    def __init__(self, forward_operator: FFTOperator, backward_operator: FFTOperator, **options: Any) -> None:
        config = MambaRollConfig(**options)
        coarsest = 2 ** (len(config.channels_per_scale) - 1)
        super().__init__(config, forward_operator, backward_operator, smallest_size=coarsest * SHUFFLE)
        self.num_rolls = config.num_rolls
        self.roll = Roll(config)

    def forward(
        self, masked_kspace: torch.Tensor, sampling_mask: torch.Tensor, sensitivity_map: torch.Tensor
    ) -> MambaRollOutput:
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
        MambaRollOutput
            The coil-combined image and the images of the scales.

        Raises
        ------
        TypeError
            If k-space or maps are not real floating-point tensors, or parameters are neither float32 nor float64.
        ValueError
            If shapes do not fit, or if a tensor is on the meta device.
        """
        image, acquisition, scale = self._begin(Measurement(masked_kspace, sampling_mask, sensitivity_map))
        for _ in range(self.num_rolls):
            image, scale_images = self.roll(image, acquisition)
        return MambaRollOutput(image * scale, scale_images * scale.unsqueeze(1))
