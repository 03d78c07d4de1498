"""Slices as all models reconstruct them: which ones are shown, with images and errors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from direct_hifimamba.benchmark.folder import BenchmarkFolder, slug
from direct_hifimamba.benchmark.plan.configurations import is_centered
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.report.pictures import (
    Window,
    choose_window,
    draw_image,
    draw_target,
    error_limit,
    relative_error,
)
from direct_hifimamba.benchmark.report.tables import MODEL, RANKING, Cell, Column, Table
from direct_hifimamba.benchmark.score.collect import ZERO_FILLED
from direct_hifimamba.benchmark.score.images import load_reconstruction, load_target, load_zero_filled
from direct_hifimamba.benchmark.score.metrics import METRICS
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.benchmark.score.table import Scores

RANKS = ("median", "best", "worst")

MAX_PIXELS = 2**25
"""Number of pixels that the images of a page have at most; noisy ones take about one byte each."""


class SliceKey(NamedTuple):
    """A slice of the test split."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, slice {self.number}"


@dataclass(frozen=True)
class Picture:
    """A model's image of a slice; `uri` shows the image and right of it the error, `caption` has its scores."""

    label: str
    uri: str
    caption: str


@dataclass(frozen=True)
class SliceComparison:
    """One slice as all models reconstructed it, and the models whose best, worst or median slice it is, by rank."""

    key: SliceKey
    by_rank: dict[str, list[str]]
    target: str
    height: int
    width: int
    window: Window
    pictures: list[Picture]


@dataclass(frozen=True)
class Comparison:
    """Slices at one acceleration, and a table of the models whose best, worst or median slices they are."""

    acceleration: str
    error_limit: float
    slices: list[SliceComparison]
    table: Table


def anchor(acceleration: str, key: SliceKey) -> str:
    """Return the identifier of a slice in the page."""
    return slug(f"{acceleration} {key.file} {key.number}").replace(".", "_")


def choose_slices(values: Mapping[SliceKey, float]) -> dict[str, SliceKey]:
    """Return the slices with the median, best and worst value by rank; of two in the middle, the worse one."""
    ordered = sorted(values, key=lambda key: (values[key], key))
    return dict(zip(RANKS, (ordered[(len(ordered) - 1) // 2], ordered[-1], ordered[0]), strict=True))


def _load_slices(
    keys: Iterable[SliceKey], test: Path, predictions: Mapping[str, Path], labels: Iterable[str], centered: bool
) -> dict[SliceKey, tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]]:
    """Return the target and, by model, the images of slices. Only one volume of each is in memory at a time."""
    slices = {}
    for file, keys_of_file in groupby(sorted(keys), lambda key: key.file):
        images = {label: load_reconstruction(path / file) for label, path in predictions.items()}
        height, width = next(iter(images.values())).shape[1:]
        target = load_target(test / file, (height, width), centered)
        images[ZERO_FILLED] = load_zero_filled(test / file, (height, width), centered)
        for key in keys_of_file:
            slices[key] = target[key.number].copy(), {label: images[label][key.number].copy() for label in labels}
    return slices


def _choose_exemplary(
    results: Results, trained: Sequence[str], highlighted: Sequence[str], pixels_per_slice: int
) -> list[str]:
    """Return the models whose slices are shown, as many as `MAX_PIXELS` allows: baseline and highlighted ones first."""
    count = max(1, MAX_PIXELS // (len(results.protocol.accelerations) * len(RANKS) * pixels_per_slice))
    first = sorted(trained, key=lambda label: (label != results.baseline, label not in highlighted))[:count]
    return [label for label in trained if label in first]


def compare_slices(
    folder: BenchmarkFolder,
    specification: Specification,
    results: Results,
    scores: Scores,
    acceleration: str,
    highlighted: Sequence[str],
) -> Comparison | None:
    """Return images of the first seed of each model; a slice that was chosen for several models is shown once."""
    labels = [model.label for model in results.models]
    seeds = {label: found[0] for label in labels if (found := scores.seeds(label, acceleration))}
    trained = [label for label, seed in seeds.items() if seed is not None]
    if not trained:
        return None
    centered = is_centered(OmegaConf.create(results.protocol.evaluation))
    predictions = {
        label: folder.cell(label, seed or 0).predictions(acceleration)
        for label, seed in seeds.items()
        if label != ZERO_FILLED
    }
    values = {label: _slice_values(scores, label, acceleration, RANKING) for label in seeds}
    height, width = load_reconstruction(predictions[trained[0]] / next(iter(values[trained[0]])).file).shape[1:]
    # Every picture is an image and its error.
    exemplary = _choose_exemplary(results, trained, highlighted, 2 * height * width * len(seeds))
    chosen = {label: choose_slices(values[label]) for label in exemplary if values[label]}
    ranks: dict[SliceKey, dict[str, list[str]]] = {}
    for label in sorted(chosen, key=lambda label: label not in highlighted):
        for rank, key in chosen[label].items():
            ranks.setdefault(key, {}).setdefault(rank, []).append(label)

    test = specification.folder(specification.splits.test, acceleration)
    images = _load_slices(ranks, test, predictions, seeds, centered)
    limit = error_limit([relative_error(images[key][0], images[key][1][label]) for key in ranks for label in trained])
    captions = [name for name in scores.metrics if METRICS[name].group == "fastmri"]
    shown = {(label, name): _slice_values(scores, label, acceleration, name) for label in seeds for name in captions}
    slices = []
    for key, by_rank in ranks.items():
        target, reconstructed = images[key]
        pictures = []
        for label, image in reconstructed.items():
            parts = (
                f"{METRICS[name].label} {METRICS[name].format(shown[label, name][key])} {METRICS[name].unit}".strip()
                for name in captions
                if key in shown[label, name]
            )
            pictures.append(Picture(label, draw_image(target, image, limit), ", ".join(parts)))
        height, width = target.shape
        slices.append(
            SliceComparison(key, by_rank, draw_target(target), height, width, choose_window(target), pictures)
        )
    return Comparison(acceleration, limit, slices, _slice_table(acceleration, chosen, values, seeds))


def _slice_values(scores: Scores, label: str, acceleration: str, metric: str) -> dict[SliceKey, float]:
    """Return the scores of the slices of the first seed that have one."""
    seeds = scores.slices(label, acceleration, metric)
    files = next(iter(seeds.values())) if seeds else {}
    return {
        SliceKey(file, index): float(value)
        for file, values in files.items()
        for index, value in enumerate(values)
        if np.isfinite(value)
    }


def _slice_table(
    acceleration: str,
    chosen: Mapping[str, Mapping[str, SliceKey]],
    values: Mapping[str, Mapping[SliceKey, float]],
    seeds: Mapping[str, int | None],
) -> Table:
    metric = METRICS[RANKING]
    rows = []
    for label, keys in chosen.items():
        cells = [
            Cell(str(key), values[label][key], metric.format(values[label][key]), link=anchor(acceleration, key))
            for key in keys.values()
        ]
        rows.append([Cell(label, label), *cells, Cell(str(seeds[label]), seeds[label])])
    caption = f"Slices shown at {acceleration}, with their {metric.heading}."
    return Table(caption, [MODEL, *map(Column, RANKS), Column("seed")], rows)
