"""Base of the configurations of networks: the keys that all of them have, and the validation of values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from direct.config.defaults import ModelConfig

_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "bool": (bool,), "float": (float, int), "str": (str,)}


@dataclass
class NetworkConfig(ModelConfig):
    """Keys of every network of this package. A subclass adds its own keys and their allowed values.

    Parameters
    ----------
    image_normalisation : bool
        Divide images by the largest magnitude of the initial one, so that the result scales with the measurement. If
        False, embeddings of bright patches depend little on their brightness. Default: False.
    scan_backend : str
        Backend of :func:`direct_hifimamba.ops.selective_scan.selective_scan`. Default: "auto".
    learning_rate_schedule : str
        "steps" (DIRECT's own), "cosine" or "paper" (:class:`direct_hifimamba.training.learning_rate.CosineSchedule` and
        `PaperSchedule`), set by the engine. Default: "steps".
    decayed_parameters : str
        What `training.weight_decay` acts on: "all", as in DIRECT, or "matrices" and kernels of convolutions, but no
        vectors (biases, scales, `D`), scalars and `A_log` (:mod:`direct_hifimamba.training.weight_decay`), set by the
        engine. A resumed training needs the same value as before. Default: "all".
    activation_checkpointing : bool
        Recompute each block in the backward pass instead of storing its activations. Default: False.
    """

    #: Allowed strings. No enums, as OmegaConf finds enum members by their upper-case names only.
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "learning_rate_schedule": ("steps", "cosine", "paper"),
        "decayed_parameters": ("all", "matrices"),
        "scan_backend": ("auto", "reference", "torch", "native", "triton", "mamba_ssm"),
    }
    #: Smallest integers.
    MINIMUM: ClassVar[dict[str, int]] = {}

    image_normalisation: bool = False
    scan_backend: str = "auto"
    learning_rate_schedule: str = "steps"
    decayed_parameters: str = "all"
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Validate every value.

        Raises
        ------
        TypeError
            If a value does not have the type of its key.
        ValueError
            If a value is outside its range; key, value and range are named.
        """
        for field in fields(self):
            # Under `from __future__ import annotations` a field's type is its source text.
            if field.type in _TYPES and field.name != "model_name":
                self._require_type(field.name, str(field.type))
            elif field.type == "tuple[int, ...]":
                self._require_integers(field.name)
        for key, choices in self.CHOICES.items():
            self._require(key, getattr(self, key) in choices, f"one of {', '.join(choices)}")
        for key, minimum in self.MINIMUM.items():
            self._require(key, getattr(self, key) >= minimum, f"an integer from {minimum} up")

    def _require_type(self, key: str, type_name: str) -> None:
        value = getattr(self, key)
        is_bool_as_number = isinstance(value, bool) and type_name in ("int", "float")
        if not isinstance(value, _TYPES[type_name]) or is_bool_as_number:
            raise TypeError(f"{key} is {value!r} ({type(value).__name__}); expected {type_name}.")

    def _require_integers(self, key: str) -> None:
        values = getattr(self, key)
        is_list = isinstance(values, Sequence) and all(type(value) is int for value in values)
        self._require(key, is_list, "a list of integers")
        setattr(self, key, tuple(values))  # from YAML it comes as a list of OmegaConf
        self._require(key, len(values) > 0 and min(values) > 0, "at least one integer, and all from 1 up")

    def _require(self, key: str, condition: bool, expected: str) -> None:
        if not condition:
            raise ValueError(f"{key} is {getattr(self, key)!r}; expected {expected}.")
