"""Uncertainty of a mean score, and of the difference between two models on the same volumes.

Scores come as one array per volume, of shape (seeds, slices): a score is averaged over the seeds, and a volume is one
draw from the population. Where volumes are scored as a whole there is one "slice". A slice that has no score in one of
the seeds, or in one of two models that are compared, is left out.

Intervals are percentiles of a bootstrap in which volumes are drawn with replacement and then slices within each drawn
volume; with one slice per volume, that is the ordinary bootstrap over volumes. Seeds are not drawn: the interval says
how the mean would vary with other test volumes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Values = Mapping[str, Array]
"""Per volume an array of shape (seeds, slices); NaN: no score."""

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
        Two-sided, of the Wilcoxon signed-rank test on the pairs of volumes, or of slices where there is more than one
        per volume; slices of one volume resemble each other, which makes it too small then. None where fewer than
        `MIN_PAIRS` pairs differ.
    """

    mean: float
    low: float
    high: float
    p_value: float | None

    @property
    def is_distinguishable(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.low > 0 or self.high < 0


def summarise(values: Values, combine: Combine = np.mean, seed: int = 0) -> Summary | None:
    """Mean over volumes with its uncertainty; None if there is no score at all.

    Parameters
    ----------
    values : Values
    combine : Combine
    seed : int
        Of the bootstrap.
    """
    (scores,) = _common(values)
    if not scores:
        return None
    seed_means = _seed_means(scores, combine)
    return Summary(
        float(seed_means.mean()),
        _std(np.concatenate([score.mean(axis=0) for score in scores])),
        *_interval(_resample(scores, combine, seed)),
        _std(seed_means),
    )


def compare(values: Values, others: Values, combine: Combine = np.mean, seed: int = 0) -> Difference | None:
    """Values minus others, volume by volume and slice by slice; None if they have no score in common.

    Parameters
    ----------
    values, others : Values
        The numbers of seeds may differ. Volumes that are in one of the two alone are left out.
    combine : Combine
    seed : int
        Of the bootstrap.
    """
    scores, other_scores = _common(values, others)
    if not scores:
        return None
    # The same seed draws the same volumes and slices for both.
    differences = _resample(scores, combine, seed) - _resample(other_scores, combine, seed)
    pairs = np.concatenate([a.mean(axis=0) - b.mean(axis=0) for a, b in zip(scores, other_scores, strict=True)])
    mean = _seed_means(scores, combine).mean() - _seed_means(other_scores, combine).mean()
    return Difference(float(mean), *_interval(differences), _signed_rank(pairs))


def _common(*groups: Values) -> tuple[list[Array], ...]:
    """Of every group the volumes and slices that have a score in all groups and seeds, in the same order."""
    kept: tuple[list[Array], ...] = tuple([] for _ in groups)
    for name in sorted(set.intersection(*(set(group) for group in groups))):
        scored = np.all([np.isfinite(group[name]).all(axis=0) for group in groups], axis=0)
        if scored.any():
            for scores, group in zip(kept, groups, strict=True):
                scores.append(group[name][:, scored])
    return kept


def _seed_means(scores: list[Array], combine: Combine) -> Array:
    """The mean over volumes, for every seed."""
    return np.mean([combine(score, axis=-1) for score in scores], axis=0)


def _std(values: Array) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _resample(scores: list[Array], combine: Combine, seed: int) -> Array:
    """Means of `RESAMPLES` draws."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(scores), size=(RESAMPLES, len(scores)))
    volumes = np.empty(drawn.shape)
    for index, score in enumerate(scores):
        is_drawn = drawn == index
        count = score.shape[-1]
        slices = generator.integers(count, size=(np.count_nonzero(is_drawn), count))
        volumes[is_drawn] = combine(score[:, slices], axis=-1).mean(axis=0)
    return volumes.mean(axis=-1)


def _interval(draws: Array) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _signed_rank(differences: Array) -> float | None:
    differences = differences[differences != 0]
    return float(stats.wilcoxon(differences).pvalue) if len(differences) >= MIN_PAIRS else None
