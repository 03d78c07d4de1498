from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import torch
from direct import environment
from direct.checkpointer import Checkpointer
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from direct_hifimamba import cli
from direct_hifimamba.data.acquisition import open_acquisition, open_sensitivity_map
from direct_hifimamba.data.center import center_block
from direct_hifimamba.data.checks import check_acquisition
from direct_hifimamba.data.formats.bart import from_slices, write_cfl
from direct_hifimamba.data.formats.hdf5 import write_cmrxrecon, write_volume
from direct_hifimamba.data.formats.nifti import load_magnitude
from direct_hifimamba.data.formats.registry import read
from direct_hifimamba.data.fourier import image_to_kspace, kspace_to_image
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME
from direct_hifimamba.reconstruction.reconstructor import Reconstructor
from tests.data import lookalikes
from tests.data.formats.scans import KSPACE, lines_of, write_ismrmrd, write_twix
from tests.helpers import TINY, perturb

SLICES, COILS, HEIGHT, WIDTH = 3, 4, 24, 32
OURS, VARNET = "hifimamba.hifimamba.HiFiMambaV2", "varnet.varnet.EndToEndVarNet"
UNET, RIM = "unet.unet_2d.Unet2d", "rim.rim.RIM"
PHYSICS = {"": "forward_operator", "i": "backward_operator"}
MODELS: dict[str, dict[str, Any]] = {
    OURS: {"model": {"model_name": OURS, **TINY}},
    UNET: {"model": {"model_name": UNET, "num_filters": 4, "num_pool_layers": 2, "image_initialization": "sense"}},
    RIM: {"model": {"model_name": RIM, "hidden_channels": 8, "length": 2, "depth": 2, "image_initialization": "sense"}},
    VARNET: {
        "model": {
            "model_name": VARNET,
            "num_layers": 2,
            "regularizer_num_filters": 4,
            "regularizer_num_pull_layers": 2,
        },
        "additional_models": {
            "sensitivity_model": {
                "model_name": "unet.unet_2d.UnetModel2d",
                "in_channels": 2,
                "out_channels": 2,
                "num_filters": 4,
                "num_pool_layers": 2,
                "dropout_probability": 0.0,
            }
        },
    },
}


def make_config(model_name: str) -> dict[str, Any]:
    transforms = {
        "masking": None,
        "cropping": {"crop": None, "image_center_crop": True},
        "sensitivity_map_estimation": {"sensitivity_maps_type": "rss_estimate", "sensitivity_maps_gaussian": 0.5},
        "normalization": {"scaling_key": "masked_kspace", "scale_percentile": 0.97},
        "padding_eps": 0.0,
    }
    return MODELS[model_name] | {
        "physics": {"forward_operator": "fft2", "backward_operator": "ifft2"},
        "inference": {
            "dataset": {"name": "FastMRI", "pass_mask": True, "transforms": transforms},
            "batch_size": 1,
            "crop": None,
        },
    }


def save_experiment(folder: Path, model_name: str) -> Path:
    """What `direct train` writes: configuration and checkpoint, by the functions that it writes them with."""
    folder.mkdir()
    OmegaConf.save(OmegaConf.create(make_config(model_name)), folder / "given.yaml")
    env = environment.setup_training_environment("run", folder, folder / "given.yaml", "cpu", 0, False)
    for model in (env.engine.model, *env.engine.models.values()):
        perturb(model, 0.05)
    Checkpointer(env.experiment_dir, model=env.engine.model, **env.engine.models).save(7)
    return env.experiment_dir / "model_7.pt"


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(environment, "setup_logging", lambda *args: None)
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("experiments")
        yield {name: save_experiment(folder / str(index), name) for index, name in enumerate(MODELS)}


def simulate(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.complex64]:
    """Fully sampled k-space of smooth coil images and some noise; its scale is far from 1."""
    rng = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    magnitude = np.stack([(rows**2 + columns**2 < 0.5 + 0.1 * index).astype(float) for index in range(SLICES)])
    centers = rng.uniform(-1, 1, (COILS, 2, 1, 1))
    maps = np.exp(-((rows - centers[:, 0]) ** 2) - (columns - centers[:, 1]) ** 2 + 2j * centers[:, 0])
    kspace = image_to_kspace((300 * magnitude[:, None] * maps).astype(np.complex64))
    noise = rng.normal(size=(*kspace.shape, 2)).astype(np.float32).view(np.complex64)[..., 0]
    return kspace + noise


