"""The weights in the package, and how they are chosen, checked and written."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from direct_hifimamba import cli
from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.reconstruction import pretrained as module
from direct_hifimamba.reconstruction.domain import OutsideDomainWarning
from direct_hifimamba.reconstruction.engines import resolve_device
from direct_hifimamba.reconstruction.pretrained import (
    CONFIG_NAME,
    find_pretrained,
    format_card,
    is_ensemble,
    list_pretrained,
)
from direct_hifimamba.reconstruction.reconstructor import Reconstructor
from direct_hifimamba.reconstruction.uncertainty import Calibration
from direct_hifimamba.reconstruction.volume import load
from tests.reconstruction.reconstructor_test import OURS, experiments, line_mask, simulate  # noqa: F401

ROOT = Path(__file__).parents[2]
MASK = line_mask()
MAX_BYTES = 8e6


@pytest.fixture
def kspace_file(tmp_path: Path) -> Path:
    write_volume(tmp_path / "scan.h5", simulate()[:1] * MASK, {}, MASK)
    return tmp_path / "scan.h5"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the weights that the package is made to use."""
    shutil.copytree(module.FOLDER, tmp_path / "weights")
    monkeypatch.setattr(module, "FOLDER", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.mark.parametrize("name", list_pretrained())
def test_shipped_files_are_weights_alone_and_load(name: str) -> None:
    pretrained = find_pretrained(name)
    assert 1 <= len(pretrained.checkpoints) <= 3
    for path in pretrained.checkpoints:
        stored = torch.load(path, weights_only=True)
        assert all(key.endswith("model") for key in stored)
        assert {value.dtype for weights in stored.values() for value in weights.values()} == {torch.float32}
    Reconstructor.from_pretrained(name)


@pytest.mark.parametrize("name", list_pretrained())
def test_the_calibration_is_that_of_the_weights(name: str, kspace_file: Path, tmp_path: Path) -> None:
    weights, _ = load([Path(name)])
    calibration = Calibration.read(find_pretrained(name).calibration_path, weights)
    factors = {}
    for stem, options in (("released", []), ("single", ["--no-flips"])):
        path = tmp_path / f"{stem}.h5"
        cli.main(["reconstruct", name, str(kspace_file), str(path), "--uncertainty", "--no-check", *options])
        with h5py.File(path) as file:
            factors[stem] = json.loads(file.attrs["provenance"])["spread_factor"]
    assert factors == {"released": calibration.factor(np.tile(MASK, (24, 1))), "single": None}


def test_all_weights_together_are_small() -> None:
    assert sum(path.stat().st_size for path in module.FOLDER.rglob("*") if path.is_file()) < MAX_BYTES


@pytest.mark.parametrize("name", list_pretrained())
def test_the_page_of_the_model_card_is_up_to_date(name: str) -> None:
    page = (ROOT / "docs" / "weights" / f"{name}.md").read_text()
    assert page == format_card(find_pretrained(name)), f"run: direct-hifimamba weights {name} > docs/weights/{name}.md"
    assert "simulated" in page and "Diagnosis" in page


def test_changed_files_are_refused(folder: Path) -> None:
    pretrained = find_pretrained("multicoil")
    for path in (pretrained.config_path, *pretrained.checkpoints):
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        with pytest.raises(ValueError, match=f"{path.name} is not the file of the release"):
            find_pretrained("multicoil")
        path.write_bytes(content)
    find_pretrained("multicoil")


def test_weights_are_listed_described_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["weights"])
    assert "multicoil: Cartesian k-space" in capsys.readouterr().out
    cli.main(["weights", "multicoil"])
    assert capsys.readouterr().out == format_card(find_pretrained("multicoil"))
    cli.main(["weights", "multicoil", "--copy", str(tmp_path / "copy")])
    Reconstructor.from_checkpoint(sorted((tmp_path / "copy").glob("seed_*.pt")))
    assert len(list((tmp_path / "copy").glob("*.pt"))) == len(find_pretrained("multicoil").checkpoints)
    with pytest.raises(SystemExit):
        cli.main(["weights", "multicoil", "--copy", str(tmp_path / "copy")])
    assert "exists already" in capsys.readouterr().err


def test_reconstruct_takes_a_name_and_warns_outside_the_domain(
    kspace_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["reconstruct", "multicoil", str(kspace_file), str(tmp_path / "images")])
    error = capsys.readouterr().err
    sentence = "The height is 24 pixels; the training had 96 to 256."
    assert error.count(sentence) == 1
    reconstructor = Reconstructor.from_pretrained("multicoil")
    with pytest.warns(OutsideDomainWarning) as warned:
        expected = reconstructor(simulate()[:1] * MASK, MASK)
    assert sentence in [str(warning.message) for warning in warned]
    assert {warning.filename for warning in warned} == {__file__}
    with h5py.File(tmp_path / "images.h5") as file:
        np.testing.assert_allclose(file["reconstruction"], expected, rtol=1e-5)
        assert sentence in json.loads(file.attrs["provenance"])["warnings"]
    cli.main(["reconstruct", "multicoil", str(kspace_file), str(tmp_path / "unchecked"), "--no-check"])
    assert "training had" not in capsys.readouterr().err


