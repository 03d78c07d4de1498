"""Derivatives that compiled kernels lack: second derivatives, forward mode and the transforms of `torch.func`.

A kernel implements its first derivative in reverse mode. For all others PyTorch differentiates the operator's
definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.autograd import forward_ad


def are_transformed(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Return whether a transform of `torch.func` is active, or one of the tensors carries a forward-mode tangent.

    Under `torch.compile` the result is False.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def gradients_of_definition(
    definition: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor | None], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Return gradients of `definition(*inputs)` that can be differentiated again.

    To be called in backward passes with `create_graph=True`, in which `torch.is_grad_enabled()` is True.

    Parameters
    ----------
    definition : Callable
        Maps `inputs` to one tensor.
    inputs : sequence of torch.Tensor or None
    grad : torch.Tensor
        Gradient of the result.

    Returns
    -------
    list of torch.Tensor or None
        One gradient per input; None for inputs that are None or need no gradient.
    """
    # Views, because an input that is given twice has two gradients.
    inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(definition(*inputs), wanted, grad, create_graph=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]
