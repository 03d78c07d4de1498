"""Sequential selective scan: slow and obviously correct, the reference for all other backends."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def selective_scan_reference(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
) -> torch.Tensor:
    """Compute the selective scan by its recurrence, one step of the sequence at a time.

    Shapes are those of :func:`direct_hifimamba.ops.selective_scan.selective_scan` with `B` and `C` of shape
    (batch, groups, state, length). Any device; computed in the dtype of the arguments.
    """
    batch, channels, length = u.shape
    channels_per_group = channels // B.shape[1]

    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    B = B.repeat_interleave(channels_per_group, dim=1)
    C = C.repeat_interleave(channels_per_group, dim=1)

    state = u.new_zeros(batch, channels, A.shape[1])
    outputs = []
    # unbind: indexing along time would make the backward quadratic in the length.
    for u_t, delta_t, B_t, C_t in zip(u.unbind(-1), delta.unbind(-1), B.unbind(-1), C.unbind(-1), strict=True):
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * u_t)[..., None] * B_t
        outputs.append((state * C_t).sum(-1))
    y = torch.stack(outputs, dim=-1)

    if D is not None:
        y = y + u * D[:, None]
    if z is not None:
        y = y * F.silu(z)
    return y
