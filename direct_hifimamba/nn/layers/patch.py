"""Patches of p x p pixels: from images to feature maps and back."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from direct_hifimamba.nn.layers.convolution import convolve


def pad_to_patches(image: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Pad the ends of an image (batch, height, width, channels) by reflection to multiples of `patch_size`."""
    height, width = (-size % patch_size for size in image.shape[1:3])
    if not height and not width:
        return image
    return F.pad(image.permute(0, 3, 1, 2), (0, width, 0, height), mode="reflect").permute(0, 2, 3, 1)


class PatchEmbedding(nn.Module):
    """Embedding of the patches of a complex image, or of the images of several coils, as normalised features.

    Parameters
    ----------
    channels : int
        Feature channels.
    patch_size : int
        Side p of a patch.
    coils : int
        Images that become one feature map.
    """

    def __init__(self, channels: int, patch_size: int, coils: int = 1) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.coils = coils
        self.projection = nn.Conv2d(2 * coils, channels, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map images (batch * coils, H, W, 2) to features (batch, ceil(H / p), ceil(W / p), channels)."""
        image = rearrange(image, "(b coil) h w c -> b h w (coil c)", coil=self.coils)
        return self.norm(convolve(pad_to_patches(image, self.patch_size), self.projection))


class PatchProjection(nn.Module):
    """Projection of features to the patches of a complex image, or of the images of several coils.

    Parameters
    ----------
    channels : int
        Feature channels.
    patch_size : int
        Side p of a patch.
    initial_scale : float
        Factor on the initial weights.
    coils : int
        Images that one feature map becomes.
    """

    def __init__(self, channels: int, patch_size: int, initial_scale: float, coils: int = 1) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.initial_scale = initial_scale
        self.coils = coils
        self.projection = nn.Linear(channels, 2 * coils * patch_size**2, bias=False)

    def forward(self, features: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Map features (batch, h, w, channels) to images (batch * coils, height, width, 2), without the padding."""
        patches = self.projection(features)
        image = rearrange(
            patches,
            "b h w (row column coil c) -> (b coil) (h row) (w column) c",
            row=self.patch_size,
            column=self.patch_size,
            coil=self.coils,
        )
        return image[:, :height, :width]
