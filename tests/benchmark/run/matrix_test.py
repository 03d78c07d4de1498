import pytest

from direct_hifimamba.benchmark.plan.specification import Budget
from direct_hifimamba.benchmark.run.matrix import choose_learning_rate, count_iterations
from direct_hifimamba.benchmark.run.runner import RunError
from direct_hifimamba.benchmark.score.results import Cost, Spread, Trial


def test_minutes_become_iterations_by_the_median_time_of_one() -> None:
    cost = Cost(1, seconds_per_iteration=Spread(0.3, 0.1, 3.0), seconds_per_batch=Spread(0.2, 0.1, 0.3))
    assert count_iterations(Budget(minutes=2), cost) == 240
    assert count_iterations(Budget(minutes=0.01), cost) == 6
    assert count_iterations(Budget(iterations=100), cost) == 100


@pytest.mark.parametrize(("workers", "seconds"), [(0, 0.5), (1, 0.4), (2, 0.2), (4, 0.1)])
def test_time_includes_the_loading_that_workers_cannot_hide(workers: int, seconds: float) -> None:
    times = {"seconds_per_iteration": Spread(0.1, 0.1, 0.1), "seconds_per_batch": Spread(0.4, 0.4, 0.4)}
    assert Cost(1, workers=workers, **times).seconds_per_step == pytest.approx(seconds)


def test_minutes_need_a_time() -> None:
    cost = Cost(threads=1, error="no memory")
    assert count_iterations(Budget(iterations=100), cost) == 100
    with pytest.raises(RunError, match="no memory"):
        count_iterations(Budget(minutes=2), cost)


@pytest.mark.parametrize(("metric", "expected"), [("fastmri_psnr", 0.01), ("fastmri_nmse", 0.1)])
def test_the_best_learning_rate_wins_whichever_way_the_metric_goes(metric: str, expected: float) -> None:
    trials = [Trial(0.001, None), Trial(0.01, 30.0), Trial(0.1, 20.0), Trial(1.0, 25.0)]
    assert choose_learning_rate(trials, metric) == expected


def test_without_any_score_there_is_no_choice() -> None:
    with pytest.raises(RunError, match="No learning rate"):
        choose_learning_rate([Trial(0.001, None), Trial(0.01, None)], "fastmri_psnr")
