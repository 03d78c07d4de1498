"""Inverted bottleneck in bands of image rows: the wide intermediate tensors stay in a CPU's cache.

A bottleneck of expansion 5 makes five times wider tensors than it is given, six of them under autograd. Written to
memory, they cost more time than the arithmetic between them and most of the memory that training takes. Here one of
them is kept (the depthwise convolution's output) and the rest exist a few rows at a time. What makes this possible is
that the statistics of the first normalisation follow from the covariance of its narrow input:

    mean and variance of y = W x over pixels and rows of W  come from  mean and covariance of x over pixels

so that this normalisation folds into W, and likewise for its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from direct_hifimamba.ops import pixels as kernels

EPS = 1e-5
#: Elements of a wide tensor per band: what fits a core's cache together with a few others of its size.
_BAND_ELEMENTS = 2**19
_BANDED_DTYPES = (torch.float32, torch.float64)


class BottleneckWeights(NamedTuple):
    """Parameters of a bottleneck from c to E and back to c channels."""

    expand: torch.Tensor  #: (E, c)
    expand_scale: torch.Tensor  #: (E,) of the first normalisation
    expand_offset: torch.Tensor  #: (E,)
    depthwise: torch.Tensor  #: (E, 1, 3, 3)
    depthwise_scale: torch.Tensor  #: (E,) of the second normalisation
    depthwise_offset: torch.Tensor  #: (E,)
    project: torch.Tensor  #: (c, E)


def _depthwise(wide: torch.Tensor, kernel: torch.Tensor, row_padding: int) -> torch.Tensor:
    """Convolve (batch, rows, width, E), padding columns by 1 and rows as asked."""
    convolved = F.conv2d(wide.permute(0, 3, 1, 2), kernel, padding=(row_padding, 1), groups=kernel.shape[0])
    return convolved.permute(0, 2, 3, 1)


def inverted_bottleneck_plain(features: torch.Tensor, weights: BottleneckWeights) -> torch.Tensor:
    """The bottleneck as it is defined, on any device, under autocast too; see :func:`inverted_bottleneck`."""

    def normalise(wide: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return F.group_norm(wide.permute(0, 3, 1, 2), 1, scale, offset, EPS).permute(0, 2, 3, 1)

    wide = F.gelu(normalise(F.linear(features, weights.expand), weights.expand_scale, weights.expand_offset))
    wide = _depthwise(wide, weights.depthwise, row_padding=1)
    wide = F.gelu(normalise(wide, weights.depthwise_scale, weights.depthwise_offset))
    return features + F.gelu(F.linear(wide, weights.project))


def _bands(height: int, row_elements: int) -> Iterator[slice]:
    rows = max(2, _BAND_ELEMENTS // row_elements)
    return (slice(start, min(start + rows, height)) for start in range(0, height, rows))


def _windows(
    image_shape: tuple[int, int, int], like: torch.Tensor, fill: Callable[[slice, torch.Tensor], object]
) -> Iterator[torch.Tensor]:
    """Bands of an image (height, width, E) with one more row on either side, zeros beyond the image's border.

    Every row is made once, by `fill(rows, out)`. The yielded tensor is valid until the next one is asked for.
    """
    height, width, channels = image_shape
    buffer: torch.Tensor | None = None
    for band in _bands(height, width * channels):
        rows = band.stop - band.start
        if buffer is None:
            buffer = like.new_zeros(rows + 2, width, channels)
            missing = slice(0, min(band.stop + 1, height))
        else:
            buffer[:2] = buffer[-2:]
            missing = slice(band.start + 1, min(band.stop + 1, height))
        window = buffer[: rows + 2]
        if missing.stop > missing.start:
            fill(missing, window[missing.start - band.start + 1 : missing.stop - band.start + 1])
        if band.stop == height:
            window[-1] = 0
        yield window


class _Saved(NamedTuple):
    """What the backward pass of one image needs beside its input x and the weights."""

    convolved: torch.Tensor  #: output of the depthwise convolution, less any constant, (height, width, E)
    projected: torch.Tensor  #: input of the last GELU, (height, width, c)
    statistics: torch.Tensor  #: mean and standard deviation of `convolved`, (2,) float64
    input_mean: torch.Tensor  #: of x over pixels, (c,) float64
    input_covariance: torch.Tensor  #: (c, c) float64


class _ExpandNorm(NamedTuple):
    """The first normalisation of one image."""

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
        """Weight and bias of the linear map that expands and normalises."""
        gain = weights.expand_scale / self.std.to(weights.expand_scale.dtype)
        return weights.expand * gain[:, None], weights.expand_offset - gain * self.mean.to(gain.dtype)


def _forward_image(x: torch.Tensor, weights: BottleneckWeights, keep: bool) -> tuple[torch.Tensor, _Saved | None]:
    """The bottleneck of an image (height, width, c), and what its backward pass needs if that is to be kept."""
    if kernels.computes(x, *weights.project.shape):
        result, *saved = kernels.inverted_bottleneck(x, *weights, keep)
        return result, _Saved(*saved) if keep else None

    height, width, _ = x.shape
    pixels = x.flatten(0, 1)
    input_mean = pixels.mean(0)
    centred = pixels - input_mean
    input_moments = input_mean.double(), (centred.t() @ centred).double() / len(pixels)
    folded, bias = _ExpandNorm.of(*input_moments, weights.expand).fold(weights)
    wide = (height, width, len(folded))

    def expand_and_activate(rows: slice, out: torch.Tensor) -> None:
        torch.addmm(bias, x[rows].flatten(0, 1), folded.t(), out=out.flatten(0, 1))
        torch.ops.aten.gelu_(out)

    convolved = x.new_empty(wide)
    total = x.new_zeros((), dtype=torch.float64)
    squares = torch.zeros_like(total)
    shift: torch.Tensor | None = None
    for band, window in zip(_bands(height, width * wide[2]), _windows(wide, x, expand_and_activate), strict=True):
        output = _depthwise(window.unsqueeze(0), weights.depthwise, row_padding=0).squeeze(0)
        if shift is None:
            # Normalisation removes any constant; without this one the sum of squares cancels less.
            shift = output.mean()
        flat = torch.sub(output, shift, out=convolved[band]).flatten()
        total += flat.sum()
        squares += torch.dot(flat, flat)
    mean = total / convolved.numel()
    std = (squares / convolved.numel() - mean**2).clamp(min=0).add(EPS).sqrt()

    gain = weights.depthwise_scale / std.to(x.dtype)
    offset = weights.depthwise_offset - gain * mean.to(x.dtype)
    result, projected = torch.empty_like(x), x.new_empty(x.shape if keep else 0)
    for band in _bands(height, width * wide[2]):
        activated = torch.addcmul(offset, convolved[band], gain)
        output = F.linear(torch.ops.aten.gelu_(activated), weights.project)
        if keep:
            projected[band] = output
        torch.add(x[band], F.gelu(output), out=result[band])
    return result, _Saved(convolved, projected, torch.stack([mean, std]), *input_moments) if keep else None


def _project_gradients(
    grad: torch.Tensor, saved: _Saved, gain: torch.Tensor, offset: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients from the second normalisation on, as `activate_project_gradients` returns them."""
    if kernels.computes(grad, *weight.shape):
        return kernels.activate_project_gradients(grad, saved.projected, saved.convolved, gain, offset, weight)
    height, width, channels = saved.convolved.shape
    normalised_grad = torch.empty_like(saved.convolved)
    weight_grad = torch.zeros_like(weight)
    total, product = torch.zeros_like(gain), torch.zeros_like(gain)
    for band in _bands(height, width * channels):
        convolved = saved.convolved[band].flatten(0, 1)
        normalised = torch.addcmul(offset, convolved, gain)
        projected_grad = torch.ops.aten.gelu_backward(grad[band], saved.projected[band]).flatten(0, 1)
        weight_grad.addmm_(projected_grad.t(), F.gelu(normalised))
        band_grad = normalised_grad[band].flatten(0, 1)
        torch.ops.aten.gelu_backward(projected_grad @ weight, normalised, grad_input=band_grad)
        total += band_grad.sum(0)
        product += torch.mul(band_grad, convolved).sum(0)
    return normalised_grad, weight_grad, total, product


