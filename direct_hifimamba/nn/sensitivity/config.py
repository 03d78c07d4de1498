"""Configuration of the refinement of coil sensitivities."""

from __future__ import annotations

from dataclasses import dataclass

from direct.config.defaults import ModelConfig


@dataclass
class SensitivityRefinementConfig(ModelConfig):
    """Configuration of :class:`direct_hifimamba.nn.sensitivity.sensitivity.SensitivityRefinement`.

    Parameters
    ----------
    num_filters : int
        Channels of the U-Net at its finest level. Default: 16.
    num_pool_layers : int
        Levels of the U-Net below the finest. Default: 2.
    reduction : int
        Pixels of the image, each way, per pixel of the grid on which the correction is computed. Default: 4.
    """

    num_filters: int = 16
    num_pool_layers: int = 2
    reduction: int = 4

    def __post_init__(self) -> None:
        """Validate every value.

        Raises
        ------
        ValueError
            If a value is below 1.
        """
        for name in ("num_filters", "num_pool_layers", "reduction"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected an integer from 1 up.")
