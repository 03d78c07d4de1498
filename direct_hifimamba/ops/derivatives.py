"""Derivatives that compiled kernels do not have: second ones, forward mode and the transforms of `torch.func`.

A kernel brings its first derivative in reverse mode. Everything else is left to PyTorch, which differentiates the
operator's definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.autograd import forward_ad


def are_transformed(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether a transform of `torch.func` is at work, or one of the tensors carries a tangent of forward mode.

    Under `torch.compile` neither is.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def gradients_of_definition(
    definition: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor | None], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients of `definition(*inputs)` that can be differentiated again; None for those that are not wanted.

    For backward passes in which `torch.is_grad_enabled()`, that is, under `create_graph=True`.
    """
    # Views: an input that is given twice has two gradients.
    inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(definition(*inputs), wanted, grad, create_graph=True))
    return [next(found) if tensor is not None and tensor.requires_grad else None for tensor in inputs]
