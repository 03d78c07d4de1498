"""Slices as all models reconstruct them: which ones are shown, with images and errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.configurations import is_centered
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.report.pictures import choose_window, draw, relative_error, white_level
from direct_hifimamba.benchmark.report.tables import RANKING
from direct_hifimamba.benchmark.score.collect import ZERO_FILLED
from direct_hifimamba.benchmark.score.metrics import DEFAULT, METRICS
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.benchmark.score.scoring import Volume
from direct_hifimamba.benchmark.score.table import Scores

ERROR_QUANTILE = 0.98
"""Quantile of the errors of trained models that has the brightest colour."""


class SliceKey(NamedTuple):
    """A slice of the test split."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, slice {self.number}"


@dataclass(frozen=True)
class Picture:
    """A model's image of a slice and its error as data URIs, and a caption with its scores."""

    label: str
    image: str
    error: str
    caption: str


@dataclass(frozen=True)
class SliceComparison:
    """One slice as all models reconstructed it; `rank` is `median`, `best` or `worst`."""

    rank: str
    key: SliceKey
    target: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Comparison:
    """Slices at one acceleration, and the error that has the brightest colour in them, over the target's white."""

    acceleration: str
    error_limit: float
    slices: list[SliceComparison]


def choose_slices(values: Sequence[Mapping[SliceKey, float]]) -> dict[str, SliceKey]:
    """Return the slices with the median, best and worst mean over models by rank; of two in the middle, the worse one.

    Parameters
    ----------
    values : sequence of mapping
        The scores of each model, where higher is better. Slices that lack the score of a model are left out.
    """
    keys = set.intersection(*map(set, values))
    means = {key: fmean(scores[key] for scores in values) for key in keys}
    ordered = sorted(keys, key=lambda key: (means[key], key))
    return {"median": ordered[(len(ordered) - 1) // 2], "best": ordered[-1], "worst": ordered[0]} if ordered else {}


def compare_slices(
    folder: BenchmarkFolder, specification: Specification, results: Results, scores: Scores, acceleration: str
) -> Comparison | None:
    """Return images of the first seed of each model, None if no slice has a score of every trained one."""
    labels = [model.label for model in results.models]
    seeds = {label: found[0] for label in labels if (found := scores.seeds(label, acceleration))}
    trained = [label for label, seed in seeds.items() if seed is not None]
    if not trained:
        return None
    values = {(label, name): _slice_values(scores, label, acceleration, name) for label in seeds for name in DEFAULT}
    chosen = choose_slices([values[label, RANKING] for label in trained])
    if not chosen:
        return None
    test = specification.folder(specification.splits.test, acceleration)
    predictions = {label: folder.cell(label, seed or 0).predictions(acceleration) for label, seed in seeds.items()}
    if ZERO_FILLED in predictions:
        predictions[ZERO_FILLED] = predictions[trained[0]]  # to whose size it is cropped
    centered = is_centered(results.protocol.evaluation["physics"]["forward_operator"])
    loaded = {rank: _load_slice(key, test, predictions, centered) for rank, key in chosen.items()}
    errors = [relative_error(target, images[label]) for target, images in loaded.values() for label in trained]
    limit = max(float(np.quantile(np.concatenate([error.ravel() for error in errors]), ERROR_QUANTILE)), 1e-6)
    comparisons = []
    for rank, (target, images) in loaded.items():
        key, window, white = chosen[rank], choose_window(target), white_level(target)
        pictures = []
        for label, image in images.items():
            parts = [
                f"{METRICS[name].label} {METRICS[name].format(values[label, name][key])} {METRICS[name].unit}".strip()
                for name in DEFAULT
                if key in values[label, name]
            ]
            error = draw(relative_error(target, image) / limit, window, "inferno")
            pictures.append(Picture(label, draw(image / white, window), error, ", ".join(parts)))
        comparisons.append(SliceComparison(rank, key, draw(target / white, window), pictures))
    return Comparison(acceleration, limit, comparisons)


def _load_slice(
    key: SliceKey, test: Path, predictions: Mapping[str, Path], centered: bool
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Return the target of a slice and the image of every model; one volume is in memory at a time."""
    volumes = {
        label: Volume(test / key.file, path / key.file, centered, is_zero_filled=label == ZERO_FILLED)
        for label, path in predictions.items()
    }
    images = {label: volume.load_image()[key.number].copy() for label, volume in volumes.items()}
    first = next(iter(images))
    return volumes[first].load_target(images[first].shape)[key.number].copy(), images


def _slice_values(scores: Scores, label: str, acceleration: str, metric: str) -> dict[SliceKey, float]:
    """Return the scores of the slices of the first seed that have one."""
    files = next(iter(scores.slices(label, acceleration, metric).values()), {})
    return {
        SliceKey(file, index): float(value)
        for file, values in files.items()
        for index, value in enumerate(values)
        if np.isfinite(value)
    }
