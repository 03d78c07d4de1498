"""Tests of projects/hifimamba_demo; `make demo` runs it as a whole."""

import hashlib
import json
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
from direct.functionals.challenges import fastmri_psnr
from omegaconf import OmegaConf

from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.data.fourier import image_to_kspace

ROOT = Path(__file__).parents[2]
MASK = np.arange(32) % 4 == 0


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    for project in ("hifimamba_demo", "measured"):
        monkeypatch.syspath_prepend(ROOT / "projects" / project)
    return import_module("demo")


@pytest.fixture
def config(demo):
    return OmegaConf.load(demo.CONFIG)


def _write_data(folder: Path, error: float) -> tuple[Path, Path, np.ndarray]:
    """A test volume, and its prediction with Gaussian errors of standard deviation `error`."""
    rng = np.random.default_rng(0)
    image = rng.uniform(50, 100, (3, 1, 24, 32)).astype(np.complex64)
    kspace = np.stack([image_to_kspace(image_slice) for image_slice in image])
    data, prediction = folder / "data", folder / "prediction"
    for path in (data, prediction):
        path.mkdir()
    write_volume(data / "a.h5", kspace, {}, MASK)
    target = np.abs(image[:, 0])
    reconstruction = target + error * rng.standard_normal(target.shape).astype(np.float32)
    with h5py.File(prediction / "a.h5", "w") as file:
        file["reconstruction"] = reconstruction
    return data, prediction, target


def test_model_is_the_small_one(config):
    assert config.model == OmegaConf.load(ROOT / "configs" / "small.yaml").model


def test_what_direct_defaults_differently_is_written_out(config):
    transforms = [config.training.datasets[0], config.validation.datasets[0], config.inference.dataset]
    for entry in (entry.transforms for entry in transforms):
        assert "padding_eps" in entry
        assert "sensitivity_maps_gaussian" in entry.sensitivity_map_estimation
        assert "image_center_crop" in entry.cropping
    assert [entry.get("pass_mask", False) for entry in transforms] == [False, True, True]
    assert [entry.transforms.masking is None for entry in transforms] == [False, True, True]


