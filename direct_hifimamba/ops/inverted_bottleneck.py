r"""Depthwise inverted bottleneck: definition, and a compiled kernel for CPUs that passes over memory once.

.. math::
    x + g(P\, g(N(K * g(N(W x))))), \quad g = \mathrm{GELU}, \quad N = \mathrm{GroupNorm}(1)

Of the values with E expanded channels, the compiled kernel stores only the output of the depthwise convolution for the
whole image. The statistics of the first normalisation follow from mean and covariance of the c channels of x.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from direct_hifimamba.ops import library
from direct_hifimamba.ops.derivatives import gradients_of_definition
from direct_hifimamba.ops.library import checked, pointer

#: Added to variances before the division; the same constant as in the kernel.
EPS = 1e-5


class BottleneckWeights(NamedTuple):
    """Parameters of a bottleneck, from c channels to E and back to c."""

    expand: torch.Tensor  #: W, (E, c)
    expand_scale: torch.Tensor  #: (E,) of the first normalisation
    expand_offset: torch.Tensor  #: (E,)
    depthwise: torch.Tensor  #: K, (E, 1, 3, 3)
    depthwise_scale: torch.Tensor  #: (E,) of the second normalisation
    depthwise_offset: torch.Tensor  #: (E,)
    project: torch.Tensor  #: P, (c, E)


def inverted_bottleneck_definition(features: torch.Tensor, weights: BottleneckWeights) -> torch.Tensor:
    """Definition of :func:`inverted_bottleneck` in plain PyTorch, for any device, also under autocast."""

    def normalise(hidden: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return F.group_norm(hidden.permute(0, 3, 1, 2), 1, scale, offset, EPS)

    hidden = F.gelu(normalise(F.linear(features, weights.expand), weights.expand_scale, weights.expand_offset))
    hidden = F.conv2d(hidden, weights.depthwise, padding=1, groups=len(weights.depthwise)).permute(0, 2, 3, 1)
    hidden = F.gelu(normalise(hidden, weights.depthwise_scale, weights.depthwise_offset)).permute(0, 2, 3, 1)
    return features + F.gelu(F.linear(hidden, weights.project))


def inverted_bottleneck(features: torch.Tensor, weights: BottleneckWeights) -> torch.Tensor:
    """Apply expansion, 3 x 3 depthwise convolution and projection, with normalisation per image and a skip connection.

    Parameters
    ----------
    features : torch.Tensor
        Features of shape (batch, height, width, c).
    weights : BottleneckWeights
        Parameters, of the dtype of `features`.

    Returns
    -------
    torch.Tensor
        Features of the same shape.
    """
    if features.numel() == 0 or not library.native_kernel_applies((features, *weights), weights.project.shape):
        return inverted_bottleneck_definition(features, weights)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (features, *weights))
    return _forward(features, *weights, keep)[0]


_Bottleneck = library.struct(
    "Bottleneck",
    "height width channels inner",
    "x expand expand_scale expand_offset depthwise depthwise_scale depthwise_offset project convolved projected y "
    "statistics input_mean input_covariance",
)
_ProjectBackward = library.struct(
    "ProjectBackward",
    "pixels channels inner parts",
    "grad projected convolved gain offset Pt grad_normalised sums",
)
_ExpandBackward = library.struct(
    "ExpandBackward",
    "height width channels inner parts",
    "x grad W b Wt depthwise grad_normalised convolved gain slope level grad_x sums",
)


def _checked(x: torch.Tensor, weights: BottleneckWeights) -> tuple[torch.Tensor, BottleneckWeights]:
    """Return features and weights, contiguous and of matching shapes."""
    channels, inner = x.shape[-1], len(weights.expand)
    library.check_channels(channels=channels, expanded_channels=inner)
    if x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (batch, height, width, channels).")
    shapes = ((inner, channels), (inner,), (inner,), (inner, 1, 3, 3), (inner,), (inner,), (channels, inner))
    named = zip(BottleneckWeights._fields, weights, shapes, strict=True)
    return checked("x", x, tuple(x.shape)), BottleneckWeights(*(checked(*arguments) for arguments in named))


_INPUTS = ", ".join(f"Tensor {name}" for name in ("x", *BottleneckWeights._fields))
_KEPT = ("convolved", "projected", "statistics", "input_mean", "input_covariance")


@torch.library.custom_op(
    "direct_hifimamba::inverted_bottleneck",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(x: torch.Tensor, *weights_and_keep: Any) -> tuple[torch.Tensor, ...]:
    """Return the bottleneck's output and the tensors `_KEPT` for its backward pass, the first two empty unless `keep`.

    Per image these are the output of K, (height, width, E); the argument of the last GELU, (height, width, c); and in
    float64 mean and standard deviation of the second N, (2,), mean of x over pixels, (c,), and its covariance, (c, c).
    """
    *given, keep = weights_and_keep
    x, weights = _checked(x, BottleneckWeights(*given))
    y, convolved, projected, statistics, mean, covariance = _forward_fake(x, *weights, keep)
    batch, height, width, channels = x.shape
    inner = len(weights.expand)
    scratch = x.new_empty(0 if keep else (height, width, inner))
    for i in range(batch):
        arguments = _Bottleneck(
            *(height, width, channels, inner),
            *map(pointer, (x[i], *weights)),
            pointer(convolved[i] if keep else scratch),
            pointer(projected[i] if keep else None),
            *map(pointer, (y[i], statistics[i], mean[i], covariance[i])),
        )
        library.call("bottleneck", arguments, 2 * height * width * weights.expand.numel())
    return y, convolved, projected, statistics, mean, covariance


@_forward.register_fake
@library.on_one_device
def _forward_fake(x, expand, *rest):  # type: ignore[no-untyped-def]
    (batch, height, width, channels), keep = x.shape, rest[-1]
    kept = (batch, height, width, len(expand)), (batch, height, width, channels)
    moments = (2,), (channels,), (channels, channels)
    return (
        x.new_empty(x.shape),
        *(x.new_empty(shape if keep else 0) for shape in kept),
        *(x.new_empty(batch, *shape, dtype=torch.float64) for shape in moments),
    )


class _ExpandNorm(NamedTuple):
    """Statistics of the first normalisation of one image."""

    mean: torch.Tensor  #: mean of W x over pixels and channels, scalar float64
    std: torch.Tensor  #: its standard deviation, scalar float64

    @classmethod
    def of(cls, input_mean: torch.Tensor, input_covariance: torch.Tensor, expand: torch.Tensor) -> _ExpandNorm:
        W = expand.double()
        channel_means = W @ input_mean
        # Variance within channels plus variance between their means: two sums of squares, nothing cancels.
        variance = ((W @ input_covariance) * W).sum(1).mean() + channel_means.var(correction=0)
        return cls(channel_means.mean(), (variance + EPS).sqrt())

    def fold(self, weights: BottleneckWeights) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias of the linear map that expands and normalises."""
        gain = weights.expand_scale / self.std.float()
        return weights.expand * gain[:, None], weights.expand_offset - gain * self.mean.float()


