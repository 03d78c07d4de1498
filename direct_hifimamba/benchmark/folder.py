"""Names of the files and folders that a benchmark writes."""

import re
from collections.abc import Iterable
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


class RunFolder:
    """One training with its predictions: a cell of the benchmark, or a trial of the learning-rate search.

    Attributes
    ----------
    config : Path
        The composed configuration. DIRECT names the run after the stem of this file.
    initialisation : Path
        Checkpoint of the initial weights.
    log : Path
        Output of DIRECT's processes.
    failure : Path
        Reason why the run failed; exists only if it did.
    experiment : Path
        Output folder of `direct train`.
    run : Path
        Folder in `experiment` with checkpoints, metrics and DIRECT's copy of the configuration.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config_input.yaml"
        self.initialisation = path / "initialisation.pt"
        self.log = path / "train.log"
        self.failure = path / "failure.txt"
        self.experiment = path / "run"
        self.run = self.experiment / self.config.stem

    def checkpoint(self, iteration: int) -> Path:
        """The checkpoint that DIRECT writes after the iteration with this index."""
        return self.run / f"model_{iteration}.pt"

    def predictions(self, acceleration: str) -> Path:
        """One file per volume, with `reconstruction`, and metrics_inference.json."""
        return self.path / "predictions" / acceleration

    def scores(self, acceleration: str) -> Path:
        """The table of scores of the predictions."""
        return self.path / "scores" / f"{acceleration}.parquet"

    def is_complete(self, accelerations: Iterable[str]) -> bool:
        """Return whether there is nothing left to do: no failure, and predictions of all accelerations."""
        return not self.failure.exists() and all(self.predictions(name).is_dir() for name in accelerations)

    @property
    def error(self) -> str | None:
        """Reason why the run failed, if it did."""
        return self.failure.read_text(encoding="utf-8") if self.failure.exists() else None

    @property
    def has_diverged(self) -> bool:
        """Whether it failed because the training diverged, which a repetition would not change."""
        return (self.error or "").startswith(DIVERGED)


class BenchmarkFolder:
    """The output folder of a benchmark.

    Attributes
    ----------
    specification : Path
        The specification with every default written out.
    plan : Path
        The list of runs, hashes of the data, and all configurations.
    hashes : Path
        Hashes of k-space by size and modification time of its files.
    cost : Path
        Parameters, operations, times and memory of every model.
    results_json : Path
        All results but the scores of slices, see :class:`~direct_hifimamba.benchmark.score.results.Results`.
    scores : Path
        The scores of all slices, see :mod:`direct_hifimamba.benchmark.score.table`.
    results_csv : Path
        One line per number.
    results_markdown : Path
        The tables.
    report : Path
        The page with the pictures.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.specification = path / "specification.yaml"
        self.plan = path / "plan.json"
        self.hashes = path / "hashes.json"
        self.cost = path / "cost.json"
        self.results_json = path / "results.json"
        self.scores = path / SCORES_NAME
        self.results_csv = path / "results.csv"
        self.results_markdown = path / "results.md"
        self.report = path / "report" / "index.html"

    def run(self, name: str) -> RunFolder:
        """Return the run whose folder has this name in the plan."""
        return RunFolder(self.path / name)

    def trial(self, label: str, learning_rate: float) -> RunFolder:
        """The run of the learning-rate search of a model with this learning rate."""
        return RunFolder(self.path / "search" / slug(label) / f"lr_{learning_rate:g}")

    def cell(self, label: str, seed: int) -> RunFolder:
        """The run of a model with this seed."""
        return RunFolder(self.path / "cells" / slug(label) / f"seed_{seed}")
