from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from direct_hifimamba.nn.hifimamba.bottleneck import InvertedBottleneck
from tests.helpers import perturb


def normalise(inner: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """One mean and one variance for all channels and pixels of an image (batch, channels, height, width)."""
    mean = inner.mean(dim=(1, 2, 3), keepdim=True)
    variance = (inner - mean).square().mean(dim=(1, 2, 3), keepdim=True)
    return (inner - mean) / (variance + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize("size", [(6, 5), (1, 1), (2, 9)])
def test_the_bottleneck_is_three_convolutions_around_a_skip_connection(size: tuple[int, int]) -> None:
    block = perturb(InvertedBottleneck(4)).double()
    features = torch.randn(2, *size, 4, dtype=torch.float64, requires_grad=True)
    image = features.permute(0, 3, 1, 2)
    inner = F.conv2d(image, block.expand.weight[..., None, None])
    inner = F.gelu(normalise(inner, block.expand_norm.weight, block.expand_norm.bias))
    inner = F.conv2d(inner, block.depthwise.weight, padding=1, groups=20)
    inner = F.gelu(normalise(inner, block.depthwise_norm.weight, block.depthwise_norm.bias))
    expected = image + F.gelu(F.conv2d(inner, block.project.weight[..., None, None]))

    output = block(features)
    torch.testing.assert_close(output, expected.permute(0, 2, 3, 1))
    inputs, weights = [features, *block.parameters()], torch.randn_like(output)
    actual = torch.autograd.grad((output * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected.permute(0, 2, 3, 1) * weights).sum(), inputs)
    for gradient, expected_gradient in zip(actual, wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)
