"""Initial weights that differ from DIRECT's by factors."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from omegaconf import DictConfig

from direct_hifimamba.files import replace_when_complete
from direct_hifimamba.reconstruct import build_networks


def write_initialisation(path: Path, config: DictConfig, scales: Mapping[str, float], seed: int) -> None:
    """Write a checkpoint for `--initialization-checkpoint`.

    Not for several threads at once: PyTorch has one generator of random numbers.

    Parameters
    ----------
    path : Path
    config : DictConfig
        Of the model and those that train with it, which begin as they do without a checkpoint.
    scales : mapping of str to float
        Shell patterns for names of parameters of the model, and what those are multiplied with.
    seed : int

    Raises
    ------
    ValueError
        If a pattern fits no name.
    """
    torch.manual_seed(seed)
    networks = build_networks(config)
    parameters = dict(networks.model.named_parameters())
    for pattern, scale in scales.items():
        names = [name for name in parameters if fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(
                f"scaled_parameters has the pattern {pattern!r}, which fits none of the parameters "
                f"{', '.join(list(parameters)[:5])}, ..."
            )
        for name in names:
            parameters[name].data.mul_(scale)
    checkpointables = {"model": networks.model, **networks.additional_models}
    with replace_when_complete(path) as partial:
        torch.save({name: network.state_dict() for name, network in checkpointables.items()}, partial)
