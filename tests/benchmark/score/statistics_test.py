from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from direct_hifimamba.benchmark.score import statistics
from direct_hifimamba.benchmark.score.statistics import compare, summarise

Values = dict[str, NDArray[np.float64]]


def one_per_volume(numbers: NDArray[np.float64]) -> Values:
    """One seed and one value per volume."""
    return {f"{index:03d}": np.array([[number]]) for index, number in enumerate(numbers)}


def draw_values(volumes: int, slices: int, seeds: int = 2, seed: int = 0, offset: float = 0.0) -> Values:
    """Volumes that differ by much, slices in them by little, seeds by less."""
    generator = np.random.default_rng(seed)
    return {
        str(index): offset
        + generator.normal(0, 3)
        + generator.normal(0, 1, slices)
        + generator.normal(0, 0.1, (seeds, slices))
        for index in range(volumes)
    }


def shift(values: Values, by: float) -> Values:
    return {name: value + by for name, value in values.items()}


def test_means_and_deviations() -> None:
    values = {"a": np.array([[1.0, 3.0], [2.0, 4.0]]), "b": np.array([[5.0], [7.0]])}
    summary = summarise(values)
    assert summary is not None
    assert summary.mean == np.mean([2.5, 6])
    assert summary.std == pytest.approx(np.std([2.5, 6], ddof=1))
    assert summary.seed_std == pytest.approx(np.std([3.5, 5.0], ddof=1))
    assert summary.singles == [2.5, 6]


