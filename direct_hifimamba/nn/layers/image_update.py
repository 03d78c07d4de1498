"""Step from features to a data-consistent image."""

from __future__ import annotations

import torch
from torch import nn

from direct_hifimamba.nn.layers.patch import PatchProjection
from direct_hifimamba.nn.layers.sense import Acquisition


class ImageUpdate(nn.Module):
    """Prediction of an image from features, followed by data consistency.

    Parameters
    ----------
    channels : int
        Feature channels.
    patch_size : int
        Side p of a patch.
    data_consistency : nn.Module
        Layer of :mod:`direct_hifimamba.nn.layers.data_consistency`.
    residual : bool
        Predict a correction of the previous image instead of a new one.
    coils : int
        Coils whose images are stacked as channels.
    """

    def __init__(
        self, channels: int, patch_size: int, data_consistency: nn.Module, residual: bool = False, coils: int = 1
    ) -> None:
        super().__init__()
        self.residual = residual
        # A correction is added to an image, so it starts small.
        self.prediction = PatchProjection(channels, patch_size, 0.1 if residual else 1.0, coils)
        self.data_consistency = data_consistency

    def forward(self, features: torch.Tensor, image: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return the new image (batch, H, W, 2), predicted from `features`, or `image` corrected by the prediction.

        Where coils are stacked as channels, the batch of images, and of `acquisition`, has an element for every coil.
        """
        prediction = self.prediction(features, *image.shape[1:3]).to(image.dtype)
        predicted = acquisition.enter(image + prediction if self.residual else prediction)
        return acquisition.leave(self.data_consistency(predicted, acquisition))
