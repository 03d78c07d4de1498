"""Uncertainty of a mean score, and of the difference between two models on the same volumes.

The unit is the subject: volumes of one person or object are averaged, after seeds and slices, and every subject counts
once. A volume that has no score in one of the seeds, or in one of two models that are compared, is left out.

Intervals of 95 % are Student's t over subjects. They say how the mean would vary with other test subjects; the standard
deviation over seeds says how it would vary with other trainings. With fewer than `MIN_SUBJECTS` subjects there is no
interval, only the scores of the single subjects.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Values = Mapping[str, Array]
"""Per volume an array of shape (seeds,) or (seeds, slices); NaN: no score."""

Groups = Mapping[str, str]
"""Subject of a volume; a volume without one is a subject of its own."""

CONFIDENCE = 0.95
MIN_SUBJECTS = 6
"""With fewer, an interval is too uncertain itself, and no signed-rank test can reach 0.05."""


@dataclass(frozen=True)
class Summary:
    """A mean over subjects.

    Attributes
    ----------
    mean : float
    std : float, optional
        Standard deviation over subjects. None for a single one.
    low, high : float, optional
        Ends of the 95 % interval of the mean. None for fewer than `MIN_SUBJECTS` subjects.
    seed_std : float, optional
        Standard deviation of the mean from seed to seed. None for a single seed.
    singles : list of float
        The scores of the single subjects, if there is no interval.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    seed_std: float | None
    singles: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """A paired difference, averaged over subjects.

    Attributes
    ----------
    mean : float
        Positive where the first one's values are larger, better or not.
    low, high : float, optional
        Ends of the 95 % interval. None for fewer than `MIN_SUBJECTS` subjects.
    p_value : float, optional
        Two-sided, of the Wilcoxon signed-rank test on the subjects' differences. None where fewer than `MIN_SUBJECTS`
        of them are not zero.
    seed_std : float, optional
        Standard deviation of the difference from seed to seed. Beside one that has a single seed, such as a classical
        reconstruction, it is that of the other one alone; None if both have a single seed.
    seeds : int
        Number of trainings that `seed_std` is over.
    singles : list of float
        The differences of the single subjects, if there is no interval.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    seed_std: float | None
    seeds: int
    singles: list[float] = field(default_factory=list)

    @property
    def is_distinguishable(self) -> bool:
        """Whether zero is neither in the interval over subjects nor in that of Student's t over seeds.

        False where one of the two is missing: a single seed or a few subjects show no difference.
        """
        if self.low is None or self.high is None or self.seed_std is None:
            return False
        seed_margin = _t_quantile(self.seeds) * self.seed_std / math.sqrt(self.seeds)
        return (self.low > 0 or self.high < 0) and abs(self.mean) > seed_margin


def summarise(values: Values, groups: Groups | None = None) -> Summary | None:
    """Return the mean over subjects with its uncertainty; None if there is no score at all.

    Parameters
    ----------
    values : Values
    groups : Groups, optional
        Default: every volume is a subject of its own.
    """
    (scores,) = _subjects(groups, values)
    if not scores.size:
        return None
    subjects, seeds = scores.mean(axis=1), scores.mean(axis=0)
    return Summary(float(subjects.mean()), _std(subjects), *_interval(subjects), _std(seeds), _singles(subjects))


def compare(values: Values, others: Values, groups: Groups | None = None) -> Difference | None:
    """Return values minus others, subject by subject; None if they have no score in common.

    Parameters
    ----------
    values, others : Values
        The numbers of seeds may differ. Volumes that are in one of the two alone are left out.
    groups : Groups, optional
        Default: every volume is a subject of its own.
    """
    scores, other_scores = _subjects(groups, values, others)
    if not scores.size:
        return None
    differences = scores.mean(axis=1) - other_scores.mean(axis=1)
    return Difference(
        float(differences.mean()),
        *_interval(differences),
        _signed_rank(differences),
        *_seed_deviation(scores.mean(axis=0), other_scores.mean(axis=0)),
        _singles(differences),
    )


def group_members(names: Sequence[str], groups: Groups | None) -> list[list[int]]:
    """Return the indices of the volumes of every subject."""
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault((groups or {}).get(name, name), []).append(index)
    return list(members.values())


def _subjects(groups: Groups | None, *sides: Values) -> list[Array]:
    """Return the scores of the subjects of every side, shape (subjects, seeds), from volumes scored in all sides."""
    volumes = [
        {name: np.asarray(array, np.float64).reshape(len(array), -1).mean(axis=1) for name, array in side.items()}
        for side in sides
    ]
    names = [
        name
        for name in sorted(set.intersection(*map(set, volumes)))
        if all(np.isfinite(side[name]).all() for side in volumes)
    ]
    members = group_members(names, groups)
    return [
        np.array([np.mean([side[names[index]] for index in indices], axis=0) for indices in members])
        for side in volumes
    ]


def _std(values: Array) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _interval(subjects: Array) -> tuple[float | None, float | None]:
    if len(subjects) < MIN_SUBJECTS:
        return None, None
    mean = float(subjects.mean())
    margin = _t_quantile(len(subjects)) * float(subjects.std(ddof=1)) / math.sqrt(len(subjects))
    return mean - margin, mean + margin


def _t_quantile(count: int) -> float:
    """Return Student's t of a two-sided interval of the mean of `count` values."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))


def _singles(subjects: Array) -> list[float]:
    return subjects.tolist() if len(subjects) < MIN_SUBJECTS else []


def _seed_deviation(seed_means: Array, others: Array) -> tuple[float | None, int]:
    """Return the standard deviation over seeds of the difference of two models, and the number of these seeds."""
    counts = {len(seed_means), len(others)}
    if len(counts - {1}) < 2:
        return _std(seed_means - others), max(counts)
    # A seed of one of them failed: trainings of different models are independent.
    return float(np.hypot(seed_means.std(ddof=1), others.std(ddof=1))), min(counts)


def _signed_rank(differences: NDArray[Any]) -> float | None:
    differences = differences[differences != 0]
    return float(stats.wilcoxon(differences).pvalue) if len(differences) >= MIN_SUBJECTS else None
