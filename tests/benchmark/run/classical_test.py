from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from direct.functionals.challenges import fastmri_psnr

from direct_hifimamba.benchmark.folder import RunFolder
from direct_hifimamba.benchmark.plan.hashes import list_files
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.run import classical
from direct_hifimamba.benchmark.score.images import load_reconstruction
from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.data.fourier import image_to_kspace, root_sum_of_squares
from direct_hifimamba.data.simulate import simulate_sensitivity_map
from tests.benchmark.small_benchmark import MASKS, SLICES, write_specification
from tests.benchmark.small_benchmark import SHAPE as DATA_SHAPE
from tests.data import lookalikes

SHAPE = (48, 64)
SCALE = 3e-4  # far from 1, as in measured data

needs_bart = pytest.mark.skipif(classical.find_bart() is None, reason="there is no program bart on the PATH")


def _acquisition(num_coils: int) -> tuple[np.ndarray, np.ndarray]:
    """Piecewise constant, without any symmetry; every third column and a centre."""
    image = np.zeros(SHAPE, np.complex64)
    image[6:40, 10:50] = 1
    image[10:20, 14:30] = 2
    image[28:34, 36:48] = 0.2 + 0.3j
    maps = simulate_sensitivity_map(0.0, SHAPE, num_coils, np.random.SeedSequence(0))
    noise = np.random.default_rng(0).standard_normal((2, num_coils, *SHAPE)) / 100
    kspace = SCALE * (image_to_kspace(image * maps) + noise[0] + 1j * noise[1])
    mask = np.arange(SHAPE[1]) % 3 == 0
    mask[27:38] = True
    return kspace.astype(np.complex64), mask


def _write(folder: Path, kspace: np.ndarray, mask: np.ndarray) -> list[Path]:
    """A validation split of one slice."""
    write_volume(folder / "volume.h5", kspace[None], {}, mask)
    return [folder / "volume.h5"]


def _psnr(kspace: np.ndarray, image: np.ndarray) -> float:
    return fastmri_psnr(root_sum_of_squares(kspace)[None, None], image[None, None]).item()


def test_sensitivities_are_of_unit_norm_and_those_of_the_simulation():
    kspace, mask = _acquisition(4)
    estimate = classical.estimate_sensitivity_map(kspace, mask)
    np.testing.assert_allclose(np.linalg.norm(estimate, axis=0), 1, rtol=1e-4)
    truth = simulate_sensitivity_map(0.0, SHAPE, 4, np.random.SeedSequence(0))
    inside = (slice(12, 34), slice(16, 44))
    agreement = np.abs((estimate * truth.conj()).sum(0))[inside]
    assert agreement.mean() > 0.98


def test_sensitivities_use_the_centre_alone():
    kspace, mask = _acquisition(4)
    others = kspace.copy()
    others[..., [0, 3, 26, 38, 63]] += 1
    np.testing.assert_array_equal(
        classical.estimate_sensitivity_map(others, mask), classical.estimate_sensitivity_map(kspace, mask)
    )


@needs_bart
@pytest.mark.parametrize("num_coils", [1, 4])
def test_pics_is_upright_to_scale_and_better_than_zero_filled(num_coils):
    kspace, mask = _acquisition(num_coils)
    if num_coils == 1:
        kspace = kspace[0]
    image = classical.reconstruct(kspace, mask, 0.01)
    assert image.shape == SHAPE
    assert _psnr(kspace, image) > _psnr(kspace, root_sum_of_squares(kspace * mask)) + 1
    target = root_sum_of_squares(kspace)
    assert (image * target).sum() / np.square(target).sum() == pytest.approx(1, abs=0.05)


@needs_bart
def test_pics_does_not_see_what_was_not_sampled():
    kspace, mask = _acquisition(2)
    expected = classical.reconstruct(kspace, mask, 0.01)
    np.testing.assert_array_equal(classical.reconstruct(kspace + np.float32(SCALE) * ~mask, mask, 0.01), expected)


@needs_bart
def test_regularisation_is_chosen_by_the_psnr(tmp_path, monkeypatch):
    kspace, mask = _acquisition(4)
    scores = {weight: _psnr(kspace, classical.reconstruct(kspace, mask, weight)) for weight in (1e-4, 0.01, 1.0)}
    best = max(scores, key=lambda weight: scores[weight])
    monkeypatch.setattr(classical, "REGULARISATIONS", tuple(scores))
    assert classical.choose_regularisation(_write(tmp_path, kspace, mask)) == best
    assert best != 1.0


def _diverge_from(monkeypatch, weight):
    """Let BART's images be the zero-filled ones, and not finite from this weight on."""

    def reconstruct(kspace, mask, regularisation):
        image = root_sum_of_squares(kspace * mask)
        image[0, 0] = np.nan if regularisation >= weight else 0
        return image

    monkeypatch.setattr(classical, "reconstruct", reconstruct)
    monkeypatch.setattr(classical, "bart_version", lambda: "none")


def test_weight_with_which_bart_diverges_is_not_chosen(tmp_path, monkeypatch):
    _diverge_from(monkeypatch, 0.02)
    paths = _write(tmp_path, *_acquisition(2))
    monkeypatch.setattr(classical, "REGULARISATIONS", (0.05, 0.01, 0.02))
    assert classical.choose_regularisation(paths) == 0.01
    monkeypatch.setattr(classical, "REGULARISATIONS", (0.05, 0.02))
    with pytest.raises(RuntimeError, match=r"not finite with any of the weights 0.05, 0.02"):
        classical.choose_regularisation(paths)


