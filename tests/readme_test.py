"""What the README shows must work."""

import re
from pathlib import Path

import torch
from omegaconf import OmegaConf

from direct_hifimamba.training.compose import validate
from tests.helpers import measure

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_the_configuration_is_complete_and_known_to_direct() -> None:
    (text,) = blocks("yaml")
    config = OmegaConf.create(text)
    assert {"model", "physics", "training", "validation", "inference"} <= config.keys()
    validate(config)


def test_the_python_examples_run() -> None:
    network, _, scan = blocks("python")  # a trained model is reconstruct_test's business
    measurement = measure(height=16, width=18, coils=2)
    names = {"y": measurement.masked_kspace, "mask": measurement.sampling_mask, "maps": measurement.sensitivity_map}
    exec(network, names)
    assert names["image"].shape == (1, 16, 18, 2)

    u, delta, z = torch.randn(3, 1, 4, 7)
    A, B, C, D, delta_bias = -torch.rand(4, 2), *torch.randn(2, 1, 2, 7), *torch.randn(2, 4)
    names = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    exec(scan, names)
    assert names["y"].shape == u.shape
