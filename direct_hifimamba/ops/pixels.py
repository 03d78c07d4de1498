"""Compiled kernels that map pixels: the halves of an inverted bottleneck, and an expert. See csrc/pixels.h."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator

import torch

from direct_hifimamba.ops import library

#: Multiply-accumulates below which starting another thread does not pay.
_WORK_PER_THREAD = 2_000_000
#: Backward passes sum over pixels in at most so many parts, of at least so many pixels, whatever the number of threads.
_PARTS, _PIXELS_PER_PART = 8, 256


def _struct(name: str, integers: str, pointers: str) -> type[ctypes.Structure]:
    fields = [
        *((field, ctypes.c_int64) for field in integers.split()),
        *((field, ctypes.c_void_p) for field in pointers.split()),
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_Expand = _struct("Expand", "height width channels wide", "x W b depthwise convolved moments")
_Project = _struct("Project", "pixels channels wide", "x convolved gain offset P projected y")
_Expert = _struct("Expert", "pixels channels hidden", "x index weight U a G V b out")
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
    "ExpertBackward", "pixels channels hidden parts", "x grad index weight U a Ut Vt b grad_x grad_weight sums"
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


_OTHER_DTYPES = {"index": torch.int64, "moments": torch.float64}


def _check_pixels(x: torch.Tensor, channels: int, **others: torch.Tensor) -> None:
    """What is written to, and read pixel by pixel, must have the shape that the kernel goes by."""
    if x.ndim != 2 or x.shape[1] != channels:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (pixels, {channels}), as the weights say.")
    for name, tensor in others.items():
        if tensor.shape != x.shape or not tensor.is_contiguous():
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected a contiguous {tuple(x.shape)}, as x.")


def _check_assignment(x: torch.Tensor, index: torch.Tensor | None, weight: torch.Tensor | None) -> int:
    """The number of pixels that are assigned."""
    if index is not None and len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(x):
        raise IndexError(f"index goes from {int(index.min())} to {int(index.max())}; expected rows of {len(x)}.")
    pixels = len(x) if index is None else len(index)
    if weight is not None and len(weight) != pixels:
        raise ValueError(f"weight has {len(weight)} elements; expected {pixels}, one per pixel.")
    return pixels


def _call(function: str, struct: type[ctypes.Structure], work: int, **arguments: int | torch.Tensor | None) -> None:
    for name, value in arguments.items():
        dtype = _OTHER_DTYPES.get(name, torch.float32)
        if isinstance(value, torch.Tensor) and value.dtype != dtype:
            raise TypeError(f"{name} is {value.dtype}; expected {dtype}.")
    # What is made contiguous here has to live until the kernel has read it.
    values = {
        name: value.contiguous() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()
    }
    fields = {name: value.data_ptr() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    library.call(function, struct(**fields), work, _WORK_PER_THREAD)


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


@torch.library.custom_op("direct_hifimamba::expand_convolve", mutates_args=(), device_types="cpu")
def expand_convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, depthwise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """K * gelu(W x + b) with a 3 x 3 depthwise convolution, and the moments of its rows.

    Parameters
    ----------
    x : torch.Tensor
        Of shape (height, width, c), float32, as all of them.
    weight, bias : torch.Tensor
        Of shape (E, c) and (E,).
    depthwise : torch.Tensor
        Of shape (E, 1, 3, 3).

    Returns
    -------
    tuple of torch.Tensor
        The result, (height, width, E); mean of every row and sum of its squared deviations, (height, 2) float64.
    """
    convolved, moments = _expand_convolve_fake(x, weight, bias, depthwise)
    height, width, channels = x.shape
    wide = len(weight)
    _call(
        "expand",
        _Expand,
        height * width * channels * wide,
        height=height,
        width=width,
        channels=channels,
        wide=wide,
        x=x,
        W=weight,
        b=bias,
        depthwise=depthwise,
        convolved=convolved,
        moments=moments,
    )
    return convolved, moments


@expand_convolve.register_fake
def _expand_convolve_fake(x, weight, bias, depthwise):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:2], len(weight)), x.new_empty(len(x), 2, dtype=torch.float64)


@torch.library.custom_op("direct_hifimamba::activate_project", mutates_args=(), device_types="cpu")
def activate_project(
    x: torch.Tensor,
    convolved: torch.Tensor,
    gain: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + gelu(p) with p = P gelu(gain convolved + offset), and p where it is to be kept.

    Parameters
    ----------
    x : torch.Tensor
        Of shape (height, width, c), float32, as all of them.
    convolved : torch.Tensor
        Of shape (height, width, E).
    gain, offset : torch.Tensor
        Of shape (E,).
    weight : torch.Tensor
        P, of shape (c, E).
    keep : bool
        Return p.

    Returns
    -------
    tuple of torch.Tensor
        The result and p, of the shape of `x`; p is empty if it is not kept.
    """
    result, projected = _activate_project_fake(x, convolved, gain, offset, weight, keep)
    pixels, channels, wide = x.shape[0] * x.shape[1], x.shape[2], convolved.shape[2]
    _call(
        "project",
        _Project,
        pixels * channels * wide,
        pixels=pixels,
        channels=channels,
        wide=wide,
        x=x,
        convolved=convolved,
        gain=gain,
        offset=offset,
        P=weight,
        projected=projected if keep else None,
        y=result,
    )
    return result, projected


