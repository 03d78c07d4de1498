from pathlib import Path

import pytest

from direct_hifimamba.benchmark.benchmark import plan
from direct_hifimamba.benchmark.plan.configurations import checkpoint_steps
from direct_hifimamba.benchmark.run.estimate import estimate, format_estimates
from direct_hifimamba.benchmark.score.results import Cost, Spread
from tests.benchmark.small_benchmark import MASKS, SHAPE, SLICES, VOLUMES, write_specification

_SECONDS = {"seconds_per_iteration": 1.0, "seconds_per_batch": 3.0, "seconds_per_slice": 0.5}


def test_time_and_disk_follow_from_the_costs(tmp_path: Path, small_specification: Path) -> None:
    search = {"learning_rates": [0.001], "budget": None}
    write_specification(
        tmp_path, budget={"iterations": 4000}, search=search, seeds=[0], classical=["BART pics"], validations=3
    )
    benchmark = plan(small_specification, tmp_path / "out")
    seconds = {name: Spread(value, value, value) for name, value in _SECONDS.items()}
    benchmark.write_costs({"U-Net": Cost(1, parameters=1000, workers=2, **seconds)})
    runs = {(run.kind, run.model): run for run in benchmark.plan()}
    cell, trial = (estimate(benchmark, runs[kind, "U-Net"]) for kind in ("cell", "trial"))
    assert cell is not None and trial is not None
    # Loading takes 3 s in either of two workers, and hides the 1 s of training.
    validated = 3 * len(VOLUMES["val"]) * SLICES  # at the first acceleration alone
    assert (cell.iterations, cell.training) == (4000, 4000 * 1.5 + 0.5 * validated)
    assert (trial.iterations, trial.training) == (1000, 1000 * 1.5)
    slices = {split: len(VOLUMES[split]) * SLICES * len(MASKS) for split in ("val", "test")}
    assert cell.prediction == 0.5 * slices["test"] and trial.prediction == 0.5 * slices["val"]
    # A checkpoint every 200 iterations: five minutes.
    assert cell.size == 20 * 12 * 1000 + 4 * SHAPE[0] * SHAPE[1] * slices["test"]
    assert estimate(benchmark, runs["cell", "HiFi-MambaV2"]) is None
    text = format_estimates(benchmark)
    assert [line.split()[0] for line in text.splitlines()[1:-1]] == [run.name for run in benchmark.plan()]
    assert text.count("not known") == 3
    hours = (cell.training + cell.prediction + trial.training + trial.prediction) / 3600
    assert f"5 runs: {hours:.1f} hours of one device (cpu)" in text


@pytest.mark.parametrize(("seconds", "expected"), [(None, 1000), (1.0, 300), (0.001, 1000), (0.01, 1000), (600.0, 200)])
def test_checkpoints_come_every_five_minutes_but_four_to_twenty_times(seconds: float | None, expected: int) -> None:
    assert checkpoint_steps(4000, seconds) == expected
