"""What a benchmark has found: the models of `results.json`. Times are in seconds, memory is in bytes."""

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from direct_hifimamba.benchmark.score.scores import METRICS
from direct_hifimamba.benchmark.score.statistics import Difference, Groups, Values, compare, group_members, summarise
from direct_hifimamba.benchmark.validation import CONFIG, first_error
from direct_hifimamba.files import replace_when_complete

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""SHA-256 in hexadecimal digits."""


def digest(values: Any) -> str:
    """SHA-256 of anything that JSON can hold; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, config=CONFIG)
class Data:
    """The data, by hashes of their content; `groups` has the subject of each test file, `sources` its download's."""

    origin: str
    files: dict[str, Digest]
    slices: int
    masks: dict[str, Digest]
    training: Digest
    validation: Digest
    protocol: Digest | None
    groups: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, config=CONFIG)
class Protocol:
    """What was asked of all models alike; `hash` covers what has to be equal in one table."""

    data: Data
    accelerations: list[str]
    budget: dict[str, float]
    schedule: str
    loss: dict[str, Any]
    seeds: list[int]
    metrics: dict[str, str]
    spectrum_edges: list[float]
    evaluation: dict[str, Any]

    @property
    def hash(self) -> str:
        """Digest of :attr:`comparable`, kept in the file."""
        return digest(self.comparable)

    @property
    def comparable(self) -> dict[str, Any]:
        """What two results must share to stand in one table: neither models nor budget."""
        return {
            "test files": self.data.files,
            "slices": self.data.slices,
            "masks": self.data.masks,
            "training data": self.data.training,
            "validation data": self.data.validation,
            "accelerations": sorted(self.accelerations),
            "metrics": self.metrics,
            "bands of the error spectrum": self.spectrum_edges,
            "evaluation": self.evaluation,
            "loss": self.loss,
        }


@dataclass(frozen=True, config=CONFIG)
class Provenance:
    """What is needed to repeat the benchmark."""

    versions: dict[str, str]
    host: str
    threads: int
    git_revision: str | None
    commands: list[str]
    specification: str


@dataclass(frozen=True, config=CONFIG)
class Spread:
    """Median, smallest and largest of what was measured in several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, config=CONFIG)
class Trial:
    """A learning rate that was tried on the validation split; `score` is None where training failed."""

    learning_rate: float
    score: float | None


@dataclass(frozen=True, config=CONFIG)
class Model:
    """A row of the tables: what was compared and what it costs."""

    label: str
    slug: str
    kind: Literal["trained", "classical"]
    model_name: str | None = None
    config: str | None = None
    parameters: int | None = None
    active_parameters: float | None = None
    macs: float | None = None
    seconds_per_iteration: Spread | None = None
    seconds_per_slice: Spread | None = None
    peak_memory_bytes: Spread | None = None
    iterations: int | None = None
    learning_rate: float | None = None
    search: list[Trial] = field(default_factory=list)

    @property
    def training_minutes(self) -> float | None:
        """An estimate: the median time per iteration times the number of iterations."""
        if self.seconds_per_iteration is None or self.iterations is None:
            return None
        return self.seconds_per_iteration.median * self.iterations / 60

    @property
    def is_at_edge(self) -> bool:
        """Whether the learning rate is the lowest or highest of the search, so that a better one may lie beyond."""
        rates = [trial.learning_rate for trial in self.search]
        return bool(rates) and self.learning_rate in (min(rates), max(rates))


@dataclass(frozen=True, config=CONFIG)
class Scores:
    """Scores of one model and seed at one acceleration. None stands for a score that is not defined."""

    model: str
    acceleration: str
    seed: int | None
    status: Literal["finished", "failed"]
    error: str | None = None
    volumes: dict[str, dict[str, float | None]] = field(default_factory=dict)
    slices: dict[str, list[dict[str, float | None]]] = field(default_factory=dict)
    spectrum: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(frozen=True, config=CONFIG)
class SummaryRow:
    """One metric of one model at one acceleration, over all volumes and seeds."""

    model: str
    acceleration: str
    metric: str
    seeds: int
    unit: Literal["subject", "volume", "slice"]  # only the first one is written today
    groups: int
    volumes: int
    slices: int
    mean: float
    std: float | None
    low: float | None
    high: float | None
    seed_std: float | None
    difference: Difference | None
    difference_to_best: Difference | None
    singles: list[float] = field(default_factory=list)


@dataclass(frozen=True, config=CONFIG)
class Results:
    """Everything that one benchmark has found."""

    name: str
    description: str
    created: str
    baseline: str
    protocol: Protocol
    provenance: Provenance
    models: list[Model]
    scores: list[Scores]
    summary: list[SummaryRow]
    schema_version: Literal[1] = 1

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read and check a file that :meth:`save` has written.

        Raises
        ------
        OSError
            If it cannot be read.
        ValueError
            If it is no such file, or was changed in a way that its protocol's hash shows.
        """
        try:
            values = json.loads(path.read_bytes())
            expected = values["protocol"].pop("hash")
            results = _ADAPTER.validate_json(json.dumps(values))
        except ValidationError as error:
            raise ValueError(f"{path} is no results.json of this version: {first_error(error)}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is no results.json of a benchmark: {error!r}.") from error
        if results.protocol.hash != expected:
            raise ValueError(
                f"The protocol in {path} does not have the hash {expected} that is given with it: the file was "
                "changed. Run the benchmark again, which writes it."
            )
        return results

    def save(self, path: Path) -> None:
        """Write `results.json`; the file appears when it is complete."""
        values = _ADAPTER.dump_python(self, mode="json")
        values["protocol"]["hash"] = self.protocol.hash
        with replace_when_complete(path) as partial:
            partial.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", "utf-8")


