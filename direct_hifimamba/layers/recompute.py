"""Memory for arithmetic: intermediate values that are cheaper to compute again than to keep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def recompute[Result](function: Callable[..., Result], *inputs: torch.Tensor) -> Result:
    """Call `function`; for the backward pass, keep `inputs` alone and compute what lies between once more.

    The recomputation stops at the last value that the backward pass needs, so that a matrix product at the end of
    `function` is not repeated.
    """
    if torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)
