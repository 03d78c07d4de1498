"""The runs of a benchmark: models times learning rates on the validation split, then models times seeds on the test."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pyarrow as pa
from omegaconf import DictConfig
from pydantic import TypeAdapter

from direct_hifimamba.benchmark.executors.cores import count_workers
from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.configurations import is_centered, training_config
from direct_hifimamba.benchmark.plan.initialisation import Initialisation
from direct_hifimamba.benchmark.plan.specification import MIN_ITERATIONS, Budget, Specification
from direct_hifimamba.benchmark.run.cost import Cost
from direct_hifimamba.benchmark.run.runner import Run, RunError
from direct_hifimamba.benchmark.score.metrics import METRICS
from direct_hifimamba.benchmark.score.results import Trial
from direct_hifimamba.benchmark.score.scoring import find_volumes, score_runs
from direct_hifimamba.benchmark.score.table import Scores
from direct_hifimamba.files import replace_when_complete

_COSTS = TypeAdapter(dict[str, Cost])
_TRIAL_SHARE = 4
"""Default of a trial: this part of the budget. Shorter ones favour rates that only begin fast."""


@dataclass(frozen=True)
class PlannedRun:
    """A line of the plan.

    Attributes
    ----------
    name : str
        Its folder in that of the benchmark.
    kind : str
        `trial` of the search, `cell` of the comparison, or `classical`: a reconstruction without training.
    model : str
        Label.
    seed : int
    learning_rate : float, optional
        None: that of the configuration, or the one that the search finds.
    iterations : int, optional
        None: they depend on the time of one.
    """

    name: str
    kind: Literal["trial", "cell", "classical"]
    model: str
    seed: int
    learning_rate: float | None
    iterations: int | None


@dataclass(frozen=True)
class Benchmark:
    """A specification, its configurations by label and acceleration, and the folder of its results."""

    specification: Specification
    configs: Mapping[str, Mapping[str, DictConfig]]
    folder: BenchmarkFolder

    def is_centered(self) -> bool:
        """See :func:`direct_hifimamba.benchmark.plan.configurations.is_centered`; the same for all models."""
        return is_centered(next(iter(next(iter(self.configs.values())).values())))

    def budget(self, kind: str) -> Budget:
        """Return how long a run of some kind is trained."""
        specification = self.specification
        if kind == "cell":
            return specification.budget
        if specification.search is not None and specification.search.budget is not None:
            return specification.search.budget
        if specification.budget.minutes is not None:
            return Budget(minutes=specification.budget.minutes / _TRIAL_SHARE)
        return Budget(iterations=max(MIN_ITERATIONS, (specification.budget.iterations or 0) // _TRIAL_SHARE))

    def plan(self) -> list[PlannedRun]:
        """Return all runs in the order in which they are begun."""
        specification, root = self.specification, self.folder.path
        search, seeds = specification.search, specification.seeds
        trials = [
            PlannedRun(
                str(self.folder.trial(label, rate).path.relative_to(root)),
                "trial",
                label,
                seeds[0],
                rate,
                self.budget("trial").iterations,
            )
            for label in specification.models
            for rate in (search.learning_rates if search else [])
        ]
        cells = [
            PlannedRun(
                str(self.folder.cell(label, seed).path.relative_to(root)),
                "cell",
                label,
                seed,
                None,
                specification.budget.iterations,
            )
            for seed in seeds
            for label in specification.models
        ]
        classical = [
            PlannedRun(str(self.folder.cell(label, 0).path.relative_to(root)), "classical", label, 0, None, None)
            for label in specification.classical
        ]
        return [*trials, *cells, *classical]

    def prediction_data(self, kind: str) -> dict[str, Path]:
        """Return by acceleration the folder that a run of some kind reconstructs."""
        splits = self.specification.splits
        split = splits.validation if kind == "trial" else splits.test
        return {name: self.specification.folder(split, name) for name in self.specification.accelerations}

    def read_costs(self) -> dict[str, Cost]:
        """Return the costs by label as far as they have been measured."""
        return _COSTS.validate_json(self.folder.cost.read_bytes()) if self.folder.cost.exists() else {}

    def write_costs(self, costs: Mapping[str, Cost]) -> None:
        """Write what :meth:`read_costs` reads."""
        with replace_when_complete(self.folder.cost) as partial:
            partial.write_bytes(_COSTS.dump_json(dict(costs), indent=1) + b"\n")

    def read_trials(self) -> dict[str, list[Trial]]:
        """Return by label what the search has found, an empty list where there was none."""
        path = self.folder.search
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {label: [Trial(*trial) for trial in values.get(label, [])] for label in self.specification.models}

    def make_run(self, planned: PlannedRun) -> Run:
        """Return a planned run with its configuration.

        Raises
        ------
        RunError
            If its iterations or its learning rate are not known: nothing could be measured, or no trial has a score.
        """
        specification, label, rate = self.specification, planned.model, planned.learning_rate
        # As many workers as when the cost was measured, so that they depend on no other machine.
        cost = self.read_costs().get(label, Cost(threads=1, workers=count_workers(), error="it was not measured"))
        if planned.kind == "cell" and specification.search is not None:
            rate = choose_learning_rate(self.read_trials()[label], specification.search.metric)
        return Run(
            name=planned.name,
            folder=self.folder.run(planned.name),
            config=training_config(
                self.configs[label],
                count_iterations(self.budget(planned.kind), cost),
                specification.warm_up,
                rate,
                cost.seconds_per_step,
                specification.validations if planned.kind == "cell" else 0,
            ),
            training_data=specification.data / specification.splits.training,
            prediction_data=self.prediction_data(planned.kind),
            seed=planned.seed,
            schedule=specification.schedule,
            device=specification.device,
            workers=cost.workers,
            initialisation=self._initialisation(label),
            validation_data=next(iter(self.prediction_data("trial").values())),
        )

    def _initialisation(self, label: str) -> Initialisation | None:
        model = self.specification.models[label]
        other = None if model.initial_weights is None else next(iter(self.configs[model.initial_weights].values()))
        return Initialisation(model.scaled_parameters, other) if model.scaled_parameters or other is not None else None


def count_iterations(budget: Budget, cost: Cost) -> int:
    """Return how many iterations a model is trained for; time includes loading.

    Raises
    ------
    RunError
        If they depend on the time of one, and that could not be measured.
    """
    if budget.iterations is not None:
        return budget.iterations
    if cost.seconds_per_step is None:
        raise RunError(f"The time of an iteration, which the budget asks for, could not be measured: {cost.error}")
    return max(MIN_ITERATIONS, round(60 * (budget.minutes or 0) / cost.seconds_per_step))


def score_trials(benchmark: Benchmark, jobs: int) -> None:
    """Score the finished runs of the search by its metric, and write what :meth:`Benchmark.read_trials` reads."""
    search = benchmark.specification.search
    if search is None:
        return
    runs: dict[tuple[str, float], Run] = {}
    for planned in benchmark.plan():
        if planned.kind == "trial" and planned.learning_rate is not None:
            try:
                run = benchmark.make_run(planned)
            except RunError:
                continue
            if run.is_finished:
                runs[planned.model, planned.learning_rate] = run
    volumes = {
        run.folder.scores(name): find_volumes(data, run.folder.predictions(name), benchmark.is_centered())
        for run in runs.values()
        for name, data in run.prediction_data.items()
    }
    tables = score_runs(volumes, jobs, "score the search", [search.metric], with_spectrum=False)
    scores = {key: _mean_score(run, tables, search.metric) for key, run in runs.items()}
    found = {
        label: [[rate, scores.get((label, rate))] for rate in search.learning_rates]
        for label in benchmark.specification.models
    }
    with replace_when_complete(benchmark.folder.search) as partial:
        partial.write_text(json.dumps(found, indent=1), encoding="utf-8")


def _mean_score(run: Run, tables: Mapping[Path, pa.Table], metric: str) -> float | None:
    """Return the mean of a metric over volumes and accelerations; None if it is not defined for one of them."""
    accelerations = list(run.prediction_data)
    scores = Scores.join({(run.name, None, name): tables[run.folder.scores(name)] for name in accelerations})
    values = [value for name in accelerations for value in scores.volumes(run.name, name, metric)[None].values()]
    return fmean(values) if all(map(math.isfinite, values)) else None


def choose_learning_rate(trials: Sequence[Trial], metric: str) -> float:
    """Return the learning rate with the best score.

    Raises
    ------
    RunError
        If none has one.
    """
    sign = 1 if METRICS[metric].higher_is_better else -1
    best = max(trials, key=lambda trial: -math.inf if trial.score is None else sign * trial.score, default=None)
    if best is None or best.score is None:
        raise RunError("No learning rate of the search gave a score; see failure.txt of its runs.")
    return best.learning_rate
