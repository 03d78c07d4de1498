"""Training data whose order and random masks are determined by the seed, whatever the number of workers.

DIRECT draws the masks of `use_seed: false` from a generator that nobody can seed, and a resumed training begins with
the samples that it has seen already. Here a batch depends on the seed and the iteration alone, and a mask on the seed,
the epoch and the sample, so both are the same in forked and spawned workers and after a training was resumed.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

_EPOCHS = 2**20  # more than any training has


class SeededDataset(Dataset[dict[str, Any]]):
    """A training data set of DIRECT, repeated for every epoch.

    Number ``epoch * size + index`` is sample `index` of the data set in that epoch, where `size` is its length. A data
    set with an attribute `epoch` is told the epoch.

    Attributes
    ----------
    ndim : int
        As that of the data set.
    size : int
        Number of samples in an epoch.

    Parameters
    ----------
    dataset : Dataset
    seed : int, optional
        If given, the transforms of the data set, which have `use_seed: true`, get their seeds from this one, the epoch,
        the name of the file without its folder, and the slice. None: from the path of the file, as in DIRECT, which
        makes them the same in every epoch.
    """

    def __init__(self, dataset: Any, seed: int | None) -> None:
        self.ndim: int = dataset.ndim
        self.size = len(dataset)
        self._dataset = dataset
        self._transform = None
        if seed is not None:
            self._transform = dataset.transform = _SeededTransform(dataset.transform, seed)

    def __len__(self) -> int:
        return self.size * _EPOCHS

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A sample of an epoch, as the data set has it."""
        epoch, index = divmod(int(number), self.size)
        if hasattr(self._dataset, "epoch"):
            self._dataset.epoch = epoch
        if self._transform is not None:
            self._transform.epoch = epoch
        sample: dict[str, Any] = self._dataset[index]
        return sample


class _SeededTransform:
    """Transforms that find seed, epoch, file name and slice where DIRECT takes the seed from: in `filename`."""

    def __init__(self, transform: Any, seed: int) -> None:
        self.epoch = 0
        self._transform = transform
        self._seed = seed

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        filename = sample["filename"]
        key = f"{self._seed}/{self.epoch}/{Path(filename).name}/{sample.get('slice_no')}"
        transformed: dict[str, Any] = self._transform(sample | {"filename": key})
        return transformed | {"filename": filename}


class SeededBatchSampler(Sampler[list[int]]):
    """Endless batches of numbers for `ConcatDataset` of several :class:`SeededDataset`, from a given iteration on.

    As in DIRECT, a batch is of one data set, which is drawn in proportion to the sizes, and every epoch of a data set
    is in another order.

    Parameters
    ----------
    datasets : sequence of SeededDataset
    batch_size : int
        Of one process.
    seed : int
    start : int
        Number of batches to leave out at the beginning: the iteration that a training is resumed at.
    rank, world_size : int
        Every process takes its part of the samples.
    """

    def __init__(
        self,
        datasets: Sequence[SeededDataset],
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._datasets = datasets
        self._batch_size = batch_size
        self._seed = seed
        self._start = start
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._batches(), self._start, None)

    def _batches(self) -> Iterator[list[int]]:
        choices = random.Random(self._seed)
        sizes = [dataset.size for dataset in self._datasets]
        numbers = [self._numbers(position) for position in range(len(sizes))]
        while True:
            (chosen,) = choices.choices(numbers, sizes)
            yield list(islice(chosen, self._batch_size * self._world_size))[self._rank :: self._world_size]

    def _numbers(self, position: int) -> Iterator[int]:
        offset = sum(map(len, self._datasets[:position]))
        size = self._datasets[position].size
        for epoch in count():
            order = np.random.default_rng((self._seed, position, epoch)).permutation(size)
            yield from (offset + epoch * size + order).tolist()
