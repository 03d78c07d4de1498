"""Configuration of MambaRoll."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from direct_hifimamba.nn.layers.config import NetworkConfig


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

    MINIMUM: ClassVar[dict[str, int]] = {"num_rolls": 1, "state_size": 1}

    num_rolls: int = 5
    channels_per_scale: tuple[int, ...] = (96, 48, 24)
    state_size: int = 16
    image_residual: bool = False
    scale_loss_weight: float = 1 / 3

    def __post_init__(self) -> None:
        """Validate every value.

        Raises
        ------
        TypeError
            If a value does not have the type of its key.
        ValueError
            If a value is outside its range; key, value and range are named.
        """
        super().__post_init__()
        self._require("scale_loss_weight", 0 <= self.scale_loss_weight < math.inf, "a finite number from 0 up")
