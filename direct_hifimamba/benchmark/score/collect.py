"""The results of a benchmark, collected from its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from direct_hifimamba.benchmark import provenance
from direct_hifimamba.benchmark.folder import RunFolder, slug
from direct_hifimamba.benchmark.plan.configurations import evaluation_settings
from direct_hifimamba.benchmark.plan.inputs import list_files
from direct_hifimamba.benchmark.plan.specification import BART
from direct_hifimamba.benchmark.run.cost import Cost
from direct_hifimamba.benchmark.run.matrix import Benchmark
from direct_hifimamba.benchmark.run.processes import ENVIRONMENT, THREADS
from direct_hifimamba.benchmark.run.runner import Run
from direct_hifimamba.benchmark.score.metrics import DEFAULT, metric_definitions
from direct_hifimamba.benchmark.score.results import (
    Data,
    Failure,
    Model,
    Protocol,
    Provenance,
    Results,
    Spread,
    Trial,
    digest,
)
from direct_hifimamba.benchmark.score.scores import SPECTRUM_EDGES
from direct_hifimamba.benchmark.score.scoring import Volume, find_volumes, score_runs
from direct_hifimamba.benchmark.score.summary import summarise_scores
from direct_hifimamba.benchmark.score.table import Scores

ZERO_FILLED = "zero-filled"


def collect(
    benchmark: Benchmark,
    inputs: Mapping[str, Any],
    costs: Mapping[str, Cost],
    trials: Mapping[str, list[Trial]],
    searched: Sequence[Run],
    cells: Mapping[tuple[str, int], Run],
    command: Sequence[str],
    jobs: int,
) -> tuple[Results, Scores]:
    """Score the test split and describe everything.

    Parameters
    ----------
    benchmark : Benchmark
    inputs : dict
        See :func:`direct_hifimamba.benchmark.plan.inputs.describe_inputs`.
    costs : dict
        By label.
    trials : dict
        By label, what the search has tried.
    searched : sequence of Run
        The runs of the search.
    cells : dict
        By label and seed, the final runs that could be made.
    command : sequence of str
        Arguments of `direct-hifimamba`.
    jobs : int
        Number of processes.
    """
    specification = benchmark.specification
    finished = {key: run for key, run in cells.items() if run.is_finished}
    bart = _describe_bart(benchmark)
    predictions = find_predictions(benchmark)
    metrics = [*DEFAULT, *specification.metrics]
    tables = score_runs(dict(predictions.values()), jobs, "score", metrics)
    scores = Scores.join({key: tables[path] for key, (path, _) in predictions.items()})
    commands = [provenance.as_typed(command)]
    for run in (*searched, *cells.values()):
        arguments = [run.training_command(), *map(run.prediction_command, run.prediction_data)]
        commands += [provenance.as_typed(words, ENVIRONMENT) for words in arguments]
    budget = {key: float(value) for key, value in specification.budget.model_dump(exclude_none=True).items()}
    results = Results(
        name=specification.name,
        description=specification.description,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        baseline=specification.baseline,
        protocol=Protocol(
            data=_describe_data(benchmark, inputs),
            accelerations=list(specification.accelerations),
            budget=budget,
            schedule=specification.schedule,
            loss=next(iter(inputs["shared"].values()))["training.loss"],
            seeds=list(specification.seeds),
            metrics=metric_definitions(metrics),
            spectrum_edges=list(SPECTRUM_EDGES),
            evaluation=evaluation_settings(benchmark.configs),
        ),
        provenance=Provenance(
            versions=provenance.find_versions(specification.device),
            host=provenance.describe_host(specification.device),
            threads=THREADS,
            git_revision=provenance.git_revision(),
            commands=commands,
            specification=specification.to_yaml(benchmark.folder.path),
        ),
        models=[
            *(
                _describe_model(
                    label, costs[label], trials[label], [run for (name, _), run in cells.items() if name == label]
                )
                for label in benchmark.configs
            ),
            Model(ZERO_FILLED, slug(ZERO_FILLED), "classical"),
            *([bart] if bart else []),
        ],
        failures=[
            Failure(label, seed, _read_failure(benchmark.folder.cell(label, seed)))
            for label in benchmark.configs
            for seed in specification.seeds
            if (label, seed) not in finished
        ],
        summary=summarise_scores(scores, specification.baseline, inputs["groups"]),
    )
    return results, scores


def _read_failure(folder: RunFolder) -> str:
    return folder.failure.read_text(encoding="utf-8") if folder.failure.exists() else "It has not been run yet."


def _describe_bart(benchmark: Benchmark) -> Model | None:
    """Return the row of BART, None if there are no reconstructions of it."""
    folder, specification = benchmark.folder.cell(BART, 0), benchmark.specification
    predictions = [folder.predictions(name) for name in specification.accelerations]
    if BART not in specification.classical or not all(path.is_dir() for path in predictions):
        return None
    settings = {path.name: yaml.safe_load(path.with_suffix(".yaml").read_text()) for path in predictions}
    return Model(BART, slug(BART), "classical", config=yaml.safe_dump(settings, sort_keys=False))


def find_predictions(benchmark: Benchmark) -> dict[tuple[str, int | None, str], tuple[Path, list[Volume]]]:
    """Return by model, seed and acceleration what there is to score, and the path of the table.

    Zero-filled images are scored once a run has finished, since they are cropped to the size of its predictions.

    Raises
    ------
    ValueError
        If the predictions of a run are not those of all files.
    """
    specification, is_centered = benchmark.specification, benchmark.is_centered()
    cells: list[tuple[str, int | None]] = [(label, s) for label in benchmark.configs for s in specification.seeds]
    folders = {cell: benchmark.folder.cell(cell[0], cell[1] or 0) for cell in cells}
    folders |= {(label, None): benchmark.folder.cell(label, 0) for label in (ZERO_FILLED, *specification.classical)}
    names = list(specification.accelerations)
    finished = {
        cell: folder
        for cell, folder in folders.items()
        if not folder.failure.exists() and all(folder.predictions(name).is_dir() for name in names)
    }
    found = {}
    for (label, seed), folder in folders.items():
        for name in names if (label, seed) in finished or (label == ZERO_FILLED and finished) else ():
            data = specification.folder(specification.splits.test, name)
            if label == ZERO_FILLED:
                shapes = next(iter(finished.values())).predictions(name)
                volumes = [Volume(path, None, shapes / path.name, is_centered) for path in list_files(data)]
            else:
                volumes = find_volumes(data, folder.predictions(name), is_centered)
            found[label, seed, name] = folder.scores(name), volumes
    return found


def _describe_data(benchmark: Benchmark, inputs: Mapping[str, Any]) -> Data:
    specification = benchmark.specification
    splits, data = specification.splits, inputs["data"]
    tests = {name: data[specification.folder(splits.test, name).name] for name in specification.accelerations}
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
        validation=digest(
            {name: data[specification.folder(splits.validation, name).name] for name in specification.accelerations}
        ),
        protocol=inputs["protocol"],
        groups=dict(inputs["groups"]),
        sources=dict(inputs["sources"]),
    )


def _describe_model(label: str, cost: Cost, trials: list[Trial], runs: Sequence[Run]) -> Model:
    described = Model(
        label,
        slug(label),
        "trained",
        parameters=cost.parameters,
        active_parameters=cost.active_parameters,
        macs=cost.macs,
        seconds_per_iteration=cost.seconds_per_iteration,
        seconds_per_slice=cost.seconds_per_slice,
        peak_memory_bytes=None if cost.peak_memory_bytes is None else Spread.of([cost.peak_memory_bytes]),
        search=trials,
    )
    if not runs:
        return described
    config = runs[0].config
    return replace(
        described,
        model_name=config.model.model_name,
        config=OmegaConf.to_yaml(config),
        iterations=runs[0].iterations,
        learning_rate=config.training.lr,
    )
