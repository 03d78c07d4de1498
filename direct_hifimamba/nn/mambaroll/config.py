"""Configuration of MambaRoll."""

from __future__ import annotations

from dataclasses import dataclass, field

from direct_hifimamba.nn.layers.config import NOT_NEGATIVE, NetworkConfig, at_least


@dataclass
class MambaRollConfig(NetworkConfig):
    """Configuration of :class:`direct_hifimamba.nn.mambaroll.mambaroll.MambaRoll`; by default the published sizes.

    Parameters
    ----------
    num_rolls : int
        Repetitions of the scales, all with the same weights. Default: 5.
    channels_per_scale : tuple of int
        Feature channels of every scale. The last scale has full resolution, and each one before half of the next one's.
        Default: (96, 48, 24).
    state_size : int
        States of the selective scan per channel. Default: 16.
    image_residual : bool
        Let every scale predict a correction of the image before it; not in the paper. Default: False.
    scale_loss_weight : float
        Weight of the losses of every scale's image relative to those of the final image, added by the engine.
        Default: 1/3.
    """

    num_rolls: int = field(default=5, metadata=at_least(1))
    channels_per_scale: tuple[int, ...] = (96, 48, 24)
    state_size: int = field(default=16, metadata=at_least(1))
    image_residual: bool = False
    scale_loss_weight: float = field(default=1 / 3, metadata=NOT_NEGATIVE)
