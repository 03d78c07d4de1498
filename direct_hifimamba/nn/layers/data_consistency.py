"""Data consistency: make a predicted image agree with the measured k-space."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from direct_hifimamba.nn.layers.sense import Acquisition


class HardDataConsistency(nn.Module):
    """Replace predicted samples by measured ones where k-space is sampled (the authors' code).

    Of several coils, their combination undoes a part of it, so that it can be repeated: every repetition is a step of
    projection onto convex sets (POCS).

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
    r"""Balance measurement and prediction: solve (A^H A + lambda) x = A^H y + lambda z by conjugate gradients.

    This is the data-consistency layer of MoDL [1]_, here with a weight that follows the noise and the prediction's own
    residual: lambda = exp(a) (sigma^2 / rho)^b, where sigma^2 is the variance of the noise that is estimated from the
    samples, rho the mean squared residual of the prediction z at the measured samples, and a and b are learned. A
    prediction that contradicts the measurement by more than the noise is trusted less, also on data unlike those of
    the training.

    Parameters
    ----------
    iterations : int
        Conjugate-gradient iterations, started at the prediction.
    initial_weight : float
        Initial exp(a).
    initial_exponent : float
        Initial b.

    References
    ----------
    .. [1] Aggarwal, Mani, Jacob. MoDL: Model-Based Deep Learning Architecture for Inverse Problems. IEEE Transactions
       on Medical Imaging 38(2), 2019.
    """

    def __init__(self, iterations: int, initial_weight: float = 0.05, initial_exponent: float = 0.1) -> None:
        super().__init__()
        self.iterations = iterations
        self.log_weight = nn.Parameter(torch.tensor(math.log(initial_weight)))
        self.noise_exponent = nn.Parameter(torch.tensor(float(initial_exponent)))

    def forward(self, image: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Map a predicted image to a consistent one, both complex of shape (batch, H, W)."""
        residual = acquisition.kspace - acquisition.forward(image) * acquisition.sampled
        weight = self.weight(residual, acquisition)
        # Written for the correction x - z, the right-hand side is A^H (y - A z), free of lambda.
        correction = conjugate_gradient(
            lambda x: torch.addcmul(acquisition.normal(x), weight, x), acquisition.adjoint(residual), self.iterations
        )
        return image + correction

    def weight(self, residual: torch.Tensor, acquisition: Acquisition) -> torch.Tensor:
        """Return lambda, shape (batch, 1, 1), for a residual (batch, coil, H, W) that is zero where not sampled."""
        batch, coils, height, width = residual.shape
        share = acquisition.sampled.expand(batch, 1, height, width).to(residual.real.dtype).mean(dim=(1, 2, 3))
        mean_squared = _energy(residual.flatten(1)) / (coils * height * width * share)
        # Both are zero for k-space of zeros; the bounds keep the ratio and its derivative finite.
        tiny = torch.finfo(mean_squared.dtype).tiny ** 0.5
        ratio = (acquisition.noise_variance.flatten() + tiny) / (mean_squared + tiny)
        log_ratio = ratio.log().clamp(min=-20.0, max=5.0)
        return torch.exp(self.log_weight + self.noise_exponent * log_ratio)[:, None, None].to(residual.dtype)


def conjugate_gradient(
    operator: Callable[[torch.Tensor], torch.Tensor], right_hand_side: torch.Tensor, iterations: int
) -> torch.Tensor:
    """Solve operator(x) = right_hand_side by a fixed number of conjugate-gradient iterations from zero.

    Every image of the batch is a system of its own. Iterations of an image end when its residual has reached the
    rounding error.

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
