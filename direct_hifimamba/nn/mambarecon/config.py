"""Configuration of MambaRecon."""

from __future__ import annotations

from dataclasses import dataclass, field

from direct_hifimamba.nn.layers.config import NetworkConfig, at_least


@dataclass
class MambaReconConfig(NetworkConfig):
    """Configuration of :class:`direct_hifimamba.nn.mambarecon.mambarecon.MambaRecon`; by default the published sizes.

    Parameters
    ----------
    hidden_channels : int
        Feature channels. Default: 128.
    blocks_per_stage : tuple of int
        Blocks of each unrolled stage; every stage ends in a data-consistency step. Default: (2, 2, 2, 2, 2, 2).
    patch_size : int
        Side of the patch that becomes one feature pixel. Default: 2.
    state_size : int
        States of the selective scan per channel and direction. Default: 16.
    image_residual : bool
        Pass the image from stage to stage, so that every stage predicts a correction; not in the paper. Default: False.
    """

    hidden_channels: int = field(default=128, metadata=at_least(1))
    blocks_per_stage: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    patch_size: int = field(default=2, metadata=at_least(1))
    state_size: int = field(default=16, metadata=at_least(1))
    image_residual: bool = False
