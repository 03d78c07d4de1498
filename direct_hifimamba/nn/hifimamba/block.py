"""The block of HiFi-MambaV2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from direct_hifimamba.nn.hifimamba.attention import ChannelAttention, GlobalContext
from direct_hifimamba.nn.hifimamba.bottleneck import InvertedBottleneck
from direct_hifimamba.nn.hifimamba.moe import SharedRoutedMoE
from direct_hifimamba.nn.hifimamba.sf_lap import CrossFrequencyRouting, SFLap
from direct_hifimamba.nn.layers.selective_scan_2d import SelectiveScan2D

if TYPE_CHECKING:
    from direct_hifimamba.nn.hifimamba.config import HiFiMambaV2Config


class HiFiMambaBlock(nn.Module):
    """Block: global context, frequency split, steered selective scan and mixture of experts, with a skip connection.

    Parameters
    ----------
    config : HiFiMambaV2Config
        Sizes and options.
    moe : SharedRoutedMoE
        The block's mixture of experts; its experts may be shared with other blocks.
    stochastic_depth : float
        Probability that training skips the block for a sample.
    """

    def __init__(self, config: HiFiMambaV2Config, moe: SharedRoutedMoE, stochastic_depth: float) -> None:
        super().__init__()
        channels = config.hidden_channels
        half = channels // 2

        self.context_norm = nn.LayerNorm(channels)
        self.context = GlobalContext(channels) if config.global_context else nn.Identity()
        self.sf_lap = SFLap(half, config.pyramid, config.pyramid_expand)
        routes = config.cross_frequency_routing and config.pyramid != "none"
        self.cross_frequency_routing = CrossFrequencyRouting() if routes else None
        self.steering_bottleneck = InvertedBottleneck(half)
        self.high_bottleneck = InvertedBottleneck(half)
        self.selective_scan: SelectiveScan2D | None = None
        if config.state_space:
            self.low_norm = nn.LayerNorm(half)
            self.steering_norm = nn.LayerNorm(half) if config.steering else nn.Identity()
            self.selective_scan = SelectiveScan2D(
                half,
                state_size=config.state_size,
                directions=config.scan_directions,
                steering=config.steering,
                dropout=config.scan_dropout,
                backend=config.scan_backend,
            )
        self.mix = nn.Linear(channels + (2 if config.state_space else 1) * half, channels)
        self.moe = moe
        self.channel_attention = ChannelAttention(channels)
        self.stochastic_depth = StochasticDepth(stochastic_depth, mode="row")

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (batch, h, w, C) to the same shape and the block's load-balancing loss."""
        context = self.context(self.context_norm(features))
        high, low = context.chunk(2, dim=-1)

        low, detail = self.sf_lap(low)
        if detail is not None:
            routing = self.cross_frequency_routing
            high = high + detail if routing is None else routing(high, detail)
        high = self.steering_bottleneck(high)
        parts = [context, self.high_bottleneck(high)]
        if self.selective_scan is not None:
            parts.append(self.selective_scan(self.low_norm(low), self.steering_norm(high)))
        mixed, balance = self.moe(self.mix(torch.cat(parts, dim=-1)))
        # A gate of zero skips the block, at less cost than zeros in all pixels.
        return torch.addcmul(features, mixed, self.stochastic_depth(self.channel_attention(mixed))), balance
