from __future__ import annotations

import pytest
import torch
from direct.data.transforms import fft2, ifft2
from direct.environment import load_models_into_environment_config
from omegaconf import OmegaConf

from direct_hifimamba.nn.sensitivity.config import SensitivityRefinementConfig
from direct_hifimamba.nn.sensitivity.sensitivity import SensitivityRefinement


@pytest.mark.parametrize("size", [(16, 16), (33, 50), (218, 170)])
def test_the_refinement_starts_as_the_identity_and_learns(size: tuple[int, int]) -> None:
    refinement = SensitivityRefinement(fft2, ifft2, num_filters=4)
    maps, target = torch.randn(2, 2, *size), torch.randn(2, 2, *size)
    assert torch.equal(refinement(maps), maps)
    optimizer = torch.optim.Adam(refinement.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (refinement(maps) - target).square().mean().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in refinement.parameters())
    assert refinement(maps).shape == maps.shape
    assert not torch.equal(refinement(maps), maps)


def test_direct_finds_it_as_additional_model() -> None:
    config = OmegaConf.create(
        {
            "model": {"model_name": "unet.unet_2d.Unet2d"},
            "additional_models": {
                "sensitivity_model": {"model_name": "sensitivity.sensitivity.SensitivityRefinement", "num_filters": 8}
            },
        }
    )
    models, configs = load_models_into_environment_config(config)
    assert models["sensitivity_model"] is SensitivityRefinement
    assert configs["sensitivity_model"].num_filters == 8


def test_bad_values_are_one_clear_error() -> None:
    with pytest.raises(ValueError, match="reduction is 0; expected an integer from 1 up"):
        SensitivityRefinementConfig(reduction=0)
