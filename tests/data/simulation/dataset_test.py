from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from direct.common.subsample import FastMRIEquispacedMaskFunc
from direct.data import transforms
from direct.data.datasets import build_dataset_from_input
from direct.data.mri_transforms import build_mri_transforms
from direct.environment import load_dataset_config
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from direct_hifimamba.data.registration import register_data_sets
from direct_hifimamba.data.simulation.dataset import SimulatedMultiCoilDataset
from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample

SMALL: dict[str, Any] = {"size": (96, 100), "num_coils": (4, 5)}
TRANSFORMS = partial(
    build_mri_transforms,
    forward_operator=transforms.fft2,
    backward_operator=transforms.ifft2,
    mask_func=None,
    estimate_sensitivity_maps=True,
    padding_eps=0.0,
)


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A folder with a head: an ellipsoid of two tissues in air."""
    distance = sum(np.square(np.linspace(-1.3, 1.3, 24 + 2 * i)).reshape(np.roll((-1, 1, 1), i)) for i in range(3))
    voxels = np.where(distance < 1, 900, 20).astype(np.int16) - np.where(distance < 0.3, 400, 0).astype(np.int16)
    nibabel.Nifti1Image(voxels, np.diag([-8.0, 8, 8, 1])).to_filename(tmp_path / "head.nii.gz")
    return tmp_path


def build(config: dict[str, Any], root: dict[str, Any] | None = None, **options: Any) -> SimulatedMultiCoilDataset:
    """The data set as DIRECT builds it from a configuration, and from what it makes of `--training-root`."""
    register_data_sets()
    schema = OmegaConf.structured(load_dataset_config("SimulatedMultiCoil"))
    merged = OmegaConf.merge(schema, {"name": "SimulatedMultiCoil", **SMALL, **config})
    return build_dataset_from_input(transforms=TRANSFORMS(**options), dataset_config=merged, **(root or {}))


def test_a_root_for_other_data_sets_is_ignored(tmp_path: Path) -> None:
    root = {"data_root": tmp_path, "filenames_filter": None}
    actual, expected = (build({"length": 1}, given)[0]["masked_kspace"] for given in (root, None))
    torch.testing.assert_close(actual, expected)


def test_direct_builds_it_and_its_samples_are_those_of_a_measured_data_set(head: Path) -> None:
    data_set = build({"heads": str(head), "head_fraction": 1.0, "seed": 5, "length": 3, "sensitivities": ["exact"]})
    sample = data_set[torch.tensor(2)]
    drawn = draw_sample((5, 0, 2), data_set.options)
    assert drawn.record["anatomy"] == "head"
    coil, height, width = drawn.kspace.shape
    scaling = sample["scaling_factor"]
    mask = drawn.mask[None, :, :, None]
    assert sample["sampling_mask"].dtype == torch.bool and (sample["sampling_mask"].numpy() == mask).all()
    kspace = torch.view_as_complex(sample["masked_kspace"] * scaling).numpy()
    np.testing.assert_allclose(kspace, drawn.kspace * drawn.mask, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sample["target"] * scaling, drawn.target, rtol=1e-5)
    np.testing.assert_array_equal(torch.view_as_complex(sample["sensitivity_map"]), drawn.sensitivity_map)
    assert "kspace" not in sample and "acs_mask" not in sample

    noisy = build({"heads": str(head), "head_fraction": 1.0, "seed": 5, "clean_target": False})[2]
    np.testing.assert_allclose(noisy["target"] * noisy["scaling_factor"], drawn.noisy_target, rtol=1e-3, atol=1e-4)
    assert noisy["sensitivity_map"].shape == (coil, height, width, 2)
    assert not np.allclose(noisy["sensitivity_map"], sample["sensitivity_map"], atol=1e-3)


def test_validation_takes_every_slice_as_a_volume() -> None:
    data_set = build({"length": 3})
    assert [list(volume) for volume in data_set.volume_indices.values()] == [[0], [1], [2]]
    assert [path.name for path in data_set.volume_indices] == [data_set[index]["filename"] for index in range(3)]
    with pytest.raises(IndexError, match="no slice 3"):
        data_set[3]


def test_kinds_of_sensitivities_are_mixed() -> None:
    data_set = build({"sensitivities": ["exact", "estimated"]})
    options = data_set.options
    exact = [
        np.array_equal(
            torch.view_as_complex(data_set[index]["sensitivity_map"]),
            draw_sample((0, 0, index), options).sensitivity_map,
        )
        for index in range(8)
    ]
    assert 1 <= sum(exact) <= 7


def test_espirit_takes_the_calibration_region() -> None:
    data_set = build({"sensitivities": ["espirit"], "masks": ["equispaced"], "accelerations": [2], "snr": [100, 100]})
    drawn = draw_sample((0, 0, 1), data_set.options)
    maps = torch.view_as_complex(data_set[1]["sensitivity_map"]).numpy()
    object_ = drawn.target > 0.3 * drawn.target.max()
    cosine = np.abs((maps.conj() * drawn.sensitivity_map).sum(0))[object_]
    assert np.quantile(cosine, 0.1) > 0.99
    assert not np.array_equal(maps, drawn.sensitivity_map)


def test_batches_of_one_shape_and_number_of_coils() -> None:
    data_set = build({"shape": [96, 104], "num_coils": [4, 4]})
    batch = next(iter(DataLoader(data_set, batch_size=3)))
    assert batch["masked_kspace"].shape == (3, 4, 96, 104, 2)
    assert batch["target"].shape == (3, 96, 104)


@pytest.mark.slow
def test_deterministic_in_spawned_workers_for_seed_epoch_and_number() -> None:
    data_set = SimulatedMultiCoilDataset(seed=7, length=3, **SMALL)
    data_set.epoch = 2
    loader = DataLoader(data_set, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for index, sample in enumerate(loader):
        drawn = draw_sample((7, 2, index), SampleOptions(**SMALL))
        assert np.array_equal(sample["kspace"], drawn.kspace)
        assert np.array_equal(sample["target"], drawn.target)
        assert np.array_equal(sample["sampling_mask"][0, :, :, 0], drawn.mask)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, {"random_flip_probability": 0.5}, "have RandomFlip"),
        ({}, {"crop": (64, 64)}, "have CropKspace"),
        ({"clean_target": False, "sensitivities": ["exact"]}, {"random_rotation_probability": 1.0}, "RandomRotation"),
        ({"sensitivities": ["espirit", "estimated"]}, {"compress_coils": 3}, "have CompressCoilModule"),
        ({}, {"mask_func": FastMRIEquispacedMaskFunc([4], [0.08])}, "masking: null"),
        ({}, {"backward_operator": partial(transforms.ifft2, centered=False)}, "centered=False"),
    ],
)
def test_transforms_that_contradict_what_is_drawn_are_refused(
    config: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(config, **options)


def test_the_estimated_target_and_maps_allow_every_transform() -> None:
    data_set = build({"clean_target": False}, random_flip_probability=1.0, crop=(64, 64), compress_coils=3)
    assert data_set[0]["masked_kspace"].shape == (3, 64, 64, 2)
    assert data_set[0]["target"].shape == (64, 64)


def test_invalid_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="length is 0"):
        SimulatedMultiCoilDataset(length=0)
    with pytest.raises(ValueError, match="sensitivities are"):
        SimulatedMultiCoilDataset(sensitivities=["unknown"])
    with pytest.raises(FileNotFoundError, match="heads"):
        SimulatedMultiCoilDataset(heads=str(tmp_path / "heads"))
