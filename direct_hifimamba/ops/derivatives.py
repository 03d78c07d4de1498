"""Derivatives that compiled kernels lack: second derivatives, forward mode and the transforms of `torch.func`.

A kernel implements its first derivative in reverse mode. For all others PyTorch differentiates the operator's
definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.autograd import forward_ad


@torch.compiler.assume_constant_result  # torch.compile compiles again if the transforms around a function change
def _is_transform_active() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def are_transformed(tensors: Sequence[torch.Tensor | None]) -> bool:
    """Return whether a transform of `torch.func` is active, or one of the tensors carries a forward-mode tangent.

    Tangents of another origin than `torch.func` are unknown while `torch.compile` compiles; :func:`refuse_tangents`
    finds them when the compiled code runs.
    """
    return _is_transform_active() or (not torch.compiler.is_compiling() and _have_tangents(tensors))


def _have_tangents(tensors: Sequence[torch.Tensor | None]) -> bool:
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def refuse_tangents(*tensors: torch.Tensor | None) -> None:
    """Raise if one of the tensors that a kernel was given carries a forward-mode tangent, which would be lost.

    Such tensors reach a kernel from code that `torch.compile` compiled, and from backward passes with a dual gradient.

    Raises
    ------
    NotImplementedError
        If there is a tangent.
    """
    try:
        found = _have_tangents(tensors)
    except RuntimeError:  # from PyTorch 2.11 inside of an operator, whenever there are tangents
        found = True
    if found:
        raise NotImplementedError(
            "A compiled kernel was given a forward-mode tangent, for which it has no derivative. Call the function "
            "without torch.compile, and backward passes with create_graph=True."
        )


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
