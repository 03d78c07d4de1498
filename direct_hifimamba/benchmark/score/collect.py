"""The results of a benchmark, collected from its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from direct_hifimamba.benchmark import provenance
from direct_hifimamba.benchmark.plan.configurations import evaluation_settings
from direct_hifimamba.benchmark.plan.record import read_plan
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.benchmark.run.matrix import Benchmark, PlannedRun
from direct_hifimamba.benchmark.run.processes import THREADS
from direct_hifimamba.benchmark.run.runner import RunError
from direct_hifimamba.benchmark.score.metrics import DEFAULT, metric_definitions
from direct_hifimamba.benchmark.score.results import (
    Data,
    Failure,
    Model,
    Protocol,
    Provenance,
    Results,
    digest,
)
from direct_hifimamba.benchmark.score.scoring import Volume, find_volumes, score_run
from direct_hifimamba.benchmark.score.summary import summarise_scores
from direct_hifimamba.benchmark.score.table import Scores

ZERO_FILLED = "zero-filled"


def collect(benchmark: Benchmark, command: Sequence[str]) -> tuple[Results, Scores]:
    """Score what of the test split has not been scored yet, and describe everything.

    Parameters
    ----------
    benchmark : Benchmark
    command : sequence of str
        Arguments of `direct-hifimamba`.
    """
    specification, inputs, planned = benchmark.specification, read_plan(benchmark.folder), benchmark.plan()
    predicted = {run: tables for run, tables in find_predictions(benchmark).items() if run.kind != "trial"}
    scores = Scores.join(
        {
            (run.model, None if run.kind == "classical" else run.seed, name): table
            for run, tables in predicted.items()
            for name, table in zip(
                specification.accelerations, score_run(tables, benchmark.metrics(run.kind)).values(), strict=True
            )
        }
    )
    firsts = [run for run in planned if run.kind == "cell" and run.seed == specification.seeds[0]]
    classical = [run for run in planned if run.kind == "classical" and run in predicted]
    results = Results(
        name=specification.name,
        description=specification.description,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        baseline=specification.baseline,
        protocol=Protocol(
            data=_describe_data(specification, inputs),
            accelerations=list(specification.accelerations),
            budget={key: float(value) for key, value in specification.budget.model_dump(exclude_none=True).items()},
            schedule=specification.schedule,
            loss=next(iter(next(iter(inputs["models"].values())).values()))["training"]["loss"],
            seeds=list(specification.seeds),
            metrics=metric_definitions([*DEFAULT, *specification.metrics]),
            evaluation=evaluation_settings(benchmark.first_config()),
        ),
        provenance=Provenance(
            versions=provenance.find_versions(specification.device),
            host=provenance.describe_host(specification.device),
            threads=THREADS,
            git_revision=provenance.git_revision(),
            command=provenance.as_typed(command),
            specification=specification.to_yaml(benchmark.folder.path),
        ),
        models=[
            *(_describe_model(benchmark, run) for run in firsts),
            Model(ZERO_FILLED, "classical"),
            *(_describe_classical(benchmark, run) for run in classical),
        ],
        failures=[
            Failure(run.model, run.seed, benchmark.folder.run(run.name).error or "It has not been run yet.")
            for run in planned
            if run.kind == "cell" and run not in predicted
        ],
        summary=summarise_scores(scores, specification.baseline, inputs["groups"]),
    )
    return results, scores


def find_predictions(benchmark: Benchmark) -> dict[PlannedRun, dict[Path, list[Volume]]]:
    """Return by run what there is to score: volumes by the path of their table, in the order of the accelerations.

    Zero-filled images are scored once a run has finished, since they are cropped to the size of its predictions.

    Raises
    ------
    ValueError
        If the predictions of a run are not those of all files.
    """
    is_centered = benchmark.is_centered()
    found: dict[PlannedRun, dict[Path, list[Volume]]] = {}
    for run in benchmark.plan():
        folder, data = benchmark.folder.run(run.name), benchmark.prediction_data(run.kind)
        if folder.is_complete(data):
            found[run] = {
                folder.scores(name): find_volumes(path, folder.predictions(name), is_centered)
                for name, path in data.items()
            }
    finished = next((tables for run, tables in found.items() if run.kind != "trial"), None)
    if finished is not None:
        folder = benchmark.folder.cell(ZERO_FILLED, 0)
        found[benchmark.entry(folder, "classical", ZERO_FILLED)] = {
            folder.scores(table.stem): [volume._replace(is_zero_filled=True) for volume in volumes]
            for table, volumes in finished.items()
        }
    return found


def _describe_data(specification: Specification, inputs: Mapping[str, Any]) -> Data:
    splits, data = specification.splits, inputs["data"]

    def of_split(split: str) -> dict[str, Any]:
        return {name: data[specification.folder(split, name).name] for name in specification.accelerations}

    tests = of_split(splits.test)
    volumes = next(iter(tests.values()))
    return Data(
        origin=inputs["origin"],
        files={name: described["sha256"] for name, described in volumes.items()},
        slices=sum(described["slices"] for described in volumes.values()),
        masks={
            acceleration: digest({name: described["mask"] for name, described in files.items()})
            for acceleration, files in tests.items()
        },
        training=digest(data[splits.training]),
        validation=digest(of_split(splits.validation)),
        protocol=inputs["protocol"],
        groups=inputs["groups"],
        sources=inputs["sources"],
    )


def _describe_model(benchmark: Benchmark, planned: PlannedRun) -> Model:
    """Describe a model by one of its runs."""
    label = planned.model
    described = Model(label, "trained", cost=benchmark.read_costs().get(label), search=benchmark.read_trials(label))
    try:
        run = benchmark.make_run(planned)
    except RunError:
        return described
    return replace(
        described,
        model_name=run.config.model.model_name,
        config=OmegaConf.to_yaml(run.config),
        iterations=run.iterations,
        learning_rate=run.config.training.lr,
    )


def _describe_classical(benchmark: Benchmark, run: PlannedRun) -> Model:
    folder = benchmark.folder.run(run.name)
    settings = {
        name: yaml.safe_load(folder.predictions(name).with_suffix(".yaml").read_text())
        for name in benchmark.specification.accelerations
    }
    return Model(run.model, "classical", config=yaml.safe_dump(settings, sort_keys=False))
