"""Sum of two-layer experts, each applied to some of the pixels: definition, and a compiled kernel for CPUs.

The kernel never stores the hidden values of all pixels at once; its backward pass recomputes them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from direct_hifimamba.ops import library
from direct_hifimamba.ops.derivatives import gradients_of_definition
from direct_hifimamba.ops.library import checked, pointer


class ExpertWeights(NamedTuple):
    """Parameters of an expert V gelu(U x + a) + b, from c channels to `hidden` and back to c."""

    expand: torch.Tensor  #: U, (hidden, c)
    expand_bias: torch.Tensor  #: a, (hidden,)
    project: torch.Tensor  #: V, (c, hidden)
    project_bias: torch.Tensor  #: b, (c,)


class Assignment(NamedTuple):
    """The pixels of one expert."""

    pixels: torch.Tensor | None = None  #: rows, (n,) int64, each at most once; None: all
    weight: torch.Tensor | None = None  #: weight of the expert's output, (n,); None: 1


def sum_of_experts_definition(
    features: torch.Tensor, experts: Sequence[ExpertWeights], assignments: Sequence[Assignment]
) -> torch.Tensor:
    """Definition of :func:`sum_of_experts` in plain PyTorch, for any device, also under autocast."""
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


def sum_of_experts(
    features: torch.Tensor, experts: Sequence[ExpertWeights], assignments: Sequence[Assignment]
) -> torch.Tensor:
    """Add up the outputs of several experts, each for the pixels that are assigned to it.

    Parameters
    ----------
    features : torch.Tensor
        Of shape (pixels, c).
    experts : sequence of ExpertWeights
        Parameters, of the dtype of `features`. The gradients of an expert without pixels are zero.
    assignments : sequence of Assignment
        Pixels of each expert, and weights of its outputs there.

    Returns
    -------
    torch.Tensor
        Of shape (pixels, c); 0 for pixels without an expert.
    """
    weights = [assignment.weight for assignment in assignments if assignment.weight is not None]
    tensors = [features, *weights, *(weight for expert in experts for weight in expert)]
    channels = [count for expert in experts for count in expert.project.shape]
    if not experts or not library.native_kernel_applies(tensors, channels):
        return sum_of_experts_definition(features, experts, assignments)
    parts = [part for pair in zip(experts, assignments, strict=True) for part in pair]
    return _SumOfExperts.apply(features, *(tensor for part in parts for tensor in part))


_Expert = library.struct("Expert", "all_pixels pixels channels hidden add", "x index weight U a V b out next")
_ExpertBackward = library.struct(
    "ExpertBackward",
    "all_pixels pixels channels hidden parts",
    "x grad index weight U a Ut Vt b grad_x grad_weight sums",
)


def _checked(
    x: torch.Tensor, expert: ExpertWeights, index: torch.Tensor | None, weight: torch.Tensor | None
) -> tuple[int, ExpertWeights, torch.Tensor | None, torch.Tensor | None]:
    """Return the number of an expert's pixels, and its tensors, contiguous and of matching shapes."""
    channels, hidden = x.shape[-1], len(expert.expand)
    library.check_channels(channels=channels, hidden_channels=hidden)
    if x.ndim != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (pixels, channels).")
    pixels = len(x) if index is None else len(index)
    shapes = ((hidden, channels), (hidden,), (channels, hidden), (channels,))
    named = zip(ExpertWeights._fields, expert, shapes, strict=True)
    return (
        pixels,
        ExpertWeights(*(checked(*arguments) for arguments in named)),
        None if index is None else checked("index", index, (pixels,), torch.int64),
        None if weight is None else checked("weight", weight, (pixels,)),
    )


@torch.library.custom_op("direct_hifimamba::sum_of_experts", mutates_args=(), device_types="cpu")
def _forward(
    x: torch.Tensor,
    experts: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor | None],
    weights: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """Return the sum for x (pixels, c); `experts` has four tensors U, a, V and b per expert."""
    if len(experts) != len(ExpertWeights._fields) * len(indices) or len(weights) != len(indices):
        counts = f"{len(experts)} parameters, {len(indices)} indices and {len(weights)} weights"
        raise ValueError(f"There are {counts}; expected four parameters, an index and a weight of each expert.")
    x, out = checked("x", x, tuple(x.shape)), torch.empty_like(x, memory_format=torch.contiguous_format)
    # If the first expert has all pixels, it initialises the sum to which the others are added.
    add = not indices or indices[0] is not None
    if add:
        out.zero_()
    alive: list[Any] = []  # keeps the tensors that the structs point to
    structs: list[ctypes.Structure] = []
    work = 0
    for i, (index, weight) in enumerate(zip(indices, weights, strict=True)):
        pixels, expert, index, weight = _checked(x, ExpertWeights(*experts[4 * i : 4 * i + 4]), index, weight)
        hidden, channels = expert.expand.shape
        alive += [expert, index, weight]
        tensors = (x, index, weight, *expert, out)
        structs.append(_Expert(len(x), pixels, channels, hidden, add or i > 0, *map(pointer, tensors)))
        work += 2 * pixels * channels * hidden
    for arguments, following in pairwise(structs):
        arguments.next = ctypes.addressof(following)
    if structs:
        library.call("experts", structs[0], work)
    return out


