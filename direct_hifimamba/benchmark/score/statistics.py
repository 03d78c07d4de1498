"""Uncertainty of a mean score, and of the difference between two models on the same volumes.

Scores come as one array per volume, of shape (seeds, slices): a score is averaged over the seeds. Where volumes are
scored as a whole there is one "slice". A slice that has no score in one of the seeds, or in one of two models that are
compared, is left out. Volumes of one source, such as a person, are a group; a group is one draw from the population.

Intervals are percentiles of a bootstrap in which groups are drawn with replacement, then volumes within each drawn
group, and then slices within each drawn volume; with one slice per volume and one volume per group, that is the
ordinary bootstrap over volumes. Seeds are not drawn: the interval says how the mean would vary with other test volumes,
and the standard deviation over seeds how it would vary with other trainings.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Values = Mapping[str, Array]
"""Per volume an array of shape (seeds, slices); NaN: no score."""

Groups = Mapping[str, str]
"""Group of a volume; a volume without one is a group of its own."""

Combine = Callable[..., Any]
"""Makes of the slices along `axis` the score of their volume, such as `numpy.mean`."""

RESAMPLES = 2000
CONFIDENCE = 0.95
MIN_PAIRS = 6
"""With fewer pairs, no signed-rank test can reach 0.05."""


@dataclass(frozen=True)
class Summary:
    """A mean over volumes.

    Attributes
    ----------
    mean : float
    std : float, optional
        Of the volumes; of the slices, where there is more than one per volume. None for a single one.
    low, high : float
        Ends of the 95 % interval of the mean.
    seed_std : float, optional
        Standard deviation of the mean from seed to seed. None for a single seed.
    """

    mean: float
    std: float | None
    low: float
    high: float
    seed_std: float | None


@dataclass(frozen=True)
class Difference:
    """A paired difference, averaged over volumes.

    Attributes
    ----------
    mean : float
        Positive where the first one's values are larger, better or not.
    low, high : float
        Ends of the 95 % interval.
    p_value : float, optional
        Two-sided, of the Wilcoxon signed-rank test on the groups' differences. None where fewer than `MIN_PAIRS` of
        them are not zero.
    seed_std : float, optional
        Standard deviation of the difference from seed to seed. Beside one that has a single seed, such as a classical
        reconstruction, it is that of the other one alone; None if both have a single seed.
    seeds : int
        Number of trainings that `seed_std` is over.
    """

    mean: float
    low: float
    high: float
    p_value: float | None
    seed_std: float | None
    seeds: int

    @property
    def is_distinguishable(self) -> bool:
        """Whether zero is neither in the interval over volumes nor, where there are seeds, in Student's t over them."""
        seed_margin = 0.0
        if self.seed_std is not None:
            quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.seeds - 1))
            seed_margin = quantile * self.seed_std / math.sqrt(self.seeds)
        return (self.low > 0 or self.high < 0) and abs(self.mean) > seed_margin


def summarise(
    values: Values, combine: Combine = np.mean, groups: Groups | None = None, seed: int = 0
) -> Summary | None:
    """Mean over volumes with its uncertainty; None if there is no score at all.

    Parameters
    ----------
    values : Values
    combine : Combine
    groups : Groups, optional
        Default: every volume is a group of its own.
    seed : int
        Of the bootstrap.
    """
    names, (scores,) = _common(values)
    if not scores:
        return None
    seed_means = _seed_means(scores, combine)
    return Summary(
        float(seed_means.mean()),
        _std(np.concatenate([score.mean(axis=0) for score in scores])),
        *_interval(_resample(scores, group_members(names, groups), combine, seed)),
        _std(seed_means),
    )


