"""Compose one configuration for DIRECT from several files, with an error for every key that DIRECT does not know.

DIRECT reads a single YAML file, and ignores misspelt keys in its data sets and losses. Here files are merged in order,
mappings key by key and lists as a whole; later files take precedence. The section `parameters` holds values for
references such as ``${parameters.mask}``, and is removed from the result.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, cast

import direct.functionals
import torch
import yaml
from direct.common import subsample
from direct.config import defaults
from direct.environment import load_model_config_from_name, load_model_from_name
from direct.nn.types import LossFunType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

# isort: split
from direct.data import datasets_config  # which cannot be imported before direct.environment

from direct_hifimamba.plugin import register_data_sets

PARAMETERS = "parameters"

_SECTIONS = {
    "physics": defaults.PhysicsConfig,
    "training": defaults.TrainingConfig,
    "validation": defaults.ValidationConfig,
    "inference": defaults.InferenceConfig,
    "logging": defaults.LoggingConfig,
}


def compose(paths: Sequence[Path], overrides: Sequence[str] = ()) -> DictConfig:
    """Merge configurations and check the result.

    Parameters
    ----------
    paths : sequence of Path
        YAML files, in the order in which they are merged.
    overrides : sequence of str
        Applied after the files: key=value, with dots between keys and the index as key of a list, as in
        ``training.datasets.0.transforms.use_seed=true``; the value is YAML.

    Returns
    -------
    DictConfig
        The configuration in the form of DIRECT, without references.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If a file or an override is malformed, or if the result does not fit DIRECT.
    """
    config = OmegaConf.create()
    for path in paths:
        config.merge_with(load(path))
    for override in overrides:
        _override(config, override)
    resolve(config)
    config.pop(PARAMETERS, None)
    register_data_sets()  # DIRECT's own models do not
    validate(config)
    for loss in OmegaConf.select(config, "training.loss.losses") or ():
        if "multiplier" not in loss:  # DIRECT has this default, and then fails without the key
            OmegaConf.update(loss, "multiplier", defaults.FunctionConfig.multiplier, force_add=True)
    return config


def load(path: Path) -> DictConfig:
    """Read a YAML file of a configuration.

    Raises
    ------
    ValueError
        If it is not valid YAML, or has no keys.
    """
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, DictConfig) or not config:
        raise ValueError(f"{path} has no keys; expected YAML such as 'model: ...'.")
    return config


def resolve(config: DictConfig) -> None:
    """Replace the references in a configuration, such as `${training.lr}`, by the values that they name.

    Raises
    ------
    ValueError
        If one of them names nothing.
    """
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ValueError(f"A reference cannot be resolved: {_first_line(error)}") from error


def _override(config: DictConfig, override: str) -> None:
    key, _, value = override.partition("=")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
        OmegaConf.update(config, key, parsed["value"], merge=False, force_add=True)
    except (yaml.YAMLError, ValueError, IndexError, OmegaConfBaseException) as error:
        raise ValueError(f"The override {override!r} cannot be applied: {_first_line(error)}") from error


def validate(config: DictConfig) -> None:
    """Check a configuration against the dataclasses of DIRECT, of its data sets and of the models.

    Raises
    ------
    ValueError
        If a key is unknown (the nearest valid ones are named), a mandatory one missing, or a value does not fit.
    """
    for key in config:
        _check_name(str(key), (field.name for field in fields(defaults.DefaultConfig)), "The section")
    if config.get("model") is None:
        raise ValueError("There is no section 'model'; merge a file that has it, such as one of projects/*/models.")
    _check_model(config.model, "model")
    for name, model in (config.get("additional_models") or {}).items():
        _check_model(model, f"additional_models.{name}")
    for name, schema in _SECTIONS.items():
        if config.get(name) is not None:
            _check_section(config[name], schema, name)


def _check_model(model: Any, path: str) -> None:
    name = str(_mapping(model, path).get("model_name"))
    try:
        load_model_from_name(name)
        schema = load_model_config_from_name(name)
    except SystemExit as error:
        raise ValueError(f"{path}.model_name is {name!r}; DIRECT has no such model.") from error
    _build(model, schema, path)


def _check_section(section: Any, schema: type, path: str) -> None:
    """Check a section, including its data sets and losses, for which DIRECT's dataclasses allow any key."""
    section = _mapping(section, path).copy()
    if "dataset" in section:
        _check_dataset(section.pop("dataset"), f"{path}.dataset")
    _merge(section, schema, path)
    for index, dataset in enumerate(section.get("datasets", ())):
        _check_dataset(dataset, f"{path}.datasets.{index}")
    for index, loss in enumerate(section.get("loss", {}).get("losses", ())):
        loss_path = f"{path}.loss.losses.{index}"
        _check_name(_build(loss, defaults.FunctionConfig, loss_path).function, LossFunType, f"{loss_path}.function")
    for key, known in (
        ("metrics", dir(direct.functionals)),
        ("regularizers", direct.functionals.__all__),
        ("optimizer", torch.optim.__all__),
    ):
        calls = section.get(key) or ()
        for call in [calls] if isinstance(calls, str) else calls:
            if not isinstance(call, str):
                raise ValueError(f"{path}.{key} has the entry {call!r}; expected names of functions.")
            _check_name(call.partition("(")[0], known, f"{path}.{key}")  # a name, or a call such as AdamW(eps=1e-6)


