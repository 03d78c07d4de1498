"""Weight decay of matrices only, whereas DIRECT's optimizers decay every parameter."""

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# Not matrices although they have two axes. Decay of A_log would make all states of a channel decay equally fast.
_STATE_SPACE_VECTORS = ("A_log", "step_size_bias")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a matrix or a convolution kernel, and not a vector, scalar or `A_log`."""
    return parameter.ndim > 1 and name.rpartition(".")[2] not in _STATE_SPACE_VECTORS


def exclude_from_weight_decay(optimizer: Optimizer, lr_scheduler: LRScheduler, model: nn.Module) -> None:
    """Move the parameters of `model` that :func:`decays` excludes to separate groups without weight decay.

    Parameters
    ----------
    optimizer : Optimizer
        Before its first step. Parameters of other models stay as they are. A second call changes nothing.
    lr_scheduler : LRScheduler
        Of the optimizer; the new groups have the learning rates of their original groups.
    model : nn.Module
    """
    excluded = {id(parameter) for name, parameter in model.named_parameters() if not decays(name, parameter)}
    for group, base_lr in list(zip(optimizer.param_groups, lr_scheduler.base_lrs, strict=True)):
        vectors = [parameter for parameter in group["params"] if id(parameter) in excluded]
        if vectors and group["weight_decay"]:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in excluded]
            optimizer.add_param_group(group | {"params": vectors, "weight_decay": 0.0})
            lr_scheduler.base_lrs.append(base_lr)
