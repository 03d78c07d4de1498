"""Small networks, measurements and the reference's values, shared by the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from direct.data.transforms import fft2, ifft2
from torch import nn

from direct_hifimamba.nn.hifimamba.hifimamba import HiFiMambaV2
from direct_hifimamba.nn.layers.sense import Measurement

GOLDEN_DIRECTORY = Path(__file__).parent / "golden"
GOLDEN_NAMES = ("stages_1x1_hidden32_32x48", "stages_2x1_hidden16_patch1_batch2_24x40")
#: The reference's Fourier transform.
UNNORMALISED = (partial(fft2, normalized=False), partial(ifft2, normalized=False))

TINY: dict[str, Any] = {
    "hidden_channels": 8,
    "blocks_per_stage": (1, 1),
    "state_size": 4,
    "scan_backend": "torch",
    "initialisation": "balanced",
}
#: In place of TINY's: sizes that the compiled kernels take.
KERNEL_SIZES: dict[str, Any] = {"hidden_channels": 32, "state_size": 16, "scan_backend": "auto"}


class Golden:
    """The values in the files `<name>*.npz`, see tests/golden/README.md."""

    def __init__(self, name: str) -> None:
        paths = sorted(GOLDEN_DIRECTORY.glob(f"{name}.*npz"))
        if not paths:
            raise FileNotFoundError(f"{GOLDEN_DIRECTORY / name}.npz is missing; it is part of the repository.")
        self._values: dict[str, np.ndarray] = {}
        for path in paths:
            with np.load(path) as file:
                self._values.update(file)
        self.meta = json.loads(str(self._values.pop("meta")))

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self._values[key].copy())

    def below(self, folder: str) -> dict[str, torch.Tensor]:
        """The values whose keys start with `folder`, by the rest of the key."""
        return {key.removeprefix(folder): self[key] for key in self._values if key.startswith(folder)}


golden = cache(Golden)


def channels_last(image: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) as (batch, height, width, channels)."""
    return image.permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def perturb(network: nn.Module, scale: float = 0.2) -> nn.Module:
    """Add noise to every parameter, so that no bias is zero, no norm the identity and no branch negligible."""
    for parameter in network.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    return network


def tiny_network(seed: int = 0, **options: Any) -> HiFiMambaV2:
    """A network that takes milliseconds, in evaluation mode, of `TINY` and `options`; no branch is negligible."""
    torch.manual_seed(seed)
    network = HiFiMambaV2(fft2, ifft2, **(TINY | options))
    return perturb(network).eval()


def measure(
    batch: int = 1, coils: int = 1, height: int = 16, width: int = 16, *, sampled: float = 0.4, seed: int = 0
) -> Measurement:
    """Random k-space, of magnitude about 1 in the image, sampled on random lines, with normalised random maps.

    The map of a single coil has magnitude 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    sensitivity_map = normal(batch, coils, height, width, 2)
    sensitivity_map /= sensitivity_map.square().sum(dim=(1, -1), keepdim=True).sqrt()
    sampling_mask = torch.rand(batch, 1, 1, width, 1, generator=generator) < sampled
    sampling_mask[..., width // 2, :] = True
    sampling_mask = sampling_mask.expand(-1, -1, height, -1, -1).contiguous()
    return Measurement(normal(batch, coils, height, width, 2) * sampling_mask, sampling_mask, sensitivity_map)


def loss_of(network: nn.Module, measurement: Measurement) -> torch.Tensor:
    """A scalar in which everything that `network` returns takes part."""
    image, load_balancing_loss = network(*measurement)
    return image.square().mean() + load_balancing_loss


def gradients(network: nn.Module) -> dict[str, torch.Tensor | None]:
    """The gradient of every parameter."""
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    """No element is off by more than `relative` times the largest expected magnitude."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * expected.abs().max().item())


def replace_training_loop(monkeypatch: pytest.MonkeyPatch, loop: Callable[..., None]) -> None:
    """Of DIRECT's `Engine.train`, replace the loop over data alone."""
    monkeypatch.setattr("direct.engine.Engine.training_loop", loop)
    for writer in ("JSONWriter", "TensorboardWriter"):  # not needed, and their files stay open
        monkeypatch.setattr(f"direct.engine.{writer}", lambda path: None)
