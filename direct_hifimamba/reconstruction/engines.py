"""Trained models: engines of DIRECT, built from a configuration and the weights of checkpoints."""

import re
from collections.abc import Iterator, Mapping, Sequence
from errno import EINVAL
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from direct import environment
from direct.config.defaults import DefaultConfig
from direct.engine import Engine
from direct.utils import str_to_class
from omegaconf import DictConfig, OmegaConf
from torch import nn

# isort: split
from direct.data.mri_transforms import SensitivityMapType, TransformsType  # not before direct.environment

from direct_hifimamba.data.registration import register_data_sets
from direct_hifimamba.data.stored_masks import NAME as STORED_MASKS
from direct_hifimamba.files import first_and_count
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME, list_pretrained
from direct_hifimamba.training.compose import compose

SCALING_KEYS = ("masked_kspace", "acs_kspace", "kspace")
"""What k-space may be scaled by."""

_RESIZES = "it changes k-space before masking, and undersampled k-space cannot be cropped or resized; set null"
_IS_RANDOM = "images would be random; set 0"
_OFF = {
    "cropping.crop": _RESIZES,
    "augmentation.rescale": _RESIZES,
    "augmentation.pad": _RESIZES,
    "random_augmentations.random_rotation_probability": _IS_RANDOM,
    "random_augmentations.random_flip_probability": _IS_RANDOM,
    "random_augmentations.random_reverse_probability": _IS_RANDOM,
    "registration.registration": "slices alone are reconstructed",
}
"""Transforms that have to be off, and why."""


def find_config(checkpoints: Sequence[Path], config_path: Path | str | None = None) -> Path:
    """Return the configuration of checkpoints: the named one, or the one that `direct train` leaves beside them.

    Raises
    ------
    FileNotFoundError
        If it or a checkpoint is missing.
    ValueError
        If there is no checkpoint, or if configurations differ in the networks, or in what is done with k-space.
    """
    if not checkpoints:
        raise ValueError("There is no checkpoint; expected at least one, such as model_99999.pt of direct train.")
    for checkpoint in checkpoints:
        if not checkpoint.is_file():
            if str(checkpoint) in list_pretrained():
                raise ValueError(
                    f"{checkpoint} is no file but the name of weights in the package. Give the name alone, before a "
                    "single input; in Python, use Reconstructor.from_pretrained."
                )
            raise FileNotFoundError(
                f"{checkpoint} is no file; expected a checkpoint such as model_99999.pt of direct train."
            )
    beside = dict.fromkeys(checkpoint.parent / CONFIG_NAME for checkpoint in checkpoints)
    paths = list(beside) if config_path is None else [Path(config_path)]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"The configuration {path} is missing; direct train leaves it beside its checkpoints. Name the one "
                "that the model was trained with (--cfg)."
            )
    configs = list(map(_load_config, paths))
    for path, other in zip(paths, configs, strict=True):
        for section in ("model", "additional_models", "physics", "inference"):
            if configs[0].get(section) != other.get(section):
                raise ValueError(
                    f"{path} differs from {paths[0]} in the section {section}; the networks of an ensemble need the "
                    "same configuration. Name it with --cfg if it is the same."
                )
    return paths[0]


def load_engines(
    checkpoints: Sequence[Path], config_path: Path, device: str
) -> tuple[list[Engine], DictConfig, str | None]:
    """Return an engine with the weights of each checkpoint, and `inference.dataset` and `inference.crop`.

    Raises
    ------
    ValueError
        If configuration, checkpoints or device are invalid, or do not fit each other.
    """
    device = resolve_device(device)
    config = _load_config(config_path)
    engines = []
    for path in checkpoints:
        engine = _build_engine(config, device)
        load_weights({"model": engine.model, **engine.models}, path, config_path)
        engines.append(engine)
    return engines, config.inference.dataset, config.inference.get("crop")


def _load_config(path: Path) -> DictConfig:
    """Load and check a configuration; its `inference.dataset` is filled up with DIRECT's defaults."""
    register_data_sets()
    config = compose([path], ["training=null", "validation=null"])  # no part in this
    if config.get("inference") is None:
        raise ValueError(
            f"{path} has no section 'inference', which says how k-space is scaled and coil sensitivities are "
            "estimated; add one as direct predict needs it and name the file (--cfg)."
        )
    defaults = environment.load_dataset_config(config.inference.dataset.name)
    dataset = cast(DictConfig, OmegaConf.merge(defaults, config.inference.dataset))
    for option, reason in _find_refusals(dataset, config.inference.get("crop")):
        raise ValueError(f"{path} has inference.{option}: {reason}.")
    config.inference.dataset = dataset
    return config


def estimates_maps(transforms: DictConfig) -> bool:
    """Return whether DIRECT's transforms estimate sensitivities from the samples for autocalibration."""
    estimation = transforms.sensitivity_map_estimation
    return estimation.estimate_sensitivity_maps and estimation.sensitivity_maps_type != SensitivityMapType.UNIT


