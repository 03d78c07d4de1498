"""Synchronisation of additional models between processes.

DIRECT wraps only the model in DistributedDataParallel. Additional models, such as the sensitivity model, would start
from different weights in every process and never exchange gradients, so that each process would train another one.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from direct.utils import communication
from torch import distributed, nn


@torch.no_grad()
def broadcast_weights(models: Iterable[nn.Module]) -> None:
    """Copy weights and buffers of the models from the first process to all others."""
    if communication.get_world_size() == 1:
        return
    for model in models:
        for value in model.state_dict().values():
            distributed.broadcast(value, src=0)


@torch.no_grad()
def average_gradients(models: Iterable[nn.Module]) -> None:
    """Replace every gradient by its mean over the processes.

    A missing gradient counts as zero: DIRECT does not call the sensitivity model for a single coil. Call it in every
    process, between the backward pass and the optimizer's step.
    """
    if communication.get_world_size() == 1:
        return
    for parameter in (parameter for model in models for parameter in model.parameters() if parameter.requires_grad):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)
        parameter.grad /= communication.get_world_size()