def test_images_of_the_test_split_that_are_not_finite_are_an_error(small_specification, tmp_path, monkeypatch):
    _diverge_from(monkeypatch, 0.0)
    monkeypatch.setattr(classical, "choose_regularisation", lambda *_: 0.01)
    specification = Specification.load(small_specification)
    folder, shapes = RunFolder(tmp_path / "bart"), RunFolder(tmp_path / "other")
    _write_shapes(specification, shapes, "equispaced_4x", DATA_SHAPE)
    with pytest.raises(RuntimeError, match=r"BART's image of .*test_equispaced_4x.*\.h5, .* 0.01, is not finite"):
        classical.reconstruct_test_split(specification, folder, shapes, jobs=1)
    assert not folder.predictions("equispaced_4x").exists()


def _write_shapes(specification, run, acceleration, shape):
    """Predictions of a run, of this shape."""
    run.predictions(acceleration).mkdir(parents=True)
    for path in list_files(specification.folder("test", acceleration)):
        with h5py.File(run.predictions(acceleration) / path.name, "w") as file:
            file["reconstruction"] = np.zeros((SLICES, *shape), np.float32)


def test_failure_of_the_version_is_reported(tmp_path, monkeypatch):
    (tmp_path / "bart").write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    (tmp_path / "bart").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="bart version failed: broken"):
        classical.bart_version()


def test_missing_program_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "")
    kspace, mask = _acquisition(1)
    with pytest.raises(FileNotFoundError, match="no program bart on the PATH; install BART"):
        classical.reconstruct(kspace[0], mask, 0.01)


@needs_bart
def test_failure_of_the_program_is_reported(monkeypatch):
    kspace, mask = _acquisition(2)
    monkeypatch.setattr(classical, "estimate_sensitivity_map", lambda *_: np.ones_like(kspace)[..., :-1])
    with pytest.raises(RuntimeError, match=r"bart pics .* failed: .+"):
        classical.reconstruct(kspace, mask, 0.01)


@needs_bart
def test_the_test_split_is_reconstructed_once_with_the_weight_of_the_validation_split(
    small_specification, tmp_path, monkeypatch
):
    specification = Specification.load(small_specification)
    folder, shapes = RunFolder(tmp_path / "bart"), RunFolder(tmp_path / "other")
    for acceleration in MASKS:
        _write_shapes(specification, shapes, acceleration, DATA_SHAPE)
    monkeypatch.setattr(classical, "REGULARISATIONS", (0.002, 1.0))
    classical.reconstruct_test_split(specification, folder, shapes, jobs=2)
    program = f"BART {classical.bart_version()}, pics -S -l1"
    chosen = folder.predictions("equispaced_4x").with_suffix(".yaml").read_text()
    assert yaml.safe_load(chosen) == {"program": program, "regularisation": 0.002}
    for path in list_files(specification.folder("test", "equispaced_4x")):
        slices = list(classical.Acquisition.read(path))
        images = load_reconstruction(folder.predictions("equispaced_4x") / path.name)
        gains = [
            _psnr(kspace, image) - _psnr(kspace, root_sum_of_squares(kspace * mask))
            for (kspace, mask), image in zip(slices, images, strict=True)
        ]
        assert np.mean(gains) > 0
    monkeypatch.setattr(classical, "reconstruct", None)
    classical.reconstruct_test_split(specification, folder, shapes, jobs=2)


@needs_bart
def test_images_are_cropped_like_those_of_another_run(small_specification, tmp_path):
    specification = Specification.load(small_specification)
    whole_shapes = RunFolder(tmp_path / "whole")
    other, folder, output = RunFolder(tmp_path / "other"), RunFolder(tmp_path / "bart"), tmp_path / "images"
    acceleration = next(iter(MASKS))
    tests = list_files(specification.folder("test", acceleration))
    _write_shapes(specification, other, acceleration, (40, 30))
    _write_shapes(specification, whole_shapes, acceleration, DATA_SHAPE)
    classical._reconstruct_files(tests, output, 0.002, other.predictions(acceleration), jobs=1)
    classical._reconstruct_files(tests, folder.path, 0.002, whole_shapes.predictions(acceleration), jobs=1)
    for path in tests:
        cropped, whole = load_reconstruction(output / path.name), load_reconstruction(folder.path / path.name)
        np.testing.assert_array_equal(cropped, whole[:, 12:52, 17:47])


def test_mask_leaves_out_the_padding_of_the_header(tmp_path: Path) -> None:
    lookalikes.fastmri(tmp_path, "multi", num_slices=1)
    acquisition = next(classical.Acquisition.read(tmp_path / "multicoil_test" / "file1000022.h5"))
    padding = lookalikes.NUM_PADDED
    assert acquisition.mask.sum() == len(acquisition.mask) - 2 * padding
    assert not acquisition.mask[:padding].any()


def test_what_bart_cannot_do_is_said_before_anything_starts(small_specification, tmp_path):
    splits = {"training": "train", "validation": "test", "test": "test"}
    specification = Specification.load(write_specification(tmp_path, splits=splits, classical=["BART pics"]))
    with pytest.raises(ValueError, match="classical names BART pics, whose weight would be chosen on the test split"):
        classical.check_bart(specification, True)
    specification = Specification.load(write_specification(tmp_path, classical=["BART pics"]))
    with pytest.raises(ValueError, match="for centred k-space"):
        classical.check_bart(specification, False)
    classical.check_bart(specification, True)
    with h5py.File(tmp_path / "data" / "test_equispaced_8x" / "e.h5", "r+") as file:
        del file["mask"]
        file["mask"] = np.ones(DATA_SHAPE, bool)
    with pytest.raises(ValueError, match="with masks of columns only"):
        classical.check_bart(specification, True)
