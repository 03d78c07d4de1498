"""Training data whose order and random masks depend on the seed, but not on the number of workers.

With `use_seed: false`, DIRECT draws masks from a generator that cannot be seeded, and a resumed training repeats the
samples of its beginning. Here a batch depends only on the seed and the iteration, and a mask on the seed, the epoch and
the sample, so that both are the same in forked and spawned workers and in a resumed training.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

_EPOCHS = 2**20  # more than in any training


class SeededDataset(Dataset[dict[str, Any]]):
    """A training data set of DIRECT, repeated for every epoch.

    Number ``epoch * size + index`` is sample `index` of the data set in that epoch, where `size` is its length. If the
    data set has an attribute `epoch`, it is set to the epoch.

    Attributes
    ----------
    ndim : int
        That of the data set.
    size : int
        Number of samples in an epoch.

    Parameters
    ----------
    dataset : Dataset
    seed : int, optional
        If given, random transforms of the data set, which need `use_seed: true`, depend on this seed, the epoch, the
        name of the file without its folder, and the slice. If None, they depend on the path of the file, as in DIRECT,
        and are the same in every epoch.
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
        """Return a sample of the data set in an epoch."""
        epoch, index = divmod(int(number), self.size)
        if hasattr(self._dataset, "epoch"):
            self._dataset.epoch = epoch
        if self._transform is not None:
            self._transform.epoch = epoch
        sample: dict[str, Any] = self._dataset[index]
        return sample


@dataclass(eq=False)
class _SeededTransform:
    """Transforms whose random numbers depend on seed, epoch, file name and slice.

    DIRECT derives random seeds from `filename`, so that this is replaced while the transforms run.
    """

    transform: Any
    seed: int
    epoch: int = 0

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        filename = sample["filename"]
        key = f"{self.seed}/{self.epoch}/{Path(filename).name}/{sample.get('slice_no')}"
        transformed: dict[str, Any] = self.transform(sample | {"filename": key})
        return transformed | {"filename": filename}


@dataclass(eq=False)
class SeededBatchSampler(Sampler[list[int]]):
    """Endless batches of numbers for `ConcatDataset` of several :class:`SeededDataset`, from a given iteration on.

    As in DIRECT, all samples of a batch belong to one data set, which is chosen in proportion to the sizes, and every
    epoch of a data set has another order.

    Parameters
    ----------
    datasets : sequence of SeededDataset
    batch_size : int
        Number of samples in a batch of one process.
    seed : int
    start : int
        Number of batches to skip at the beginning: the iteration at which a training resumes.
    rank, world_size : int
        Number of this process, and number of processes; each gets its part of the samples.
    """

    datasets: Sequence[SeededDataset]
    batch_size: int
    seed: int
    start: int = 0
    rank: int = 0
    world_size: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        return islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[int]]:
        choices = random.Random(self.seed)
        sizes = [dataset.size for dataset in self.datasets]
        numbers = [self._numbers(position) for position in range(len(sizes))]
        while True:
            (chosen,) = choices.choices(numbers, sizes)
            yield list(islice(chosen, self.batch_size * self.world_size))[self.rank :: self.world_size]

    def _numbers(self, position: int) -> Iterator[int]:
        offset = sum(map(len, self.datasets[:position]))
        size = self.datasets[position].size
        for epoch in count():
            order = np.random.default_rng((self.seed, position, epoch)).permutation(size)
            yield from (offset + epoch * size + order).tolist()
