"""Initial weights other than those that DIRECT draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from direct_hifimamba.files import replace_when_complete
from direct_hifimamba.reconstruction.engines import build_networks


@dataclass(frozen=True)
class Initialisation:
    """Initial weights of a model.

    Attributes
    ----------
    scaled_parameters : dict
        Factors of the model's parameters, by shell patterns for their names.
    other : DictConfig, optional
        Configuration of another model. Parameters of the same name and shape begin with the values drawn for it.
    """

    scaled_parameters: Mapping[str, float]
    other: DictConfig | None = None

    def write(self, path: Path, config: DictConfig, seed: int) -> None:
        """Write a checkpoint for `--initialization-checkpoint`.

        Not for several threads at once: PyTorch has one generator of random numbers.

        Parameters
        ----------
        path : Path
        config : DictConfig
            Configuration of the model and those that train with it. Parameters that neither attribute changes begin
            as without a checkpoint.
        seed : int

        Raises
        ------
        ValueError
            If a pattern fits no name.
        """
        networks = _draw(config, seed)
        if self.other is not None:
            others = _draw(self.other, seed)
            for name in networks.keys() & others.keys():
                shapes = {key: value.shape for key, value in networks[name].state_dict().items()}
                weights = others[name].state_dict().items()
                common = {key: value for key, value in weights if shapes.get(key) == value.shape}
                networks[name].load_state_dict(common, strict=False)
        self._scale(networks["model"])
        with replace_when_complete(path) as partial:
            torch.save({name: network.state_dict() for name, network in networks.items()}, partial)

    def _scale(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        for pattern, scale in self.scaled_parameters.items():
            names = [name for name in parameters if fnmatchcase(name, pattern)]
            if not names:
                raise ValueError(
                    f"scaled_parameters has the pattern {pattern!r}, which fits none of the parameters "
                    f"{', '.join(list(parameters)[:5])}, ..."
                )
            for name in names:
                parameters[name].data.mul_(scale)


def _draw(config: DictConfig, seed: int) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    networks = build_networks(config)
    return {"model": networks.model, **networks.additional_models}
