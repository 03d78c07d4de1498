"""A whole benchmark: measure costs, search learning rates, train and predict, score, report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.configurations import compose_models, training_config
from direct_hifimamba.benchmark.plan.inputs import describe_inputs, list_files, record
from direct_hifimamba.benchmark.plan.specification import MIN_ITERATIONS, Specification
from direct_hifimamba.benchmark.report.archive import remove_archive, write_archive
from direct_hifimamba.benchmark.report.report import write_report
from direct_hifimamba.benchmark.report.tables import write_csv, write_markdown, write_model_zoo
from direct_hifimamba.benchmark.run.cost import Cost, measure_costs
from direct_hifimamba.benchmark.run.matrix import Benchmark, make_cells, make_trials, search
from direct_hifimamba.benchmark.run.runner import Run, Runner, lock_folder
from direct_hifimamba.benchmark.score.collect import collect
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.benchmark.score.scores import METRICS
from direct_hifimamba.files import replace_when_complete

_COST_ROUNDS = 5


def run_benchmark(specification: Specification, output: Path, jobs: int, command: Sequence[str]) -> Results:
    """Do all that is left to do of a benchmark, and write its results.

    Parameters
    ----------
    specification : Specification
    output : Path
        New or empty folder, or that of the same benchmark, perhaps with fewer models and seeds.
    jobs : int
        Number of runs side by side.
    command : sequence of str
        Arguments of `direct-hifimamba`, for the record.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If the specification, its configurations or its data are of no use, or others than `output` was begun with.
    KeyboardInterrupt
        After the processes of DIRECT have ended.
    """
    _check_metric(specification)
    configs = compose_models(specification)
    folder = BenchmarkFolder(output)
    benchmark = Benchmark(specification, configs, folder)
    with lock_folder(output) as lock:
        inputs = describe_inputs(specification, configs)
        record(folder, specification, inputs)
        costs = _measure_costs(benchmark)
        runner = Runner(jobs, lock)
        searched = make_trials(benchmark, costs)
        trials = search(benchmark, searched, runner, jobs)
        cells = make_cells(benchmark, costs, trials)
        runner.run(list(cells.values()), "train and predict")
        results = collect(benchmark, inputs, costs, trials, list(searched.values()), cells, command, jobs)
        _write(folder, results, cells)
    return results


def _check_metric(specification: Specification) -> None:
    search = specification.search
    if search is not None and search.metric not in METRICS:
        raise ValueError(f"search.metric is {search.metric!r}; expected one of {', '.join(METRICS)}.")


def _measure_costs(benchmark: Benchmark) -> dict[str, Cost]:
    """Costs by label, as measured before.

    All are measured once more, so that their times are of the same minutes, where models have been added or one has
    failed; the latter not with a budget of time, which depends on them.
    """
    path, specification = benchmark.folder.cost, benchmark.specification
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    costs = {label: Cost.from_dict(cost) for label, cost in values.items()}
    has_failed = not specification.has_minutes and any(cost.error is not None for cost in costs.values())
    if has_failed or not costs.keys() >= benchmark.configs.keys():
        test = specification.folder(specification.splits.test, next(iter(specification.accelerations)))
        training = specification.data / specification.splits.training
        costs = measure_costs(
            {label: _cost_config(specification, configs) for label, configs in benchmark.configs.items()},
            list_files(test)[0],
            _COST_ROUNDS,
            specification.device,
            training_file=list_files(training)[0],
        )
        with replace_when_complete(path) as partial:
            text = json.dumps({label: asdict(cost) for label, cost in costs.items()}, indent=1)
            partial.write_text(f"{text}\n", encoding="utf-8")
    return costs


def _cost_config(specification: Specification, configs: Mapping[str, DictConfig]) -> DictConfig:
    """The configuration to measure a model with: that of its training, with any learning rate."""
    learning_rate = specification.search.learning_rates[0] if specification.search else None
    return training_config(configs, MIN_ITERATIONS, specification.warm_up, learning_rate)


def _write(folder: BenchmarkFolder, results: Results, cells: Mapping[tuple[str, int], Run]) -> None:
    results.save(folder.results_json)
    write_csv(folder.results_csv, results)
    write_markdown(folder.results_markdown, results)
    write_model_zoo(folder.model_zoo, results)
    first: dict[str, Run] = {}
    for (label, _), run in cells.items():
        if run.is_finished:
            first.setdefault(label, run)
    for label in (model.label for model in results.models if model.kind == "trained"):
        if label in first:
            write_archive(folder.model(label), folder.model_archive(label), first[label])
        else:
            remove_archive(folder.model(label), folder.model_archive(label))
    write_report(folder, results)
