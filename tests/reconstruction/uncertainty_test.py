"""Tests of direct_hifimamba.reconstruction.uncertainty, and of the maps that `reconstruct` writes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from direct_hifimamba import cli
from direct_hifimamba.commands import calibrate as command
from direct_hifimamba.data import acquisition
from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.data.formats.nifti import load_magnitude
from direct_hifimamba.data.fourier import image_to_kspace
from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample
from direct_hifimamba.files import hash_file
from direct_hifimamba.reconstruction import volume
from direct_hifimamba.reconstruction.noise import estimate_noise_covariance, noise_map
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME
from direct_hifimamba.reconstruction.reconstructor import Reconstructor, SliceAnalysis
from direct_hifimamba.reconstruction.uncertainty import Calibration, calibrate, residual_map, spread
from tests.helpers import perturb
from tests.reconstruction.noise_test import add_noise, covariance_of, random
from tests.reconstruction.reconstructor_test import OURS, RIM, UNET, VARNET, line_mask, save_experiment, simulate

SHAPE = (24, 32)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of one configuration, in folders of their own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("direct.environment.setup_logging", lambda *args: None)
        folder = tmp_path_factory.mktemp("ensemble")
        torch.manual_seed(0)
        first = save_experiment(folder / "0", OURS)
    other = folder / "other" / "model_7.pt"
    other.parent.mkdir()
    shutil.copy(first.parent / CONFIG_NAME, other.parent)
    checkpoint = torch.load(first)
    for value in checkpoint["model"].values():
        if value.is_floating_point():
            value += 0.02 * torch.randn_like(value)
    torch.save(checkpoint, other)
    return [first, other]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "volume.h5"
    write_volume(path, simulate(), {}, line_mask())
    return path


def reconstruct(*arguments: Any) -> None:
    cli.main(["reconstruct", *map(str, arguments)])


def read(path: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    with h5py.File(path) as file:
        return file["reconstruction"][()], json.loads(file.attrs["provenance"])


def test_the_residual_of_noise_is_one_and_that_of_a_wrong_image_is_more() -> None:
    covariance = covariance_of(4)
    sampled = np.broadcast_to(np.arange(64) % 2 == 0, (96, 64))
    noise = add_noise(np.zeros((4, 96, 64)), covariance, 1) * sampled
    values, number = residual_map(noise, covariance)
    assert number == pytest.approx(1, abs=0.01)
    assert not values[~sampled].any() and np.sqrt(np.square(values[sampled]).mean()) == pytest.approx(number, rel=1e-5)
    lesion = np.zeros((96, 64), np.complex64)
    lesion[40:44, 30:34] = 5 * np.sqrt(np.trace(covariance).real)
    assert residual_map(noise + image_to_kspace(lesion) * sampled, covariance)[1] > 1.1 * number
    assert residual_map(0 * noise, covariance)[1] == 0


def test_residual_and_images_are_those_of_the_networks(ensemble: list[Path]) -> None:
    sampled = np.tile(line_mask(), (SHAPE[0], 1))
    kspace = simulate()[1] * sampled
    both = Reconstructor.from_checkpoint(ensemble)
    analysis = both.analyse_slice(kspace, sampled)
    parts = [Reconstructor.from_checkpoint(path).analyse_slice(kspace, sampled) for path in ensemble]
    np.testing.assert_array_equal(analysis.images, np.concatenate([part.images for part in parts]))
    mean = np.mean([part.residual for part in parts], axis=0)
    np.testing.assert_allclose(analysis.residual, mean, rtol=0, atol=1e-5 * np.abs(kspace).max())
    image = both.reconstruct_slice(kspace, sampled, complex_images=True)
    np.testing.assert_allclose(analysis.image, image, rtol=0, atol=1e-6 * np.abs(image).max())
    np.testing.assert_allclose(np.abs(image), np.abs(analysis.images).mean(axis=0), rtol=1e-5)
    assert not analysis.residual[:, ~sampled].any()
    blank = both.analyse_slice(0 * kspace, sampled)
    assert blank.images.shape == (2, *SHAPE) and not blank.images.any() and not blank.residual.any()


@pytest.mark.filterwarnings("ignore:Estimation of sensitivity map of Single-coil data")
@pytest.mark.parametrize(("model_name", "fits"), [(OURS, True), (RIM, False)])
def test_the_residual_is_what_the_image_leaves_of_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_name: str, fits: bool
) -> None:
    monkeypatch.setattr("direct.environment.setup_logging", lambda *args: None)
    checkpoint = save_experiment(tmp_path / "experiment", model_name)
    config = OmegaConf.load(checkpoint.parent / CONFIG_NAME)
    config.inference.dataset.transforms.sensitivity_map_estimation.sensitivity_maps_type = "unit"
    OmegaConf.save(config, tmp_path / "unit.yaml")
    reconstructor = Reconstructor.from_checkpoint(checkpoint, tmp_path / "unit.yaml")
    sampled, kspace = np.tile(line_mask(), (SHAPE[0], 1)), simulate()[1, :1]
    kspace[:, :3] = 0  # zero-filled by the scanner: no samples
    analysis = reconstructor.analyse_slice(kspace, sampled)
    expected = (kspace - image_to_kspace(analysis.images)) * sampled
    expected[:, :3] = 0
    np.testing.assert_allclose(analysis.residual, expected, rtol=0, atol=1e-5 * np.abs(kspace).max())
    # Hard data consistency leaves nothing of a single coil.
    assert (np.abs(expected).max() < 1e-5 * np.abs(kspace).max()) == fits


def test_everything_is_written_beside_the_image(
    ensemble: list[Path], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_calibration(tmp_path / "calibration.json", ensemble, 3.0)
    options = ("--noise-maps", 8, "--uncertainty")
    reconstruct(*ensemble, source, tmp_path / "scan", *options)
    printed = capsys.readouterr()
    reconstruct(*ensemble, source, tmp_path / "alone")
    reconstruct(*ensemble, source, tmp_path / "more", *options, "--calibration", tmp_path / "calibration.json")
    maps = {f"scan_{name}{suffix}" for name in ("noise", "spread") for suffix in (".h5", ".nii.gz")}
    names = {"scan.h5", "scan.nii.gz", "scan.png", "scan_residual.h5", *maps}
    assert {path.name for path in tmp_path.glob("scan*")} == names
    assert "The noise is estimated at the edge of k-space" in printed.out

    sampled, kspace = np.tile(line_mask(), (SHAPE[0], 1)), simulate()
    reconstructor = Reconstructor.from_checkpoint(ensemble)
    covariance = estimate_noise_covariance(kspace, sampled)
    analysis = reconstructor.analyse_slice(kspace[2], sampled)
    images, provenance = read(tmp_path / "scan.h5")
    np.testing.assert_allclose(images, read(tmp_path / "alone.h5")[0], rtol=0, atol=1e-5 * images.max())
    values, number = residual_map(analysis.residual, covariance)
    np.testing.assert_allclose(read(tmp_path / "scan_residual.h5")[0][2], values, rtol=1e-4, atol=1e-4)
    assert provenance["residuals"][2] == pytest.approx(number, rel=1e-4) and provenance["spread_factor"] is None
    assert f"{number:.2f}" in printed.out
    # The networks are random, so that their images do not fit.
    assert provenance["warnings"] and "does not fit its samples" in printed.err
    assert "The spread is not calibrated for this ensemble" in provenance["warnings"][0] in printed.err
    assert provenance["weights"] == list(calibration_weights(ensemble))
    spreads = {stem: load_magnitude(tmp_path / f"{stem}_spread.nii.gz")[0] for stem in ("scan", "more")}
    np.testing.assert_array_equal(spreads["scan"][2], spread(analysis.images))
    np.testing.assert_allclose(spreads["more"], 3 * spreads["scan"], rtol=1e-6)
    calibrated = read(tmp_path / "more.h5")[1]
    assert calibrated["spread_factor"] == 3 and "not calibrated" not in " ".join(calibrated["warnings"])
    expected = noise_map(
        lambda noisy: reconstructor.reconstruct_slice(noisy, sampled), kspace[2], sampled, covariance, 8, seed=2
    )
    np.testing.assert_allclose(read(tmp_path / "scan_noise.h5")[0][2], expected, rtol=1e-4)
    with Image.open(tmp_path / "scan.png") as sheet, Image.open(tmp_path / "alone.png") as alone:
        assert sheet.width > 3.5 * alone.width and sheet.height == alone.height


def calibration_weights(ensemble: list[Path]) -> tuple[str, ...]:
    return (*map(hash_file, (ensemble[0].parent / CONFIG_NAME, *ensemble)), f"mean of {len(ensemble)}")


def write_calibration(path: Path, ensemble: list[Path], factor: float) -> None:
    Calibration(calibration_weights(ensemble), (2.0, 4.0), (factor, factor), (0.5, 0.5), (0.9, 0.9), (0.8, 0.8)).write(
        path
    )


def test_the_noise_is_that_of_the_noise_scan_where_the_file_has_one(
    ensemble: list[Path],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    covariance, opened = 4 * covariance_of(4), acquisition.open_acquisition
    raw, mask = opened(source)
    measured = replace(raw, noise_covariance=covariance)
    monkeypatch.setattr(acquisition, "open_acquisition", lambda *args: (measured, mask))
    with volume.reconstruct_volume(volume.Request((ensemble[0],), source, uncertainty=True), tmp_path / "a") as slices:
        residuals = slices.residuals
    assert "that of the noise scan" in capsys.readouterr().out
    analysis = Reconstructor.from_checkpoint(ensemble[0]).analyse_slice(simulate()[1], np.tile(line_mask(), (24, 1)))
    assert residuals[1] == pytest.approx(residual_map(analysis.residual, covariance)[1], rel=1e-5)
    singular = replace(raw, noise_covariance=np.ones((4, 4), complex))
    monkeypatch.setattr(acquisition, "open_acquisition", lambda *args: (singular, mask))
    request = volume.Request((ensemble[0],), source, replicas=8)
    with pytest.raises(ValueError, match="linear combinations"), volume.reconstruct_volume(request, tmp_path / "b"):
        pass


def test_factors_are_interpolated(tmp_path: Path) -> None:
    calibration = Calibration(("a",), (4.0, 8.0), (2.0, 4.0), (0.5,) * 2, (0.9,) * 2, (0.8,) * 2)
    calibration.write(tmp_path / "calibration.json")
    read_back = Calibration.read(tmp_path / "calibration.json", ["a"])
    assert read_back == calibration
    for spacing, factor in ((2, 2.0), (4, 2.0), (6, 3.0), (12, 4.0)):
        assert read_back.factor(mask := np.arange(24)[None] % spacing == 0) == pytest.approx(factor)
        outside = f"The acceleration is {spacing}.0; the spread is calibrated for 4 to 8."
        assert read_back.find_departures(mask) == [outside] * (spacing in (2, 12))


class KnownSpread:
    """An ensemble whose error is a known multiple of its spread: stands in for networks, which would take training."""

    members = 3

    def __init__(self, multiple: float) -> None:
        self.multiple = multiple
        self.targets = iter(())

    def analyse_slice(self, kspace: NDArray[Any], sampled: NDArray[np.bool_]) -> SliceAnalysis:
        rng = np.random.default_rng(int(np.abs(kspace[0, 48, 48]) * 1e6))
        target = self.target_of(kspace)
        sigma = 0.05 * rng.uniform(0.5, 2, target.shape)
        error = self.multiple * sigma * rng.standard_normal(target.shape)
        images = target + error + sigma * np.array([-1, 0, 1]).reshape(3, 1, 1)
        return SliceAnalysis((images + 10).astype(np.complex64), kspace)

    def target_of(self, kspace: NDArray[Any]) -> NDArray[np.float64]:
        raise NotImplementedError


def test_calibration_finds_the_factor_and_shows_the_coverage(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(seed: Any, options: SampleOptions) -> Any:
        sample = draw_sample(seed, options)
        drawn.append(sample.target)
        sample.target.__iadd__(10)  # far from zero, so that magnitudes of sums are sums
        return sample

    monkeypatch.setattr("direct_hifimamba.reconstruction.uncertainty.draw_sample", draw)
    monkeypatch.setattr(KnownSpread, "target_of", lambda self, kspace: drawn[-1] - 10)
    stand_in = cast(Reconstructor, KnownSpread(4.0))
    calibration = calibrate(stand_in, (), ("a",), accelerations=(8, 4), number=6, size=96)
    assert calibration.accelerations == (4, 8)
    np.testing.assert_allclose(calibration.factors, 4 * 1.96 / 2, rtol=0.03)
    np.testing.assert_allclose(calibration.coverage_before, 0.383, atol=0.02)  # two of four standard deviations
    np.testing.assert_allclose(calibration.coverage_after, 0.95, atol=0.01)
    assert min(calibration.worst_after) > 0.93


def test_calibrate_is_a_command(
    ensemble: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_heads", lambda folder: ())
    output = tmp_path / "calibration.json"
    words = ["calibrate", *map(str, ensemble), "heads", str(output), "--number", "2", "--size", "96"]
    cli.main(words)
    assert "| 4 |" in capsys.readouterr().out
    assert len(json.loads(output.read_text())["factors"]) == 2
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert "exists already" in capsys.readouterr().err


def test_bad_input_is_one_error(
    ensemble: list[Path], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scan"
    different = tmp_path / "different" / "model_7.pt"
    different.parent.mkdir()
    shutil.copy(ensemble[0], different)
    config = OmegaConf.load(ensemble[0].parent / CONFIG_NAME)
    config.inference.dataset.transforms.normalization.scale_percentile = 0.9
    OmegaConf.save(config, different.parent / CONFIG_NAME)
    write_calibration(tmp_path / "other.json", ensemble[:1], 2)
    (tmp_path / "text.json").write_text("[1]")
    write_volume(tmp_path / "no_noise.h5", simulate()[:, :1].repeat(2, axis=1), {}, line_mask())
    single = (ensemble[0], source, output)
    for arguments, message in (
        ((ensemble[0], different, source, output), "in the section inference; the networks of an ensemble need"),
        ((ensemble[0], tmp_path / "missing.pt", source, output), "missing.pt is no file"),
        (("multicoil", ensemble[0], source, output), "multicoil is no file but the name of weights in the package"),
        ((*ensemble, ensemble[0], source, output), f"{ensemble[0]} is the same as {ensemble[0]}"),
        ((*single, "--noise-maps", 7), "is 7; expected at least 8"),
        ((*single, "--noise-maps", 0), "is 0; expected at least 8"),
        ((*single, "--uncertainty", "--calibration", tmp_path / "other.json"), "is for the spread of an ensemble"),
        ((*ensemble, source, output, "--calibration", tmp_path / "other.json"), "is for the spread of an ensemble"),
        ((*ensemble, source, output, "--uncertainty", "--calibration", tmp_path / "other.json"), "for other weights"),
        ((*ensemble, source, output, "--uncertainty", "--calibration", tmp_path / "text.json"), "is no calibration"),
        ((ensemble[0], tmp_path / "no_noise.h5", output, "--uncertainty"), "coils are linear combinations of others"),
    ):
        with pytest.raises(SystemExit, match="2"):
            reconstruct(*arguments)
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("*scan*"))
    (tmp_path / "scan_residual.h5").touch()
    with pytest.raises(SystemExit, match="2"):
        reconstruct(*single, "--uncertainty")
    assert re.search(r"scan_residual\.h5 exists already", capsys.readouterr().err)
    with pytest.raises(ValueError, match="One image has no spread"):
        spread(random(1, 4, 4).astype(np.complex64))
    with pytest.raises(ValueError, match="One image has no spread"):
        calibrate(Reconstructor.from_checkpoint(ensemble[0]), ())
    with pytest.raises(ValueError, match="There is no checkpoint"):
        Reconstructor.from_checkpoint([])
    with pytest.raises(ValueError, match="number of slices is 1"):
        calibrate(Reconstructor.from_checkpoint(ensemble), (), number=1)


def test_weights_that_change_during_a_run_are_refused(ensemble: list[Path], source: Path, tmp_path: Path) -> None:
    request, sampled = volume.Request((ensemble[0],), source), np.tile(line_mask(), (SHAPE[0], 1))
    weights, _ = volume.load(request.checkpoints)
    volume._reconstruct(request, "one", weights, tmp_path, None, None, (0, sampled))
    with pytest.raises(ValueError, match="have changed since the start"):
        volume._reconstruct(request, "other", ["another SHA-256", *weights[1:]], tmp_path, None, None, (1, sampled))
    assert [path.name for path in tmp_path.iterdir()] == ["00000.npz"]


@pytest.mark.parametrize("model_name", [UNET, VARNET])
def test_models_of_magnitudes_have_no_residual(
    source: Path, tmp_path: Path, model_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("direct.environment.setup_logging", lambda *args: None)
    reconstructor = Reconstructor.from_checkpoint(save_experiment(tmp_path / "experiment", model_name))
    perturb(reconstructor.network, 0.01)
    sampled = np.tile(line_mask(), (SHAPE[0], 1))
    with pytest.raises(ValueError, match=r"gives no complex images.*--uncertainty"):
        reconstructor.analyse_slice(simulate()[0], sampled)
    averaging = Reconstructor.from_checkpoint(next(tmp_path.rglob("*.pt")), flips=True)  # magnitudes have a mean
    assert averaging.reconstruct_slice(simulate()[0], sampled).shape == SHAPE