def _convolve_gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    folded: torch.Tensor,
    bias: torch.Tensor,
    kernel: torch.Tensor,
    normalised_grad: torch.Tensor,
    convolved: torch.Tensor,
    gain: torch.Tensor,
    slope: torch.Tensor,
    level: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients up to the depthwise convolution, given and returned as by `expand_convolve_gradients`."""
    if kernels.computes(x, *folded.shape):
        return kernels.expand_convolve_gradients(
            grad, x, folded, bias, kernel, normalised_grad, convolved, gain, slope, level
        )

    def expand(rows: slice, out: torch.Tensor) -> None:
        torch.addmm(bias, x[rows].flatten(0, 1), folded.t(), out=out.flatten(0, 1))

    def convolved_grad(rows: slice, out: torch.Tensor) -> None:
        torch.addcmul(-level, normalised_grad[rows], gain, out=out)
        out.addcmul_(convolved[rows], slope, value=-1)

    height, width, _ = x.shape
    wide = (height, width, len(kernel))
    flipped = kernel.flip(2, 3)
    input_grad = grad.clone()
    bias_grad, folded_grad, kernel_grad = torch.zeros_like(bias), torch.zeros_like(folded), torch.zeros_like(kernel)
    for band, window, grad_window in zip(
        _bands(height, width * wide[2]),
        _windows(wide, x, expand),
        _windows(wide, x, convolved_grad),
        strict=True,
    ):
        kernel_grad += torch.ops.aten.convolution_backward(
            grad_window[1:-1].unsqueeze(0).permute(0, 3, 1, 2),
            F.gelu(window).unsqueeze(0).permute(0, 3, 1, 2),
            kernel,
            None,
            stride=[1, 1],
            padding=[0, 1],
            dilation=[1, 1],
            transposed=False,
            output_padding=[0, 0],
            groups=len(kernel),
            output_mask=[False, True, False],
        )[1]
        activated_grad = _depthwise(grad_window.unsqueeze(0), flipped, row_padding=0).squeeze(0)
        band_grad = torch.ops.aten.gelu_backward(activated_grad, window[1:-1]).flatten(0, 1)
        bias_grad += band_grad.sum(0)
        folded_grad.addmm_(band_grad.t(), x[band].flatten(0, 1))
        input_grad[band].flatten(0, 1).addmm_(band_grad, folded)
    return input_grad, folded_grad, bias_grad, kernel_grad


def _backward_image(
    x: torch.Tensor, weights: BottleneckWeights, saved: _Saved, grad: torch.Tensor, grads: BottleneckWeights
) -> torch.Tensor:
    """Gradient of one image; those of the weights are added to `grads`."""
    count = saved.convolved.numel()
    dtype = x.dtype
    mean, std = saved.statistics.to(dtype)
    gain = weights.depthwise_scale / std
    offset = weights.depthwise_offset - gain * mean

    # Through projection and second normalisation up to its affine part; sums over pixels on the way.
    normalised_grad, project_grad, offset_grad, product = _project_gradients(grad, saved, gain, offset, weights.project)
    scale_grad = (product - mean * offset_grad) / std
    grads.project.add_(project_grad)
    grads.depthwise_offset.add_(offset_grad)
    grads.depthwise_scale.add_(scale_grad)
    # Gradient of the convolution's output: gain * g - slope * convolved - level.
    slope = (weights.depthwise_scale * scale_grad).sum() / (count * std**2)
    level = (gain * offset_grad).sum() / count - slope * mean

    # Through convolution, first GELU and expansion.
    norm = _ExpandNorm.of(saved.input_mean, saved.input_covariance, weights.expand)
    folded, bias = norm.fold(weights)
    input_grad, correlation, offset_grad, kernel_grad = _convolve_gradients(
        grad, x, folded, bias, weights.depthwise, normalised_grad, saved.convolved, gain, slope, level
    )
    grads.depthwise.add_(kernel_grad)

    # What the statistics of the first normalisation add, again from sums over pixels alone.
    offset_grad, correlation = offset_grad.double(), correlation.double()
    W, scale = weights.expand.double(), weights.expand_scale.double()
    scale_grad = ((correlation * W).sum(1) - norm.mean * offset_grad) / norm.std
    grads.expand_offset.add_(offset_grad)
    grads.expand_scale.add_(scale_grad)
    slope = (scale * scale_grad).sum() / (count * norm.std**2)
    level = (scale * offset_grad).sum() / (count * norm.std) - slope * norm.mean
    pixels = count // len(W)
    input_sum = pixels * saved.input_mean
    input_gram = pixels * saved.input_covariance + torch.outer(input_sum, saved.input_mean)
    expand_grad = (scale / norm.std)[:, None] * correlation - level * input_sum - slope * (W @ input_gram)
    grads.expand.add_(expand_grad)
    input_grad.flatten(0, 1).addmm_(x.flatten(0, 1), (slope * W.t() @ W).to(dtype), alpha=-1)
    return input_grad.sub_((level * W.sum(0)).to(dtype))


class _BandedBottleneck(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        results, saved = zip(
            *(_forward_image(x, BottleneckWeights(*weights), keep=True) for x in features), strict=True
        )
        ctx.save_for_backward(features, *weights, *(tensor for image in saved for tensor in image))
        return kernels.as_batch(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features, *rest = ctx.saved_tensors
        weights, rest = BottleneckWeights(*rest[:7]), rest[7:]
        grads = BottleneckWeights(*(torch.zeros_like(weight) for weight in weights))
        kept = len(_Saved._fields)
        with torch.autocast("cpu", enabled=False):  # as it was in the forward pass
            input_grads = [
                _backward_image(x, weights, _Saved(*rest[i * kept : (i + 1) * kept]), image_grad.contiguous(), grads)
                for i, (x, image_grad) in enumerate(zip(features, grad, strict=True))
            ]
        return kernels.as_batch(input_grads), *grads


def inverted_bottleneck(features: torch.Tensor, weights: BottleneckWeights) -> torch.Tensor:
    r"""Skip connection around expansion, 3 x 3 depthwise convolution and projection, normalised per image.

    .. math::
        x + g(P\, g(N(K * g(N(W x))))), \quad g = \mathrm{GELU}, \quad N = \mathrm{GroupNorm}(1)

    In bands on a CPU (float32 or float64, without autocast), as it is defined elsewhere.

    Parameters
    ----------
    features : torch.Tensor
        Features of shape (batch, height, width, c).
    weights : BottleneckWeights
        Parameters, of the dtype of `features`.

    Returns
    -------
    torch.Tensor
        Features of the same shape. Can be differentiated once on a CPU.
    """
    if features.device.type != "cpu" or torch.is_autocast_enabled("cpu") or features.dtype not in _BANDED_DTYPES:
        return inverted_bottleneck_plain(features, weights)
    features = features.contiguous()
    if torch.is_grad_enabled() and (features.requires_grad or any(weight.requires_grad for weight in weights)):
        return _BandedBottleneck.apply(features, *weights)
    return kernels.as_batch([_forward_image(x, weights, keep=False)[0] for x in features])
