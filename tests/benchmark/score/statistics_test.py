from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from direct_hifimamba.benchmark.score import statistics
from direct_hifimamba.benchmark.score.scores import mean_of_errors
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
    assert summary.std == pytest.approx(np.std([1.5, 3.5, 6], ddof=1))
    assert summary.seed_std == pytest.approx(np.std([3.5, 5.0], ddof=1))
    assert summary.low <= summary.mean <= summary.high


def test_psnr_of_slices_is_combined_before_volumes_are_averaged() -> None:
    values = {"a": np.array([[20.0, 40.0]]), "b": np.array([[30.0, 30.0]])}
    volume = -10 * np.log10((1e-2 + 1e-4) / 2)
    summary, difference = summarise(values, mean_of_errors), compare(values, shift(values, 1), mean_of_errors)
    assert summary is not None and difference is not None
    assert summary.mean == pytest.approx((volume + 30) / 2)
    assert summary.low <= summary.mean <= summary.high
    assert (difference.mean, difference.low, difference.high) == pytest.approx((-1, -1, -1))


def test_interval_is_the_percentile_bootstrap_of_scipy() -> None:
    numbers = np.random.default_rng(0).exponential(size=25)
    summary = summarise(one_per_volume(numbers))
    theirs = stats.bootstrap((numbers,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert summary is not None
    assert (summary.low, summary.high) == pytest.approx((theirs.low, theirs.high), abs=0.03 * np.ptp(theirs))


@pytest.mark.parametrize(("volumes", "slices"), [(30, 1), (7, 8)])
def test_interval_covers_the_truth(volumes: int, slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    covered = 0
    for seed in range(200):
        summary = summarise(draw_values(volumes, slices, seed=seed, offset=5.0), seed=seed)
        assert summary is not None
        covered += summary.low < 5.0 < summary.high
    # The fewer the volumes, the shorter a percentile interval: a bootstrap of pooled slices would cover 0.5 with 7.
    assert (0.9 if volumes == 30 else 0.8) < covered / 200 < 0.99


def test_slices_of_one_volume_vary_together() -> None:
    clustered = draw_values(4, 10)
    pooled = {
        str(index): value for index, value in enumerate(np.concatenate(list(clustered.values()), axis=-1).T[..., None])
    }
    together, apart = summarise(clustered), summarise(pooled)
    assert together is not None and apart is not None
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_single_volume_has_the_interval_of_its_slices() -> None:
    numbers = np.random.default_rng(0).normal(size=(1, 40))
    single, apart = summarise({"a": numbers}), summarise(one_per_volume(numbers[0]))
    assert single is not None and apart is not None
    assert (single.low, single.high) == pytest.approx((apart.low, apart.high), abs=0.1)
    assert single.seed_std is None


def test_single_value_has_no_deviation() -> None:
    summary = summarise({"a": np.array([[3.0]])})
    assert summary == statistics.Summary(3.0, None, 3.0, 3.0, None)


def test_difference_is_paired() -> None:
    values = draw_values(6, 10, seeds=4)
    others = {name: value + np.random.default_rng(1).normal(0.2, 0.1, value.shape) for name, value in values.items()}
    difference, summary = compare(others, values), summarise(values)
    assert difference is not None and summary is not None
    assert difference.mean == pytest.approx(0.2, abs=0.05)
    assert 0 < difference.high - difference.low < 0.1 * (summary.high - summary.low)
    assert difference.is_distinguishable


def test_difference_is_antisymmetric() -> None:
    values, others = draw_values(6, 10, seed=0), draw_values(6, 10, seed=1)
    forth, back = compare(values, others), compare(others, values)
    assert forth is not None and back is not None
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
    kept = {"0": slice(None), "1": [0, 1, 3, 4, 5], "2": slice(None)}
    expected = [{name: group[name][:, index] for name, index in kept.items()} for group in (values, others)]
    assert summarise(gaps) == summarise(expected[0])
    assert compare(gaps, others) == compare(*expected)
    assert compare(others, gaps) == compare(*expected[::-1])


def test_volumes_of_one_group_vary_together() -> None:
    # Three volumes each of people that differ by much: the interval is that of the people.
    people = one_per_volume(np.repeat(np.random.default_rng(0).normal(0, 3, 10), 3))
    groups = {name: str(int(name) // 3) for name in people}
    firsts = {name: value for name, value in people.items() if int(name) % 3 == 0}
    grouped, apart, expected = summarise(people, groups=groups), summarise(people), summarise(firsts)
    assert grouped is not None and apart is not None and expected is not None
    assert (grouped.mean, grouped.low, grouped.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert grouped.high - grouped.low > 1.4 * (apart.high - apart.low)


def test_mean_of_draws_is_that_of_volumes_where_groups_differ_in_size() -> None:
    values = {"a": np.array([[0.0]]), "b": np.array([[1.0]]), "c": np.array([[1.0]]), "d": np.array([[1.0]])}
    summary = summarise(values, groups=dict.fromkeys("bcd", "group"))
    assert summary is not None
    assert (summary.mean, summary.low, summary.high) == (0.75, 0, 1)


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


@pytest.mark.parametrize(("seed_std", "expected"), [(None, True), (0.5, True), (0.6, False)])
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
    assert summarise(draw_values(5, 6)) != summarise(draw_values(5, 6), seed=1)
