"""Sensitivities of our data set, built by DIRECT from configurations as its own commands build them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from direct.data.datasets import build_dataset_from_input
from direct.data.mri_transforms import build_mri_transforms
from direct.data.transforms import fft2, ifft2
from direct.environment import load_dataset_config
from direct.types import TransformKey
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

from direct_hifimamba.data import sensitivity
from direct_hifimamba.data.espirit import espirit
from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.data.fourier import image_to_kspace
from direct_hifimamba.data.nlinv import nlinv
from direct_hifimamba.data.registration import register_data_sets
from direct_hifimamba.data.simulate import simulate_sensitivity_map

Estimate = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.complex64]]

SLICES, COILS, HEIGHT, WIDTH = 2, 4, 32, 40
MASK = np.isin(np.arange(WIDTH), (1, 5, 9, 13, 17, 18, 19, 20, 21, 22, 25, 29, 33, 37))


def true_maps() -> NDArray[np.complex64]:
    seed = np.random.SeedSequence(0)
    return np.stack([simulate_sensitivity_map(height, (HEIGHT, WIDTH), COILS, seed) for height in (-0.2, 0.2)])


def simulate() -> NDArray[np.complex64]:
    rows, columns = np.meshgrid(np.linspace(-1, 1, HEIGHT), np.linspace(-1, 1, WIDTH), indexing="ij")
    image = 100 * (rows**2 + columns**2 < 0.6) * (1 + 0.5 * np.cos(9 * rows) * np.sin(7 * columns))
    noise = np.random.default_rng(0).standard_normal((SLICES, COILS, HEIGHT, WIDTH, 2), np.float32)
    return image_to_kspace((image * true_maps()).astype(np.complex64)) + noise.view(np.complex64)[..., 0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    write_volume(tmp_path / "data" / "volume.h5", simulate(), {}, MASK)
    with h5py.File(tmp_path / "data" / "volume.h5", "r+") as file:
        file["sensitivity_map"] = 3 * true_maps()
    return tmp_path / "data"


def build(
    folder: Path,
    options: dict[str, Any] | None = None,
    estimate: bool = False,
    operators: tuple[Any, Any] = (fft2, ifft2),
    **transforms: Any,
) -> Dataset[dict[str, Any]]:
    """The data set `FastMRIWithMaps` with the masks of the files."""
    register_data_sets()
    config = {"name": "FastMRIWithMaps", "data_root": str(folder), "pass_mask": True, **(options or {})}
    merged = OmegaConf.merge(OmegaConf.structured(load_dataset_config("FastMRIWithMaps")), config)
    transform = build_mri_transforms(*operators, None, estimate_sensitivity_maps=estimate, padding_eps=0, **transforms)
    return build_dataset_from_input(transform, merged)


def complex_map(sample: dict[str, Any]) -> NDArray[np.complex64]:
    return torch.view_as_complex(sample["sensitivity_map"]).numpy()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # DIRECT's
@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize(("name", "method"), [("espirit", espirit), ("nlinv", nlinv)])
def test_estimates_from_the_masked_kspace(folder: Path, estimate: bool, name: str, method: Estimate) -> None:
    data_set = build(folder, {"sensitivity_maps": name}, estimate=estimate)
    for index, sample in enumerate(DataLoader(data_set, batch_size=None)):
        kspace = simulate()[index]
        difference = np.abs(complex_map(sample) - method(kspace * MASK, MASK))
        # NLINV stops at a residual, and the data set has another scale.
        assert difference.mean() < (1e-4 if name == "espirit" else 0.01)
        # As DIRECT's own estimate would be.
        assert sample["sensitivity_map"].shape == sample["masked_kspace"].shape
        assert sample["sensitivity_map"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_espirit_sees_what_the_transforms_leave(folder: Path) -> None:
    for transforms, shape in (
        ({"crop": (24, 32), "image_center_crop": True}, (4, 24, 32)),
        ({"compress_coils": 3}, (3, 32, 40)),
        ({"pad_coils": 6}, (6, 32, 40)),
    ):
        sample = build(folder, **transforms)[0]
        kspace = torch.view_as_complex(sample["masked_kspace"]).numpy()
        assert kspace.shape == shape
        np.testing.assert_array_equal(complex_map(sample), espirit(kspace, sample["sampling_mask"][0, ..., 0].numpy()))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("elsewhere", [False, True])
def test_stored_maps_are_normalised(folder: Path, elsewhere: bool) -> None:
    options = {"sensitivity_maps": "stored"}
    if elsewhere:
        folder.joinpath("maps").mkdir()
        with h5py.File(folder / "volume.h5", "r+") as file, h5py.File(folder / "maps" / "volume.h5", "w") as other:
            file.move("sensitivity_map", "unused")
            other["sensitivity_map"] = 2j * true_maps()
        options["map_root"] = str(folder / "maps")
    for index, sample in enumerate(DataLoader(build(folder, options), batch_size=None)):
        np.testing.assert_allclose(complex_map(sample), (1j if elsewhere else 1) * true_maps()[index], atol=1e-5)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_stored_maps_turn_with_the_image(folder: Path) -> None:
    data_set = build(folder, {"sensitivity_maps": "stored"}, random_flip_probability=1.0, delete_kspace=False)
    sample = data_set[0]
    image = torch.view_as_complex(ifft2(sample["kspace"], dim=(1, 2))).numpy()
    combined = np.abs((complex_map(sample).conj() * image).sum(0))
    assert np.abs(complex_map(sample) - true_maps()[0]).max() > 0.1
    np.testing.assert_allclose(combined, sample[TransformKey.TARGET], atol=0.05 * combined.max())


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_single_coil_has_the_sensitivity_one(tmp_path: Path) -> None:
    write_volume(tmp_path / "volume.h5", simulate()[:, 0], {}, MASK)
    with h5py.File(tmp_path / "volume.h5", "r+") as file:
        file["sensitivity_map"] = 2 * np.exp(1j * np.angle(true_maps()[:, 0]))
    assert (complex_map(build(tmp_path)[1]) == 1).all()
    stored = complex_map(build(tmp_path, {"sensitivity_maps": "stored"})[1])
    np.testing.assert_allclose(stored, np.exp(1j * np.angle(true_maps()[1, :1])), atol=1e-5)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_cached_maps_are_those_of_the_same_calibration_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(*arguments: Any, **options: Any) -> NDArray[np.complex64]:
        calls.append(arguments)
        return espirit(*arguments, **options)

    monkeypatch.setattr(sensitivity, "espirit", count)
    options = {"map_cache": str(folder / "cache")}
    expected = [complex_map(sample) for sample in (build(folder)[0], build(folder)[1])]
    calls.clear()
    for _ in range(2):
        for index in range(SLICES):
            np.testing.assert_array_equal(complex_map(build(folder, options)[index]), expected[index])
    assert len(calls) == SLICES == len(list((folder / "cache").iterdir()))
    # Another scale of the same data makes no difference ...
    np.testing.assert_array_equal(complex_map(build(folder, options, scale_percentile=0.9)[0]), expected[0])
    assert len(calls) == SLICES
    # ... and other options or other data in a file of the same name do.
    build(folder, {**options, "espirit_crop": 0.5})[0]
    assert len(calls) == SLICES + 1
    with h5py.File(folder / "volume.h5", "r+") as file:
        file["kspace"][0] = simulate()[0][::-1]
    changed = complex_map(build(folder, options)[0])
    assert len(calls) == SLICES + 2 and np.abs(changed - expected[0]).max() > 0.1


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_contradictions_are_refused(folder: Path) -> None:
    stored = {"sensitivity_maps": "stored"}
    with pytest.raises(ValueError, match="sensitivity_maps is 'rss'; expected espirit, nlinv or stored"):
        build(folder, {"sensitivity_maps": "rss"})
    with pytest.raises(ValueError, match="estimate_sensitivity_maps: false"):
        build(folder, stored, estimate=True)
    with pytest.raises(ValueError, match=r"shape \(4, 32, 40\) and k-space, after the transforms, \(4, 24, 32\)"):
        build(folder, stored, crop=(24, 32), image_center_crop=True)[0]
    with pytest.raises(ValueError, match="centered=False"):
        build(folder, operators=(partial(fft2, centered=False), partial(ifft2, centered=False)))
    with h5py.File(folder / "volume.h5", "r+") as file:
        del file["sensitivity_map"]
    with pytest.raises(ValueError, match=r"lacks a data set.*sensitivity_map"):
        build(folder, stored)
