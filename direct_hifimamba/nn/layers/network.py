"""Base of networks that reconstruct a coil-combined image, starting from the zero-filled one."""

from __future__ import annotations

import torch
from direct.types import FFTOperator
from torch import nn

from direct_hifimamba.nn.layers.config import NetworkConfig
from direct_hifimamba.nn.layers.sense import (
    Acquisition,
    Measurement,
    check_shapes,
    find_dtype,
    find_fourier_convention,
)

#: Smallest height and width of an image.
SMALLEST_SIZE = 16


class SenseNetwork(nn.Module):
    """Base of unrolled networks that need nothing but a measurement. A subclass defines :meth:`forward`.

    Parameters
    ----------
    config : NetworkConfig
        Sizes and options.
    forward_operator, backward_operator : FFTOperator
        Fourier transform of DIRECT (float32, complex axis last) and its inverse.
    smallest_size : int
        Smallest height and width that the layers can process, if larger than `SMALLEST_SIZE`.
    """

    def __init__(
        self,
        config: NetworkConfig,
        forward_operator: FFTOperator,
        backward_operator: FFTOperator,
        smallest_size: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.fourier_convention = find_fourier_convention(forward_operator, backward_operator)
        self.smallest_size = max(SMALLEST_SIZE, smallest_size)

    def _begin(self, measurement: Measurement) -> tuple[torch.Tensor, Acquisition, torch.Tensor]:
        """Check a measurement and return its zero-filled image, its samples, and a factor for the output.

        Returns
        -------
        image : torch.Tensor
            Shape (batch, H, W, 2), dtype of the parameters; with `image_normalisation` its largest magnitude is 1.
        acquisition : Acquisition
            Samples in the same scale.
        scale : torch.Tensor
            Factor from this scale to that of the measurement, shape (batch or 1, 1, 1, 1).

        Raises
        ------
        TypeError
            If k-space or maps are not real floating-point tensors, or parameters are neither float32 nor float64.
        ValueError
            If shapes do not fit, or if a tensor is on the meta device.
        """
        check_shapes(measurement, self.smallest_size)
        dtype = find_dtype(self)
        acquisition = Acquisition.from_measurement(measurement, self.fourier_convention, dtype, estimate_noise=False)
        image = acquisition.zero_filled()
        if self.config.image_normalisation:
            return acquisition.normalise(image)
        return image, acquisition, image.new_ones(1, 1, 1, 1)
