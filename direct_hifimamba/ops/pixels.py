"""Compiled kernels for the pixels of images and the steps of sequences: all but the scan. See csrc/pixels.h."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from direct_hifimamba.ops import library

#: Multiply-accumulates below which starting another thread does not pay.
_WORK_PER_THREAD = 500_000
#: Backward passes sum over pixels in at most so many parts, of at least so many pixels, whatever the number of threads.
_PARTS, _PIXELS_PER_PART = 8, 256


def _struct(name: str, integers: str, pointers: str) -> type[ctypes.Structure]:
    fields = [
        *((field, ctypes.c_int64) for field in integers.split()),
        *((field, ctypes.c_void_p) for field in pointers.split()),
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_Bottleneck = _struct(
    "Bottleneck",
    "height width channels wide",
    "x expand expand_scale expand_offset depthwise depthwise_scale depthwise_offset project convolved projected y "
    "statistics input_mean input_covariance",
)
_Expert = _struct("Expert", "all_pixels pixels channels hidden x_row out_row add", "x index weight U a G V b out next")
_Depthwise = _struct("Depthwise", "height width channels x_row", "x weight bias y")
_Sequence = _struct("Sequence", "length channels taps dilation", "x weight y")
_Routing = _struct("Routing", "pixels channels high_row", "high detail gamma y")
_Join = _struct("Join", "pixels outputs first_channels second_channels third_channels", "first second third W b y")
_ProjectBackward = _struct(
    "ProjectBackward",
    "pixels channels wide parts",
    "grad projected convolved gain offset Pt grad_normalised sums",
)
_ExpandBackward = _struct(
    "ExpandBackward",
    "height width channels wide parts",
    "x grad W b Wt depthwise grad_normalised convolved gain slope level grad_x sums",
)
_ExpertBackward = _struct(
    "ExpertBackward",
    "all_pixels pixels channels hidden parts",
    "x grad index weight U a Ut Vt b grad_x grad_weight sums",
)


def computes(features: torch.Tensor, *channels: int) -> bool:
    """Whether these kernels take `features` and these numbers of channels, here and now."""
    return (
        library.CHANNELS > 0
        and not torch.is_autocast_enabled("cpu")
        and features.device.type == "cpu"
        and features.dtype == torch.float32
        and all(count % library.CHANNELS == 0 for count in channels)
    )


def predicts(features: torch.Tensor, *channels: int) -> bool:
    """Whether those of these kernels that have no backward pass take `features` and these numbers of channels."""
    return not torch.is_grad_enabled() and computes(features, *channels)


_OTHER_DTYPES = {
    "index": torch.int64,
    **dict.fromkeys(("statistics", "input_mean", "input_covariance"), torch.float64),
}


def as_batch(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack images; a single one without a copy."""
    return torch.stack(tuple(images)) if len(images) > 1 else images[0].unsqueeze(0)


def _check_expert(x: torch.Tensor, channels: int, index: torch.Tensor | None, weight: torch.Tensor | None) -> int:
    """The number of pixels that are assigned to an expert."""
    if x.ndim != 2 or x.shape[1] != channels:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (pixels, {channels}), as the weights say.")
    pixels = len(x) if index is None else len(index)
    if weight is not None and len(weight) != pixels:
        raise ValueError(f"weight has {len(weight)} elements; expected {pixels}, one per pixel.")
    return pixels