def _find_refusals(dataset: DictConfig, crop: str | None) -> Iterator[tuple[str, str]]:
    """Yield the options of the section `inference` that prevent reconstruction, and why."""
    transforms = dataset.transforms
    normalization, estimation = transforms.normalization, transforms.sensitivity_map_estimation
    key = normalization.scaling_key
    if crop not in (None, "", "header"):
        yield "crop", f"it is {crop!r}; expected header or null"
    if dataset.name == STORED_MASKS and (estimates_maps(transforms) or key == "acs_kspace"):
        yield (
            "dataset.name",
            f"it is {STORED_MASKS}, whose samples for autocalibration are in prepared files; take direct predict",
        )
    if context := dataset.get("kspace_context"):
        yield "dataset.kspace_context", f"it is {context}; only slices are reconstructed here"
    prefix = "dataset.transforms."
    if key and normalization.scale_percentile is None:
        yield (
            f"{prefix}normalization.scale_percentile",
            "it is null, and DIRECT multiplies images by a factor by which it has not divided k-space; expected a "
            "number such as 0.99, in training as well",
        )
    if key and key not in SCALING_KEYS:
        yield (
            f"{prefix}normalization.scaling_key",
            f"it is {key!r}, which is not known before the image is; expected {', '.join(SCALING_KEYS)} or null, in "
            "training as well",
        )
    for option, reason in _OFF.items():
        if OmegaConf.select(transforms, option):
            yield f"{prefix}{option}", reason
    if transforms.transforms_type != TransformsType.SUPERVISED:
        yield (
            f"{prefix}transforms_type",
            f"it is {transforms.transforms_type}, which holds back some of the samples; expected supervised",
        )
    if estimation.estimate_sensitivity_maps and estimation.sensitivity_maps_type == SensitivityMapType.ESPIRIT:
        yield (
            f"{prefix}sensitivity_map_estimation.sensitivity_maps_type",
            "it is espirit, where DIRECT fails or swaps height and width; set name: FastMRIWithMaps and "
            "sensitivity_maps: espirit in the data set, and estimate_sensitivity_maps: false",
        )
    if not estimation.estimate_sensitivity_maps and dataset.get("sensitivity_maps") is None:
        yield (
            f"{prefix}sensitivity_map_estimation.estimate_sensitivity_maps",
            "it is false, and models need sensitivities; set true, or name: FastMRIWithMaps with sensitivity_maps",
        )


def resolve_device(device: str) -> str:
    """Return the device to compute on.

    Parameters
    ----------
    device : str
        `cpu`, `cuda`, `cuda:<number>`, `mps`; or `auto`: CUDA or MPS (Apple) where PyTorch finds it, else the CPU.

    Raises
    ------
    ValueError
        If PyTorch finds no such device.
    """
    found = [name for name, backend in (("cuda", torch.cuda), ("mps", torch.mps)) if backend.is_available()]
    if device == "auto":
        return [*found, "cpu"][0]
    if not re.fullmatch(rf"({'|'.join((*found, 'cpu'))})(:\d+)?", device):
        raise ValueError(f"The device is {device}; expected {', '.join(['auto', *found])} or cpu.")
    return device


class Networks(NamedTuple):
    """What DIRECT builds of a configuration: itself completed, the networks, and the Fourier transforms they use."""

    config: DictConfig
    model: nn.Module
    additional_models: dict[str, nn.Module]
    operators: tuple[Any, Any]


def build_networks(config: DictConfig, device: str = "cpu") -> Networks:
    """Build the model of a configuration, and those that train with it, as `direct train` does."""
    cfg = OmegaConf.structured(DefaultConfig)
    models, model_configs = environment.load_models_into_environment_config(config)
    cfg.model = model_configs.pop("model")
    cfg.additional_models = model_configs
    cfg.physics = OmegaConf.merge(cfg.physics, config.get("physics") or {})
    operators = environment.build_operators(cfg.physics)
    model, additional_models = environment.initialize_models_from_config(cfg, models, *operators, device)
    return Networks(cfg, model, additional_models, operators)


def _build_engine(config: DictConfig, device: str) -> Engine:
    """Build the engine as DIRECT's `setup_engine` does, without its handler of SIGINT.

    The handler is meant for trainings, would replace that of the process, and can be set in the main thread alone.
    """
    cfg, model, additional_models, operators = build_networks(config, device)
    family, *_, model_name = cfg.model.model_name.split(".")
    module = f"direct.nn.{family.lower()}.{family.lower()}_engine"
    engine_class = str_to_class(module, cfg.model.engine_name or f"{model_name}Engine")
    quiet_class = type(engine_class.__name__, (engine_class,), {"_Engine__bind_sigint_signal": lambda engine: None})
    return quiet_class(cfg, model, device, *operators, **additional_models)


def load_weights(models: Mapping[str, nn.Module], path: Path, config_path: Path) -> None:
    """Load the weights of a checkpoint of DIRECT.

    Parameters
    ----------
    models : mapping of str to nn.Module
        The networks of a configuration by their names in the checkpoint: `model` and the additional models.
    path : Path
    config_path : Path
        For messages.

    Raises
    ------
    ValueError
        If the file is no checkpoint, if its weights are not exactly those of the networks, or if some are not finite.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or unsafe content can raise any exception
        if isinstance(error, OSError) and error.errno != EINVAL:  # which PyTorch raises for files that are cut short
            raise
        checkpoint = None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("model"), dict):
        raise ValueError(
            f"{path} is no checkpoint of DIRECT; expected a file that direct train has written. Was it cut short?"
        )
    stored = {
        f"{name}.{key}": value
        for name in checkpoint
        if name.endswith("model")
        for key, value in checkpoint[name].items()
    }
    expected = {f"{name}.{key}": value for name, model in models.items() for key, value in model.state_dict().items()}
    problems = [f"it lacks {key}" for key in expected if key not in stored]
    problems += [f"it has {key}, which the network does not have" for key in stored if key not in expected]
    problems += [
        f"{key} has the shape {tuple(value.shape)}, not {tuple(expected[key].shape)}"
        for key, value in stored.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if problems:
        raise ValueError(
            f"{path} does not fit {config_path}: {first_and_count(problems)}. Both have to be of the same training; "
            "reconstruct takes another configuration with --cfg."
        )
    for key, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{path} has weights that are NaN or infinite, in {key}; expected finite ones.")
    for name, model in models.items():
        model.load_state_dict(checkpoint[name])
        model.float()  # as the data of DIRECT, whatever PyTorch's default is
