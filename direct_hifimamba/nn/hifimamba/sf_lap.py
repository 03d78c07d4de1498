"""SF-Lap, the separable frequency-consistent Laplacian pyramid, and the routing of its detail band."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from direct_hifimamba.nn.hifimamba.bottleneck import InvertedBottleneck
from direct_hifimamba.nn.layers.recompute import pixelwise


class Bands(NamedTuple):
    """Low and detail band, of shape (batch, height, width, channels), whose sum is the original features."""

    low: torch.Tensor
    detail: torch.Tensor | None


class LaplacianPyramid(nn.Module):
    """Laplacian pyramid of two bands: the part that a coarser grid represents, and the rest.

    Height and width are at least 3. If one is odd, the last fine sample coincides with a coarse one.

    Parameters
    ----------
    pyramid : str
        "binomial" (5 taps, [1 4 6 4 1] / 16 along both axes, reflecting boundaries), "haar" (averages of 2 x 2 pixels,
        repeated), or "none" (no split: everything is low, there is no detail).
    expand : str
        Interpolation of the binomial pyramid to the fine grid. "bilinear" is the reference's: it places coarse sample i
        at 2 i + 1/2 although it was taken at 2 i, so that a ramp causes a constant in the detail band. "binomial" is
        the expansion of [1]_ without this shift: inserted zeros, the same filter, gain 4.

    References
    ----------
    .. [1] Burt, Adelson. The Laplacian Pyramid as a Compact Image Code. IEEE Trans. Commun. 31(4), 1983.
    """

    def __init__(self, pyramid: str, expand: str) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.expand = expand

    def forward(self, features: torch.Tensor) -> Bands:
        """Split features of shape (batch, height, width, channels)."""
        if self.pyramid == "none":
            return Bands(features, None)
        image = features.permute(0, 3, 1, 2)
        low = self._expand(self._reduce(image), image).permute(0, 2, 3, 1)
        return Bands(low, features - low)

    def _reduce(self, image: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(image, 2, ceil_mode=True) if self.pyramid == "haar" else self._blur(image, stride=2)

    def _expand(self, coarse: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Interpolate `coarse` to the grid of `image`."""
        if self.pyramid == "binomial" and self.expand == "binomial":
            fine = torch.zeros_like(image, dtype=coarse.dtype)
            fine[..., ::2, ::2] = coarse
            return 4 * self._blur(fine, stride=1)
        mode = "nearest" if self.pyramid == "haar" else "bilinear"
        fine = F.interpolate(coarse, scale_factor=2, mode=mode)
        return fine[..., : image.shape[2], : image.shape[3]]

    def _blur(self, image: torch.Tensor, stride: int) -> torch.Tensor:
        channels = image.shape[1]
        # No buffer, which would lose its values with those of a module that leaves the meta device.
        taps = torch.tensor([1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], dtype=image.dtype, device=image.device)
        kernel = torch.outer(taps, taps).expand(channels, 1, -1, -1)
        return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, stride=stride, groups=channels)


class SFLap(nn.Module):
    """Bottleneck whose output is split into a low and a detail band.

    Parameters
    ----------
    channels : int
        Input and output channels.
    pyramid, expand : str
        See :class:`LaplacianPyramid`.
    """

    def __init__(self, channels: int, pyramid: str, expand: str) -> None:
        super().__init__()
        self.bottleneck = InvertedBottleneck(channels)
        self.split = LaplacianPyramid(pyramid, expand)

    def forward(self, features: torch.Tensor) -> Bands:
        """Split features of shape (batch, height, width, channels); the bands add up to the bottleneck's output."""
        return self.split(self.bottleneck(features))


class CrossFrequencyRouting(nn.Module):
    """Cross-frequency consensus routing: the result is high + detail, or rather detail where the two agree.

    With g = sigmoid(gamma s) per pixel it is (1 - g) (high + detail) + g detail. Here s is the cosine similarity over
    channels of high + detail and detail; gamma is learned, positive, and initially 2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_gamma = nn.Parameter(torch.tensor(math.log(2.0)))

    def forward(self, high: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        """Blend two tensors of shape (batch, height, width, channels)."""
        return pixelwise(self._blend, high + detail, detail)

    def _blend(self, combined: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        norms = combined.norm(dim=-1, keepdim=True) * detail.norm(dim=-1, keepdim=True)
        similarity = (combined * detail).sum(dim=-1, keepdim=True) / (norms + 1e-6)
        return torch.lerp(combined, detail, torch.sigmoid(self.log_gamma.exp() * similarity))
