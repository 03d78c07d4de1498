from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from direct_hifimamba.nn.hifimamba.attention import ChannelAttention, GlobalContext


def test_channel_attention_is_a_3_by_3_convolution_of_one_pixel() -> None:
    attention, features = ChannelAttention(6), torch.randn(2, 5, 4, 6)
    convolution = nn.Conv2d(6, 6, kernel_size=3, padding=1, groups=6)  # whatever its other taps are
    convolution.weight.data[:, 0, 1, 1] = attention.scale.data
    convolution.bias.data = attention.offset.data
    mean = features.mean(dim=(1, 2))
    gate = convolution(F.gelu(F.linear(mean, attention.pointwise.weight, attention.pointwise.bias))[..., None, None])
    torch.testing.assert_close(attention(features), gate.sigmoid().permute(0, 2, 3, 1))


def test_scale_and_offset_start_as_in_a_3_by_3_convolution() -> None:
    attention = ChannelAttention(4096)
    convolution = nn.Conv2d(4096, 4096, kernel_size=3, groups=4096)
    for parameter, expected in ((attention.scale, convolution.weight), (attention.offset, convolution.bias)):
        assert abs(parameter.abs().max() - expected.abs().max()) < 0.01
        assert abs(parameter.std() - expected.std()) < 0.02


def test_global_context_gates_channels_by_their_means() -> None:
    context, features = GlobalContext(16), torch.randn(2, 5, 4, 16)
    assert context.squeeze.out_features == 2
    for index in range(2):
        mean = features[index].reshape(20, 16).sum(dim=0) / 20
        hidden = (context.squeeze.weight @ mean).clamp(min=0)
        gate = 1 / (1 + (-(context.excite.weight @ hidden)).exp())
        torch.testing.assert_close(context(features)[index], features[index] * gate)
