"""Savings of memory: recomputation of intermediate values, and functions of pixels applied in pieces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from direct_hifimamba.ops.derivatives import are_transformed

#: Pixels per piece without gradients on a CPU; with a few hundred channels they fit the cache of a core.
_PIXELS = 2048


def recompute[Result](function: Callable[..., Result], *inputs: torch.Tensor, is_random: bool = True) -> Result:
    """Call `function` and return its result; the backward pass stores only `inputs` and recomputes the rest.

    The recomputation stops at the last value that the backward pass needs, so that a matrix product at the end of
    `function` is not repeated. If `is_random`, it draws the same random numbers again. Under the transforms of
    `torch.func`, which do not support recomputation, everything is stored.
    """
    if torch.is_grad_enabled() and not are_transformed(inputs):
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=is_random)
    return function(*inputs)


def pixelwise(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """Apply `function`, which maps each pixel separately, without storing its intermediate values for all pixels.

    With gradients the backward pass recomputes them; without, on a CPU, the pixels are mapped in pieces.

    Parameters
    ----------
    function : Callable
        Maps tensors of shape (pixels, channels) to one of shape (pixels, channels), without random numbers.
    *inputs : torch.Tensor
        Of shape (..., channels), the leading axes the same.

    Returns
    -------
    torch.Tensor
        Of shape (..., channels).
    """
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in inputs]
    if torch.is_grad_enabled() or inputs[0].device.type != "cpu":
        result = recompute(function, *flat, is_random=False)
    else:
        pieces = zip(*(tensor.split(_PIXELS) for tensor in flat), strict=True)
        result = torch.cat([function(*piece) for piece in pieces])
    return result.reshape(*inputs[0].shape[:-1], result.shape[-1])
