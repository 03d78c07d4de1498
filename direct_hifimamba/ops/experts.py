"""Sum of two-layer experts, each on pixels of its own: nothing as wide as their hidden layers is kept, or even made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from direct_hifimamba.ops import pixels as kernels

#: Pixels at a time on a CPU: the hidden values of so many fit the cache of a core.
_PIXELS = 1024
_DTYPES = (torch.float32, torch.float64)


class ExpertWeights(NamedTuple):
    """Parameters of an expert, V gelu(U x + a) + b, from c to `hidden` and back to c channels."""

    expand: torch.Tensor  #: U, (hidden, c)
    expand_bias: torch.Tensor  #: a, (hidden,)
    project: torch.Tensor  #: V, (c, hidden)
    project_bias: torch.Tensor  #: b, (c,)


class Assignment(NamedTuple):
    """The pixels of one expert."""

    pixels: torch.Tensor | None = None  #: rows, (n,) int64, each at most once; None: all
    weight: torch.Tensor | None = None  #: weight of the expert's output, (n,); None: 1


def sum_of_experts_plain(
    features: torch.Tensor, experts: Sequence[ExpertWeights], assignments: Sequence[Assignment]
) -> torch.Tensor:
    """The sum as it is defined, on any device, under autocast too; see :func:`sum_of_experts`."""
    total: torch.Tensor | None = None
    for expert, (pixels, weight) in zip(experts, assignments, strict=True):
        chosen = features if pixels is None else features.index_select(0, pixels)
        output = F.linear(F.gelu(F.linear(chosen, *expert[:2])), *expert[2:])
        if weight is not None:
            output = output * weight.to(output.dtype).unsqueeze(-1)
        if total is None:
            total = output.new_zeros(features.shape)
        total = total + output if pixels is None else total.index_add(0, pixels, output)
    return torch.zeros_like(features) if total is None else total


def _pieces(features: torch.Tensor, assignment: Assignment) -> Iterator[tuple[slice | torch.Tensor, slice]]:
    """Rows of `features`, and their places in the assignment, some at a time."""
    count = len(features) if assignment.pixels is None else len(assignment.pixels)
    for start in range(0, count, _PIXELS):
        places = slice(start, min(start + _PIXELS, count))
        yield places if assignment.pixels is None else assignment.pixels[places], places


def _add_rows(total: torch.Tensor, rows: slice | torch.Tensor, values: torch.Tensor) -> None:
    if isinstance(rows, slice):
        total[rows] += values
    else:
        total.index_add_(0, rows, values)


def _add_expert(total: torch.Tensor, features: torch.Tensor, expert: ExpertWeights, assignment: Assignment) -> None:
    for rows, places in _pieces(features, assignment):
        hidden = torch.ops.aten.gelu_(F.linear(features[rows], *expert[:2]))
        output = F.linear(hidden, *expert[2:])
        if assignment.weight is not None:
            output *= assignment.weight[places, None]
        _add_rows(total, rows, output)


def _add_gradients(
    grad: torch.Tensor,
    features: torch.Tensor,
    expert: ExpertWeights,
    assignment: Assignment,
    grad_features: torch.Tensor,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of the weights and of the assignment's; that of the features is added to `grad_features`."""
    if kernels.computes(features, *expert.project.shape):
        *found, grad_weight = kernels.add_expert_gradients(grad_features, grad, features, *assignment, *expert)
        return *found, None, None if assignment.weight is None else grad_weight
    grads = ExpertWeights(*(torch.zeros_like(weight) for weight in expert))
    weight = assignment.weight
    grad_weight = None if weight is None else torch.empty_like(weight)
    for rows, places in _pieces(features, assignment):
        chosen, grad_output = features[rows], grad[rows]
        expanded = F.linear(chosen, *expert[:2])
        hidden = F.gelu(expanded)
        if weight is not None and grad_weight is not None:
            grad_hidden = grad_output @ expert.project
            grad_weight[places] = (grad_hidden * hidden).sum(1) + grad_output @ expert.project_bias
            grad_output = grad_output * weight[places, None]
        grads.project.addmm_(grad_output.t(), hidden)
        grads.project_bias.add_(grad_output.sum(0))
        grad_expanded = torch.ops.aten.gelu_backward(torch.mm(grad_output, expert.project, out=hidden), expanded)
        grads.expand.addmm_(grad_expanded.t(), chosen)
        grads.expand_bias.add_(grad_expanded.sum(0))
        _add_rows(grad_features, rows, grad_expanded @ expert.expand)
    return *grads, None, grad_weight


_PER_EXPERT = len(ExpertWeights._fields) + len(Assignment._fields)


def _unpack(tensors: Sequence[Any]) -> Iterator[tuple[ExpertWeights, Assignment]]:
    for start in range(0, len(tensors), _PER_EXPERT):
        expert = tensors[start : start + _PER_EXPERT]
        yield ExpertWeights(*expert[:4]), Assignment(*expert[4:])


def _sum(features: torch.Tensor, experts: Sequence[ExpertWeights], assignments: Sequence[Assignment]) -> torch.Tensor:
    if experts and all(kernels.computes(features, *expert.project.shape) for expert in experts):
        weights = [weight for expert in experts for weight in expert]
        return kernels.sum_of_experts(features, weights, *map(list, zip(*assignments, strict=True)))
    total = torch.zeros_like(features)
    for expert, assignment in zip(experts, assignments, strict=True):
        _add_expert(total, features, expert, assignment)
    return total


class _SumOfExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, *tensors: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(features, *tensors)
        experts, assignments = zip(*_unpack(tensors), strict=True) if tensors else ((), ())
        return _sum(features, experts, assignments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, *tensors = ctx.saved_tensors
        grad = grad.contiguous()
        grad_features = torch.zeros_like(features)
        grads: list[torch.Tensor | None] = []
        with torch.autocast("cpu", enabled=False):  # as it was in the forward pass
            for expert, assignment in _unpack(tensors):
                grads += _add_gradients(grad, features, expert, assignment, grad_features)
        return grad_features, *grads


def sum_of_experts(
    features: torch.Tensor, experts: Sequence[ExpertWeights], assignments: Sequence[Assignment]
) -> torch.Tensor:
    """Sum over experts of what each makes of the pixels that are assigned to it.

    On a CPU (float32 or float64, without autocast) in pieces, for which the hidden values are computed again in the
    backward pass; as it is defined elsewhere.

    Parameters
    ----------
    features : torch.Tensor
        Of shape (pixels, c).
    experts : sequence of ExpertWeights
        Their parameters, of the dtype of `features`. An expert without pixels gets gradients of zero.
    assignments : sequence of Assignment
        The pixels of each, and the weights of its outputs there.

    Returns
    -------
    torch.Tensor
        Of shape (pixels, c); 0 for pixels that no expert has. Can be differentiated once on a CPU.
    """
    if features.device.type != "cpu" or torch.is_autocast_enabled("cpu") or features.dtype not in _DTYPES:
        return sum_of_experts_plain(features, experts, assignments)
    features = features.contiguous()
    if not torch.is_grad_enabled():  # nothing to keep for a backward pass
        return _sum(features, experts, assignments)
    tensors = [tensor for pair in zip(experts, assignments, strict=True) for part in pair for tensor in part]
    return _SumOfExperts.apply(features, *tensors)
