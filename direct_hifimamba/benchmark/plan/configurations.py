"""The configurations of a benchmark, composed for every model and acceleration; they differ in the model alone."""

import json
from collections.abc import Mapping
from typing import Any, cast

from direct.config.defaults import PhysicsConfig
from omegaconf import DictConfig, OmegaConf

from direct_hifimamba.benchmark.plan.specification import STEPS, Specification
from direct_hifimamba.training.compose import compose

# isort: split
from direct.data.datasets_config import TransformsConfig  # which cannot be imported before direct.environment

SHARED = (
    "physics",
    "additional_models",
    "training.datasets",
    "training.loss",
    "training.regularizers",
    "training.batch_size",
    "training.lr_step_size",
    "training.lr_gamma",
    "validation",
    "inference",
)
"""Sections that have to be the same for all models."""

_OF_THE_MASK = ("training.datasets", "validation.datasets", "inference.dataset.text_description")
_MIN_CHECKPOINTS, _MAX_CHECKPOINTS = 4, 20
_CHECKPOINT_SECONDS = 300
_LOG_ENTRIES = 50


def compose_models(specification: Specification) -> dict[str, dict[str, DictConfig]]:
    """Compose and check the configurations.

    Returns
    -------
    dict
        By label and acceleration: what DIRECT takes for training on the masks of this acceleration alone.

    Raises
    ------
    ValueError
        If a configuration is invalid for DIRECT, if a section of `SHARED` differs between models, or if masks of the
        test would be drawn rather than read.
    """
    composed = {
        label: {
            acceleration: compose([*specification.configs, *masks, *model.configs], model.overrides)
            for acceleration, masks in specification.accelerations.items()
        }
        for label, model in specification.models.items()
    }
    for label, configs in composed.items():
        for acceleration, config in configs.items():
            name = f"{label} at {acceleration}"
            _check_completeness(config, name, specification.search is not None)
            _check_schedule(config, name, specification.schedule)
    reference, references = next(iter(composed.items()))
    for label, configs in composed.items():
        first = next(iter(configs))
        for acceleration, config in configs.items():
            for section in SHARED:
                shared, own = (OmegaConf.select(entry, section) for entry in (references[acceleration], config))
                _check_equal(section, (reference, shared), (label, own))
            one, other = ((f"{label} at {name}", _without_masks(configs[name])) for name in (first, acceleration))
            _check_equal("", one, other)
    return composed


def evaluation_settings(config: DictConfig) -> dict[str, Any]:
    """Return what images depend on besides files, masks and model: operators, transforms and crop.

    Every default of DIRECT is written out, so that a configuration that states a default is not a different one.

    Parameters
    ----------
    config : DictConfig
        Of any model and acceleration of a benchmark, in which these settings are the same.
    """
    inference = config.inference
    return {
        "physics": _with_defaults(PhysicsConfig, config.physics),
        "crop": inference.get("crop"),
        "transforms": _with_defaults(TransformsConfig, inference.dataset.transforms),
    }


def _with_defaults(schema: type, values: DictConfig) -> dict[str, Any]:
    merged = OmegaConf.merge(OmegaConf.structured(schema), values)
    plain = OmegaConf.to_container(merged, enum_to_str=True)
    return cast(dict[str, Any], json.loads(json.dumps(plain)))  # which has no tuples