def test_a_file_counts_more_than_a_name_and_an_unknown_name_lists_all(
    kspace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("multicol", "runs/model_9.pt"):
        with pytest.raises(SystemExit):
            cli.main(["reconstruct", name, str(kspace_file), "images"])
        assert f"{name} is neither a file nor the name of weights in the package" in (error := capsys.readouterr().err)
        assert all(known in error for known in list_pretrained())
    Path("multicoil").write_text("no checkpoint")
    with pytest.raises(SystemExit):
        cli.main(["reconstruct", "multicoil", str(kspace_file), "images", "--cfg", str(_config_path())])
    assert "multicoil is no checkpoint of DIRECT" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"no weights 'multicol'.*expected multicoil"):
        Reconstructor.from_pretrained("multicol")


def _config_path() -> Path:
    return find_pretrained("multicoil").config_path


@pytest.mark.filterwarnings("ignore::direct_hifimamba.reconstruction.domain.OutsideDomainWarning")
def test_the_mean_of_several_networks_is_the_image(
    experiments: dict[str, Path],  # noqa: F811
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Released by the script, from complete checkpoints of a training."""
    first = shutil.copytree(experiments[OURS].parent, tmp_path / "run") / experiments[OURS].name
    config = OmegaConf.merge(
        OmegaConf.load(first.parent / CONFIG_NAME), {"training": {"datasets": [{"name": "FastMRI"}]}}
    )
    OmegaConf.save(config, first.parent / CONFIG_NAME)
    checkpoint = torch.load(first, weights_only=True)
    second = first.with_name("model_8.pt")
    checkpoint["model"] = {key: 0.9 * value for key, value in checkpoint["model"].items()}
    torch.save(checkpoint | {"optimizer": {"state": torch.zeros(1000)}}, second)

    monkeypatch.syspath_prepend(ROOT / "projects" / "multicoil")
    release = import_module("release").release
    release([first, second], folder / "multicoil")
    pretrained = find_pretrained("multicoil")
    assert not pretrained.calibration_path.exists()
    assert [path.name for path in pretrained.checkpoints] == ["seed_1.pt", "seed_2.pt"]
    assert set(torch.load(pretrained.checkpoints[1], weights_only=True)) == {"model"}
    assert "validation" not in OmegaConf.load(pretrained.config_path)

    kspace = simulate() * MASK
    both = Reconstructor.from_pretrained("multicoil")
    assert both.members == (8 if pretrained.flips else 2)
    assert is_ensemble(["multicoil"]) and is_ensemble([first, second]) and is_ensemble([first], flips=True)
    assert not is_ensemble([first])
    single = [
        Reconstructor.from_checkpoint(path, flips=pretrained.flips)(kspace, MASK, complex_images=True)
        for path in (first, second)
    ]
    assert np.abs(single[0] - single[1]).max() > 1e-3 * np.abs(single[0]).max()
    atol = 1e-5 * np.abs(single[0]).max()
    for image in (both(kspace, MASK), np.abs(both(kspace, MASK, complex_images=True))):
        np.testing.assert_allclose(image, np.mean(np.abs(single), axis=0), rtol=0, atol=atol)

    before = read_first_weight(folder)
    for others, message in (
        ([first, first], f"{first} is the same as {first}"),
        ([first, other_data(second)], "differ in training.datasets"),
    ):
        with pytest.raises(ValueError, match=message):
            release(others, folder / "multicoil", pretrained.config_path)
    assert read_first_weight(folder) == before
    release([pretrained.checkpoints[1], first], folder / "multicoil", pretrained.config_path)  # from its own folder
    assert read_first_weight(folder) == before[::-1]
    release([pretrained.checkpoints[1]], folder / "multicoil", pretrained.config_path)
    assert read_first_weight(folder) == before[:1]


def read_first_weight(folder: Path) -> list[float]:
    """The same weight of every network of a release."""
    assert sorted((folder / "multicoil").glob("*.pt")) == list(find_pretrained("multicoil").checkpoints)
    states = [torch.load(path, weights_only=True)["model"] for path in find_pretrained("multicoil").checkpoints]
    return [float(next(iter(state.values())).flatten()[0]) for state in states]


def other_data(checkpoint: Path) -> Path:
    """A copy of a checkpoint whose training had other data."""
    copy = shutil.copytree(checkpoint.parent, checkpoint.parent.with_name("other")) / checkpoint.name
    config = OmegaConf.load(copy.parent / CONFIG_NAME)
    config.training.datasets[0].text_description = "other"
    OmegaConf.save(config, copy.parent / CONFIG_NAME)
    return copy


def test_devices_are_those_that_pytorch_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, is_available in (("cuda", False), ("mps", False)):
        monkeypatch.setattr(getattr(torch, name), "is_available", lambda is_available=is_available: is_available)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="The device is cuda:1; expected auto or cpu"):
        resolve_device("cuda:1")
    with pytest.raises(ValueError, match="The device is cpu:x; expected auto or cpu"):
        resolve_device("cpu:x")
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("mps") == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda" and resolve_device("cuda:1") == "cuda:1"