@_forward.register_fake
@library.on_one_device
def _forward_fake(x, *_):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


_PARAMETERS = ", ".join(f"Tensor {name}" for name in ExpertWeights._fields)


@torch.library.custom_op(
    "direct_hifimamba::add_expert_gradients",
    mutates_args=("grad_x",),
    device_types="cpu",
    schema=f"(Tensor(a!) grad_x, Tensor grad, Tensor x, {_PARAMETERS}, Tensor? index, Tensor? weight) -> Tensor[]",
)
def _add_gradients(grad_x: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, *tensors: Any) -> list[torch.Tensor]:
    """Return gradients of one expert's parameters and of `weight` (empty if None); add that of x to `grad_x`."""
    *parameters, index, weight = tensors
    expert = ExpertWeights(*parameters)
    x, grad = checked("x", x, tuple(x.shape)), checked("grad", grad, tuple(x.shape))
    pixels, expert, index, weight = _checked(x, expert, index, weight)
    if checked("grad_x", grad_x, tuple(x.shape)) is not grad_x:
        raise ValueError(f"grad_x has strides {grad_x.stride()}; expected a contiguous tensor.")
    hidden, channels = expert.expand.shape
    grad_weight = x.new_empty(0 if weight is None else pixels)
    sums = library.new_sums(x, pixels, 2 * hidden * channels + hidden + channels)
    transposed = [matrix.t().contiguous() for matrix in (expert.expand, expert.project)]
    tensors = (x, grad, index, weight, expert.expand, expert.expand_bias, *transposed, expert.project_bias)
    addresses = map(pointer, (*tensors, grad_x, None if weight is None else grad_weight, sums))
    arguments = _ExpertBackward(len(x), pixels, channels, hidden, len(sums), *addresses)
    library.call("expert_backward", arguments, 5 * pixels * channels * hidden)
    shapes = ((hidden, channels), (hidden, channels), (hidden,), (channels,))
    grad_expand, grad_project, grad_expand_bias, grad_project_bias = library.add_up(sums, *shapes)
    return [grad_expand, grad_expand_bias, grad_project.t().contiguous(), grad_project_bias, grad_weight]


@_add_gradients.register_fake
@library.on_one_device
def _add_gradients_fake(grad_x, grad, x, *tensors):  # type: ignore[no-untyped-def]
    *expert, index, weight = tensors
    pixels = len(x) if index is None else len(index)
    return [*map(torch.empty_like, expert), x.new_empty(0 if weight is None else pixels)]


_PER_EXPERT = len(ExpertWeights._fields) + len(Assignment._fields)


def _unpack(tensors: Sequence[Any]) -> Iterator[tuple[ExpertWeights, Assignment]]:
    for start in range(0, len(tensors), _PER_EXPERT):
        expert = tensors[start : start + _PER_EXPERT]
        yield ExpertWeights(*expert[:4]), Assignment(*expert[4:])


class _SumOfExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, *tensors: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(features, *tensors)
        experts, assignments = zip(*_unpack(tensors), strict=True)
        weights = [weight for expert in experts for weight in expert]
        return _forward(features, weights, *map(list, zip(*assignments, strict=True)))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(
                gradients_of_definition(
                    lambda x, *tensors: sum_of_experts_definition(x, *zip(*_unpack(tensors), strict=True)), saved, grad
                )
            )
        features, *tensors = saved
        grad_features = torch.zeros_like(features, memory_format=torch.contiguous_format)
        grads: list[torch.Tensor | None] = []
        for expert, (pixels, weight) in _unpack(tensors):
            *found, grad_weight = _add_gradients(grad_features, grad, features, *expert, pixels, weight)
            grads += [*found, None, None if weight is None else grad_weight]
        return grad_features, *grads