def training_config(
    configs: Mapping[str, DictConfig],
    iterations: int,
    warm_up: float,
    learning_rate: float | None = None,
    seconds: float | None = None,
    validations: int = 0,
) -> DictConfig:
    """Return the configuration of a training on the masks of all accelerations in equal shares.

    DIRECT chooses among its data sets by their sizes, which are the same here. Nothing is chosen by validation.

    Parameters
    ----------
    configs : dict
        Of one model, by acceleration.
    iterations : int
    warm_up : float
        Fraction of the iterations.
    learning_rate : float, optional
        Default: that of the configuration.
    seconds : float, optional
        Time of an iteration. There is a checkpoint every five minutes, but at least 4 and at most 20 in a training,
        which are all kept; 4 if the time is not known.
    validations : int
        How often the model is evaluated on the validation split of the first acceleration.
    """
    acceleration, config = next((name, config.copy()) for name, config in configs.items())
    validated = [{**entry, "text_description": acceleration} for entry in config.validation.datasets]
    changes = {
        "training.datasets": [entry for other in configs.values() for entry in other.training.datasets],
        "training.num_iterations": iterations,
        "training.lr_warmup_iter": round(warm_up * iterations),
        "training.checkpointer.checkpoint_steps": checkpoint_steps(iterations, seconds),
        "training.validation_steps": max(1, iterations // max(1, validations)),
        "validation.datasets": validated if validations else [],
        "logging.log_interval": max(1, iterations // _LOG_ENTRIES),
    }
    if learning_rate is not None:
        changes["training.lr"] = learning_rate
    for key, value in changes.items():
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    return config


def checkpoint_steps(iterations: int, seconds: float | None) -> int:
    """Return the number of iterations from one checkpoint to the next; see :func:`training_config`."""
    most = max(1, iterations // _MIN_CHECKPOINTS)
    if seconds is None:
        return most
    return min(max(1, round(_CHECKPOINT_SECONDS / seconds), -(-iterations // _MAX_CHECKPOINTS)), most)


def is_centered(forward_operator: str) -> bool:
    """Return whether the Fourier transform of a configuration has the zero frequency in the middle."""
    return "centered=False" not in forward_operator


def _check_completeness(config: DictConfig, name: str, has_search: bool) -> None:
    for section in ("physics", "training", "validation", "inference"):
        if config.get(section) is None:
            raise ValueError(f"The configuration of {name} has no section {section!r}; add one to configs.")
    if not has_search and OmegaConf.select(config, "training.lr") is None:
        raise ValueError(f"The configuration of {name} has no training.lr; add one, or a search.")
    if len(config.training.datasets) != 1:
        raise ValueError(
            f"The configuration of {name} has {len(config.training.datasets)} entries in training.datasets; expected "
            "one, with the mask of the acceleration."
        )
    masking = config.training.datasets[0].transforms.masking
    if masking is not None and len(masking.get("accelerations") or ()) > 1:
        raise ValueError(
            f"The configuration of {name} trains with the accelerations {list(masking.accelerations)} in one data set, "
            "whose masks would lack samples of the centre; expected a single one, and an entry of accelerations each."
        )
    if config.inference.dataset.transforms.masking is not None:
        raise ValueError(
            f"The configuration of {name} draws the masks of inference.dataset; expected stored ones: masking: null, "
            "and pass_mask: true."
        )
    normalization = OmegaConf.select(config, "inference.dataset.transforms.normalization") or {}
    if normalization.get("scaling_key", "masked_kspace") and normalization.get("scale_percentile", 0.99) is None:
        raise ValueError(
            f"The configuration of {name} has scale_percentile: null in inference.dataset.transforms.normalization, "
            "with which DIRECT multiplies images by a factor by which it has not divided k-space; expected a number "
            "such as 0.99, in training as well."
        )
    image_type = str(config.inference.dataset.transforms.get("image_recon_type") or "rss")
    if image_type.rpartition(".")[2].lower() != "rss":
        raise ValueError(
            f"The configuration of {name} has image_recon_type {image_type!r} in inference.dataset.transforms; "
            "expected rss: all images are compared with the root sum of squares."
        )


def _check_schedule(config: DictConfig, name: str, schedule: str) -> None:
    own = config.model.get("learning_rate_schedule") or STEPS
    if schedule == STEPS and own != STEPS:
        raise ValueError(
            f"The configuration of {name} has model.learning_rate_schedule {own!r}, and the specification schedule: "
            f"{STEPS}; expected one for all models. Leave out the former, or write schedule: {own}."
        )


def _without_masks(config: DictConfig) -> DictConfig:
    config = config.copy()
    for key in _OF_THE_MASK:
        OmegaConf.update(config, key, None, merge=False, force_add=True)
    return config


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _check_equal(section: str, one: tuple[str, Any], other: tuple[str, Any]) -> None:
    difference = find_difference(_plain(one[1]), _plain(other[1]), section)
    if difference is not None:
        path, value, other_value = difference
        raise ValueError(
            f"{path} is {value!r} for {one[0]} and {other_value!r} for {other[0]}; a fair comparison needs the same. "
            "Set it in configs alone."
        )


def find_difference(first: Any, second: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return path and values of the first difference between two nested mappings and lists; None if they are equal."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = [*first, *(key for key in second if key not in first)]
        pairs = [(key, first.get(key), second.get(key)) for key in keys]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = [(index, *pair) for index, pair in enumerate(zip(first, second, strict=True))]
    else:
        return None if first == second else (path, first, second)
    differences = (find_difference(one, two, f"{path}.{key}".lstrip(".")) for key, one, two in pairs)
    return next(filter(None, differences), None)