def line_mask(width: int = WIDTH, center: int = 5) -> NDArray[np.bool_]:
    mask = np.arange(width) % 4 == 1
    mask[width // 2 - center // 2 : width // 2 + center // 2 + 1] = True
    return mask


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "volume.h5"
    write_volume(path, simulate(), {}, line_mask())
    return path


@pytest.fixture(scope="module")
def ours(experiments: dict[str, Path]) -> Reconstructor:
    return Reconstructor.from_checkpoint(experiments[OURS])


def reconstruct(*arguments: Any) -> None:
    cli.main(["reconstruct", *map(str, arguments)])


def predict(checkpoint: Path, config: Path, data: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The images that `direct predict` writes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # DIRECT sets it
    monkeypatch.setattr("sys.argv", ["direct"])
    command = f"predict {output} --data-root {data.parent} --cfg {config} --checkpoint {checkpoint}"
    cli.main(f"{command} --num-gpus 0 --num-workers 0 --device cpu".split())
    with h5py.File(output / data.name) as file:
        return file["reconstruction"][()]


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # DIRECT's
@pytest.mark.parametrize("model_name", MODELS)
def test_results_are_those_of_direct_predict(
    experiments: dict[str, Path], volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_name: str
) -> None:
    checkpoint = experiments[model_name]
    theirs = predict(checkpoint, checkpoint.parent / CONFIG_NAME, volume, tmp_path / "theirs", monkeypatch)
    reconstruct(checkpoint, volume, tmp_path / "ours")
    with h5py.File(tmp_path / "ours.h5") as file:
        images = file["reconstruction"][()]
    assert images.shape == (SLICES, HEIGHT, WIDTH) and images.dtype == np.float32
    np.testing.assert_allclose(images, theirs, rtol=0, atol=1e-5 * theirs.max())


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("shape", [(24, 32), (25, 31)])
def test_flips_average_over_the_slice_and_its_reflections(
    experiments: dict[str, Path], tmp_path: Path, shape: tuple[int, int], centered: bool
) -> None:
    config = OmegaConf.load(experiments[OURS].parent / CONFIG_NAME)
    config.physics = {name: f"{prefix}fft2(centered={centered})" for prefix, name in PHYSICS.items()}
    dataset = config.inference.dataset
    dataset.name, dataset.sensitivity_maps = "FastMRIWithMaps", "stored"
    dataset.transforms.sensitivity_map_estimation.estimate_sensitivity_maps = False
    OmegaConf.save(config, tmp_path / "config.yaml")

    def flip(array: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
        for axis in axes:
            length = array.shape[axis]
            origin = length // 2 if centered else 0
            array = array.take((2 * origin - np.arange(length)) % length, axis)
        return array

    rng = np.random.default_rng(0)
    kspace, maps = rng.normal(size=(2, 1, 3, *shape, 2)).astype(np.float32).view(np.complex64)[..., 0]
    maps /= np.linalg.norm(maps, axis=1, keepdims=True)
    mask = rng.random(shape) < 0.5

    def images(reconstructor: Reconstructor, axes: tuple[int, ...]) -> NDArray[Any]:
        data, sampled, sensitivity_map = (flip(array, axes) for array in (kspace * mask, mask, maps))
        image = reconstructor(data, sampled, complex_images=True, sensitivity_map=sensitivity_map, check=False)
        return flip(image, axes)

    all_axes: tuple[tuple[int, ...], ...] = ((), (-2,), (-1,), (-2, -1))
    plain, averaging = (
        Reconstructor.from_checkpoint(experiments[OURS], tmp_path / "config.yaml", flips=flips)
        for flips in (False, True)
    )
    single = [images(plain, axes) for axes in all_axes]
    total = np.sum(single, axis=0)
    expected = np.mean(np.abs(single), axis=0) * total / np.abs(total)
    atol = 1e-5 * np.abs(expected).max()
    assert np.abs(single[0] - single[3]).max() > 100 * atol
    for axes in all_axes:
        np.testing.assert_allclose(images(averaging, axes), expected, rtol=0, atol=atol)
    analysis = averaging.analyse_slice(kspace[0] * mask, mask, maps[0])
    np.testing.assert_allclose(analysis.images, np.concatenate(single), rtol=0, atol=atol)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # DIRECT's
@pytest.mark.parametrize("model_name", [OURS, VARNET])
def test_sensitivities_of_our_data_set_are_those_of_direct_predict(
    experiments: dict[str, Path], volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_name: str
) -> None:
    checkpoint = experiments[model_name]
    (tmp_path / "data").mkdir()
    data = Path(shutil.copy(volume, tmp_path / "data"))
    with h5py.File(data, "r+") as file:
        file["sensitivity_map"] = np.roll(kspace_to_image(simulate()), 3, axis=-1)
    config = OmegaConf.load(checkpoint.parent / CONFIG_NAME)
    dataset = config.inference.dataset
    dataset.name = "FastMRIWithMaps"
    dataset.transforms.sensitivity_map_estimation.estimate_sensitivity_maps = False
    results = []
    for kind in ("espirit", "nlinv", "stored"):
        dataset.sensitivity_maps = kind
        OmegaConf.save(config, tmp_path / f"{kind}.yaml")
        theirs = predict(checkpoint, tmp_path / f"{kind}.yaml", data, tmp_path / f"theirs_{kind}", monkeypatch)
        reconstruct(checkpoint, data, tmp_path / kind, "--cfg", tmp_path / f"{kind}.yaml")
        with h5py.File(tmp_path / f"{kind}.h5") as file:
            results.append(file["reconstruction"][()])
        np.testing.assert_allclose(results[-1], theirs, rtol=0, atol=1e-5 * theirs.max())
    reconstruct(checkpoint, data, tmp_path / "estimated")
    with h5py.File(tmp_path / "estimated.h5") as file:
        results.append(file["reconstruction"][()])
    for first, second in itertools.combinations(results, 2):
        assert np.abs(first - second).max() > 0.01 * first.max()


def test_sensitivities_are_given_if_and_only_if_they_are_needed(
    experiments: dict[str, Path], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = experiments[OURS]
    kspace, mask = simulate(), line_mask()
    with pytest.raises(ValueError, match="configuration estimates its own"):
        Reconstructor.from_checkpoint(checkpoint)(kspace, mask, sensitivity_map=kspace)
    config = OmegaConf.load(checkpoint.parent / CONFIG_NAME)
    dataset = config.inference.dataset
    dataset.name, dataset.sensitivity_maps = "FastMRIWithMaps", "stored"
    dataset.transforms.sensitivity_map_estimation.estimate_sensitivity_maps = False
    OmegaConf.save(config, tmp_path / "stored.yaml")
    np.save(tmp_path / "kspace.npy", kspace)
    np.save(tmp_path / "mask.npy", mask)
    for path, options in ((volume, []), (tmp_path / "kspace.npy", ["--mask", tmp_path / "mask.npy"])):
        error = run_fails(capsys, checkpoint, path, tmp_path / "out", "--cfg", tmp_path / "stored.yaml", *options)
        assert f"{path} holds no coil sensitivities (array 'sensitivity_map')" in error and "--variable" not in error
    reconstructor = Reconstructor.from_checkpoint(checkpoint, tmp_path / "stored.yaml")
    for maps, message in (
        (None, "there are none"),
        (kspace[:, :2], re.escape("shape (3, 2, 24, 32)")),
        (np.abs(kspace), "expected complex numbers"),
        (kspace * np.nan, "NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            reconstructor(kspace, mask, sensitivity_map=maps)


@pytest.mark.parametrize("form", ["sens.npy", "sens.cfl", "sens.h5"])
def test_sensitivities_may_have_a_file_of_their_own(experiments: dict[str, Path], tmp_path: Path, form: str) -> None:
    config = OmegaConf.load(experiments[UNET].parent / CONFIG_NAME)
    dataset = config.inference.dataset
    dataset.name, dataset.sensitivity_maps = "FastMRIWithMaps", "stored"
    dataset.transforms.sensitivity_map_estimation.estimate_sensitivity_maps = False
    OmegaConf.save(config, tmp_path / "stored.yaml")
    maps, path = kspace_to_image(simulate()), tmp_path / form
    write_volume(tmp_path / "both.h5", simulate(), {}, line_mask(), arrays={"sensitivity_map": maps})
    write_volume(tmp_path / "alone.h5", simulate(), {}, line_mask())
    if form == "sens.npy":
        np.save(path, maps)
    elif form == "sens.cfl":
        write_cfl(path, from_slices(maps))
    else:
        with h5py.File(path, "w") as file:
            file["sensitivity_map"] = maps
    options = ["--cfg", tmp_path / "stored.yaml"]
    reconstruct(experiments[UNET], tmp_path / "both.h5", tmp_path / "expected.h5", *options)
    options += ["--sensitivity-map", path]
    reconstruct(experiments[UNET], tmp_path / "alone.h5", tmp_path / "actual.h5", *options)
    with h5py.File(tmp_path / "expected.h5") as expected, h5py.File(tmp_path / "actual.h5") as actual:
        np.testing.assert_array_equal(actual["reconstruction"], expected["reconstruction"])
    with pytest.raises(ValueError, match="holds no coil sensitivities"):
        open_sensitivity_map(tmp_path / "alone.h5", is_separate=True)


@pytest.fixture(scope="module")
def knees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A look-alike of fastMRI's knees: padded columns, which the mask samples, and a header with a smaller image.

    It holds sensitivities that no estimate would find.
    """
    folder = tmp_path_factory.mktemp("knees")
    lookalikes.fastmri(folder, "multi", num_slices=2)
    path = next(folder.glob("*_val/*1000007.h5"))
    with h5py.File(path, "r+") as file:
        file["mask"] = line_mask(file["kspace"].shape[-1], center=7).astype(np.float32)
        file["sensitivity_map"] = np.roll(kspace_to_image(file["kspace"][()]), 3, axis=-1)
    for other in set(path.parent.iterdir()) - {path}:
        other.unlink()
    return path


TRANSFORMS = "inference.dataset.transforms"


@pytest.mark.parametrize(
    "option",
    [
        {},
        {"inference.crop": "header"},
        {f"{TRANSFORMS}.normalization.scaling_key": "kspace"},
        {f"{TRANSFORMS}.normalization.scaling_key": "acs_kspace"},
        {f"{TRANSFORMS}.normalization.scaling_key": None},
        {f"{TRANSFORMS}.padding_eps": 0.01},
        {f"{TRANSFORMS}.compress_coils": 2},
        {f"{TRANSFORMS}.pad_coils": 5},
        {f"{TRANSFORMS}.use_acs_as_mask": True},
        {f"{TRANSFORMS}.sensitivity_map_estimation.sensitivity_maps_type": "unit"},
        {f"{TRANSFORMS}.sensitivity_map_estimation.sensitivity_maps_gaussian": None},
        {
            "inference.dataset.name": "FastMRIWithMaps",
            "inference.dataset.sensitivity_maps": "stored",
            f"{TRANSFORMS}.sensitivity_map_estimation.estimate_sensitivity_maps": False,
        },
    ],
    ids=str,
)
def test_options_act_as_in_direct_predict(
    experiments: dict[str, Path], knees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any]
) -> None:
    checkpoint, config = experiments[OURS], tmp_path / "config.yaml"
    changed = OmegaConf.load(checkpoint.parent / CONFIG_NAME)
    for key, value in option.items():
        OmegaConf.update(changed, key, value, merge=False, force_add=True)
    OmegaConf.save(changed, config)
    theirs = predict(checkpoint, config, knees, tmp_path / "theirs", monkeypatch)
    reconstruct(checkpoint, knees, tmp_path / "ours", "--cfg", config)
    with h5py.File(tmp_path / "ours.h5") as file:
        images = file["reconstruction"][()]
    assert images.shape[1:] == ((24, 24) if "inference.crop" in option else (48, 34))
    np.testing.assert_allclose(images, theirs, rtol=0, atol=1e-5 * theirs.max())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("inference.crop", "training", "expected header or null"),
        ("inference.dataset.kspace_context", 1, "it is 1; only slices"),
        ("inference.dataset.name", "FastMRIWithMasks", "take direct predict"),
        (f"{TRANSFORMS}.normalization.scale_percentile", None, "expected a number such as 0.99"),
        (f"{TRANSFORMS}.normalization.scaling_key", "scaling_factor", "expected masked_kspace"),
        (f"{TRANSFORMS}.normalization.scaling_key", "target", "expected masked_kspace"),
        (f"{TRANSFORMS}.cropping.crop", "(24, 24)", "set null"),
        (f"{TRANSFORMS}.augmentation.rescale", [24, 24], "set null"),
        (f"{TRANSFORMS}.augmentation.pad", [64, 64], "set null"),
        (f"{TRANSFORMS}.random_augmentations.random_flip_probability", 0.5, "set 0"),
        (f"{TRANSFORMS}.registration.registration", True, "slices alone"),
        (f"{TRANSFORMS}.transforms_type", "SSL_SSDU", "expected supervised"),
        (f"{TRANSFORMS}.sensitivity_map_estimation.estimate_sensitivity_maps", False, "models need sensitivities"),
        (f"{TRANSFORMS}.sensitivity_map_estimation.sensitivity_maps_type", "espirit", "FastMRIWithMaps"),
        (f"{TRANSFORMS}.pad_coils", 3, "at most pad_coils: 3"),
        (f"{TRANSFORMS}.compress_coils", 2, "nothing but the samples of the mask"),
        (f"{TRANSFORMS}.normalization.scaling_key", "kspace", "nothing but the samples of the mask"),
    ],
)
def test_other_options_are_refused(
    experiments: dict[str, Path], tmp_path: Path, option: str, value: Any, message: str
) -> None:
    config = OmegaConf.load(experiments[OURS].parent / CONFIG_NAME)
    OmegaConf.update(config, option, value, merge=False, force_add=True)
    OmegaConf.save(config, tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=re.escape(message)):
        Reconstructor.from_checkpoint(experiments[OURS], tmp_path / "config.yaml")(contradictory(), line_mask())


@pytest.mark.parametrize("is_line_mask", [True, False])
def test_files_of_cmrxrecon_are_read_as_direct_reads_them(
    experiments: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_line_mask: bool
) -> None:
    rows, columns = np.ogrid[-12:12, -16:16]
    mask = np.tile(line_mask(), (HEIGHT, 1)) if is_line_mask else rows**2 + columns**2 < 50
    write_volume(tmp_path / "volume.h5", simulate(), {})
    write_cmrxrecon(tmp_path / "volume.mat", tmp_path / "volume.h5", mask, {})
    raw, stored = open_acquisition(tmp_path / "volume.mat")
    np.testing.assert_array_equal(list(raw.slices()), simulate())
    np.testing.assert_array_equal(stored, mask)
    with h5py.File(tmp_path / "volume.mat", "r+") as file:  # as the challenge names them
        file.move("kspace", "kspace_sub04")
        file.move("mask", "mask04")
    renamed, stored = open_acquisition(tmp_path / "volume.mat")
    np.testing.assert_array_equal(list(renamed.slices()), simulate())
    np.testing.assert_array_equal(stored, mask)

    checkpoint = experiments[OURS]
    config = OmegaConf.load(checkpoint.parent / CONFIG_NAME)
    config.inference.crop = "header"
    dataset = config.inference.dataset
    config.inference.dataset = {
        "name": "CMRxRecon",
        "kspace_key": "kspace_sub04",
        "extra_keys": ["mask04"],
        "transforms": dataset.transforms,
    }
    OmegaConf.save(config, tmp_path / "config.yaml")
    theirs = predict(checkpoint, tmp_path / "config.yaml", tmp_path / "volume.mat", tmp_path / "theirs", monkeypatch)
    reconstruct(checkpoint, tmp_path / "volume.mat", tmp_path / "ours", "--cfg", tmp_path / "config.yaml")
    with h5py.File(tmp_path / "ours.h5") as file:
        np.testing.assert_allclose(file["reconstruction"], theirs, rtol=0, atol=1e-5 * theirs.max())


def square(mask: NDArray[np.bool_], axis: int) -> NDArray[np.complex64]:
    """Square k-space, sampled by rows (axis 0) or columns (axis 1)."""
    return simulate(WIDTH, WIDTH) * (mask if axis else mask[:, None])


def test_rows_are_not_taken_for_columns() -> None:
    check_acquisition(square(line_mask(), 1), line_mask())
    with pytest.raises(ValueError, match=re.escape("It fits the rows: give a mask of the shape (32, 32)")):
        check_acquisition(square(line_mask(), 0), line_mask())
    check_acquisition(square(line_mask(), 0), np.repeat(line_mask()[:, None], WIDTH, axis=1))
    partial = np.arange(WIDTH) < 20  # no gaps between rows
    check_acquisition(square(partial, 1), partial)
    with pytest.raises(ValueError, match=r"12 rows of zeros.* It fits the rows"):
        check_acquisition(square(partial, 0), partial)
    check_acquisition(square(partial, 0), line_mask())  # rows cut off on an edge, columns of k-space that has all


def test_masks_of_two_axes_may_have_a_single_row_or_column() -> None:
    mask = line_mask()
    rows, columns = np.tile(mask[:, None], WIDTH), np.tile(mask, (WIDTH, 1))
    for kspace in (square(mask, 1), simulate(WIDTH, WIDTH)):
        np.testing.assert_array_equal(check_acquisition(kspace, mask[None]), columns)
    for kspace in (square(mask, 0), simulate(WIDTH, WIDTH)):
        np.testing.assert_array_equal(check_acquisition(kspace, mask[:, None]), rows)
    np.testing.assert_array_equal(check_acquisition(square(mask, 1), mask[:, None]), columns)
    np.testing.assert_array_equal(check_acquisition(contradictory(), mask[:, None]), columns[:HEIGHT])
    with pytest.raises(ValueError, match="rows of zeros"):
        check_acquisition(square(mask, 0), mask[None])
    with pytest.raises(ValueError, match="is the mask inverted, or of other data"):
        check_acquisition(square(mask, 0), ~mask[:, None])


@pytest.mark.parametrize("shift", [(12, 16), (0, 16), (12, 0), (-6, 0), (0, 7)])
def test_the_zero_frequency_is_looked_for(ours: Reconstructor, shift: tuple[int, int]) -> None:
    kspace = np.roll(contradictory(), shift, axis=(-2, -1))
    mask = np.roll(np.tile(line_mask(), (HEIGHT, 1)), shift, axis=(0, 1))
    with pytest.raises(ValueError, match="The zero frequency of k-space appears to be at index") as error:
        ours(kspace, mask)
    back = tuple(map(int, re.search(r"np.roll\(kspace, \((-?\d+), (-?\d+)\)", str(error.value)).groups()))  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.roll(kspace, back, axis=(-2, -1)), contradictory())
    check_acquisition(kspace, mask, compare=False)


def test_white_noise_and_small_shifts_are_no_shifted_zero_frequency() -> None:
    noise = np.random.default_rng(0).normal(size=(2, 1, 32, 32, 2)).view(np.complex128)[..., 0]
    check_acquisition(noise, line_mask())
    check_acquisition(np.roll(simulate(), (1, 2), axis=(-2, -1)), line_mask())


def test_the_origin_of_the_image_is_that_of_the_configuration(experiments: dict[str, Path], tmp_path: Path) -> None:
    checkpoint, mask = experiments[OURS], line_mask()
    config = OmegaConf.load(checkpoint.parent / CONFIG_NAME)
    config.physics = {
        f"{name}_operator": f"{fft}(centered=False)" for name, fft in (("forward", "fft2"), ("backward", "ifft2"))
    }
    OmegaConf.save(config, tmp_path / "uncentred.yaml")
    rows, columns = (-1) ** np.arange(HEIGHT)[:, None], (-1) ** np.arange(WIDTH)
    kspace = {True: contradictory(), False: contradictory() * rows * columns}
    for centered, reconstructor in (
        (True, Reconstructor.from_checkpoint(checkpoint)),
        (False, Reconstructor.from_checkpoint(checkpoint, tmp_path / "uncentred.yaml")),
    ):
        reconstructor(kspace[centered], mask)
        with pytest.raises(ValueError, match="across the edges of the image, along its height and width: "):
            reconstructor(kspace[not centered], mask)
        for axis, signs in (("height", rows), ("width", columns)):
            with pytest.raises(ValueError, match=f"along its {axis}: "):
                reconstructor(kspace[centered] * signs, mask)
        reconstructor(kspace[not centered], mask, check=False)


def test_no_check_is_an_option(
    experiments: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_volume(tmp_path / "volume.h5", np.fft.ifftshift(simulate(), axes=(-2, -1)), {}, line_mask())
    arguments = (experiments[OURS], tmp_path / "volume.h5", tmp_path / "out")
    assert "zero frequency" in run_fails(capsys, *arguments)
    reconstruct(*arguments, "--no-check")
    assert (tmp_path / "out.h5").exists()


def test_everything_is_written_and_never_overwritten(
    experiments: dict[str, Path], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--complex", "--phase", "--voxel-size", 5, 1.5, 2]
    reconstruct(experiments[OURS], volume, tmp_path, *options)
    names = {"volume.h5", "volume.nii.gz", "volume_phase.nii.gz", "volume.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    with h5py.File(tmp_path / "volume.h5") as file:
        images = file["reconstruction"][()]
    assert images.dtype == np.complex64
    magnitude, zooms = load_magnitude(tmp_path / "volume.nii.gz")
    np.testing.assert_array_equal(magnitude, np.abs(images))
    assert zooms == (1.5, 2)
    image = nibabel.load(tmp_path / "volume_phase.nii.gz")
    np.testing.assert_array_equal(image.affine, np.diag([2, -1.5, 5, 1]))
    phase = image.get_fdata(dtype=np.float32).T
    np.testing.assert_allclose(magnitude * np.exp(1j * phase), images, rtol=0, atol=1e-5 * magnitude.max())
    with Image.open(tmp_path / "volume.png") as sheet:
        assert np.ptp(np.asarray(sheet)) == 255
    with pytest.raises(SystemExit, match="2"):
        reconstruct(experiments[OURS], volume, tmp_path, *options)
    assert "exists already" in capsys.readouterr().err


def test_no_input_is_replaced(
    experiments: dict[str, Path], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copy(volume, tmp_path / "scan.h5"))
    (tmp_path / "link").symlink_to(tmp_path)
    for output in (tmp_path, tmp_path / "scan", path, tmp_path / "link" / "scan"):
        error = run_fails(capsys, experiments[OURS], path, output)
        assert f"would replace the input {path}; choose another output" in error
    np.save(tmp_path / "images.h5", line_mask())  # NumPy's suffix is added
    mask = (tmp_path / "images.h5.npy").rename(tmp_path / "images.h5")
    run = tmp_path / ".images.partial" / "run.json"  # as of an interrupted run, whose outputs are replaced
    run.parent.mkdir()
    run.touch()
    os.utime(run, (0, 0))
    error = run_fails(capsys, experiments[OURS], path, tmp_path / "images", "--mask", mask)
    assert f"would replace the input {mask}; choose another output" in error
    mask.unlink()
    assert path.read_bytes() == volume.read_bytes() and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["scan.nii.gz"], {"scan.nii.gz"}),
        (["scan.cfl", "--complex"], {"scan.cfl", "scan.hdr"}),
        (["scan", "--format", "cfl", "dicom", "--voxel-size", 5, 1.5, 2], {"scan.cfl", "scan.hdr", "scan_dicom"}),
        (["scan", "--format", "cfl", "--format", "png"], {"scan.cfl", "scan.hdr", "scan.png"}),
        (["scan.h5", "--phase"], {"scan.h5", "scan_phase.nii.gz"}),
    ],
)
def test_the_suffix_or_an_option_chooses_the_formats(
    experiments: dict[str, Path], volume: Path, tmp_path: Path, capsys, options: list[Any], names: set[str]
) -> None:
    reconstruct(experiments[OURS], volume, tmp_path / options[0], *options[1:])
    assert {path.name for path in tmp_path.iterdir()} == names
    assert ("rounded to 1/131070" in capsys.readouterr().out) == ("scan_dicom" in names)


def test_positions_of_a_scan_reach_the_images(experiments: dict[str, Path], tmp_path: Path, capsys) -> None:
    pytest.importorskip("twixtools")
    source = tmp_path / "scan.dat"
    write_twix(source, list(lines_of(KSPACE)))
    reconstruct(experiments[UNET], source, tmp_path, "--no-check")
    np.testing.assert_allclose(
        nibabel.load(tmp_path / "scan.nii.gz").affine, read(source).affine[:, [2, 1, 0, 3]], atol=1e-4
    )
    with h5py.File(tmp_path / "scan.h5") as file:
        provenance = json.loads(file.attrs["provenance"])
    assert provenance["source"] == dict(read(source).source) and "input" not in provenance
    assert "unknown" not in capsys.readouterr().out
    message = run_fails(capsys, experiments[OURS], source, tmp_path / "out", "--voxel-size", 1, 1, 1)
    assert "leave out --voxel-size" in message


def test_sensitivities_come_from_calibration_lines_measured_apart(ours: Reconstructor) -> None:
    kspace, mask = simulate()[1], np.tile(line_mask(), (HEIGHT, 1))
    lines = kspace * center_block(mask)
    embedded = ours.reconstruct_slice(kspace, mask)
    apart = ours.reconstruct_slice(kspace, mask, calibration=lines)
    np.testing.assert_allclose(apart, embedded, rtol=0, atol=1e-6 * embedded.max())
    other = ours.reconstruct_slice(kspace, mask, calibration=lines[::-1])
    assert np.abs(other - embedded).max() > 0.1 * embedded.max()

    gaps = mask & ~center_block(mask)
    with pytest.raises(ValueError, match="samples no centre"):
        ours.reconstruct_slice(kspace, gaps)
    assert ours.reconstruct_slice(kspace, gaps, calibration=lines).max() > 0
    with pytest.raises(ValueError, match="samples no centre"):
        ours.reconstruct_slice(kspace, gaps, calibration=kspace * gaps)


def test_scans_with_calibration_apart_and_interleaved_volumes(experiments: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("ismrmrd")

    def separate(header: Any) -> None:
        parallel = header.encoding[0].parallelImaging
        parallel.calibrationMode = type(parallel.calibrationMode)("separate")

    source = tmp_path / "scan.mrd"
    calibration = lines_of(KSPACE, range(-3, 3), kind="calibration")
    volumes = [lines_of(KSPACE, range(first - 8, 8, 2), repetition=first) for first in (0, 1)]
    write_ismrmrd(source, [*calibration, *volumes[0], *volumes[1]], separate)
    reconstruct(experiments[UNET], source, tmp_path / "out", "--no-check")
    with h5py.File(tmp_path / "out.h5") as file:
        images = file["reconstruction"][()]
    raw, reconstructor = read(source), Reconstructor.from_checkpoint(experiments[UNET])
    for index, image in enumerate(images):
        kspace, lines = raw.read_slice(index), raw.read_calibration(index)
        expected = reconstructor.reconstruct_slice(kspace, raw.mask[index], calibration=lines)
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5 * expected.max())


def test_slices_may_be_sampled_differently(ours: Reconstructor) -> None:
    masks = np.stack([np.tile(np.roll(line_mask(), shift) | line_mask(), (HEIGHT, 1)) for shift in range(SLICES)])
    images = ours(simulate(), masks)
    for index, mask in enumerate(masks):
        np.testing.assert_allclose(images[index], ours(simulate(), mask)[index], rtol=1e-5, atol=1e-5 * images.max())


def test_numpy_files_are_read_as_well(experiments: dict[str, Path], volume: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "kspace.npy", simulate())
    np.save(tmp_path / "mask.npy", line_mask().astype(int))
    np.savez(tmp_path / "both.npz", kspace=simulate(), mask=line_mask())
    with h5py.File(tmp_path / "pairs.h5", "w") as file:
        file["kspace"] = simulate().view(np.float32).reshape(SLICES, COILS, HEIGHT, WIDTH, 2)
        file["mask"] = line_mask()
    reconstruct(experiments[OURS], volume, tmp_path / "reference")
    for name, options in (("kspace.npy", ["--mask", tmp_path / "mask.npy"]), ("both.npz", []), ("pairs.h5", [])):
        reconstruct(experiments[OURS], tmp_path / name, tmp_path / f"{name}_out", *options)
        with h5py.File(tmp_path / f"{name}_out.h5") as file, h5py.File(tmp_path / "reference.h5") as reference:
            np.testing.assert_array_equal(file["reconstruction"], reference["reconstruction"])


def test_only_samples_of_the_mask_count(ours: Reconstructor) -> None:
    kspace, mask = simulate(), line_mask()
    images = ours(kspace, mask)
    np.testing.assert_array_equal(ours(kspace * mask, mask), images)
    np.testing.assert_array_equal(ours(kspace, np.tile(mask, (HEIGHT, 1))), images)
    np.testing.assert_array_equal(ours(kspace[1:2], mask)[0], images[1])


def test_tensors_and_lists_are_arrays(ours: Reconstructor) -> None:
    kspace, mask = contradictory(), line_mask()
    np.testing.assert_array_equal(ours(torch.from_numpy(kspace), mask.tolist()), ours(kspace, mask))


def test_images_scale_with_kspace(ours: Reconstructor) -> None:
    images = ours(simulate(), line_mask())
    np.testing.assert_allclose(ours(100 * simulate(), line_mask()), 100 * images, rtol=0, atol=0.01 * images.max())


@pytest.mark.parametrize("model_name", [OURS, RIM])
def test_complex_images_have_the_same_magnitude(experiments: dict[str, Path], model_name: str) -> None:
    reconstructor = Reconstructor.from_checkpoint(experiments[model_name])
    images = reconstructor(simulate(), line_mask(), complex_images=True)
    magnitude = reconstructor(simulate(), line_mask())
    assert images.dtype == np.complex64 and np.abs(images.imag).max() > 0.01 * magnitude.max()
    np.testing.assert_allclose(np.abs(images), magnitude, rtol=0, atol=1e-5 * magnitude.max())


@pytest.mark.parametrize("model_name", [UNET, VARNET])
def test_models_of_magnitudes_make_no_complex_images(experiments: dict[str, Path], model_name: str) -> None:
    reconstructor = Reconstructor.from_checkpoint(experiments[model_name])
    with pytest.raises(ValueError, match="Engine gives no complex images"):
        reconstructor(simulate(), line_mask(), complex_images=True)


def test_control_c_is_left_alone(experiments: dict[str, Path]) -> None:
    before = signal.getsignal(signal.SIGINT)
    Reconstructor.from_checkpoint(experiments[OURS])
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("model_name", [OURS, RIM])
def test_threads_load_and_share_models(experiments: dict[str, Path], model_name: str) -> None:
    arguments = (simulate(), line_mask(), True)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(Reconstructor.from_checkpoint, [experiments[model_name]] * 3))
        results = list(pool.map(lambda reconstructor: reconstructor(*arguments), loaded[:1] * 4 + loaded[1:]))
    for images in results[1:]:
        np.testing.assert_array_equal(images, results[0])


def test_weights_and_images_that_are_not_finite_are_refused(
    experiments: dict[str, Path], volume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(experiments[OURS])
    name, weights = next(item for item in content["model"].items() if item[1].is_floating_point())
    for value, message in (
        (torch.nan, f"infinite, in model.{name}"),
        (torch.finfo().max, "image of slice 0 has values"),
    ):
        weights.fill_(value)
        torch.save(content, tmp_path / "model_9.pt")
        cfg = experiments[OURS].parent / CONFIG_NAME
        assert message in run_fails(capsys, tmp_path / "model_9.pt", volume, tmp_path / "out", "--cfg", cfg)
    assert not list(tmp_path.glob("out*"))


def test_a_default_dtype_of_float64_changes_nothing(experiments: dict[str, Path], ours: Reconstructor) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        images = Reconstructor.from_checkpoint(experiments[OURS])(simulate(), line_mask())
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(images, ours(simulate(), line_mask()), rtol=0, atol=1e-5 * images.max())


def test_nibabel_is_asked_for_before_any_work(
    experiments: dict[str, Path],
    volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    for name in ("data.formats.nifti", "commands.reconstruct"):
        monkeypatch.delitem(sys.modules, f"direct_hifimamba.{name}", raising=False)
    assert "direct-hifimamba[data]" in run_fails(capsys, experiments[OURS], volume, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Estimation of sensitivity map of Single-coil data")
def test_single_coil_and_blank_slices(ours: Reconstructor) -> None:
    kspace = simulate()[:, 0]
    kspace[1] = 0
    images = ours(kspace, line_mask())
    assert not images[1].any()
    np.testing.assert_array_equal(images, ours(kspace[:, None], line_mask()))
    np.testing.assert_array_equal(images[[0, 2]], ours(kspace[[0, 2]], line_mask()))
    np.testing.assert_array_equal(images, ours(kspace * line_mask(), kspace * line_mask() != 0))


def test_too_few_samples_for_the_scale_are_refused(ours: Reconstructor) -> None:
    kspace, mask = np.zeros((1, 4, 80, 80), np.complex64), np.zeros((80, 80), bool)
    mask[37:44, 37:44] = True
    kspace[..., mask] = 1 + simulate()[:1, :, :7, :7].reshape(1, 4, -1)
    with pytest.raises(ValueError, match=r"Only 0\.77% of slice 0 is sampled.*scale_percentile"):
        ours(kspace, mask, check=False)
    with pytest.raises(ValueError, match=r"Only 0\.77% of slice 0 is sampled and not 0.*crop it"):
        ours(kspace, np.ones((80, 80), bool), check=False)


def test_no_center_is_needed_where_no_sensitivities_are_estimated(experiments: dict[str, Path], tmp_path: Path) -> None:
    kspace, mask = simulate()[:, 0], np.arange(WIDTH) % 4 == 1
    config = OmegaConf.load(experiments[OURS].parent / CONFIG_NAME)
    config.inference.dataset.transforms.sensitivity_map_estimation.sensitivity_maps_type = "unit"
    OmegaConf.save(config, tmp_path / "unit.yaml")
    with pytest.raises(ValueError, match="samples no centre"):
        Reconstructor.from_checkpoint(experiments[OURS])(kspace, mask)
    with pytest.warns(UserWarning, match="Single-coil"):
        assert Reconstructor.from_checkpoint(experiments[OURS], tmp_path / "unit.yaml")(kspace, mask).all()


def test_center_of_line_masks_is_that_of_direct() -> None:
    rng = np.random.default_rng(0)
    for width in (16, 17):
        for _ in range(20):
            mask = rng.random(width) < 0.6
            mask[width // 2 - 1 : width // 2 + 1] = True
            mask[[0, -1]] = False
            left = width // 2 - np.argmin(mask[width // 2 :: -1])
            right = width // 2 + np.argmin(mask[width // 2 :])
            expected = np.zeros((6, width), bool)
            expected[:, left + 1 : right] = True
            np.testing.assert_array_equal(center_block(np.tile(mask, (6, 1))), expected)
            np.testing.assert_array_equal(center_block(np.tile(mask, (6, 1)).T), expected.T)


def test_center_of_other_masks_is_sampled_throughout() -> None:
    rows, columns = np.ogrid[-12:12, -16:16]
    disc = rows**2 + columns**2 < 36
    block = center_block(disc)
    assert not (block & ~disc).any()
    assert block.sum() > 0.5 * disc.sum()


def contradictory() -> NDArray[np.complex64]:
    return simulate() * line_mask()


@pytest.mark.parametrize(
    ("kspace", "mask", "message"),
    [
        (lambda: simulate().real, line_mask, "expected complex numbers"),
        (lambda: simulate()[0, 0], line_mask, r"shape (24, 32); expected (slices[, coils]"),
        (simulate, lambda: line_mask(31), "The mask has the shape (31,)"),
        (simulate, lambda: line_mask(HEIGHT), "np.repeat(mask[:, None], 32, axis=1)"),
        (lambda: np.moveaxis(simulate(), 1, -1), line_mask, "Are coils the last axis?"),
        (simulate, lambda: line_mask() * 0.5, "values such as 0.5"),
        (lambda: 1e16 * simulate(), line_mask, "expected 1e-12 to 1e+15"),
        (lambda: 1e-20 * simulate(), line_mask, "expected 1e-12 to 1e+15"),
        (lambda: 1e200 * simulate().astype(complex), line_mask, "expected 1e-12 to 1e+15"),
        (simulate, lambda: line_mask().astype([("real", "f4")]), "The mask has values of type"),
        (simulate, lambda: np.zeros(WIDTH), "samples nothing"),
        (contradictory, lambda: ~line_mask(), "zero wherever the mask samples"),
        (contradictory, lambda: np.ones(WIDTH), "17 columns as sampled that are zero"),
        (contradictory, lambda: line_mask(center=3), "2 of the columns that it has are not in the mask"),
        (lambda: np.where(simulate().real > 1000, np.nan, simulate()), line_mask, "NaN or infinite"),
        (simulate, lambda: np.arange(WIDTH) % 4 == 0, "samples no centre"),
        (simulate, lambda: np.arange(WIDTH) % 4 == 1, "samples no centre"),
    ],
)
def test_wrong_input_is_refused(
    ours: Reconstructor, kspace: Callable[[], NDArray[Any]], mask: Callable[[], NDArray[Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ours(kspace(), mask())


def test_zero_padding_is_no_contradiction() -> None:
    kspace, mask = contradictory(), line_mask()
    kspace[..., :5] = kspace[..., -7:] = 0
    kspace[:, :, :6] = 0
    check_acquisition(kspace, mask)
    check_acquisition(kspace, np.tile(mask, (HEIGHT, 1)))


def run_fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    with pytest.raises(SystemExit, match="2"):
        reconstruct(*arguments)
    return capsys.readouterr().err.splitlines()[-1]


def test_wrong_files_are_refused(
    experiments: dict[str, Path],
    volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "out"
    checkpoint, other = experiments[OURS], experiments[VARNET]
    np.savez(tmp_path / "kspace.npz", kspace=simulate())
    (tmp_path / "text.h5").write_text("no HDF5")
    (tmp_path / "text.pt").write_text("no checkpoint")
    alone = shutil.copy(checkpoint, tmp_path / "model_7.pt")
    config = OmegaConf.load(checkpoint.parent / CONFIG_NAME)
    del config["inference"]
    OmegaConf.save(config, tmp_path / "no_inference.yaml")
    for arguments, message in (
        ((checkpoint, volume, output, "--mask", tmp_path / "kspace.npz"), "has no mask"),
        ((checkpoint, tmp_path / "missing.h5", output), "No such file"),
        ((checkpoint, tmp_path / "text.h5", output), "is of none of the formats"),
        ((checkpoint, volume, tmp_path / "missing" / "out"), "is missing"),
        ((checkpoint, volume, output, "--voxel-size", 1, 1, 0), "above 0"),
        ((checkpoint, volume, output, "--format", "dicom"), "give the distances in mm (--voxel-size)"),
        ((checkpoint, volume, output, "--format", "png", "--complex"), "leave out --complex"),
        ((checkpoint.parent, volume, output), "expected a checkpoint"),
        ((checkpoint, volume, output, "--device", "cuda"), "expected auto or cpu"),
        ((alone, volume, output), "config.yaml is missing"),
        ((alone, volume, output, "--cfg", tmp_path / "no_inference.yaml"), "no section 'inference'"),
        ((alone, volume, output, "--cfg", other.parent / CONFIG_NAME), "does not fit"),
        ((tmp_path / "text.pt", volume, output, "--cfg", checkpoint.parent / CONFIG_NAME), "no checkpoint of DIRECT"),
    ):
        assert message in run_fails(capsys, *arguments)
    assert not list(tmp_path.glob("*out*"))


def test_checkpoints_that_were_cut_short_are_refused(experiments: dict[str, Path], tmp_path: Path) -> None:
    content = experiments[OURS].read_bytes()
    for length in (0, 1, 5000, len(content) // 2, len(content) - 1000, len(content) - 1):
        (tmp_path / "model_7.pt").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model_7.pt is no checkpoint of DIRECT.* Was it cut short\?"):
            Reconstructor.from_checkpoint(tmp_path / "model_7.pt", experiments[OURS].parent / CONFIG_NAME)
    torch.save({"model": "unet"}, tmp_path / "model_7.pt")
    with pytest.raises(ValueError, match=r"model_7.pt is no checkpoint of DIRECT"):
        Reconstructor.from_checkpoint(tmp_path / "model_7.pt", experiments[OURS].parent / CONFIG_NAME)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("extra weights", r"it has model\.layers\.7\.weight, which the network does not have\. Both"),
        ("extra model", r"it has registration_model\.weight, which"),
        ("no sensitivity model", r"it lacks sensitivity_model\.\S+ and \d+ more\."),
        ("other size", r"has the shape \(1, 1\), not \(.*\)\. Both"),
    ],
)
def test_what_direct_only_warns_of_is_an_error(
    experiments: dict[str, Path], tmp_path: Path, change: str, message: str
) -> None:
    checkpoint = torch.load(experiments[VARNET])
    if change == "extra weights":
        checkpoint["model"]["layers.7.weight"] = torch.zeros(1)
    elif change == "extra model":
        checkpoint["registration_model"] = {"weight": torch.zeros(1)}
    elif change == "other size":
        checkpoint["model"][next(iter(checkpoint["model"]))] = torch.zeros(1, 1)
    else:
        del checkpoint["sensitivity_model"]
    torch.save(checkpoint, tmp_path / "model_8.pt")
    with pytest.raises(ValueError, match=r"model_8\.pt does not fit .*" + message):
        Reconstructor.from_checkpoint(tmp_path / "model_8.pt", experiments[VARNET].parent / CONFIG_NAME)
