"""Tests of the order of training data and of their masks."""

import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from direct.common.subsample import build_masking_function
from direct.data.datasets import ConcatDataset, FastMRIDataset
from direct.data.mri_transforms import CreateSamplingMask
from direct.data.samplers import ConcatDatasetBatchSampler
from torch.utils.data import DataLoader

from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.data.simulation.dataset import SimulatedMultiCoilDataset
from direct_hifimamba.training.seeded_data import SeededBatchSampler, SeededDataset

SLICES = 3


def to_tensor(sample: dict[str, Any]) -> dict[str, Any]:
    return sample | {"kspace": torch.view_as_real(torch.from_numpy(sample["kspace"]))}


class MaskTransform:
    """Those of DIRECT's transforms that draw, as `use_seed: true` makes them."""

    def __init__(self, name: str = "FastMRIRandom") -> None:
        mask_function = build_masking_function(name, accelerations=[4, 8], center_fractions=[0.08, 0.04])
        self.create = CreateSamplingMask(mask_function, use_seed=True, return_acs=True)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return self.create(to_tensor(sample))


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., SeededDataset]:
    """A function that builds a data set of two volumes."""

    def build(seed: int | None = 3, folder: str = "data", name: str = "FastMRIRandom") -> SeededDataset:
        for volume in ("a", "b"):
            path = tmp_path / folder / f"{volume}.h5"
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                write_volume(path, [np.ones((2, 16, 128), np.complex64)] * SLICES, {})
        files = [tmp_path / folder / "a.h5", tmp_path / folder / "b.h5"]
        return SeededDataset(FastMRIDataset(tmp_path / folder, MaskTransform(name), filenames_filter=files), seed)

    return build


def mask_of(dataset: SeededDataset, number: int) -> torch.Tensor:
    return dataset[number]["sampling_mask"]


@pytest.mark.parametrize("name", ["FastMRIRandom", "FastMRIEquispaced", "Gaussian2D", "VariableDensityPoisson"])
def test_masks_follow_seed_epoch_and_sample(build: Callable[..., SeededDataset], name: str) -> None:
    dataset = build(name=name)
    assert dataset.size == 2 * SLICES
    numbers = range(2 * dataset.size)
    masks = [mask_of(dataset, number) for number in numbers]
    copy = pickle.loads(pickle.dumps(build(folder="elsewhere", name=name)))  # as a spawned worker gets it
    for number in reversed(numbers):
        assert torch.equal(masks[number], mask_of(copy, number))
    others = build(seed=4, name=name)
    assert sum(torch.equal(masks[number], mask_of(others, number)) for number in numbers) < 4
    different = {mask.numpy().tobytes() for mask in masks}
    assert len(different) > 5  # of 12; equispaced ones have few offsets


def test_calibration_lies_within_the_mask(build: Callable[..., SeededDataset]) -> None:
    """DIRECT draws the two with different accelerations if `use_seed` is false."""
    dataset = build()
    for number in range(12):
        sample = dataset[number]
        assert not (sample["acs_mask"] & ~sample["sampling_mask"]).any()
        assert Path(sample["filename"]).exists()


def test_without_a_seed_masks_are_direct_s(build: Callable[..., SeededDataset]) -> None:
    dataset = build(seed=None)
    assert torch.equal(mask_of(dataset, 0), mask_of(dataset, dataset.size + 1))
    mask_function = MaskTransform().create.mask_func
    seed = tuple(map(ord, dataset[0]["filename"]))
    assert torch.equal(mask_of(dataset, 0), mask_function((16, 128, 2), seed=seed))


def test_a_data_set_is_told_the_epoch() -> None:
    dataset = SeededDataset(SimulatedMultiCoilDataset(length=2, shape=(32, 32), num_coils=(2, 2)), None)
    samples = [dataset[number] for number in range(4)]
    assert len({sample["kspace"].tobytes() for sample in samples}) == 4


def numbers_of(sampler: SeededBatchSampler, batches: int) -> list[list[int]]:
    return list(islice(sampler, batches))


@pytest.fixture
def datasets(build: Callable[..., SeededDataset]) -> list[SeededDataset]:
    datasets = [build(), build()]
    datasets[1].size = 2 * SLICES - 2  # the last two samples are left out
    return datasets


def test_every_epoch_takes_every_sample_once(datasets: list[SeededDataset]) -> None:
    size = datasets[0].size
    numbers = np.concatenate(numbers_of(SeededBatchSampler(datasets[:1], 4, seed=0), 9)).reshape(6, size)
    for epoch, row in enumerate(numbers):
        assert sorted(row) == list(range(epoch * size, (epoch + 1) * size))
    assert len({tuple(row % size) for row in numbers}) > 3


def test_batches_are_of_one_data_set_each_and_have_samples_of_it(datasets: list[SeededDataset]) -> None:
    batches = numbers_of(SeededBatchSampler(datasets, 2, seed=0), 2000)
    first = len(datasets[0])
    of_second = [[number >= first for number in batch] for batch in batches]
    assert all(len(set(batch)) == 1 for batch in of_second)
    assert np.mean(of_second) == pytest.approx(datasets[1].size / (datasets[0].size + datasets[1].size), abs=0.04)
    in_second = [number - first for batch in batches for number in batch if number >= first]
    complete = len(in_second) // datasets[1].size * datasets[1].size
    assert sorted(in_second[:complete]) == list(range(complete))
    concatenated = ConcatDataset(datasets)
    assert concatenated.cumulative_sizes == ConcatDatasetBatchSampler.cumsum(datasets)


def test_a_resumed_training_and_ranks_take_the_same_batches(datasets: list[SeededDataset]) -> None:
    whole = numbers_of(SeededBatchSampler(datasets, 4, seed=7), 20)
    assert numbers_of(SeededBatchSampler(datasets, 4, seed=7, start=5), 15) == whole[5:]
    ranks = [numbers_of(SeededBatchSampler(datasets, 2, 7, 0, rank, 2), 20) for rank in range(2)]
    assert [sorted(one + other) for one, other in zip(*ranks, strict=True)] == [sorted(batch) for batch in whole]
    assert numbers_of(SeededBatchSampler(datasets, 4, seed=8), 20) != whole


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_draw_what_the_process_itself_draws(build: Callable[..., SeededDataset], method: str) -> None:
    data = ConcatDataset([build()])
    sampler = SeededBatchSampler(data.datasets, 2, seed=0)  # type: ignore[arg-type]
    loaders = [
        DataLoader(data, batch_sampler=sampler),
        DataLoader(data, batch_sampler=sampler, num_workers=1, multiprocessing_context=method),
    ]
    for own, of_worker in islice(zip(*loaders, strict=False), 5):
        assert own["filename"] == of_worker["filename"]
        assert torch.equal(own["sampling_mask"], of_worker["sampling_mask"])
