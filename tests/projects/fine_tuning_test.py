"""The commands of docs/fine_tuning.md, on small scans and for six iterations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from direct_hifimamba import cli
from direct_hifimamba.reconstruct import Reconstructor
from tests.documents_test import ROOT, Shell, blocks_of, commands_of, shell  # noqa: F401
from tests.reconstruction.reconstructor_test import line_mask, simulate

LAST, SHORT = "model_79", "model_5"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # DIRECT's
def test_commands_fine_tune_the_weights_in_the_package(shell: Shell) -> None:  # noqa: F811
    for split in ("train", "val", "test"):
        (shell.folder / "raw" / split).mkdir(parents=True)
        np.save(shell.folder / "raw" / split / f"{split}.npy", simulate(32, 32)[:2])
    np.save("scan.npy", simulate(32, 32)[:1] * line_mask())
    (block,) = blocks_of(ROOT / "docs" / "fine_tuning.md")
    for program, *words in commands_of(block.text):
        assert program == "direct-hifimamba"
        words += ["--device", "cpu"] if words[0] == "train" else []
        cli.main([word.replace(LAST, SHORT).replace("scan.h5", "scan.npy") for word in words])
        if words[0] == "config":
            config = OmegaConf.load("fine_tuning.yaml")
            assert f"model_{config.training.num_iterations - 1}" == LAST
            config.training.num_iterations = 6
            OmegaConf.save(config, "fine_tuning.yaml")
    assert Path("images.h5").exists()

    before, after = (
        torch.load(path, weights_only=True) for path in ("multicoil/seed_1.pt", f"runs/fine_tuning/{SHORT}.pt")
    )
    for name in before:
        steps = [
            (after[name][key] - value).abs().max() for key, value in before[name].items() if value.is_floating_point()
        ]
        assert 0 < max(steps) < 0.01  # it began with these weights
    single = simulate(32, 32)[:1, :1] * line_mask()
    assert Reconstructor.from_checkpoint(f"runs/fine_tuning/{SHORT}.pt")(single, line_mask()).shape == (1, 32, 32)