_ADAPTER = TypeAdapter(Results)


def summarise_scores(scores: Sequence[Scores], baseline: str, groups: Groups | None = None) -> list[SummaryRow]:
    """Summarise what was scored: a row per acceleration, metric and model, in the order in which `scores` has them.

    Parameters
    ----------
    scores : sequence of Scores
        Those that failed are left out; of a model, the seeds that finished are averaged.
    baseline : str
        Label of the model to which differences are taken.
    groups : mapping, optional
        Group by file, see :class:`Data`; by default, every file is a group of its own.
    """
    rows: list[SummaryRow] = []
    for acceleration in dict.fromkeys(score.acceleration for score in scores):
        finished = [score for score in scores if score.acceleration == acceleration and score.status == "finished"]
        by_model = {
            model: [s for s in finished if s.model == model] for model in dict.fromkeys(s.model for s in finished)
        }
        for metric in METRICS:
            rows += _summarise_metric(by_model, acceleration, metric, baseline, groups)
    return rows


def _summarise_metric(
    scores: Mapping[str, Sequence[Scores]], acceleration: str, name: str, baseline: str, groups: Groups | None
) -> Iterable[SummaryRow]:
    metric = METRICS[name]
    summaries = {model: summarise(_values(seeds, name), groups) for model, seeds in scores.items()}
    means = {model: summary.mean for model, summary in summaries.items() if summary is not None}
    if not means:
        return
    best = (max if metric.higher_is_better else min)(means, key=means.__getitem__)

    def difference_to(model: str, other: str) -> Difference | None:
        if model == other or other not in means:
            return None
        # Trainings of one seed are a pair; where one of them failed, the other is left out, too.
        seeds = {score.seed for score in scores[model]} & {score.seed for score in scores[other]}
        sides = ([score for score in scores[label] if score.seed in seeds] or scores[label] for label in (model, other))
        one, another = (_values(side, name) for side in sides)
        return compare(one, another, groups)

    for model, seeds in scores.items():
        summary = summaries[model]
        if summary is not None:
            scored_files = [file for file, scored in seeds[0].volumes.items() if scored[name] is not None]
            yield SummaryRow(
                model=model,
                acceleration=acceleration,
                metric=name,
                seeds=len(seeds),
                unit="subject",
                groups=len(group_members(scored_files, groups)),
                volumes=len(scored_files),
                slices=sum(scored[name] is not None for slices in seeds[0].slices.values() for scored in slices),
                mean=summary.mean,
                std=summary.std,
                low=summary.low,
                high=summary.high,
                seed_std=summary.seed_std,
                difference=difference_to(model, baseline),
                difference_to_best=difference_to(model, best),
                singles=summary.singles,
            )


def _values(seeds: Sequence[Scores], metric: str) -> Values:
    """Scores of a model in one metric, per volume of shape (seeds,)."""
    return {file: np.array([seed.volumes[file][metric] for seed in seeds], np.float64) for file in seeds[0].volumes}
