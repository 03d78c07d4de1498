"""The command `direct` for any model, with a deterministic `train` that has two more options.

DIRECT's own `setup_train` always uses a step schedule of the learning rate and weight decay of all parameters, and its
masks do not depend on the seed. The one here consists of the same functions of DIRECT.
"""

import argparse
import gc
import os
import re
import zipfile
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import torch
from direct.cli.predict import register_parser as register_predict
from direct.cli.train import register_parser as register_train
from direct.cli.upload import register_parser as register_upload
from direct.cli.utils import check_train_val
from direct.config.defaults import PhysicsConfig
from direct.data.datasets import FastMRIDataset
from direct.data.lr_scheduler import WarmupMultiStepLR
from direct.environment import load_models_into_environment_config, setup_training_environment
from direct.launch import launch
from direct.train import build_training_datasets_from_environment, get_root_of_file, parse_noise_dict
from direct.utils import communication, set_all_seeds, str_to_class
from direct.utils.io import check_is_valid_url, read_json
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from direct_hifimamba.files import first_and_count, lock_folder, write_text
from direct_hifimamba.plugin import register_data_sets
from direct_hifimamba.training.compose import load, resolve, validate
from direct_hifimamba.training.distributed import average_gradients, broadcast_weights
from direct_hifimamba.training.learning_rate import CosineSchedule
from direct_hifimamba.training.seeded_data import SeededBatchSampler, SeededDataset
from direct_hifimamba.training.weight_decay import exclude_from_weight_decay

COSINE_OPTION = "--cosine-schedule"
MATRICES_OPTION = "--decay-matrices"

LAST_MODEL = "last_model.txt"
"""File in which DIRECT writes the iteration of the last checkpoint."""

CONFIG_NAME = "config.yaml"
"""File in which DIRECT writes the configuration of a training."""

_FREE_KEYS = {
    "model.activation_checkpointing",
    "model.engine_name",
    "model.scan_backend",
    "model.scan_dropout",
    "model.stochastic_depth",
    "physics.noise_matrix_scaling",
}
"""Keys that may change when a training resumes, since the weights keep their meaning."""


def main(arguments: Sequence[str]) -> None:
    """Run `direct` with `arguments`; the first one is the subcommand."""
    # DIRECT collects garbage at every slice that it validates or predicts. Without what has been imported by now, which
    # stays in any case, that takes microseconds rather than a third of a second.
    gc.collect()
    gc.freeze()
    register_data_sets()
    parser = argparse.ArgumentParser(prog="direct-hifimamba")
    subparsers = parser.add_subparsers(dest="subcommand", required=True)
    for register in (register_train, register_predict, register_upload):
        register(subparsers)
    train_parser = subparsers.choices["train"]
    train_parser.add_argument(
        COSINE_OPTION, action="store_true", help="Learning-rate schedule of half a cosine instead of steps."
    )
    train_parser.add_argument(
        MATRICES_OPTION,
        action="store_true",
        help="Weight decay of matrices and convolution kernels only, not of vectors.",
    )
    train_parser.set_defaults(subcommand=train)
    args = parser.parse_args(arguments)
    if args.subcommand is not train:
        args.subcommand(args)
        return
    if args.seed < 0:
        train_parser.error(f"--seed is {args.seed}; expected 0 or more.")
    if args.initialization_images is not None and args.initialization_kspace is not None:
        train_parser.error("--initialization-images and --initialization-kspace are mutually exclusive.")
    for option in ("initialization_images", "initialization_kspace", "noise"):
        check_train_val(getattr(args, option), option.replace("_", "-"))
    config = None
    if not check_is_valid_url(args.cfg_file):
        try:
            config = _load_config(Path(args.cfg_file))
        except ValueError as error:
            train_parser.error(str(error))
    experiment = args.experiment_dir / _run_name(args)
    experiment.mkdir(parents=True, exist_ok=True)
    # Machines that train together share the folder.
    with lock_folder(experiment) if args.machine_rank == 0 else nullcontext():
        try:
            _check_earlier_training(experiment, config, args.resume)
            if args.resume and args.machine_rank == 0:
                _repair_last_model(experiment)
        except FileExistsError as error:
            train_parser.error(str(error))
        train(args)


def train(args: argparse.Namespace) -> None:
    """Train in one process or in one per GPU, like DIRECT's `train_from_argparse`."""
    torch.set_num_threads(1)  # as workers of the DataLoader run Fourier transforms in parallel
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"  # no warnings of TensorBoard
    launch(setup_train, args.num_machines, args.num_gpus, args.machine_rank, args.dist_url, args)