@activate_project.register_fake
def _activate_project_fake(x, convolved, gain, offset, weight, keep):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), x.new_empty(x.shape if keep else (0,))


@torch.library.custom_op("direct_hifimamba::activate_project_gradients", mutates_args=(), device_types="cpu")
def activate_project_gradients(
    grad: torch.Tensor,
    projected: torch.Tensor,
    convolved: torch.Tensor,
    gain: torch.Tensor,
    offset: torch.Tensor,
    weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of :func:`activate_project` up to n = gain convolved + offset, but for that of `x`, which is `grad`.

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
    """Gradients of :func:`expand_convolve`, where that of its result is gain normalised_grad - slope convolved - level.

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


@torch.library.custom_op("direct_hifimamba::add_expert", mutates_args=("out",), device_types="cpu")
def add_expert(
    out: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor | None,
    weight: torch.Tensor | None,
    expand: torch.Tensor,
    expand_bias: torch.Tensor,
    project: torch.Tensor,
    project_bias: torch.Tensor,
) -> None:
    """Add weight * (V gelu(U x + a) + b) to the pixels of `index`.

    Parameters
    ----------
    out, x : torch.Tensor
        Of shape (pixels, c), contiguous, float32.
    index : torch.Tensor, optional
        Rows of `x` and `out`, (n,) int64, each once. None: all.
    weight : torch.Tensor, optional
        Of shape (n,). None: 1.
    expand, expand_bias, project, project_bias : torch.Tensor
        U (hidden, c), a (hidden,), V (c, hidden), b (c,).
    """
    hidden, channels = expand.shape
    _check_pixels(x, channels, out=out)
    pixels = _check_assignment(x, index, weight)
    _call(
        "expert",
        _Expert,
        2 * pixels * channels * hidden,
        pixels=pixels,
        channels=channels,
        hidden=hidden,
        x=x,
        index=index,
        weight=weight,
        U=expand,
        a=expand_bias,
        V=project,
        b=project_bias,
        out=out,
    )


@torch.library.custom_op("direct_hifimamba::gated_mlp", mutates_args=(), device_types="cpu")
def gated_mlp(x: torch.Tensor, expand: torch.Tensor, gate: torch.Tensor, project: torch.Tensor) -> torch.Tensor:
    """V (gelu(U x) * (G x)) of every pixel.

    Parameters
    ----------
    x : torch.Tensor
        Of shape (pixels, c), float32, as all of them.
    expand, gate, project : torch.Tensor
        U and G (hidden, c), V (c, hidden).

    Returns
    -------
    torch.Tensor
        Of shape (pixels, c).
    """
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    hidden, channels = expand.shape
    _check_pixels(x, channels)
    _call(
        "expert",
        _Expert,
        3 * len(x) * channels * hidden,
        pixels=len(x),
        channels=channels,
        hidden=hidden,
        x=x,
        U=expand,
        G=gate,
        V=project,
        out=out,
    )
    return out


@gated_mlp.register_fake
def _gated_mlp_fake(x, expand, gate, project):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


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
    """Gradients of :func:`add_expert`, given that of its output; the one of `x` is added to `grad_x`.

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
    _check_pixels(x, channels, grad_x=grad_x)
    pixels = _check_assignment(x, index, weight)
    grad_weight = x.new_empty(0 if weight is None else pixels)
    sums = _new_sums(pixels, 2 * hidden * channels + hidden + channels)
    _call(
        "expert_backward",
        _ExpertBackward,
        5 * pixels * channels * hidden,
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