def compare(
    values: Values, others: Values, combine: Combine = np.mean, groups: Groups | None = None, seed: int = 0
) -> Difference | None:
    """Values minus others, volume by volume and slice by slice; None if they have no score in common.

    Parameters
    ----------
    values, others : Values
        The numbers of seeds may differ. Volumes that are in one of the two alone are left out.
    combine : Combine
    groups : Groups, optional
        Default: every volume is a group of its own.
    seed : int
        Of the bootstrap.
    """
    names, (scores, other_scores) = _common(values, others)
    if not scores:
        return None
    members = group_members(names, groups)
    # The same seed draws the same groups, volumes and slices for both.
    draws = [_resample(side, members, combine, seed) for side in (scores, other_scores)]
    volumes, other_volumes = (
        np.array([combine(score, axis=-1).mean() for score in side]) for side in (scores, other_scores)
    )
    pairs = np.array([(volumes - other_volumes)[indices].mean() for indices in members])
    seed_means, other_seed_means = (_seed_means(side, combine) for side in (scores, other_scores))
    return Difference(
        float(seed_means.mean() - other_seed_means.mean()),
        *_interval(draws[0] - draws[1]),
        _signed_rank(pairs),
        *_seed_deviation(seed_means, other_seed_means),
    )


def group_members(names: Sequence[str], groups: Groups | None) -> list[list[int]]:
    """Indices of the volumes of every group."""
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault((groups or {}).get(name, name), []).append(index)
    return list(members.values())


def _common(*sides: Values) -> tuple[list[str], tuple[list[Array], ...]]:
    """Names of the volumes and of every side the slices that have a score in all sides and seeds."""
    names: list[str] = []
    kept: tuple[list[Array], ...] = tuple([] for _ in sides)
    for name in sorted(set.intersection(*(set(side) for side in sides))):
        scored = np.all([np.isfinite(side[name]).all(axis=0) for side in sides], axis=0)
        if scored.any():
            names.append(name)
            for scores, side in zip(kept, sides, strict=True):
                scores.append(side[name][:, scored])
    return names, kept


def _seed_means(scores: list[Array], combine: Combine) -> Array:
    """The mean over volumes, for every seed."""
    return np.mean([combine(score, axis=-1) for score in scores], axis=0)


def _std(values: Array) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _seed_deviation(seed_means: Array, others: Array) -> tuple[float | None, int]:
    """Standard deviation over seeds of the difference of two models, and how many seeds it is over."""
    counts = {len(seed_means), len(others)}
    if len(counts - {1}) < 2:
        return _std(seed_means - others), max(counts)
    # A seed of one of them failed: trainings of different models are independent.
    return float(np.hypot(seed_means.std(ddof=1), others.std(ddof=1))), min(counts)


def _resample(scores: list[Array], members: list[list[int]], combine: Combine, seed: int) -> Array:
    """Means over the volumes of `RESAMPLES` draws."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(members), size=(RESAMPLES, len(members)))
    sums, counts = np.empty(drawn.shape), np.empty(drawn.shape)
    for index, volumes in enumerate(members):
        is_drawn = drawn == index
        drawn_volumes = generator.integers(len(volumes), size=(np.count_nonzero(is_drawn), len(volumes)))
        sums[is_drawn] = _draw_slices([scores[volume] for volume in volumes], drawn_volumes, combine, generator).sum(-1)
        counts[is_drawn] = len(volumes)
    return sums.sum(axis=-1) / counts.sum(axis=-1)


def _draw_slices(scores: list[Array], drawn: NDArray[Any], combine: Combine, generator: np.random.Generator) -> Array:
    """Scores of the volumes whose indices were drawn, each time of other slices."""
    volumes = np.empty(drawn.shape)
    for index, score in enumerate(scores):
        is_drawn = drawn == index
        count = score.shape[-1]
        slices = generator.integers(count, size=(np.count_nonzero(is_drawn), count))
        volumes[is_drawn] = combine(score[:, slices], axis=-1).mean(axis=0)
    return volumes


def _interval(draws: Array) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _signed_rank(differences: Array) -> float | None:
    differences = differences[differences != 0]
    return float(stats.wilcoxon(differences).pvalue) if len(differences) >= MIN_PAIRS else None
