"""Compiled kernels that map pixels: the halves of an inverted bottleneck, and an expert. See csrc/pixels.h."""

from __future__ import annotations

import ctypes

import torch

from direct_hifimamba.ops import library

#: Multiply-accumulates below which starting another thread does not pay.
_WORK_PER_THREAD = 2_000_000


def _struct(name: str, integers: str, pointers: str) -> type[ctypes.Structure]:
    fields = [
        *((field, ctypes.c_int64) for field in integers.split()),
        *((field, ctypes.c_void_p) for field in pointers.split()),
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_Expand = _struct("Expand", "height width channels wide", "x W b depthwise convolved moments")
_Project = _struct("Project", "pixels channels wide", "x convolved gain offset P projected y")
_Expert = _struct("Expert", "pixels channels hidden", "x index weight U a V b out")


def computes(features: torch.Tensor, *channels: int) -> bool:
    """Whether these kernels take `features` and these numbers of channels."""
    return (
        library.CHANNELS > 0
        and features.device.type == "cpu"
        and features.dtype == torch.float32
        and all(count % library.CHANNELS == 0 for count in channels)
    )


def _call(function: str, struct: type[ctypes.Structure], work: int, **arguments: int | torch.Tensor | None) -> None:
    # What is made contiguous here has to live until the kernel has read it.
    values = {
        name: value.contiguous() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()
    }
    fields = {name: value.data_ptr() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
    library.call(function, struct(**fields), work, _WORK_PER_THREAD)


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
    pixels = len(x) if index is None else len(index)
    hidden, channels = expand.shape
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
