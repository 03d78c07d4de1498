"""Data-consistency layers, which make a predicted image agree with the measured k-space."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from direct_hifimamba.nn.layers.sense import Acquisition

#: Noise-to-signal ratio nu_0 at which lambda of the proximal step equals the learned factor exp(a).
NOISE_TO_SIGNAL = 1e-3


class HardDataConsistency(nn.Module):
    """Replacement of predicted samples by measured ones where k-space is sampled, as in the authors' code.

    With several coils, the coil combination partly reverses the replacement, so that repetitions improve it: each is a
    step of projection onto convex sets (POCS).

    Parameters
    ----------
    steps : int
        Number of repetitions.
    """

    def __init__(self, steps: int = 1) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, image: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Map a predicted image to a consistent one, both complex of shape (batch, H, W)."""
        for _ in range(self.steps):
            predicted = acquisition.forward(image)
            image = acquisition.adjoint(torch.where(acquisition.sampled, acquisition.kspace, predicted))
        return image


class ProximalDataConsistency(nn.Module):
    r"""Proximal step: solves (A^H A + lambda) x = A^H y + lambda z by conjugate gradients.

    This is the data-consistency layer of MoDL [1]_ with a weight that depends on the noise: in every slice
    lambda = exp(a) (nu / nu_0)^b, where nu is the noise-to-signal ratio that is estimated from the samples,
    nu_0 = 1e-3, and a and b are learned. A fixed lambda would be too large for little noise and too small for much.

    Parameters
    ----------
    iterations : int
        Conjugate-gradient iterations, started at the prediction.
    initial_weight : float
        Initial exp(a); b is 0.7 initially.

    References
    ----------
    .. [1] Aggarwal, Mani, Jacob. MoDL: Model-Based Deep Learning Architecture for Inverse Problems. IEEE Transactions
       on Medical Imaging 38(2), 2019.
    """

    def __init__(self, iterations: int, initial_weight: float = 0.015) -> None:
        super().__init__()
        self.iterations = iterations
        self.log_weight = nn.Parameter(torch.tensor(math.log(initial_weight)))
        self.noise_exponent = nn.Parameter(torch.tensor(0.7))

    def forward(self, image: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Map a predicted image to a consistent one, both complex of shape (batch, H, W)."""
        residual = acquisition.kspace - acquisition.forward(image) * acquisition.sampled
        weight = self.weight(acquisition)
        # For the correction x - z the right-hand side is A^H (y - A z), without lambda.
        correction = conjugate_gradient(
            lambda x: torch.addcmul(acquisition.normal(x), weight, x), acquisition.adjoint(residual), self.iterations
        )
        return image + correction

    def weight(self, acquisition: Acquisition) -> torch.Tensor:
        """Return lambda of every slice, shape (batch, 1, 1), of the complex type of k-space."""
        assert acquisition.noise_to_signal is not None
        log_noise = (acquisition.noise_to_signal / NOISE_TO_SIGNAL).log()
        return torch.exp(self.log_weight + self.noise_exponent * log_noise).to(acquisition.kspace.dtype)


def undo_shrinkage(image: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
    """Multiply images by the real factor with which they fit their samples best.

    Regularisation makes images too dark, the more so the noisier the samples are. The factor <A x, y> / <A x, A x>
    corrects this, as noise hardly affects these sums.

    Parameters
    ----------
    image : torch.Tensor
        Complex images x of shape (batch, H, W).
    acquisition : Acquisition

    Returns
    -------
    torch.Tensor
        Complex images (batch, H, W); an image that is zero at all samples becomes zero.
    """
    predicted = torch.view_as_real(acquisition.forward(image) * acquisition.sampled).flatten(1)
    energy = predicted.square().sum(dim=1)
    product = (predicted * torch.view_as_real(acquisition.kspace).flatten(1)).sum(dim=1)
    return image * (product / energy.where(energy > 0, 1.0))[:, None, None]


def conjugate_gradient(
    operator: Callable[[torch.Tensor], torch.Tensor], right_hand_side: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Solve operator(x) = right_hand_side by a fixed number of conjugate-gradient iterations from zero.

    Every image of the batch is a separate system. An image no longer changes when its residual has reached the rounding
    error.

    Parameters
    ----------
    operator : Callable
        Linear, Hermitian and positive definite; maps (batch, H, W) to (batch, H, W), complex.
    right_hand_side : torch.Tensor
        Complex images (batch, H, W).
    iterations : int

    Returns
    -------
    torch.Tensor
        Complex images (batch, H, W).
    """
    solution = torch.zeros_like(right_hand_side)
    residual = direction = right_hand_side
    energy = _energy(residual)
    converged = energy.detach() * torch.finfo(energy.dtype).eps ** 2
    for _ in range(iterations):
        applied = operator(direction)
        curvature = (direction.conj() * applied).real.sum(dim=(1, 2))
        active = energy > converged
        step = torch.where(active, energy, 0.0) / torch.where(active, curvature, 1.0)
        solution = solution + step[:, None, None] * direction
        residual = residual - step[:, None, None] * applied
        previous, energy = energy, _energy(residual)
        ratio = torch.where(active, energy, 0.0) / torch.where(active, previous, 1.0)
        direction = residual + ratio[:, None, None] * direction
    return solution


def _energy(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of squared magnitudes of every element of the batch, shape (batch,)."""
    return torch.view_as_real(values).square().flatten(1).sum(dim=1)
