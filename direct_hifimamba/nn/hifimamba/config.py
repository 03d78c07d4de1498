"""Configuration of HiFi-MambaV2: every size and option, its default and its allowed range, in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from direct.config.defaults import ModelConfig

# One constraint per key. Plain strings instead of enums: OmegaConf finds enum members by their upper-case name only.
_CHOICES: dict[str, tuple[str, ...]] = {
    "pyramid": ("binomial", "haar", "none"),
    "pyramid_expand": ("bilinear", "binomial"),
    "moe": ("shared_routed", "shared", "routed", "none"),
    "router_gate": ("probability", "scaled", "renormalised"),
    "expert_sharing": ("block", "stage", "network"),
    "data_consistency": ("hard", "soft"),
    "data_consistency_activation": ("silu", "none"),
    "state_space_path": ("mixture", "residual"),
    "initialisation": ("reference", "balanced"),
    "learning_rate_schedule": ("steps", "cosine"),
    "decayed_parameters": ("all", "matrices"),
    "scan_order": ("rows", "columns"),
    "scan_backend": ("auto", "reference", "torch", "native", "triton", "mamba_ssm"),
}
_MINIMUM: dict[str, int] = {
    "hidden_channels": 2,
    "patch_size": 1,
    "pyramid_levels": 1,
    "state_size": 1,
    "scan_expansion": 1,
    "scan_convolution_kernel": 1,
    "scan_convolution_dilation": 1,
    "steering_expansion": 1,
    "bottleneck_expansion": 1,
    "global_context_reduction": 1,
    "num_shared_experts": 1,
    "num_routed_experts": 1,
    "experts_top_k": 1,
    "expert_expansion": 1,
    "data_consistency_steps": 1,
}
_UNIT_INTERVAL = ("stochastic_depth", "scan_dropout")


@dataclass
class HiFiMambaV2Config(ModelConfig):
    """Configuration of :class:`direct_hifimamba.HiFiMambaV2`. The defaults are the reference at full size.

    Parameters
    ----------
    hidden_channels : int
        Feature channels C; even, at least `global_context_reduction` while `global_context` is on. Default: 128.
    blocks_per_stage : tuple of int
        Blocks K of each of the S unrolled stages; every stage ends in a data-consistency step.
        Default: (2, 2, 2, 2, 2, 2).
    patch_size : int
        Side p of the patch that becomes one feature pixel. Default: 2.
    global_context : bool
        Squeeze-and-excitation gate on the block's input. Default: True.
    global_context_reduction : int
        Its channel reduction. Default: 8.
    pyramid : str
        Split of the low half of the channels: "binomial" is SF-Lap, "haar" averages and repeats 2 x 2 pixels, "none"
        does not split, so that there is no detail band and nothing to route. Default: "binomial".
    pyramid_levels : int
        How often the low band is split again: it keeps what a grid of 2^levels times fewer rows and columns carries,
        and everything finer is detail. Default: 1.
    pyramid_expand : str
        Expansion of the binomial pyramid: "bilinear" (reference) or "binomial" (Burt-Adelson, without the reference's
        half-pixel shift). Default: "bilinear".
    cross_frequency_routing : bool
        Mix detail and high features by their cosine similarity; without, they are added. Default: True.
    bottleneck_expansion : int
        Channel expansion of the depthwise inverted bottlenecks. Default: 5.
    state_space : bool
        Model the low band with the selective scan; without, the mixture gets context and high band alone, and the keys
        of the scan mean nothing. Default: True.
    state_space_path : str
        Where the scan's output goes: with the other parts through the "mixture" of experts and the channel attention,
        or past them in a linear layer of its own, as a "residual". Default: "mixture".
    state_size : int
        States N of the selective scan per channel. Default: 16.
    scan_expansion : int
        Inner channels of the selective scan over its input channels. Default: 2.
    step_size_rank : int, optional
        Rank r of the step size projection. Default: None, a sixteenth of the input channels, rounded up.
    scan_convolution_kernel : int
        Taps (odd) of the convolutions along the sequence. Default: 11.
    scan_convolution_dilation : int
        Their dilation. Default: 2.
    scan_directions : int
        1: in `scan_order`; 2: and backwards; 4: and in the other order, both ways. Default: 1.
    scan_order : str
        "rows": along the width, the axis along which DIRECT's Cartesian masks leave out lines, so that a pixel and its
        aliases are in one row; "columns": along the height. Default: "rows".
    scan_folds : float
        Columns that lie a `scan_folds`-th of the width apart are scanned one after another: the aliases of a pixel, if
        this is the distance of sampled lines, R (1 - f) / (1 - R f) of an equispaced mask of acceleration R and centre
        fraction f. With `scan_order` "columns" the same of rows. Default: 1.0, neighbours one after another.
    scan_step_sizes : tuple of float
        Smallest and largest step size at the start, drawn log-uniformly per inner channel. State n of a channel with
        step size s forgets over 1 / (n s) feature pixels. Default: (0.001, 0.1).
    steering : bool
        Let the high band add to input and output matrices of the scan. Default: True.
    steering_expansion : int
        Hidden size of the gated MLPs on the steering matrices over N. Default: 6.
    scan_output_norm : bool
        LayerNorm between the scan and its output projection. Default: False.
    scan_dropout : float
        Dropout rate, in [0, 1), on the output of the scan module. Default: 0.1.
    scan_backend : str
        Backend of :func:`direct_hifimamba.ops.selective_scan.selective_scan`. Default: "auto".
    moe : str
        "shared_routed" (shared experts plus routed ones), "shared" or "routed" (one kind alone), "none" (one MLP as
        wide as all experts that act on a pixel together, no router). Default: "shared_routed".
    num_shared_experts : int
        Experts that act on every pixel. Default: 1.
    num_routed_experts : int
        Experts to choose from. Default: 4.
    experts_top_k : int
        Routed experts that act on a pixel. Default: 1.
    expert_expansion : int
        Hidden size of an expert over C. Default: 2.
    router_gate : str
        Weight of a chosen expert: "probability" (raw softmax), "scaled" (that times the number of routed experts, so
        that an undecided router gives 1), or "renormalised" over the chosen ones, which needs at least two of them for
        the router to learn from the image. Default: "probability".
    expert_sharing : str
        Where experts are shared between blocks: "block" (not at all), "stage" or "network". Routers are always local
        to a block. Default: "block".
    load_balancing_weight : float
        Weight of the load-balancing loss, added by the engine. Default: 1e-3.
    data_consistency : str
        "hard" replaces measured samples; "soft" blends them with a learned weight per stage. Default: "hard".
    data_consistency_steps : int
        How often measured samples are put back at a time. Of several coils, combining them undoes a part of it, so that
        every step brings the image closer to the measurement. Default: 1.
    data_consistency_activation : str
        "silu" or "none" on the image before it is embedded again. Default: "silu".
    image_residual : bool
        Carry the image from stage to stage, every stage predicting a correction. Default: False.
    image_normalisation : bool
        Work on the image over the largest magnitude of the zero-filled one, so that the result scales with the
        measurement. Without, embeddings of bright patches say little about their brightness. Default: False.
    initialisation : str
        "reference", or "balanced", with which every branch learns from the first step. Default: "reference".
    learning_rate_schedule : str
        "steps" (DIRECT's own) or "cosine" (:class:`direct_hifimamba.training.learning_rate.CosineSchedule`), set by the
        engine. Default: "steps".
    decayed_parameters : str
        What `training.weight_decay` acts on: "all", as in DIRECT, or "matrices" and kernels of convolutions, but no
        vectors (biases, scales, `D`), scalars and `A_log` (:mod:`direct_hifimamba.training.weight_decay`), set by the
        engine. A training that is resumed needs the value that it began with. Default: "all".
    stochastic_depth : float
        Rate, in [0, 1), at the last block, rising linearly from 0 at the first. Default: 0.3.
    activation_checkpointing : bool
        Recompute each block in the backward pass instead of storing its activations. Default: False.
    """

    hidden_channels: int = 128
    blocks_per_stage: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    patch_size: int = 2
    global_context: bool = True
    global_context_reduction: int = 8
    pyramid: str = "binomial"
    pyramid_levels: int = 1
    pyramid_expand: str = "bilinear"
    cross_frequency_routing: bool = True
    bottleneck_expansion: int = 5
    state_space: bool = True
    state_space_path: str = "mixture"
    state_size: int = 16
    scan_expansion: int = 2
    step_size_rank: int | None = None
    scan_convolution_kernel: int = 11
    scan_convolution_dilation: int = 2
    scan_directions: int = 1
    scan_order: str = "rows"
    scan_folds: float = 1.0
    scan_step_sizes: tuple[float, ...] = (1e-3, 1e-1)
    steering: bool = True
    steering_expansion: int = 6
    scan_output_norm: bool = False
    scan_dropout: float = 0.1
    scan_backend: str = "auto"
    moe: str = "shared_routed"
    num_shared_experts: int = 1
    num_routed_experts: int = 4
    experts_top_k: int = 1
    expert_expansion: int = 2
    router_gate: str = "probability"
    expert_sharing: str = "block"
    load_balancing_weight: float = 1e-3
    data_consistency: str = "hard"
    data_consistency_steps: int = 1
    data_consistency_activation: str = "silu"
    image_residual: bool = False
    image_normalisation: bool = False
    initialisation: str = "reference"
    learning_rate_schedule: str = "steps"
    decayed_parameters: str = "all"
    stochastic_depth: float = 0.3
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Validate every value.

        Raises
        ------
        TypeError
            If a value has not the type of its key.
        ValueError
            If a value is outside its range; key, value and range are named.
        """
        for field in fields(self):
            # Under `from __future__ import annotations` a field's type is its source text.
            if field.type in ("int", "bool", "float", "str") and field.name != "model_name":
                self._require_type(field.name, str(field.type))
        self._require(
            "blocks_per_stage",
            isinstance(self.blocks_per_stage, Sequence)
            and all(type(blocks) is int for blocks in self.blocks_per_stage),
            "a list of integers, one per stage",
        )
        self.blocks_per_stage = tuple(self.blocks_per_stage)  # from YAML it comes as a list of OmegaConf
        self._require(
            "blocks_per_stage",
            len(self.blocks_per_stage) > 0 and min(self.blocks_per_stage) > 0,
            "at least one stage and at least one block in each",
        )
        for key, choices in _CHOICES.items():
            self._require(key, getattr(self, key) in choices, f"one of {', '.join(choices)}")
        for key, minimum in _MINIMUM.items():
            self._require(key, getattr(self, key) >= minimum, f"an integer from {minimum} up")
        for key in _UNIT_INTERVAL:
            self._require(key, 0 <= getattr(self, key) < 1, "a number in [0, 1)")

        self._require("hidden_channels", self.hidden_channels % 2 == 0, "an even number")
        if self.global_context:
            self._require(
                "global_context_reduction",
                self.global_context_reduction <= self.hidden_channels,
                f"at most hidden_channels = {self.hidden_channels}",
            )
        if self.step_size_rank is not None:
            self._require_type("step_size_rank", "int")
            self._require("step_size_rank", self.step_size_rank >= 1, "null or an integer from 1 up")
        self._require("scan_convolution_kernel", self.scan_convolution_kernel % 2 == 1, "an odd number")
        self._require(
            "scan_step_sizes",
            isinstance(self.scan_step_sizes, Sequence)
            and all(type(size) in (float, int) for size in self.scan_step_sizes)
            and len(self.scan_step_sizes) == 2
            and 0 < self.scan_step_sizes[0] <= self.scan_step_sizes[1] < math.inf,
            "two numbers above 0, the smallest and the largest",
        )
        self.scan_step_sizes = tuple(self.scan_step_sizes)
        self._require("scan_folds", 1 <= self.scan_folds < math.inf, "a finite number from 1 up")
        self._require("scan_directions", self.scan_directions in (1, 2, 4), "1, 2 or 4")
        self._require(
            "experts_top_k",
            self.experts_top_k <= self.num_routed_experts,
            f"at most num_routed_experts = {self.num_routed_experts}",
        )
        self._require(
            "router_gate",
            self.router_gate != "renormalised" or self.experts_top_k > 1,
            "probability or scaled while experts_top_k is 1: the weight of a single expert renormalises to 1",
        )
        self._require(
            "load_balancing_weight",
            0 <= self.load_balancing_weight < math.inf,
            "a finite number from 0 up",
        )

    def _require_type(self, key: str, type_name: str) -> None:
        value = getattr(self, key)
        allowed: dict[str, tuple[type, ...]] = {"int": (int,), "bool": (bool,), "float": (float, int), "str": (str,)}
        is_bool_as_number = isinstance(value, bool) and type_name in ("int", "float")
        if not isinstance(value, allowed[type_name]) or is_bool_as_number:
            raise TypeError(f"{key} is {value!r} ({type(value).__name__}); expected {type_name}.")

    def _require(self, key: str, condition: bool, expected: str) -> None:
        if not condition:
            value: Any = getattr(self, key)
            raise ValueError(f"{key} is {value!r}; expected {expected}.")
