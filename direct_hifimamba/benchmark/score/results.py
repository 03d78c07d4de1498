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
    schema_version: Literal[2] = 2

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
