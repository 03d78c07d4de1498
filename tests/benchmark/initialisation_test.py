from pathlib import Path

import pytest
import torch

from direct_hifimamba.benchmark.configurations import compose_models
from direct_hifimamba.benchmark.initialisation import write_initialisation
from direct_hifimamba.benchmark.specification import Specification
from direct_hifimamba.reconstruct import build_networks
from tests.benchmark.small_benchmark import write_specification


def test_weights_are_those_of_the_seed_but_for_the_factors(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    configs = compose_models(Specification.load(write_specification(tmp_path)))
    config = configs["U-Net"]["equispaced_4x"]
    path = tmp_path / "initialisation.pt"
    write_initialisation(path, config, {"unet.conv_out.*": 0.02}, seed=3)
    torch.manual_seed(3)
    expected = build_networks(config).model.state_dict()
    weights = torch.load(path)["model"]
    assert weights.keys() == expected.keys()
    scaled = [name for name in weights if name.startswith("unet.conv_out.")]
    assert scaled
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], 0.02 * value if name in scaled else value)
    with pytest.raises(ValueError, match=r"pattern 'unet\.conv_uot\.\*', which fits none"):
        write_initialisation(path, config, {"unet.conv_uot.*": 0.02}, seed=3)
