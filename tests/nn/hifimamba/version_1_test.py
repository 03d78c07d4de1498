"""HiFi-Mamba (V1) as a configuration: what its description says, sentence by sentence (docs/mamba_baselines.md)."""

from pathlib import Path

import torch
from direct.data.transforms import fft2, ifft2
from omegaconf import OmegaConf

from direct_hifimamba.nn.hifimamba.hifimamba import HiFiMambaV2
from direct_hifimamba.nn.hifimamba.moe import Router

CONFIGURATION = Path(__file__).parents[3] / "projects" / "hifimamba" / "models" / "hifimamba_v1.yaml"


def test_the_configuration_is_that_of_the_description() -> None:
    keys = dict(OmegaConf.load(CONFIGURATION).model)
    assert keys.pop("model_name") == "hifimamba.hifimamba.HiFiMambaV2"
    network = HiFiMambaV2(fft2, ifft2, **keys)
    assert [len(stage.blocks) for stage in network.stages] == [2] * 8
    assert not any(isinstance(module, Router) for module in network.modules())
    for stage in network.stages:
        for block in stage.blocks:
            assert (block.selective_scan.directions, block.selective_scan.steering) == (1, True)
    assert sum(parameter.numel() for parameter in network.parameters()) == 6_046_544

    split = network.stages[0].blocks[0].sf_lap
    features = torch.randn(1, 6, 8, 64)
    low, detail = split(features)
    pairs = low.unflatten(1, (3, 2)).unflatten(3, (4, 2))  # Haar: the same mean in all pixels of 2 x 2
    assert torch.equal(pairs, pairs[:, :, :1, :, :1].expand_as(pairs))
    torch.testing.assert_close(low + detail, split.bottleneck(features))
