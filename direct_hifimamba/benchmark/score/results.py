"""The results of a benchmark, except for the scores: the models of `results.json`.

Times are in seconds, memory is in bytes.
"""

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from direct_hifimamba.benchmark.score.summary import SummaryRow
from direct_hifimamba.benchmark.validation import CONFIG, first_error
from direct_hifimamba.files import replace_when_complete

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""SHA-256 in hexadecimal digits."""


def digest(values: Any) -> str:
    """Return the SHA-256 of anything that JSON can hold; the order of keys does not matter."""
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
    """What was asked of all models alike."""

    data: Data
    accelerations: list[str]
    budget: dict[str, float]
    schedule: str
    loss: dict[str, Any]
    seeds: list[int]
    metrics: dict[str, str]
    evaluation: dict[str, Any]

    @property
    def hash(self) -> str:
        """Digest of :attr:`comparable`."""
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
    command: str
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
class Cost:
    """Cost of one model with everything that trains with it; None where it could not be measured."""

    threads: int
    """Threads of PyTorch."""
    parameters: int | None = None
    """Number of trainable parameters."""
    active_parameters: int | None = None
    """Number of those that act on one pixel: of routed experts, the one that the pixel chooses."""
    macs: int | None = None
    """Multiply-accumulates of the reconstruction of one slice, see `count_macs` in `run/cost.py`."""
    seconds_per_iteration: Spread | None = None
    """One iteration of training on a batch that has been loaded: forward, loss, backward, clipping, optimizer."""
    seconds_per_batch: Spread | None = None
    """Loading of one batch by one process: reading, masks, sensitivity maps."""
    seconds_per_slice: Spread | None = None
    """Reconstruction of one slice that has been loaded."""
    peak_memory_bytes: int | None = None
    """Memory of training. CPU: what it adds to the resident size of a process that holds model and batch (None except
    on Linux). CUDA: the most that PyTorch had allocated, model and batch included."""
    workers: int = 0
    """Processes that load batches for a training at the same time."""
    error: str | None = None
    """Why something could not be measured."""

    @property
    def seconds_per_step(self) -> float | None:
        """The median time of a training iteration with the loading of its batch, for which workers do not wait."""
        if self.seconds_per_iteration is None or self.seconds_per_batch is None:
            return None
        compute, load = self.seconds_per_iteration.median, self.seconds_per_batch.median
        return max(compute, load / self.workers) if self.workers else compute + load


@dataclass(frozen=True, config=CONFIG)
class Trial:
    """A learning rate that was tried on the validation split; `score` is None where training failed."""

    learning_rate: float
    score: float | None


@dataclass(frozen=True, config=CONFIG)
class Model:
    """A row of the tables: what was compared and what it costs."""

    label: str
    kind: Literal["trained", "classical"]
    model_name: str | None = None
    config: str | None = None
    cost: Cost | None = None
    iterations: int | None = None
    learning_rate: float | None = None
    search: list[Trial] = field(default_factory=list)

    @property
    def training_minutes(self) -> float | None:
        """An estimate: the median time per iteration times the number of iterations."""
        if self.cost is None or self.cost.seconds_per_iteration is None or self.iterations is None:
            return None
        return self.cost.seconds_per_iteration.median * self.iterations / 60

    @property
    def is_at_edge(self) -> bool:
        """Whether the learning rate is the lowest or highest of the search, so that a better one may lie beyond."""
        rates = [trial.learning_rate for trial in self.search]
        return bool(rates) and self.learning_rate in (min(rates), max(rates))


@dataclass(frozen=True, config=CONFIG)
class Failure:
    """A run that failed, and why."""

    model: str
    seed: int
    error: str


@dataclass(frozen=True, config=CONFIG)
class Results:
    """Everything that one benchmark has found, except for the table of scores."""

    name: str
    description: str
    created: str
    baseline: str
    protocol: Protocol
    provenance: Provenance
    models: list[Model]
    failures: list[Failure]
    summary: list[SummaryRow]
    schema_version: Literal[3] = 3

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read and check a file that :meth:`save` has written.

        Raises
        ------
        OSError
            If it cannot be read.
        ValueError
            If it is no such file.
        """
        try:
            return _ADAPTER.validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is no results.json of this version: {first_error(error)}") from error

    def save(self, path: Path) -> None:
        """Write `results.json`; the file appears when it is complete."""
        with replace_when_complete(path) as partial:
            partial.write_bytes(_ADAPTER.dump_json(self, indent=1) + b"\n")


_ADAPTER = TypeAdapter(Results)
