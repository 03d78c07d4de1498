"""The runs of a benchmark: models times learning rates on the validation split, then models times seeds on the test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from omegaconf import DictConfig

from direct_hifimamba.benchmark.folder import BenchmarkFolder, RunFolder
from direct_hifimamba.benchmark.plan.configurations import is_centered, training_config
from direct_hifimamba.benchmark.plan.initialisation import Initialisation
from direct_hifimamba.benchmark.plan.specification import MIN_ITERATIONS, Budget, Specification
from direct_hifimamba.benchmark.run.cost import Cost
from direct_hifimamba.benchmark.run.runner import Run, RunError, Runner, write_failure
from direct_hifimamba.benchmark.score.results import Trial
from direct_hifimamba.benchmark.score.scores import METRICS
from direct_hifimamba.benchmark.score.scoring import Volume, score_volumes, volumes_of


@dataclass(frozen=True)
class Benchmark:
    """A specification, its configurations by label and acceleration, and where its results go."""

    specification: Specification
    configs: Mapping[str, Mapping[str, DictConfig]]
    folder: BenchmarkFolder

    def is_centered(self) -> bool:
        """See :func:`direct_hifimamba.benchmark.plan.configurations.is_centered`; the same for all models."""
        return is_centered(next(iter(next(iter(self.configs.values())).values())))

    def _initialisation(self, label: str) -> Initialisation | None:
        model = self.specification.models[label]
        other = None if model.initial_weights is None else next(iter(self.configs[model.initial_weights].values()))
        return Initialisation(model.scaled_parameters, other) if model.scaled_parameters or other is not None else None

    def make_run(
        self, label: str, folder: RunFolder, split: str, iterations: int, learning_rate: float | None, seed: int
    ) -> Run:
        """A training of a model with predictions of a split at every acceleration."""
        specification = self.specification
        config = training_config(self.configs[label], iterations, specification.warm_up, learning_rate)
        return Run(
            name=f"{label} {folder.path.name}",
            folder=folder,
            config=config,
            training_data=specification.data / specification.splits.training,
            prediction_data={name: specification.folder(split, name) for name in specification.accelerations},
            seed=seed,
            schedule=specification.schedule,
            device=specification.device,
            initialisation=self._initialisation(label),
        )


def count_iterations(budget: Budget, cost: Cost) -> int:
    """How many iterations a model has.

    Raises
    ------
    RunError
        If they depend on the time of one, and that could not be measured.
    """
    if budget.iterations is not None:
        return budget.iterations
    if cost.seconds_per_iteration is None:
        raise RunError(f"The time of an iteration, which the budget asks for, could not be measured: {cost.error}")
    return max(MIN_ITERATIONS, round(60 * (budget.minutes or 0) / cost.seconds_per_iteration.median))


def make_trials(benchmark: Benchmark, costs: Mapping[str, Cost]) -> dict[tuple[str, float], Run]:
    """The runs of the search by label and learning rate. Of those that cannot be made, the folder has the reason."""
    specification = benchmark.specification
    if specification.search is None:
        return {}
    runs: dict[tuple[str, float], Run] = {}
    for label in benchmark.configs:
        for rate in specification.search.learning_rates:
            folder = benchmark.folder.trial(label, rate)
            try:
                iterations = count_iterations(specification.search.budget, costs[label])
            except RunError as error:
                write_failure(folder, error)
                continue
            split, seed = specification.splits.validation, specification.seeds[0]
            runs[label, rate] = benchmark.make_run(label, folder, split, iterations, rate, seed)
    return runs


def search(
    benchmark: Benchmark, runs: Mapping[tuple[str, float], Run], runner: Runner, jobs: int
) -> dict[str, list[Trial]]:
    """Do the runs of :func:`make_trials` and score them on the validation split."""
    specification = benchmark.specification
    if specification.search is None:
        return {label: [] for label in benchmark.configs}
    runner.run(list(runs.values()), "search")
    finished = {key: run for key, run in runs.items() if run.is_finished}
    volumes = {key: volumes_of(run, benchmark.is_centered()) for key, run in finished.items()}
    scores = dict(zip(volumes, _mean_scores(list(volumes.values()), specification.search.metric, jobs), strict=True))
    return {
        label: [Trial(rate, scores.get((label, rate))) for rate in specification.search.learning_rates]
        for label in benchmark.configs
    }


def _mean_scores(groups: Sequence[Sequence[Volume]], metric: str, jobs: int) -> list[float | None]:
    """For every group of volumes, the mean of a metric; None if it is not defined for one of them."""
    scored = iter(score_volumes([volume for group in groups for volume in group], jobs, "score the search"))
    means: list[float | None] = []
    for group in groups:
        values = [next(scored).volume[metric] for _ in group]
        defined = [value for value in values if value is not None]
        means.append(fmean(defined) if len(defined) == len(values) else None)
    return means


def choose_learning_rate(trials: Sequence[Trial], metric: str) -> float:
    """The learning rate with the best score.

    Raises
    ------
    RunError
        If none has one.
    """
    sign = 1 if METRICS[metric].higher_is_better else -1
    best = max(trials, key=lambda trial: -math.inf if trial.score is None else sign * trial.score)
    if best.score is None:
        raise RunError("No learning rate of the search gave a score; see failure.txt of its runs.")
    return best.learning_rate


def make_cells(
    benchmark: Benchmark, costs: Mapping[str, Cost], trials: Mapping[str, Sequence[Trial]]
) -> dict[tuple[str, int], Run]:
    """The final runs by label and seed. Those that cannot be made have their reason written in their folders."""
    specification = benchmark.specification
    cells: dict[tuple[str, int], Run] = {}
    for label in benchmark.configs:
        for seed in specification.seeds:
            folder = benchmark.folder.cell(label, seed)
            try:
                rate = None
                if specification.search is not None:
                    rate = choose_learning_rate(trials[label], specification.search.metric)
                iterations = count_iterations(specification.budget, costs[label])
            except RunError as error:
                write_failure(folder, error)
                continue
            cells[label, seed] = benchmark.make_run(label, folder, specification.splits.test, iterations, rate, seed)
    return cells
