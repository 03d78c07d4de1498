"""Additional models in several processes.

DIRECT wraps the model alone in DistributedDataParallel. Models that train with it, such as the sensitivity model, begin
with other weights in every process and never exchange gradients, so that every process trains one of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from direct.utils import communication
from torch import distributed, nn


@torch.no_grad()
def broadcast_weights(models: Iterable[nn.Module]) -> None:
    """Give the models in every process the weights and buffers of the first process."""
    if communication.get_world_size() == 1:
        return
    for model in models:
        for value in model.state_dict().values():
            distributed.broadcast(value, src=0)


@torch.no_grad()
def average_gradients(models: Iterable[nn.Module]) -> None:
    """Replace every gradient by its mean over the processes; one that is missing, as of a single coil, counts as zero.

    To be called between the backward pass and the optimizer's step, in every process.
    """
    if communication.get_world_size() == 1:
        return
    for parameter in (parameter for model in models for parameter in model.parameters() if parameter.requires_grad):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)
        parameter.grad /= communication.get_world_size()
