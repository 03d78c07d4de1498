"""Less memory: intermediate values that are cheaper to compute again than to keep, or that need not exist at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

from direct_hifimamba.ops.derivatives import are_transformed

#: Pixels at a time without gradients on a CPU: a few hundred channels of them fit the cache of a core.
_PIXELS = 2048


def recompute[Result](function: Callable[..., Result], *inputs: torch.Tensor, is_random: bool = True) -> Result:
    """Call `function`; for the backward pass, keep `inputs` alone and compute what lies between once more.

    The recomputation stops at the last value that the backward pass needs, so that a matrix product at the end of
    `function` is not repeated. If `function` is random, it draws the same numbers again. The transforms of `torch.func`
    cannot recompute: there, everything is kept.
    """
    if torch.is_grad_enabled() and not are_transformed(inputs):
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=is_random)
    return function(*inputs)


def pixelwise(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """Call `function`, which maps every pixel by itself, without holding its intermediate values for all of them.

    With gradients they are computed again in the backward pass; without, on a CPU, some pixels follow one another.

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