def test_interval_is_student_s_t() -> None:
    numbers = np.random.default_rng(0).exponential(size=25)
    summary = summarise(one_per_volume(numbers))
    theirs = stats.ttest_1samp(numbers, 0).confidence_interval(0.95)
    assert summary is not None
    assert (summary.low, summary.high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize(
    "volumes_of_subjects",
    [[1] * 6, [1] * 8, [1] * 20, [3] * 8, [5, 5, 5, 2, 2, 1, 1, 1]],
    ids=str,
)
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_cover_the_truth(volumes_of_subjects: list[int], skewed: bool) -> None:
    """In simulated test sets: subjects differ by 1, volumes of one subject by 0.3, slices of a volume by 0.5."""
    generator = np.random.default_rng(0)
    hits = []
    for _ in range(1000):
        values, subjects = {}, {}
        for subject, volumes in enumerate(volumes_of_subjects):
            # Scores such as SSIM have a tail towards poor volumes.
            mean = 1 - generator.gamma(4, 0.5) + 1 if skewed else generator.normal()
            for volume in range(volumes):
                name = f"{subject} {volume}"
                subjects[name] = str(subject)
                values[name] = mean + generator.normal(0, 0.3) + generator.normal(0, 0.5, (1, 4))
        summary = summarise(values, subjects)
        assert summary is not None and summary.low is not None and summary.high is not None
        hits.append(summary.low <= 0 <= summary.high)
    assert np.mean(hits) == pytest.approx(0.95, abs=0.03 if skewed else 0.02)


def test_differences_are_claimed_in_at_most_one_case_of_twenty_where_there_are_none() -> None:
    """Subjects, trainings and both together vary, equally for two models."""
    generator = np.random.default_rng(0)
    claims = []
    for _ in range(500):
        subjects, models = generator.normal(0, 3, (8, 1)), generator.normal(0, 0.3, (2, 1, 3))
        sides = subjects + models + generator.normal(0, 0.3, (2, 8, 3))
        one, other = ({str(index): row for index, row in enumerate(side)} for side in sides)
        difference = compare(one, other)
        assert difference is not None
        claims.append(difference.is_distinguishable)
    assert np.mean(claims) < 0.06


def test_one_seed_never_claims_what_three_do_not() -> None:
    generator = np.random.default_rng(0)
    values = {str(index): generator.normal(30, 3, 3) for index in range(30)}
    others = {name: value - [0.2, 1.0, 0.3] - generator.normal(0, 0.2, 3) for name, value in values.items()}
    lucky = compare(*({name: value[1:2] for name, value in side.items()} for side in (values, others)))
    three = compare(values, others)
    assert lucky is not None and three is not None and lucky.low is not None
    assert lucky.low > 0 and not lucky.is_distinguishable and not three.is_distinguishable
    clear = {name: value - [0.5, 0.6, 0.55] for name, value in values.items()}
    difference = compare(values, clear)
    assert difference is not None and difference.is_distinguishable


def test_few_subjects_have_their_values_and_no_interval() -> None:
    numbers = np.arange(6.0)
    summary, difference = (
        make(one_per_volume(numbers[:5])) for make in (summarise, lambda values: compare(values, values))
    )
    assert summary is not None and difference is not None
    assert (summary.low, summary.high, summary.singles) == (None, None, [0, 1, 2, 3, 4])
    assert (difference.low, difference.high, difference.singles) == (None, None, [0] * 5)
    enough = summarise(one_per_volume(numbers))
    assert enough is not None and enough.low is not None and enough.singles == []
    three_volumes_of_two = summarise(one_per_volume(numbers), {f"{index:03d}": str(index % 2) for index in range(6)})
    assert three_volumes_of_two is not None and three_volumes_of_two.singles == [2, 3]


def test_single_value_has_no_deviation() -> None:
    assert summarise({"a": np.array([[3.0]])}) == statistics.Summary(3.0, None, None, None, None, [3.0])


def test_difference_is_paired() -> None:
    values = draw_values(6, 10, seeds=4)
    others = {name: value + np.random.default_rng(1).normal(0.2, 0.1, value.shape) for name, value in values.items()}
    difference, summary = compare(others, values), summarise(values)
    assert difference is not None and summary is not None
    assert difference.mean == pytest.approx(0.2, abs=0.05)
    assert difference.low is not None and difference.high is not None
    assert summary.low is not None and summary.high is not None
    assert 0 < difference.high - difference.low < 0.1 * (summary.high - summary.low)
    assert difference.is_distinguishable


def test_difference_is_antisymmetric() -> None:
    values, others = draw_values(6, 10, seed=0), draw_values(6, 10, seed=1)
    forth, back = compare(values, others), compare(others, values)
    assert forth is not None and back is not None
    assert back.low is not None and back.high is not None
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert forth.p_value == back.p_value


def test_identical_values_do_not_differ() -> None:
    values = draw_values(8, 3)
    difference = compare(values, values)
    assert difference == statistics.Difference(0.0, 0.0, 0.0, None, 0.0, 2)
    assert not difference.is_distinguishable


def test_p_value_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    numbers, others = generator.normal(0.4, 1, (2, 20))
    difference = compare(one_per_volume(numbers), one_per_volume(others))
    assert difference is not None
    assert difference.p_value == pytest.approx(stats.wilcoxon(numbers, others).pvalue)


def test_p_value_is_small_as_rarely_as_it_should_be() -> None:
    generator = np.random.default_rng(0)
    p_values = []
    for _ in range(200):
        numbers, others = generator.normal(0, 1, (2, 12))
        difference = compare(one_per_volume(numbers), one_per_volume(others))
        assert difference is not None and difference.p_value is not None
        p_values.append(difference.p_value)
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09
    assert 0.4 < np.mean(np.array(p_values) < 0.5) < 0.6


def test_too_few_pairs_have_no_p_value() -> None:
    numbers = np.arange(6.0) + 1
    assert [
        difference is not None and difference.p_value is not None
        for count in (5, 6)
        for difference in [compare(one_per_volume(numbers[:count]), one_per_volume(np.zeros(count)))]
    ] == [False, True]


def test_what_has_no_score_is_left_out_on_both_sides() -> None:
    values, others = draw_values(4, 6, seed=0), draw_values(4, 6, seed=1)
    gaps = {name: value.copy() for name, value in values.items()}
    gaps["1"][0, 2] = np.nan
    gaps["3"][:] = np.inf
    expected = [{name: group[name] for name in ("0", "2")} for group in (values, others)]
    assert summarise(gaps) == summarise(expected[0])
    assert compare(gaps, others) == compare(*expected)
    assert compare(others, gaps) == compare(*expected[::-1])


def test_the_unit_is_the_subject() -> None:
    numbers = np.random.default_rng(0).normal(0, 3, 10)
    subjects = {f"{index:03d}": str(index % 10) for index in range(13)}  # three of them have two volumes
    values = one_per_volume(np.concatenate([numbers, numbers[:3] + 1]))
    means = np.concatenate([numbers[:3] + 0.5, numbers[3:]])
    found, expected = summarise(values, subjects), summarise(one_per_volume(means))
    assert found is not None and expected is not None
    assert (found.mean, found.std, found.low, found.high) == pytest.approx(
        (expected.mean, expected.std, expected.low, expected.high)
    )


def test_signed_rank_test_is_over_groups() -> None:
    values = one_per_volume(np.random.default_rng(0).normal(0.5, 1, 24))
    groups = {name: str(int(name) // 3) for name in values}
    difference = compare(values, {name: 0 * value for name, value in values.items()}, groups=groups)
    means = np.array([value.item() for value in values.values()]).reshape(8, 3).mean(axis=1)
    assert difference is not None
    assert difference.p_value == pytest.approx(stats.wilcoxon(means).pvalue)


def test_deviation_of_a_difference_over_seeds() -> None:
    a, b = np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.0, 0.0])
    for first, second, std, seeds in (
        (a, b, np.std(a - b, ddof=1), 3),
        (a, b[:1], np.std(a, ddof=1), 3),
        (a[:1], b, np.std(b, ddof=1), 3),
        (a, b[:2], np.hypot(np.std(a, ddof=1), np.std(b[:2], ddof=1)), 2),
        (a[:1], b[:1], None, 1),
    ):
        difference = compare({"x": first[:, None]}, {"x": second[:, None]})
        assert difference is not None
        assert (difference.seed_std, difference.seeds) == (None if std is None else pytest.approx(std), seeds)


@pytest.mark.parametrize(("seed_std", "expected"), [(None, False), (0.5, True), (0.6, False)])
def test_difference_that_trainings_explain_is_not_distinguishable(seed_std: float | None, expected: bool) -> None:
    assert statistics.Difference(0.85, 0.5, 1.2, None, seed_std, 4).is_distinguishable is expected
    assert statistics.Difference(-0.85, -1.2, -0.5, None, seed_std, 4).is_distinguishable is expected
    assert not statistics.Difference(0.85, -0.1, 1.2, None, seed_std, 4).is_distinguishable


def test_nothing_to_summarise() -> None:
    nothing = {"a": np.full((2, 3), np.nan)}
    assert summarise(nothing) is None
    assert compare(nothing, draw_values(1, 3)) is None
    assert compare(draw_values(1, 3), {}) is None


def test_results_are_the_same_every_time() -> None:
    assert summarise(draw_values(5, 6)) == summarise(dict(reversed(draw_values(5, 6).items())))