def test_shorten_scales_the_schedule(demo, config):
    before = dict(config.training)
    demo.shorten(config, before["num_iterations"] // 3)
    for key in ("num_iterations", "lr_warmup_iter", "lr_step_size"):
        assert config.training[key] == pytest.approx(before[key] / 3, abs=1)
    with pytest.raises(SystemExit, match="--iterations is 5; expected at least 6"):
        demo.shorten(config, 5)


def test_folder_of_another_configuration_is_refused(demo, config, tmp_path):
    demo.write_config(config, tmp_path / "demo.yaml")
    demo.write_config(config, tmp_path / "demo.yaml")
    config.training.lr = 1.0
    with pytest.raises(SystemExit, match="was made with another configuration; remove it"):
        demo.write_config(config, tmp_path / "demo.yaml")


def test_finished_steps_are_not_repeated_and_unfinished_ones_are(demo, tmp_path, monkeypatch):
    args = Namespace(output=tmp_path, device="cpu")
    commands = []

    def run(command: str) -> None:
        commands.append(command)
        if " predict " in command:
            Path(command.split()[2]).mkdir()

    monkeypatch.setattr(demo, "run", run)
    run_folder = tmp_path / "training" / "demo"
    run_folder.mkdir(parents=True)
    for saved, starts in (("49", True), ("98", True), ("99", False)):
        (run_folder / "last_model.txt").write_text(saved)
        commands.clear()
        assert demo.train(tmp_path / "demo.yaml", 99, tmp_path, args) == run_folder / "model_99.pt"
        assert bool(commands) == starts
        assert all(command.endswith("--resume") for command in commands)

    commands.clear()
    (tmp_path / "prediction.partial" / "of a killed run").mkdir(parents=True)
    for _ in range(2):
        folder = demo.predict(tmp_path / "demo.yaml", tmp_path / "model.pt", tmp_path, args)
    assert folder == tmp_path / "prediction"
    assert list(folder.iterdir()) == []
    assert len(commands) == 1


def test_volumes_and_their_metrics(demo, tmp_path):
    data, prediction, target = _write_data(tmp_path, error=1.0)
    volume = demo.load_volumes(data, prediction)["a.h5"]
    np.testing.assert_allclose(volume.target, target, rtol=1e-5)
    # Every fourth column, without autocalibration: the mean of four copies of the image, each a quarter further on.
    image = np.stack([np.roll(target, shift, axis=-1) for shift in (0, 8, 16, 24)]).mean(0)
    np.testing.assert_allclose(volume.images[demo.ZERO_FILLED], image, rtol=1e-4)
    expected = fastmri_psnr(target[:, None], volume.images[demo.NETWORK][:, None]).item()
    assert volume.metrics(demo.NETWORK)["PSNR"] == pytest.approx(expected, rel=1e-4)


def test_table_has_to_agree_with_direct(demo, tmp_path):
    data, prediction, _ = _write_data(tmp_path, error=1.0)
    volumes = demo.load_volumes(data, prediction)
    metrics = {f"fastmri_{name.lower()}_metric": value for name, value in volumes["a.h5"].metrics(demo.NETWORK).items()}
    (prediction / "metrics_inference.json").write_text(json.dumps({"a.h5": metrics}))
    demo.check_against_direct(volumes, prediction)
    metrics["fastmri_psnr_metric"] *= 1.01
    (prediction / "metrics_inference.json").write_text(json.dumps({"a.h5": metrics}))
    with pytest.raises(SystemExit, match=r"PSNR of a\.h5 is .* here and .* in metrics_inference\.json"):
        demo.check_against_direct(volumes, prediction)


@pytest.mark.parametrize(("error", "passes"), [(1.0, True), (15.0, False)])
def test_report_demands_a_gain_and_is_written_anyway(demo, tmp_path, capsys, error, passes):
    volumes = demo.load_volumes(*_write_data(tmp_path, error)[:2])
    if passes:
        demo.report(volumes, tmp_path)
    else:
        with pytest.raises(SystemExit, match="does not clearly beat the zero-filled image"):
            demo.report(volumes, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    means = {line.split(" | ")[1]: line for line in table.splitlines() if "**mean**" in line}
    expected = volumes["a.h5"].metrics(demo.NETWORK)
    assert f"{expected['SSIM']:.4f} | {expected['PSNR']:.2f} | {expected['NMSE']:.5f}" in means[demo.NETWORK]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_measured_slice_is_drawn_or_left_out(demo, tmp_path, monkeypatch, capsys):
    scans, picture = (import_module(name) for name in ("scans", "picture"))
    kspace = image_to_kspace(np.random.default_rng(0).uniform(size=(1, 4, 32, 32)).astype(np.complex64))
    mask = np.broadcast_to(MASK | (abs(np.arange(32) - 16) < 6), (32, 32))
    np.save(tmp_path / f"{picture.SCAN}.npy", kspace * mask)
    checksum = hashlib.sha256((tmp_path / f"{picture.SCAN}.npy").read_bytes()).hexdigest()
    monkeypatch.setitem(scans.SCANS, picture.SCAN, {"shape": [1, 4, 32, 32], "sha256": checksum})
    monkeypatch.delenv(scans.FOLDER_VARIABLE, raising=False)
    demo.compare_on_measured_slice(tmp_path / "measured.png")
    assert "The measured slice is left out" in capsys.readouterr().out
    monkeypatch.setenv(scans.FOLDER_VARIABLE, str(tmp_path))
    with pytest.warns(UserWarning, match="the training had"):
        demo.compare_on_measured_slice(tmp_path / "measured.png")
    assert "is in" in capsys.readouterr().out
    assert (tmp_path / "measured.png").read_bytes().startswith(b"\x89PNG")
