from __future__ import annotations

import numpy as np
import pytest

from direct_hifimamba.benchmark.score.metrics import METRICS
from direct_hifimamba.benchmark.score.statistics import MIN_SUBJECTS, Difference
from direct_hifimamba.benchmark.score.summary import summarise_scores
from direct_hifimamba.benchmark.score.table import Scores
from tests.benchmark.example import ACCELERATIONS, BASELINE, make_benchmark, make_scores, without


def test_trainings_of_other_seeds_are_no_pairs() -> None:
    label, other, files = "HiFi-MambaV2", "VarNet", ["a.h5", "b.h5"]

    def difference(seeds: tuple[int, ...], other_seeds: tuple[int, ...]) -> Difference | None:
        runs = [(label, seed) for seed in seeds] + [(other, seed) for seed in other_seeds]
        scores = Scores.join(
            {(*run, "equispaced_4x"): make_scores(run[0], "equispaced_4x", run[1], files, 4) for run in runs}
        )
        rows = summarise_scores(scores, other)
        return next(row.difference for row in rows if (row.model, row.metric) == (label, "fastmri_psnr"))

    assert difference((0, 1), (1, 2)) == difference((1,), (1,)) != difference((0, 1), (0, 1))
    assert difference((0, 1, 2), (0, 2)) == difference((0, 2), (0, 2))


@pytest.mark.parametrize("volumes", [3, MIN_SUBJECTS])
def test_summary_is_the_mean_of_volumes_and_seeds(volumes: int) -> None:
    results, scores = make_benchmark(volumes=volumes, slices=4)
    rows = {(row.model, row.acceleration, row.metric): row for row in results.summary}
    for (model, acceleration, metric), row in rows.items():
        values = [list(files.values()) for files in scores.volumes(model, acceleration, metric).values()]
        assert row.mean == pytest.approx(np.mean(values))
        assert (row.seeds, row.volumes, row.slices) == (len(values), volumes, 4 * volumes)
        means = [rows[key].mean for key in rows if key[1:] == (acceleration, metric)]
        is_best = row.mean == (max if METRICS[metric].higher_is_better else min)(means)
        assert (row.difference_to_best is None) == is_best
        assert (row.difference is None) == (model == BASELINE)
    assert {key[1] for key in rows} == set(ACCELERATIONS)


def test_without_scores_of_the_baseline_there_are_no_differences() -> None:
    _, scores = make_benchmark()
    assert {row.difference for row in summarise_scores(without(scores, model=BASELINE), BASELINE)} == {None}


def test_the_unit_is_the_subject() -> None:
    results, scores = make_benchmark(volumes=MIN_SUBJECTS, slices=5)
    groups = {file: f"s{index // 3}" for index, file in enumerate(results.protocol.data.files)}
    grouped = summarise_scores(scores, BASELINE, groups)
    assert {(row.subjects, row.volumes) for row in grouped} == {(2, MIN_SUBJECTS)}
    assert {(row.difference.p_value, row.difference.low) for row in grouped if row.difference} == {(None, None)}
    assert [row.mean for row in grouped] == pytest.approx([row.mean for row in results.summary])


def test_undefined_scores_are_left_out() -> None:
    _, scores = make_benchmark(volumes=MIN_SUBJECTS, slices=5)
    rows = {row.metric: row for row in summarise_scores(without(scores, metric="vif", slice=0), BASELINE)}
    assert rows["vif"].slices == 24 and rows["hfen"].slices == 30
    assert np.isfinite(rows["vif"].mean)
