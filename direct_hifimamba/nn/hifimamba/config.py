"""Configuration of HiFi-MambaV2: every size and option, its default and its allowed range, in one place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from direct_hifimamba.nn.layers.config import BELOW_ONE, NOT_NEGATIVE, NetworkConfig, at_least, expect, one_of

#: Keys of earlier versions that were removed, with the values that are fixed now.
REMOVED_KEYS: dict[str, Any] = {
    "global_context_reduction": 8,
    "pyramid_levels": 1,
    "bottleneck_expansion": 5,
    "state_space_path": "mixture",
    "scan_expansion": 2,
    "step_size_rank": None,
    "scan_convolution_kernel": 11,
    "scan_convolution_dilation": 2,
    "scan_order": "rows",
    "scan_folds": 1.0,
    "scan_step_sizes": [1e-3, 1e-1],
    "scan_output_norm": False,
    "steering_expansion": 6,
    "num_shared_experts": 1,
    "experts_top_k": 1,
    "expert_expansion": 2,
    "router_gate": "probability",
}
_LAST_REVISION = "8c8114b"


class _NamesRemovedKeys(type):
    """Metaclass whose class name, which OmegaConf prints when it refuses a key, lists the removed keys."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        return f"{cls.__qualname__} (revision {_LAST_REVISION} is the last that had {', '.join(REMOVED_KEYS)})"


