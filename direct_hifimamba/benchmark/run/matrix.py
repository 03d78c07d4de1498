"""The runs of a benchmark: models times learning rates on the validation split, then models times seeds on the test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, get_args

from omegaconf import DictConfig
from pydantic import TypeAdapter

from direct_hifimamba.benchmark.executors.cores import count_workers
from direct_hifimamba.benchmark.folder import BenchmarkFolder, RunFolder
from direct_hifimamba.benchmark.plan.configurations import is_centered, training_config
from direct_hifimamba.benchmark.plan.initialisation import Initialisation
from direct_hifimamba.benchmark.plan.specification import MIN_ITERATIONS, Budget, Specification
from direct_hifimamba.benchmark.run.runner import Run, RunError
from direct_hifimamba.benchmark.score.metrics import METRICS
from direct_hifimamba.benchmark.score.results import Cost, Trial
from direct_hifimamba.benchmark.score.scoring import ALWAYS
from direct_hifimamba.benchmark.score.table import RunTable, Scores
from direct_hifimamba.files import replace_when_complete

Kind = Literal["trial", "cell", "classical"]
KINDS = get_args(Kind)

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
    """

    name: str
    kind: Kind
    model: str
    seed: int
    learning_rate: float | None


@dataclass(frozen=True)
class Benchmark:
    """A specification and its file, its configurations by label and acceleration, and the folder of its results."""

    path: Path
    specification: Specification
    configs: Mapping[str, Mapping[str, DictConfig]]
    folder: BenchmarkFolder

    def is_centered(self) -> bool:
        """See :func:`direct_hifimamba.benchmark.plan.configurations.is_centered`; the same for all models."""
        return is_centered(self.first_config().physics.forward_operator)

    def first_config(self) -> DictConfig:
        """Return the configuration of the first model at the first acceleration, for what all have in common."""
        return next(iter(next(iter(self.configs.values())).values()))

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
        specification, folder = self.specification, self.folder
        rates = specification.search.learning_rates if specification.search else []
        labels, seeds = specification.models, specification.seeds
        return [
            *(
                self.entry(folder.trial(label, rate), "trial", label, seeds[0], rate)
                for label in labels
                for rate in rates
            ),
            *(self.entry(folder.cell(label, seed), "cell", label, seed) for seed in seeds for label in labels),
            *(self.entry(folder.cell(label, 0), "classical", label) for label in specification.classical),
        ]

    def entry(
        self, folder: RunFolder, kind: Kind, model: str, seed: int = 0, learning_rate: float | None = None
    ) -> PlannedRun:
        """Return a line of the plan, by the folder of the run."""
        return PlannedRun(str(folder.path.relative_to(self.folder.path)), kind, model, seed, learning_rate)

    def metrics(self, kind: str) -> list[str]:
        """Return the metrics that a run of some kind is scored by: of a trial, that of the search alone."""
        search = self.specification.search
        return [search.metric] if kind == "trial" and search is not None else [*ALWAYS, *self.specification.metrics]

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

    def read_trials(self, label: str) -> list[Trial]:
        """Return the learning rates that were tried for a model with their mean scores, nothing without a search."""
        search = self.specification.search
        return [Trial(rate, self._trial_score(label, rate)) for rate in (search.learning_rates if search else ())]

    def _trial_score(self, label: str, rate: float) -> float | None:
        """Return the mean over volumes and accelerations; None if one of them has no score."""
        folder, (metric,) = self.folder.trial(label, rate), self.metrics("trial")
        names = list(self.specification.accelerations)
        tables = {name: RunTable.read(folder.scores(name)).select([metric]) for name in names}
        scores = Scores.join({(label, None, name): table for name, table in tables.items()})
        found = [scores.volumes(label, name, metric).get(None, {}) for name in names]
        values = [value for volumes in found for value in volumes.values()]
        return fmean(values) if all(found) and all(map(math.isfinite, values)) else None

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
            rate = choose_learning_rate(self.read_trials(label), specification.search.metric)
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
