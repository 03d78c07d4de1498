"""Base of the configurations of networks: the keys that all of them have, and the validation of values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from direct.config.defaults import ModelConfig

_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "bool": (bool,), "float": (float, int), "str": (str,)}


def expect(expected: str, is_allowed: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the metadata of a field whose values are checked; `expected` describes them in the message."""
    return {"expected": expected, "is_allowed": is_allowed}


def one_of(*choices: str) -> dict[str, Any]:
    """Return the metadata of a field with these values. No enum, as OmegaConf finds its members by upper-case names."""
    return expect(f"one of {', '.join(choices)}", choices.__contains__)


def at_least(minimum: int) -> dict[str, Any]:
    """Return the metadata of a field of integers."""
    return expect(f"an integer from {minimum} up", lambda value: value >= minimum)


NOT_NEGATIVE = expect("a finite number from 0 up", lambda value: 0 <= value < math.inf)
BELOW_ONE = expect("a number in [0, 1)", lambda value: 0 <= value < 1)


@dataclass
class NetworkConfig(ModelConfig):
    """Keys of every network of this package. A subclass adds its own; allowed values are the metadata of a field.

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

    image_normalisation: bool = False
    scan_backend: str = field(
        default="auto", metadata=one_of("auto", "reference", "torch", "native", "triton", "mamba_ssm")
    )
    learning_rate_schedule: str = field(default="steps", metadata=one_of("steps", "cosine", "paper"))
    decayed_parameters: str = field(default="all", metadata=one_of("all", "matrices"))
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
        for key in fields(self):
            # Under `from __future__ import annotations` a field's type is its source text.
            if key.type in _TYPES and key.name != "model_name":
                self._require_type(key.name, str(key.type))
            elif key.type == "tuple[int, ...]":
                self._require_integers(key.name)
        for key in fields(self):
            if "is_allowed" in key.metadata:
                is_allowed = key.metadata["is_allowed"](getattr(self, key.name))
                self._require(key.name, is_allowed, key.metadata["expected"])

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