def _check_dataset(dataset: Any, path: str) -> None:
    schemas = {
        name.removesuffix("Config"): schema
        for name, schema in vars(datasets_config).items()
        if isinstance(schema, type) and issubclass(schema, datasets_config.DatasetConfig)
    }
    name = str(_mapping(dataset, path).get("name"))
    _check_name(name, schemas, f"{path}.name")
    masking = _build(dataset, schemas[name], path).transforms.masking
    if masking is not None:
        functions = [function.removesuffix("MaskFunc") for function in dir(subsample) if function.endswith("MaskFunc")]
        _check_name(masking.name, functions, f"{path}.transforms.masking.name")


def _mapping(values: Any, path: str) -> DictConfig:
    if not isinstance(values, DictConfig):
        raise ValueError(f"{path} is {values!r}; expected keys with values.")
    return values


def _merge(values: Any, schema: type, path: str) -> DictConfig:
    """Merge `values` into the defaults of a dataclass, which checks keys and types."""
    try:
        return cast(DictConfig, OmegaConf.merge(_defaults(schema), _mapping(values, path)))
    except ConfigKeyError as error:
        parent, _, key = f"{path}.{error.full_key}".rpartition(".")
        if hasattr(schema, "refuse_removed"):
            schema.refuse_removed([key])
        known = [] if error.object_type is None else [field.name for field in fields(error.object_type)]
        _check_name(key, known, f"The key of {parent}")
        raise
    except OmegaConfBaseException as error:
        raise ValueError(f"{'.'.join(filter(None, (path, error.full_key)))}: {_first_line(error)}") from error


@cache  # a benchmark composes dozens of configurations, and this takes nearly half of the time
def _defaults(schema: type) -> Any:
    return OmegaConf.structured(schema)


def _build(values: Any, schema: type, path: str) -> Any:
    """Return an instance of the dataclass, after checking that no mandatory key is missing; it checks its values."""
    merged = _merge(values, schema, path)
    try:
        return OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ValueError(f"{path}.{error.full_key} is missing; it has no default.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_name(name: str, known: Iterable[str], what: str) -> None:
    known = sorted(known)
    if name not in known:
        nearest = get_close_matches(name, known, cutoff=0.5) or known
        raise ValueError(f"{what} is {name!r}, which DIRECT does not know; nearest: {', '.join(nearest)}.")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def to_yaml(config: DictConfig, paths: Sequence[Path], overrides: Sequence[str]) -> str:
    """Return the YAML of a composed configuration under a comment that lists its files and overrides; deterministic."""
    parts = [Path(os.path.relpath(path)).as_posix() for path in paths]
    header = "".join(f"# {part}\n" for part in (*parts, *overrides))
    return f"# Composed by direct-hifimamba config compose of\n{header}{OmegaConf.to_yaml(config)}"