@dataclass
class HiFiMambaV2Config(NetworkConfig, metaclass=_NamesRemovedKeys):
    """Configuration of :class:`direct_hifimamba.HiFiMambaV2`. The defaults are the reference at full size.

    State gates and the blending of frequencies, which cost little, are recomputed in the backward pass even without
    `activation_checkpointing`.

    Parameters
    ----------
    hidden_channels : int
        Feature channels C; even. Default: 128.
    blocks_per_stage : tuple of int
        Blocks K of each of the S unrolled stages; every stage ends in a data-consistency step.
        Default: (2, 2, 2, 2, 2, 2).
    patch_size : int
        Side p of the patch that becomes one feature pixel. Default: 2.
    global_context : bool
        Squeeze-and-excitation gate on the block's input. Default: True.
    pyramid : str
        Split of the low half of the channels: "binomial" is SF-Lap, "haar" averages and repeats 2 x 2 pixels, "none"
        does not split, so that there is no detail band and nothing to route. Default: "binomial".
    pyramid_expand : str
        Expansion of the binomial pyramid: "bilinear" (reference) or "binomial" (Burt-Adelson, without the reference's
        half-pixel shift). Default: "bilinear".
    cross_frequency_routing : bool
        Mix detail and high features by their cosine similarity; if False, they are added. Default: True.
    state_space : bool
        Model the low band with the selective scan. If False, the mixture gets context and high band only, and the keys
        of the scan have no effect. Default: True.
    state_size : int
        States N of the selective scan per channel. Default: 16.
    scan_directions : int
        1: along rows, as in the paper; 2: also backwards; 4: also along columns, in both directions. Default: 1.
    steering : bool
        Add matrices from the high band to the input and output matrices of the scan. Default: True.
    scan_dropout : float
        Dropout rate, in [0, 1), on the output of the scan module. Default: 0.1.
    moe : str
        "shared_routed" (a shared expert plus a routed one for every pixel), "shared" or "routed" (one kind only),
        "none" (one MLP as wide as the two experts that act on a pixel, no router). Default: "shared_routed".
    num_routed_experts : int
        Experts of which the router chooses one for every pixel. Default: 4.
    expert_sharing : str
        Where experts are shared between blocks: "block" (not at all), "stage" or "network". Routers are always local
        to a block. Default: "block".
    load_balancing_weight : float
        Weight of the load-balancing loss, added by the engine. Default: 1e-3.
    coil_mode : str
        "sense" reconstructs the coil-combined image with sensitivity maps, for any number of coils. "channels" stacks
        the images of `num_coils` coils as channels, makes every coil's image consistent with its own k-space, without
        sensitivity maps, and gives their root sum of squares, as the authors' multi-coil network does.
        Default: "sense".
    num_coils : int
        Coils of every measurement if `coil_mode` is "channels". Default: 4.
    data_consistency : str
        "hard" replaces predicted samples by measured ones, as the authors' code does. "proximal" solves
        (A^H A + lambda) x = A^H y + lambda z for the image x, where z is the prediction and lambda a learned weight
        that depends on the noise; the initial image is CG-SENSE instead of zero-filled, and the last one is multiplied
        by the factor with which it fits the samples best. Better for several coils. Default: "hard".
    data_consistency_steps : int
        Repetitions of "hard", or conjugate-gradient iterations of "proximal". Default: 1.
    data_consistency_activation : str
        "silu" or "none" on the image before it is embedded again. Default: "silu".
    image_residual : bool
        Pass the image from stage to stage, so that every stage predicts a correction. Default: False.
    initialisation : str
        "reference", or "balanced", with which every branch learns from the first step. Default: "reference".
    stochastic_depth : float
        Rate, in [0, 1), at the last block, rising linearly from 0 at the first. Default: 0.3.
    """

    hidden_channels: int = field(default=128, metadata=at_least(2))
    blocks_per_stage: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    patch_size: int = field(default=2, metadata=at_least(1))
    global_context: bool = True
    pyramid: str = field(default="binomial", metadata=one_of("binomial", "haar", "none"))
    pyramid_expand: str = field(default="bilinear", metadata=one_of("bilinear", "binomial"))
    cross_frequency_routing: bool = True
    state_space: bool = True
    state_size: int = field(default=16, metadata=at_least(1))
    scan_directions: int = field(default=1, metadata=expect("1, 2 or 4", lambda value: value in (1, 2, 4)))
    steering: bool = True
    scan_dropout: float = field(default=0.1, metadata=BELOW_ONE)
    moe: str = field(default="shared_routed", metadata=one_of("shared_routed", "shared", "routed", "none"))
    num_routed_experts: int = field(default=4, metadata=at_least(1))
    expert_sharing: str = field(default="block", metadata=one_of("block", "stage", "network"))
    load_balancing_weight: float = field(default=1e-3, metadata=NOT_NEGATIVE)
    coil_mode: str = field(default="sense", metadata=one_of("sense", "channels"))
    num_coils: int = field(default=4, metadata=at_least(1))
    data_consistency: str = field(default="hard", metadata=one_of("hard", "proximal"))
    data_consistency_steps: int = field(default=1, metadata=at_least(1))
    data_consistency_activation: str = field(default="silu", metadata=one_of("silu", "none"))
    image_residual: bool = False
    initialisation: str = field(default="reference", metadata=one_of("reference", "balanced"))
    stochastic_depth: float = field(default=0.3, metadata=BELOW_ONE)

    def __new__(cls, *_: Any, **keys: Any) -> HiFiMambaV2Config:
        """Refuse removed keys, which `__init__` does not know."""
        cls.refuse_removed(keys)
        return super().__new__(cls)

    @property
    def stacked_coils(self) -> int:
        """Number of coils whose images become one feature map."""
        return self.num_coils if self.coil_mode == "channels" else 1

    @staticmethod
    def refuse_removed(keys: Iterable[str]) -> None:
        """Refuse keys that earlier versions had.

        Raises
        ------
        ValueError
            If there is one; the message names it, the last revision that had it, and what to do.
        """
        removed = [key for key in keys if key in REMOVED_KEYS]
        if removed:
            values = ", ".join(f"{key}: {REMOVED_KEYS[key]!r}" for key in removed)
            raise ValueError(
                f"HiFiMambaV2 no longer has {', '.join(removed)}; revision {_LAST_REVISION} is the last that had it. "
                f"Delete it if its value is the one that is fixed now ({values}), else use that revision."
            )

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
        self._require("hidden_channels", self.hidden_channels % 2 == 0, "an even number")
