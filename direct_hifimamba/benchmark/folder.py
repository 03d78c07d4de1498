"""Names of the files and folders that a benchmark writes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SCORES_NAME = "scores.parquet"
"""File beside `results.json` that has the scores of all slices."""

DIVERGED = "diverged"
"""With which the reason begins if a training diverged."""


def slug(label: str) -> str:
    """Return a label as a file name: lower case, with an underscore for everything but letters, digits and dots.

    >>> slug("HiFi-MambaV2")
    'hifi_mambav2'
    """
    return re.sub(r"[^a-z0-9.]", "_", label.lower())


@dataclass(frozen=True)
class RunFolder:
    """One training with its predictions: a cell of the benchmark, or a trial of the learning-rate search."""

    path: Path

    @property
    def config(self) -> Path:
        """The composed configuration. DIRECT names the run after the stem of this file."""
        return self.path / "config_input.yaml"

    @property
    def initialisation(self) -> Path:
        """Checkpoint of the initial weights."""
        return self.path / "initialisation.pt"

    @property
    def log(self) -> Path:
        """Output of DIRECT's processes."""
        return self.path / "train.log"

    @property
    def failure(self) -> Path:
        """Reason why the run failed; exists only if it did."""
        return self.path / "failure.txt"

    @property
    def error(self) -> str | None:
        """Reason why the run failed, if it did."""
        return self.failure.read_text(encoding="utf-8") if self.failure.exists() else None

    @property
    def has_diverged(self) -> bool:
        """Whether it failed because the training diverged, which a repetition would not change."""
        return (self.error or "").startswith(DIVERGED)

    @property
    def experiment(self) -> Path:
        """Output folder of `direct train`."""
        return self.path / "run"

    @property
    def run(self) -> Path:
        """Folder in `experiment` with checkpoints, metrics and DIRECT's copy of the configuration."""
        return self.experiment / self.config.stem

    def checkpoint(self, iteration: int) -> Path:
        """The checkpoint that DIRECT writes after the iteration with this index."""
        return self.run / f"model_{iteration}.pt"

    def predictions(self, acceleration: str) -> Path:
        """One file per volume, with `reconstruction`, and metrics_inference.json."""
        return self.path / "predictions" / acceleration

    def is_complete(self, accelerations: Iterable[str]) -> bool:
        """Return whether there is nothing left to do: no failure, and predictions of all accelerations."""
        return not self.failure.exists() and all(self.predictions(name).is_dir() for name in accelerations)

    def scores(self, acceleration: str) -> Path:
        """The table of scores of the predictions."""
        return self.path / "scores" / f"{acceleration}.parquet"


@dataclass(frozen=True)
class BenchmarkFolder:
    """The output folder of a benchmark."""

    path: Path

    @property
    def specification(self) -> Path:
        """The specification with every default written out."""
        return self.path / "specification.yaml"

    @property
    def plan(self) -> Path:
        """The list of runs, hashes of the data, and all configurations."""
        return self.path / "plan.json"

    @property
    def hashes(self) -> Path:
        """Hashes of k-space by size and modification time of its files."""
        return self.path / "hashes.json"

    @property
    def cost(self) -> Path:
        """Parameters, operations, times and memory of every model."""
        return self.path / "cost.json"

    def run(self, name: str) -> RunFolder:
        """Return the run whose folder has this name in the plan."""
        return RunFolder(self.path / name)

    def trial(self, label: str, learning_rate: float) -> RunFolder:
        """The run of the learning-rate search of a model with this learning rate."""
        return RunFolder(self.path / "search" / slug(label) / f"lr_{learning_rate:g}")

    def cell(self, label: str, seed: int) -> RunFolder:
        """The run of a model with this seed."""
        return RunFolder(self.path / "cells" / slug(label) / f"seed_{seed}")

    @property
    def results_json(self) -> Path:
        """All results but the scores of slices, see :class:`~direct_hifimamba.benchmark.score.results.Results`."""
        return self.path / "results.json"

    @property
    def scores(self) -> Path:
        """The scores of all slices, see :mod:`direct_hifimamba.benchmark.score.table`."""
        return self.results_json.with_name(SCORES_NAME)

    @property
    def results_csv(self) -> Path:
        """One line per number."""
        return self.path / "results.csv"

    @property
    def results_markdown(self) -> Path:
        """The tables."""
        return self.path / "results.md"

    @property
    def report(self) -> Path:
        """The page with the pictures."""
        return self.path / "report" / "index.html"
