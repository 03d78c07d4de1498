"""Means of the scores with their uncertainty, and differences between models."""

from collections.abc import Iterator, Mapping

import numpy as np
from pydantic.dataclasses import dataclass

from direct_hifimamba.benchmark.score.metrics import METRICS, Array
from direct_hifimamba.benchmark.score.statistics import Difference, Groups, compare, group_members, summarise
from direct_hifimamba.benchmark.score.table import Scores
from direct_hifimamba.benchmark.validation import CONFIG


@dataclass(frozen=True, config=CONFIG)
class SummaryRow:
    """One metric of one model at one acceleration, over all volumes and seeds.

    `difference` is this model's mean minus that of the baseline, `difference_to_best` minus that of the best model;
    both are None for these models themselves.
    """

    model: str
    acceleration: str
    metric: str
    seeds: int
    subjects: int
    volumes: int
    slices: int
    mean: float
    std: float | None
    low: float | None
    high: float | None
    seed_std: float | None
    singles: list[float]
    difference: Difference | None
    difference_to_best: Difference | None


def summarise_scores(scores: Scores, baseline: str, groups: Groups | None = None) -> list[SummaryRow]:
    """Return a row per acceleration, metric and model that has a score, in the order in which the table has them.

    Parameters
    ----------
    scores : Scores
        The seeds of a model are averaged.
    baseline : str
        Label of the model to which differences are taken.
    groups : mapping, optional
        Subject by file; by default, every file is a subject of its own.
    """
    rows: list[SummaryRow] = []
    for acceleration in scores.accelerations:
        for metric in scores.metrics:
            rows += _summarise_metric(scores, acceleration, metric, baseline, groups)
    return rows


def _summarise_metric(
    scores: Scores, acceleration: str, name: str, baseline: str, groups: Groups | None
) -> Iterator[SummaryRow]:
    volumes = {model: scores.volumes(model, acceleration, name) for model in scores.models}
    summaries = {model: summarise(_by_file(seeds), groups) for model, seeds in volumes.items() if seeds}
    means = {model: summary.mean for model, summary in summaries.items() if summary is not None}
    if not means:
        return
    best = (max if METRICS[name].higher_is_better else min)(means, key=means.__getitem__)

    def difference_to(model: str, other: str) -> Difference | None:
        if model == other or other not in means:
            return None
        # Trainings of one seed are a pair; where one of them failed, the other is left out, too.
        common = volumes[model].keys() & volumes[other].keys()
        ours, theirs = (
            _by_file({seed: files for seed, files in volumes[label].items() if seed in common} or volumes[label])
            for label in (model, other)
        )
        return compare(ours, theirs, groups)

    for model, summary in summaries.items():
        if summary is not None:
            files = [file for file, values in _by_file(volumes[model]).items() if np.isfinite(values).any()]
            slices = next(iter(scores.slices(model, acceleration, name).values()))
            yield SummaryRow(
                model=model,
                acceleration=acceleration,
                metric=name,
                seeds=len(volumes[model]),
                subjects=len(group_members(files, groups)),
                volumes=len(files),
                slices=sum(int(np.isfinite(values).sum()) for values in slices.values()),
                **vars(summary),
                difference=difference_to(model, baseline),
                difference_to_best=difference_to(model, best),
            )


def _by_file(seeds: Mapping[int | None, Mapping[str, float]]) -> dict[str, Array]:
    """Return the scores of every file, an array of shape (seeds,)."""
    files = dict.fromkeys(file for scores in seeds.values() for file in scores)
    return {file: np.array([scores.get(file, np.nan) for scores in seeds.values()]) for file in files}