def _load_config(path: Path) -> DictConfig:
    config = load(path)
    try:
        resolve(config)
        validate(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config


def _check_earlier_training(experiment: Path, config: DictConfig | None, resume: bool) -> None:
    """Make sure that a folder has no training, or the one that is to be resumed, with the same networks.

    Raises
    ------
    FileExistsError
        If it has another one.
    """
    if not _find_checkpoints(experiment) and not (experiment / LAST_MODEL).exists():
        return
    if not resume:
        raise FileExistsError(
            f"{experiment} has checkpoints of an earlier training, which would be overwritten. Continue that one with "
            "--resume, or choose another folder or --name."
        )
    stored = experiment / CONFIG_NAME
    before = _stored_network_keys(stored)
    if config is not None and before is not None:
        _, models = load_models_into_environment_config(config)
        physics = OmegaConf.merge(OmegaConf.structured(PhysicsConfig), config.get("physics") or {})
        sections = {"model": models.pop("model"), "additional_models": models, "physics": physics}
        merged = OmegaConf.merge(config, sections)
        now = _network_keys(cast(DictConfig, OmegaConf.create(OmegaConf.to_yaml(merged))))  # as DIRECT writes it
        compared = (now.keys() & before.keys()) - _FREE_KEYS  # versions of the package differ in their keys
        differing = sorted(key for key in compared if now[key] != before[key])
        if differing:
            key = differing[0]
            raise FileExistsError(
                f"{experiment} has checkpoints of a training with {key}: {before[key]}, and the configuration has "
                f"{now[key]}. Resume with {stored}, or choose another folder or --name."
            )


def _stored_network_keys(stored: Path) -> dict[str, Any] | None:
    """Return the network keys of the configuration of a training; None if its file is missing or damaged."""
    if not stored.exists():
        return None
    try:
        return _network_keys(load(stored))
    except (ValueError, OmegaConfBaseException):
        print(f"{stored} is damaged, so that the networks are not compared with those of the configuration.")
        return None


def _network_keys(config: DictConfig) -> dict[str, Any]:
    """Return the values that determine the networks, by keys such as `model.hidden_channels`."""
    models = config.get("additional_models") or {}
    sections = {"model": config.model, "physics": config.get("physics") or {}}
    sections |= {f"additional_models.{name}": section for name, section in models.items()}
    values = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    return {"additional_models": sorted(models), **values}


def _repair_last_model(experiment: Path) -> None:
    """Name the last complete checkpoint in `LAST_MODEL`, which a full disk or a power failure leaves empty.

    Raises
    ------
    FileExistsError
        If the file exists and the folder has no complete checkpoint.
    """
    last_model = experiment / LAST_MODEL
    checkpoints = _find_checkpoints(experiment)
    with suppress(OSError, ValueError, KeyError):
        if _is_complete(checkpoints[int(last_model.read_text())]):
            return
    last = next((number for number in sorted(checkpoints, reverse=True) if _is_complete(checkpoints[number])), None)
    if last is not None:
        print(f"{last_model} names no complete checkpoint; the training resumes from iteration {last}.")
        write_text(last_model, str(last))
    elif last_model.exists():
        raise FileExistsError(
            f"{last_model} names no complete checkpoint, and the folder has none. Delete {experiment} to start again, "
            "or choose another folder or --name."
        )


def _is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint, which is a zip archive, was neither cut short nor damaged."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _find_checkpoints(experiment: Path) -> dict[int, Path]:
    """Return the checkpoints of a training by their iterations."""
    matches = ((re.fullmatch(r"model_(\d+)\.pt", path.name), path) for path in experiment.glob("model_*.pt"))
    return {int(match[1]): path for match, path in matches if match is not None}


def setup_train(args: argparse.Namespace) -> None:
    """Train in this process, which may be one of several ranks, like DIRECT's `setup_train`.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of `direct-hifimamba train`.
    """
    register_data_sets()  # models of DIRECT do not
    set_all_seeds(args.seed)
    env = setup_training_environment(
        _run_name(args),
        args.experiment_dir,
        args.cfg_file,
        args.device,
        args.machine_rank,
        args.mixed_precision,
        debug=args.debug,
    )
    torch.backends.cudnn.benchmark = True
    training = env.cfg.training

    configs = training.datasets
    datasets = _build_datasets(env, [_with_seed(config) for config in configs], args, split=0)
    seeds = [None if config.transforms.get("use_seed", True) else args.seed for config in configs]
    training_data = [SeededDataset(*pair) for pair in zip(datasets, seeds, strict=True)]
    validation_data = None
    if env.cfg.validation is not None:
        validation_data = _build_datasets(env, env.cfg.validation.datasets, args, split=1)

    optimizer, lr_scheduler = _build_optimizer(env, args)
    broadcast_weights(env.engine.models.values())
    optimizer.register_step_pre_hook(lambda *_: average_gradients(env.engine.models.values()))

    start = _first_iteration(env.experiment_dir) if args.resume else 0
    rank, world_size = communication.get_rank(), communication.get_world_size()
    sampler = SeededBatchSampler(training_data, training.batch_size, args.seed, start, rank, world_size)
    env.engine.build_batch_sampler = partial(_batch_sampler, env.engine.build_batch_sampler, sampler)
    # Random numbers of dropout and of the workers: independent of the initialisation, not repeated after resuming.
    torch.manual_seed(int(np.random.SeedSequence((args.seed, start, rank)).generate_state(1)[0]))

    env.engine.train(
        optimizer,
        lr_scheduler,
        training_data,
        env.experiment_dir,
        validation_datasets=validation_data,
        resume=args.resume,
        initialization=args.initialization_checkpoint or training.model_checkpoint,
        start_with_validation=args.force_validation,
        num_workers=args.num_workers,
    )


def _run_name(args: argparse.Namespace) -> str:
    """Return the name of the folder that DIRECT makes in `experiment_dir`."""
    return args.name or Path(str(args.cfg_file)).stem


def _build_datasets(env: Any, configs: Sequence[DictConfig], args: argparse.Namespace, split: int) -> list[Any]:
    """Return the data sets of training (split 0) or validation (split 1)."""
    options: dict[str, Any] = {}
    root = (args.training_root, args.validation_root)[split]
    if root is not None:
        options |= {"data_root": root, "lists_root": get_root_of_file(args.cfg_file)}
    if args.initialization_images is not None:
        options["initial_images"] = args.initialization_images[split]
    if args.initialization_kspace is not None:
        options["initial_kspaces"] = args.initialization_kspace[split]
    if args.noise is not None and split == 0:
        physics = env.cfg.physics
        if not physics.use_noise_matrix:
            raise ValueError("--noise is given, but physics.use_noise_matrix is false; set it to true.")
        options["pass_dictionaries"] = {
            "loglikelihood_scaling": [
                parse_noise_dict(read_json(path), percentile=0.999, multiplier=physics.noise_matrix_scaling)
                for path in args.noise
            ]
        }
    datasets: list[Any] = build_training_datasets_from_environment(env, list(configs), **options)
    for dataset in datasets:
        if isinstance(dataset, FastMRIDataset) and dataset.pass_mask:
            _check_masks(dataset)
    return datasets


def _check_masks(dataset: FastMRIDataset) -> None:
    """Raise a ValueError if files have no mask, which DIRECT would only notice when it reads their first slice."""
    lacking = []
    for path in sorted(dataset.volume_indices):
        with h5py.File(path) as file:
            lacking += [] if "mask" in file else [str(path)]
    if lacking:
        raise ValueError(
            f"{first_and_count(lacking)} of {len(dataset.volume_indices)} files have no array 'mask', which pass_mask: "
            "true reads; set it to false and give transforms.masking, or store masks with direct-hifimamba prepare."
        )


def _with_seed(config: DictConfig) -> DictConfig:
    """Return a copy with `use_seed: true`, which :class:`SeededDataset` needs to control the seed."""
    config = config.copy()
    OmegaConf.update(config, "transforms.use_seed", True, force_add=True)
    return config


def _build_optimizer(env: Any, args: argparse.Namespace) -> tuple[Optimizer, LRScheduler]:
    """Return the optimizer of all models and its learning-rate schedule."""
    training, models = env.cfg.training, [env.engine.model, *env.engine.models.values()]
    optimizer: Optimizer = str_to_class("torch.optim", training.optimizer)(
        [{"params": model.parameters()} for model in models], lr=training.lr, weight_decay=training.weight_decay
    )
    lr_scheduler: LRScheduler
    if args.cosine_schedule:
        own = env.cfg.model.get("learning_rate_schedule", "cosine")
        if own not in ("steps", "cosine"):
            raise ValueError(
                f"{COSINE_OPTION} is given, but model.learning_rate_schedule is {own!r}, which would replace it; leave "
                "one of them out."
            )
        lr_scheduler = CosineSchedule(optimizer, training)
    else:
        steps = list(range(training.lr_step_size, training.num_iterations, training.lr_step_size))
        warm_up = {"warmup_factor": 1 / 3, "warmup_iterations": training.lr_warmup_iter, "warmup_method": "linear"}
        lr_scheduler = WarmupMultiStepLR(optimizer, steps, training.lr_gamma, **warm_up)
    if args.decay_matrices:
        for model in models:
            exclude_from_weight_decay(optimizer, lr_scheduler, model)
    return optimizer, lr_scheduler


def _first_iteration(experiment: Path) -> int:
    """Return the iteration at which DIRECT resumes."""
    last_model = experiment / LAST_MODEL
    return int(last_model.read_text()) + 1 if last_model.exists() else 0


def _batch_sampler(
    build: Any, sampler: SeededBatchSampler, dataset: Any, batch_size: int, sampler_type: str, **options: Any
) -> Any:
    """Return `sampler` for training, and for validation the one that DIRECT's `build` returns."""
    return sampler if sampler_type == "random" else build(dataset, batch_size, sampler_type, **options)
