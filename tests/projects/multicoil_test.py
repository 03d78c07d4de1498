"""Tests of projects/multicoil: configurations that no document trains, by the commands of its README, but small."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from direct.checkpointer import Checkpointer
from numpy.typing import NDArray
from omegaconf import OmegaConf

from direct_hifimamba import cli
from direct_hifimamba.data.simulation.sample import Sample, draw_sample
from direct_hifimamba.reconstruction.engines import build_networks
from direct_hifimamba.reconstruction.reconstructor import Reconstructor
from tests.data import lookalikes
from tests.projects.hifimamba_test import ROOT, SHORT, TINY, in_process

__all__ = ["in_process"]

CONFIGS = ROOT / "projects" / "multicoil" / "configs"


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    "names",
    [["varnet"], ["vsharp"], ["mambarecon"], ["mambaroll"], ["hifimamba", "noise_levels"]],
    ids=lambda names: names[-1],
)
def test_configurations_train(names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, split in enumerate(("training", "validation")):
        lookalikes.save_nifti(Path("heads", split, "a.nii.gz"), lookalikes.magnitude(seed, 8, 40, 40), np.eye(4))
    files = [str(CONFIGS / f"{name}.yaml") for name in ("common", *names)]
    files += [str(ROOT / "configs" / "tiny.yaml")] if names[0] == "hifimamba" else []
    overrides = [*SHORT, *(f"model.{override}" for override in TINY[names[0]])]
    cli.main(["config", "compose", *files, *overrides, "--output", "small.yaml"])
    config = OmegaConf.load("small.yaml")
    for dataset in (*config.training.datasets, *config.validation.datasets):
        dataset.update(shape=[32, 32], num_coils=[2, 3])
    for dataset in config.validation.datasets:
        dataset.length = 1
    is_ours = "learning_rate_schedule" in config.model
    if not is_ours:
        config.additional_models.sensitivity_model.num_filters = 2
    OmegaConf.save(config, "small.yaml")
    networks = build_networks(config)
    Checkpointer(tmp_path, model=networks.model, **networks.additional_models).save(0)

    options = "--cfg small.yaml --initialization-checkpoint model_0.pt --device cpu --num-workers 0 --seed 1"
    cli.main(["train", "runs", *options.split(), *([] if is_ours else ["--cosine-schedule"])])

    run = Path("runs", "small")
    before, after = (torch.load(path, weights_only=True) for path in ("model_0.pt", run / "model_5.pt"))
    for network in ("model", "sensitivity_model"):
        weights = {name: value for name, value in after[network].items() if value.is_floating_point()}
        assert weights
        assert all(value.isfinite().all() for value in weights.values())
        assert [name for name, value in weights.items() if torch.equal(value, before[network][name])] == []
    for dataset in config.validation.datasets:
        assert (run / f"metrics_val_{dataset.text_description}_5.json").exists()

    kspace = lookalikes.centred_fft(lookalikes.measure(lookalikes.magnitude(0, 1, 32, 32), 3, 0))
    mask = np.arange(32) % 3 == 1
    mask[10:22] = True
    image = Reconstructor.from_checkpoint(run / "model_5.pt")(kspace * mask, mask)
    assert image.shape == (1, 32, 32)
    assert np.isfinite(image).all() and image.any()


def test_scores_of_simulated_slices_are_those_of_their_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(CONFIGS.parent)
    script = import_module("validate")
    lookalikes.save_nifti(tmp_path / "a.nii.gz", lookalikes.magnitude(0, 8, 40, 40), np.eye(4))
    monkeypatch.setattr(script, "SLICES", {"small": (2, {"shape": (32, 32), "num_coils": (2, 3)})})

    class OneWrongPixel:
        def __call__(self, kspace: NDArray[np.complex64], mask: NDArray[np.bool_], check: bool) -> NDArray[np.float32]:
            assert not kspace[0][:, ~mask].any() and 0.15 < mask.mean() < 0.6
            return references.pop(0)[None]

    references: list[NDArray[np.float32]] = []

    def draw(*arguments: Any) -> Sample:
        sample = draw_sample(*arguments)
        references.append(3 * sample.noisy_target)  # the scale does not count
        references[-1][0, 0] += 0.3 * sample.noisy_target.max()
        return sample

    monkeypatch.setattr(script, "draw_sample", draw)
    monkeypatch.setattr(script, "load", lambda *_: ([], OneWrongPixel()))
    words = ["validate.py", str(tmp_path), "any", "--slices", "small", "--accelerations", "4"]
    monkeypatch.setattr("sys.argv", words)
    script.main()
    # One pixel of 32 x 32 is wrong by a tenth of the maximum.
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| small | 4 |")]
    assert float(row.split("|")[3]) == pytest.approx(20 + 10 * np.log10(32 * 32), abs=0.1)
