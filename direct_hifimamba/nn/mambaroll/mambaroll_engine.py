"""Engines of MambaRoll."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from direct.data.transforms import modulus
from direct.nn.loss_keys import KeyedLossFn
from direct.nn.ssl.mri_models import JSSLMRIModelEngine, SSLMRIModelEngine

from direct_hifimamba.nn.layers.engine import SelfSupervision, SenseEngine, stop_gradient_at_zero
from direct_hifimamba.nn.layers.sense import Measurement


class MambaRollEngine(SenseEngine):
    """Engine that trains and evaluates :class:`direct_hifimamba.nn.mambaroll.mambaroll.MambaRoll` in DIRECT.

    Every configured loss that compares the image with the target is also computed of the image of every scale; their
    sum, weighted by `model.scale_loss_weight`, is added as `scale_loss`. Self-supervised engines do not add it, since
    their losses compare samples that were left out.
    """

    _scale_images: torch.Tensor

    def reconstruct(self, measurement: Measurement) -> torch.Tensor:
        """Return the network's image (batch, height, width, 2) and keep those of its scales."""
        output = self.model(**measurement._asdict())
        self._scale_images = output.scale_images
        return output.image

    def build_loss(self) -> dict[str, Callable[..., torch.Tensor]]:
        """Return the losses of the configuration, and `scale_loss` if there is one of the image."""
        losses = super().build_loss()
        keys = ("output_image", "target")
        image_losses = [loss for loss in losses.values() if (loss.source_key, loss.target_key) == keys]
        weight = self.cfg.model.scale_loss_weight

        def scale_loss(_: torch.Tensor, target: torch.Tensor, *arguments: Any) -> torch.Tensor:
            magnitudes = modulus(stop_gradient_at_zero(self._scale_images, (self._complex_dim,))).unbind(dim=1)
            values = [loss(magnitude, target, *arguments) for loss in image_losses for magnitude in magnitudes]
            return weight * torch.stack(values).sum()

        if weight > 0 and image_losses and not isinstance(self, SSLMRIModelEngine):
            losses["scale_loss"] = KeyedLossFn(scale_loss, *keys)
        return losses


class MambaRollSSLEngine(SelfSupervision, MambaRollEngine, SSLMRIModelEngine):
    """Engine that trains MambaRoll without references, on undersampled k-space alone."""


class MambaRollJSSLEngine(SelfSupervision, MambaRollEngine, JSSLMRIModelEngine):
    """Engine that trains MambaRoll on data sets with references and others without."""