@torch.library.custom_op(
    "direct_hifimamba::inverted_bottleneck_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {_INPUTS}, {', '.join(f'Tensor {name}' for name in _KEPT)}) -> Tensor[]",
)
def _backward(grad: torch.Tensor, x: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return gradients of x and the weights, given that of the result and the tensors of the forward pass."""
    x, weights = _checked(x, BottleneckWeights(*tensors[:7]))
    grad = checked("grad", grad, tuple(x.shape))
    likes = _forward_fake(*(tensor.to("meta") for tensor in (x, *weights)), True)[1:]
    named = zip(_KEPT, tensors[7:], likes, strict=True)
    saved = [checked(name, tensor, tuple(like.shape), like.dtype) for name, tensor, like in named]
    grads = BottleneckWeights(*map(torch.zeros_like, weights))
    grad_x = torch.empty_like(x)
    for i in range(len(x)):
        grad_x[i] = _backward_image(x[i], weights, [tensor[i] for tensor in saved], grad[i], grads)
    return [grad_x, *grads]


def _backward_image(
    x: torch.Tensor, weights: BottleneckWeights, saved: list[torch.Tensor], grad: torch.Tensor, grads: BottleneckWeights
) -> torch.Tensor:
    """Return the gradient of one image, and add those of the weights to `grads`."""
    convolved, projected, statistics, input_mean, input_covariance = saved
    (height, width, channels), inner = x.shape, len(weights.expand)
    pixels, count = height * width, convolved.numel()
    mean, std = statistics.float()
    gain = weights.depthwise_scale / std
    offset = weights.depthwise_offset - gain * mean

    # Through projection and second normalisation up to its affine part, with sums over pixels.
    normalised_grad, transposed = torch.empty_like(convolved), weights.project.t().contiguous()
    sums = library.new_sums(x, pixels, inner * channels + 2 * inner)
    tensors = (grad, projected, convolved, gain, offset, transposed, normalised_grad, sums)
    arguments = _ProjectBackward(pixels, channels, inner, len(sums), *map(pointer, tensors))
    library.call("project_backward", arguments, 2 * count * channels)
    project_grad, offset_grad, product = library.add_up(sums, (inner, channels), (inner,), (inner,))
    scale_grad = (product - mean * offset_grad) / std
    grads.project.add_(project_grad.t())
    grads.depthwise_offset.add_(offset_grad)
    grads.depthwise_scale.add_(scale_grad)
    # Gradient of the convolution's output: gain * normalised_grad - slope * convolved - level.
    slope = (weights.depthwise_scale * scale_grad).sum() / (count * std**2)
    level = (gain * offset_grad).sum() / count - slope * mean

    # Through convolution, first GELU and expansion.
    norm = _ExpandNorm.of(input_mean, input_covariance, weights.expand)
    weight, bias = norm.fold(weights)
    input_grad, taps = torch.empty_like(x), weights.depthwise.flatten(1).t().contiguous()
    sums = library.new_sums(x, pixels, inner * channels + 10 * inner)
    inputs = (x, grad, weight, bias, weight.t().contiguous(), taps, normalised_grad, convolved, gain, slope, level)
    addresses = map(pointer, (*inputs, input_grad, sums))
    library.call(
        "expand_backward", _ExpandBackward(height, width, channels, inner, len(sums), *addresses), 3 * count * channels
    )
    correlation, offset_grad, taps_grad = library.add_up(sums, (inner, channels), (inner,), (9, inner))
    grads.depthwise.add_(taps_grad.t().reshape(weights.depthwise.shape))

    # Contribution of the statistics of the first normalisation, again from sums over pixels only.
    offset_grad, correlation = offset_grad.double(), correlation.double()
    W, scale = weights.expand.double(), weights.expand_scale.double()
    scale_grad = ((correlation * W).sum(1) - norm.mean * offset_grad) / norm.std
    grads.expand_offset.add_(offset_grad)
    grads.expand_scale.add_(scale_grad)
    slope = (scale * scale_grad).sum() / (count * norm.std**2)
    level = (scale * offset_grad).sum() / (count * norm.std) - slope * norm.mean
    input_sum = pixels * input_mean
    input_gram = pixels * input_covariance + torch.outer(input_sum, input_mean)
    grads.expand.add_((scale / norm.std)[:, None] * correlation - level * input_sum - slope * (W @ input_gram))
    input_grad.flatten(0, 1).addmm_(x.flatten(0, 1), (slope * W.t() @ W).float(), alpha=-1)
    return input_grad.sub_((level * W.sum(0)).float())


@_backward.register_fake
@library.on_one_device
def _backward_fake(grad, *tensors):  # type: ignore[no-untyped-def]
    return [tensor.new_empty(tensor.shape) for tensor in tensors[:8]]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:8], *output[1:])
    ctx.keep = inputs[8]


def _gradients(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    saved = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *gradients_of_definition(
            lambda x, *weights: inverted_bottleneck_definition(x, BottleneckWeights(*weights)), saved[:8], grad
        ), None
    if not ctx.keep:
        raise RuntimeError("The bottleneck ran without `keep` and so has no backward pass.")
    return *_backward(grad, *saved), None


_forward.register_autograd(_gradients, setup_context=_setup_context)