def _evenly_spaced(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """`x` as (pixels, channels), copied unless pixels lie at the same distance from each other; and that distance."""
    flat = x.flatten(0, -2)
    if flat.stride(1) != 1:
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat, flat.stride(0)


def _filled(
    struct: type[ctypes.Structure], tensors: list[torch.Tensor], **arguments: int | torch.Tensor | None
) -> ctypes.Structure:
    """A struct that points to tensors, which are appended to `tensors`: they have to live until the kernel is done."""
    values: dict[str, int | None] = {}
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            dtype = _OTHER_DTYPES.get(name, torch.float32)
            if value.dtype != dtype:
                raise TypeError(f"{name} is {value.dtype}; expected {dtype}.")
            tensors.append(value if f"{name}_row" in arguments else value.contiguous())
            values[name] = tensors[-1].data_ptr()
        else:
            values[name] = value
    return struct(**values)


def _call(function: str, struct: type[ctypes.Structure], work: int, **arguments: int | torch.Tensor | None) -> None:
    tensors: list[torch.Tensor] = []
    library.call(function, _filled(struct, tensors, **arguments), work, _WORK_PER_THREAD)


def _like_first(first, *rest):  # type: ignore[no-untyped-def]
    """The result of an operator, without values, that has the shape of its first argument."""
    return first.new_empty(first.shape)


def _new_sums(pixels: int, floats: int) -> torch.Tensor:
    """Memory for the sums of every part, (parts, floats) float32."""
    return torch.empty(max(1, min(_PARTS, pixels // _PIXELS_PER_PART)), floats)


def _add_up(sums: torch.Tensor, *shapes: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """Sums over the parts in their order, cut into tensors of these shapes."""
    for parts, shape in zip(sums.split([math.prod(shape) for shape in shapes], dim=1), shapes, strict=True):
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        yield total.view(shape)


@torch.library.custom_op("direct_hifimamba::inverted_bottleneck", mutates_args=(), device_types="cpu")
def inverted_bottleneck(
    x: torch.Tensor,
    expand: torch.Tensor,
    expand_scale: torch.Tensor,
    expand_offset: torch.Tensor,
    depthwise: torch.Tensor,
    depthwise_scale: torch.Tensor,
    depthwise_offset: torch.Tensor,
    project: torch.Tensor,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x + gelu(P gelu(N(K * gelu(N(W x))))) for one image, N normalising to mean 0 and variance 1 over the image.

    Parameters
    ----------
    x : torch.Tensor
        Of shape (height, width, c), float32, as all of them.
    expand, expand_scale, expand_offset : torch.Tensor
        W (E, c), and what the first N scales by and adds, (E,).
    depthwise, depthwise_scale, depthwise_offset : torch.Tensor
        K (E, 1, 3, 3), and the same of the second N, (E,).
    project : torch.Tensor
        P (c, E).
    keep : bool
        Return the large tensors that a backward pass needs, too.

    Returns
    -------
    tuple of torch.Tensor
        The result, of the shape of `x`; output of K, (height, width, E), and argument of the last gelu, of the shape
        of `x`, both empty unless they are kept; float64: mean and deviation that the second N used, (2,), mean of `x`
        over pixels, (c,), and covariance, (c, c).
    """
    height, width, channels = x.shape
    wide = len(expand)
    shapes = [tuple(weight.shape) for weight in (expand, depthwise, project)]
    if shapes != [(wide, channels), (wide, 1, 3, 3), (channels, wide)]:
        raise ValueError(f"expand, depthwise and project have the shapes {shapes}; expected {channels} channels, as x.")
    result, convolved = x.new_empty(x.shape), x.new_empty(height, width, wide)
    projected = x.new_empty(x.shape if keep else 0)
    statistics, input_mean, input_covariance = (
        x.new_empty(shape, dtype=torch.float64) for shape in ((2,), (channels,), (channels, channels))
    )
    _call(
        "bottleneck",
        _Bottleneck,
        2 * height * width * channels * wide,
        height=height,
        width=width,
        channels=channels,
        wide=wide,
        x=x,
        expand=expand,
        expand_scale=expand_scale,
        expand_offset=expand_offset,
        depthwise=depthwise,
        depthwise_scale=depthwise_scale,
        depthwise_offset=depthwise_offset,
        project=project,
        convolved=convolved,
        projected=projected if keep else None,
        y=result,
        statistics=statistics,
        input_mean=input_mean,
        input_covariance=input_covariance,
    )
    return result, convolved if keep else x.new_empty(0), projected, statistics, input_mean, input_covariance


@inverted_bottleneck.register_fake
def _inverted_bottleneck_fake(x, expand, *rest):  # type: ignore[no-untyped-def]
    (height, width, channels), keep = x.shape, rest[-1]
    shapes = (height, width, len(expand)) if keep else 0, x.shape if keep else 0
    moments = ((2,), (channels,), (channels, channels))
    return x.new_empty(x.shape), *map(x.new_empty, shapes), *(x.new_empty(m, dtype=torch.float64) for m in moments)


@torch.library.custom_op("direct_hifimamba::depthwise_silu", mutates_args=(), device_types="cpu")
def depthwise_silu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """silu(K * x + b) with a 3 x 3 depthwise convolution, zeros around the image.

    Parameters
    ----------
    x : torch.Tensor
        Of shape (height, width, c), float32, as all of them.
    weight, bias : torch.Tensor
        K (c, 1, 3, 3) and b (c,).

    Returns
    -------
    torch.Tensor
        Of the shape of `x`.
    """
    (height, width, channels), y = x.shape, x.new_empty(x.shape)
    if weight.shape != (channels, 1, 3, 3):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected {channels} channels, as x, and 3 x 3 taps.")
    x, x_row = _evenly_spaced(x)
    _call(
        "depthwise",
        _Depthwise,
        9 * x.numel(),
        height=height,
        width=width,
        channels=channels,
        x_row=x_row,
        x=x,
        weight=weight,
        bias=bias,
        y=y,
    )
    return y


depthwise_silu.register_fake(_like_first)


@torch.library.custom_op("direct_hifimamba::convolve_sequence", mutates_args=(), device_types="cpu")
def convolve_sequence(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """Depthwise convolution along a sequence, zeros beyond its ends.

    Parameters
    ----------
    x : torch.Tensor
        Of shape (length, channels), float32, as the weight; any number of channels.
    weight : torch.Tensor
        Of shape (channels, taps), taps being odd; the middle one is at the place of the output.
    dilation : int
        Distance of neighbouring taps.

    Returns
    -------
    torch.Tensor
        Of the shape of `x`.
    """
    (length, channels), taps, y = x.shape, weight.shape[1], x.new_empty(x.shape)
    if len(weight) != channels or taps % 2 == 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected {channels} channels, as x, and an odd number of taps."
        )
    _call(
        "sequence",
        _Sequence,
        taps * x.numel(),
        length=length,
        channels=channels,
        taps=taps,
        dilation=dilation,
        x=x,
        weight=weight,
        y=y,
    )
    return y


convolve_sequence.register_fake(_like_first)


@torch.library.custom_op("direct_hifimamba::route_detail", mutates_args=(), device_types="cpu")
def route_detail(high: torch.Tensor, detail: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """detail + (1 - w) high with w = sigmoid(gamma s), s being the cosine similarity of high + detail and detail.

    Parameters
    ----------
    high, detail : torch.Tensor
        Of shape (pixels, c), float32, as all of them.
    gamma : torch.Tensor
        Of shape ().

    Returns
    -------
    torch.Tensor
        Of the shape of `high`.
    """
    (pixels, channels), y = high.shape, high.new_empty(high.shape)
    high, high_row = _evenly_spaced(high)
    if detail.shape != high.shape:
        raise ValueError(f"detail has shape {tuple(detail.shape)}; expected that of high, {tuple(high.shape)}.")
    _call(
        "routing",
        _Routing,
        5 * high.numel(),
        pixels=pixels,
        channels=channels,
        high_row=high_row,
        high=high,
        detail=detail,
        gamma=gamma,
        y=y,
    )
    return y


route_detail.register_fake(_like_first)


@torch.library.custom_op("direct_hifimamba::joined_linear", mutates_args=(), device_types="cpu")
def joined_linear(parts: Sequence[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """W x + b, where the channels of x are those of the parts, in their order, without joining them.

    Parameters
    ----------
    parts : sequence of torch.Tensor
        One to three, of shape (pixels, its channels), float32, as all of them.
    weight, bias : torch.Tensor
        W (outputs, channels) and b (outputs,).

    Returns
    -------
    torch.Tensor
        Of shape (pixels, outputs).
    """
    pixels, y = len(parts[0]), parts[0].new_empty(len(parts[0]), len(weight))
    counts = [part.shape[1] for part in parts]
    if len(parts) > 3 or sum(counts) != weight.shape[1] or any(len(part) != pixels for part in parts):
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(
            f"parts have the shapes {shapes}; expected at most three of the same pixels, with {weight.shape[1]} "
            "channels in all, as the weight says."
        )
    first, second, third = [*parts, None, None][:3]
    first_channels, second_channels, third_channels = [*counts, 0, 0][:3]
    _call(
        "join",
        _Join,
        pixels * weight.numel(),
        pixels=pixels,
        outputs=len(weight),
        first_channels=first_channels,
        second_channels=second_channels,
        third_channels=third_channels,
        first=first,
        second=second,
        third=third,
        W=weight,
        b=bias,
        y=y,
    )
    return y


@joined_linear.register_fake
def _joined_linear_fake(parts, weight, bias):  # type: ignore[no-untyped-def]
    return parts[0].new_empty(len(parts[0]), len(weight))


@torch.library.custom_op("direct_hifimamba::activate_project_gradients", mutates_args=(), device_types="cpu")
def activate_project_gradients(
    grad: torch.Tensor,
    projected: torch.Tensor,
    convolved: torch.Tensor,
    gain: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of y = x + gelu(P gelu(n)) up to n = gain convolved + offset, but for that of `x`, which is `grad`.

    Parameters
    ----------
    grad : torch.Tensor
        Gradient of the result, (height, width, c), float32, as all of them.
    projected, convolved, gain, offset, weight : torch.Tensor
        As there.

    Returns
    -------
    tuple of torch.Tensor
        Gradient of n, (height, width, E); that of the weight, (c, E); the first one summed over pixels, and its
        product with `convolved`, (E,).
    """
    pixels, (channels, wide) = grad.shape[0] * grad.shape[1], weight.shape
    normalised_grad = convolved.new_empty(convolved.shape)
    sums = _new_sums(pixels, wide * channels + 2 * wide)
    _call(
        "project_backward",
        _ProjectBackward,
        2 * pixels * channels * wide,
        pixels=pixels,
        channels=channels,
        wide=wide,
        parts=len(sums),
        grad=grad,
        projected=projected,
        convolved=convolved,
        gain=gain,
        offset=offset,
        Pt=weight.t(),
        grad_normalised=normalised_grad,
        sums=sums,
    )
    weight_grad, total, product = _add_up(sums, (wide, channels), (wide,), (wide,))
    return normalised_grad, weight_grad.t().contiguous(), total, product


@activate_project_gradients.register_fake
def _activate_project_gradients_fake(grad, projected, convolved, gain, offset, weight):  # type: ignore[no-untyped-def]
    return tuple(like.new_empty(like.shape) for like in (convolved, weight, gain, gain))


@torch.library.custom_op("direct_hifimamba::expand_convolve_gradients", mutates_args=(), device_types="cpu")
def expand_convolve_gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    depthwise: torch.Tensor,
    normalised_grad: torch.Tensor,
    convolved: torch.Tensor,
    gain: torch.Tensor,
    slope: torch.Tensor,
    level: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of K * gelu(W x + b), where that of the result is gain normalised_grad - slope convolved - level.

    Parameters
    ----------
    grad : torch.Tensor
        To be added to the gradient of `x`, (height, width, c), float32, as all of them.
    x, weight, bias, depthwise : torch.Tensor
        As there.
    normalised_grad, convolved : torch.Tensor
        Of shape (height, width, E).
    gain, slope, level : torch.Tensor
        Of shape (E,), (), ().

    Returns
    -------
    tuple of torch.Tensor
        `grad` + gradient of `x`; gradients of the weight, the bias and the kernel, in their shapes.
    """
    (height, width, channels), wide = x.shape, len(weight)
    grad_x = x.new_empty(x.shape)
    sums = _new_sums(height * width, wide * channels + 10 * wide)
    _call(
        "expand_backward",
        _ExpandBackward,
        3 * height * width * channels * wide,
        height=height,
        width=width,
        channels=channels,
        wide=wide,
        parts=len(sums),
        x=x,
        grad=grad,
        W=weight,
        b=bias,
        Wt=weight.t(),
        depthwise=depthwise.flatten(1).t(),
        grad_normalised=normalised_grad,
        convolved=convolved,
        gain=gain,
        slope=slope,
        level=level,
        grad_x=grad_x,
        sums=sums,
    )
    weight_grad, bias_grad, kernel_grad = _add_up(sums, (wide, channels), (wide,), (9, wide))
    return grad_x, weight_grad, bias_grad, kernel_grad.t().contiguous().view_as(depthwise)


@expand_convolve_gradients.register_fake
def _expand_convolve_gradients_fake(grad, x, weight, bias, depthwise, *rest):  # type: ignore[no-untyped-def]
    return tuple(like.new_empty(like.shape) for like in (x, weight, bias, depthwise))


@torch.library.custom_op("direct_hifimamba::sum_of_experts", mutates_args=(), device_types="cpu")
def sum_of_experts(
    x: torch.Tensor,
    experts: Sequence[torch.Tensor],
    indices: Sequence[torch.Tensor | None],
    weights: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """Sum over experts of weight * (V gelu(U x + a) + b), each for the pixels of its index.

    Parameters
    ----------
    x : torch.Tensor
        Of shape (pixels, c), float32, as all but the indices.
    experts : sequence of torch.Tensor
        U (hidden, c), a (hidden,), V (c, hidden) and b (c,) of every expert.
    indices : sequence of torch.Tensor, optional
        For every expert, rows of `x`, (n,) int64, each once. None: all.
    weights : sequence of torch.Tensor, optional
        For every expert, of shape (n,). None: 1.

    Returns
    -------
    torch.Tensor
        Of the shape of `x`.
    """
    x, out = x.contiguous(), x.new_empty(x.shape)
    # Where the first expert has all pixels, it fills the sum that the others are added to.
    add = not indices or indices[0] is not None
    if add:
        out.zero_()
    tensors: list[torch.Tensor] = []
    structs: list[ctypes.Structure] = []
    work = 0
    for i, (index, weight) in enumerate(zip(indices, weights, strict=True)):
        expand, expand_bias, project, project_bias = experts[4 * i : 4 * i + 4]
        hidden, channels = expand.shape
        pixels = _check_expert(x, channels, index, weight)
        work += 2 * pixels * channels * hidden
        structs.append(
            _filled(
                _Expert,
                tensors,
                all_pixels=len(x),
                pixels=pixels,
                channels=channels,
                hidden=hidden,
                x_row=channels,
                out_row=channels,
                add=add or i > 0,
                x=x,
                index=index,
                weight=weight,
                U=expand,
                a=expand_bias,
                V=project,
                b=project_bias,
                out=out,
            )
        )
    for struct, following in pairwise(structs):
        struct.next = ctypes.addressof(following)
    if structs:
        library.call("experts", structs[0], work, _WORK_PER_THREAD)
    return out


sum_of_experts.register_fake(_like_first)


@torch.library.custom_op("direct_hifimamba::add_gated_mlp", mutates_args=("out",), device_types="cpu")
def add_gated_mlp(
    out: torch.Tensor, x: torch.Tensor, expand: torch.Tensor, gate: torch.Tensor, project: torch.Tensor
) -> None:
    """Add V (gelu(U x) * (G x)) of every pixel to `out`.

    Parameters
    ----------
    out, x : torch.Tensor
        Of shape (..., c), float32, as all of them; of `out`, pixels have to lie at the same distance from each other.
    expand, gate, project : torch.Tensor
        U and G (hidden, c), V (c, hidden).
    """
    hidden, channels = expand.shape
    if x.shape != out.shape or x.shape[-1] != channels:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and out {tuple(out.shape)}; expected the same for both, with {channels} "
            "channels, as the weights say."
        )
    x, x_row = _evenly_spaced(x)
    spaced, out_row = _evenly_spaced(out)
    if spaced.data_ptr() != out.data_ptr():
        raise ValueError(f"out has strides {out.stride()}; expected pixels at the same distance from each other.")
    pixels = len(x)
    _call(
        "experts",
        _Expert,
        3 * pixels * channels * hidden,
        all_pixels=pixels,
        pixels=pixels,
        channels=channels,
        hidden=hidden,
        x_row=x_row,
        out_row=out_row,
        add=True,
        x=x,
        U=expand,
        G=gate,
        V=project,
        out=spaced,
    )


@torch.library.custom_op("direct_hifimamba::add_expert_gradients", mutates_args=("grad_x",), device_types="cpu")
def add_expert_gradients(
    grad_x: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor | None,
    weight: torch.Tensor | None,
    expand: torch.Tensor,
    expand_bias: torch.Tensor,
    project: torch.Tensor,
    project_bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of one expert of :func:`sum_of_experts`, given that of the sum; the one of `x` is added to `grad_x`.

    Parameters
    ----------
    grad_x, grad, x : torch.Tensor
        Of shape (pixels, c), contiguous, float32.
    index, weight, expand, expand_bias, project, project_bias
        As there.

    Returns
    -------
    tuple of torch.Tensor
        Gradients of the two weights and biases in the order of the arguments, and of `weight`, empty if it is None.
    """
    hidden, channels = expand.shape
    pixels = _check_expert(x, channels, index, weight)
    if grad_x.shape != x.shape or not grad_x.is_contiguous():
        raise ValueError(f"grad_x has shape {tuple(grad_x.shape)}; expected a contiguous {tuple(x.shape)}, as x.")
    grad_weight = x.new_empty(0 if weight is None else pixels)
    sums = _new_sums(pixels, 2 * hidden * channels + hidden + channels)
    _call(
        "expert_backward",
        _ExpertBackward,
        5 * pixels * channels * hidden,
        all_pixels=len(x),
        pixels=pixels,
        channels=channels,
        hidden=hidden,
        parts=len(sums),
        x=x,
        grad=grad,
        index=index,
        weight=weight,
        U=expand,
        a=expand_bias,
        Ut=expand.t(),
        Vt=project.t(),
        b=project_bias,
        grad_x=grad_x,
        grad_weight=grad_weight,
        sums=sums,
    )
    shape = (hidden, channels)
    grad_expand, grad_project, grad_expand_bias, grad_project_bias = _add_up(sums, shape, shape, *zip(shape))
    return grad_expand, grad_expand_bias, grad_project.t().contiguous(), grad_project_bias, grad_weight


@add_expert_gradients.register_fake
def _add_expert_gradients_fake(grad_x, grad, x, index, weight, *expert):  # type: ignore[no-untyped-def]
    pixels = len(x) if index is None else len(index)
    return (
        *(parameter.new_empty(parameter.shape) for parameter in expert),
        x.new_empty(0 if weight is None else pixels),
    )
