"""The stages of a benchmark: plan, run, score, report. Each can be repeated, and moved to another machine."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

from direct_hifimamba.benchmark.executors import Executor, Task
from direct_hifimamba.benchmark.executors.cores import available_cores
from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.configurations import compose_models, training_config
from direct_hifimamba.benchmark.plan.inputs import (
    KSpaceMemory,
    check_same,
    check_unchanged,
    describe_data,
    describe_inputs,
    list_files,
    read_plan,
    record,
)
from direct_hifimamba.benchmark.plan.specification import MIN_ITERATIONS, Specification
from direct_hifimamba.benchmark.report.report import write_report
from direct_hifimamba.benchmark.report.tables import write_csv, write_markdown
from direct_hifimamba.benchmark.run.classical import check_bart, reconstruct_test_split
from direct_hifimamba.benchmark.run.cost import Cost, measure_costs
from direct_hifimamba.benchmark.run.matrix import Benchmark, score_trials
from direct_hifimamba.benchmark.run.processes import THREADS
from direct_hifimamba.benchmark.run.runner import Run, RunError, do_run, write_failure
from direct_hifimamba.benchmark.score.collect import collect, find_predictions
from direct_hifimamba.benchmark.score.metrics import DEFAULT
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.benchmark.score.scoring import Volume, is_scored, score_runs

STAGES = ("plan", "run", "score", "report")
COST = "cost"
"""Name of the task that measures costs."""

_COST_ROUNDS = 5


def plan(path: Path, output: Path, verify: bool = False) -> Benchmark:
    """Check a specification, its configurations and its data, and write the list of runs.

    Parameters
    ----------
    path : Path
        Specification.
    output : Path
        New or empty folder, or that of the same benchmark, perhaps with fewer models and seeds.
    verify : bool
        Read all k-space, also of files whose size and modification time have not changed.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If the specification, its configurations or its data are invalid, or differ from those of the plan in `output`.
    """
    specification = Specification.load(path)
    benchmark = Benchmark(specification, compose_models(specification), BenchmarkFolder(output))
    output.mkdir(parents=True, exist_ok=True)
    memory = KSpaceMemory(benchmark.folder.hashes, specification.data)
    data = describe_data(specification, memory, available_cores(), verify)
    check_bart(specification, benchmark.is_centered())
    inputs = describe_inputs(specification, benchmark.configs, data)
    record(benchmark.folder, specification, inputs, benchmark.plan())
    return benchmark


def load(path: Path, output: Path) -> Benchmark:
    """Return the benchmark that was planned in a folder.

    Raises
    ------
    FileNotFoundError
        If there is no plan, or the specification or its data are missing.
    ValueError
        If the specification has changed since then.
    """
    folder = BenchmarkFolder(output)
    planned = read_plan(folder)
    specification = Specification.load(path)
    check_same(folder, specification, planned)
    configs = {
        label: {acceleration: OmegaConf.create(config) for acceleration, config in configs.items()}
        for label, configs in planned["models"].items()
    }
    return Benchmark(specification, configs, folder)


def run(benchmark: Benchmark, path: Path, executor: Executor) -> None:
    """Measure costs, search for learning rates, train and predict; what is finished is not repeated.

    Runs that failed are tried again, unless their training diverged. Why a run failed is written to its folder.

    Parameters
    ----------
    benchmark : Benchmark
    path : Path
        Specification.
    executor : Executor

    Raises
    ------
    ValueError
        If the executor cannot run anything.
    KeyboardInterrupt
        After all runs have ended.
    """
    measure(benchmark, path, executor)
    planned = benchmark.plan()
    for kind in ("trial", "cell"):
        runs = []
        for entry in (entry for entry in planned if entry.kind == kind):
            try:
                runs.append(benchmark.make_run(entry))
            except RunError as error:
                write_failure(benchmark.folder.run(entry.name), str(error))
        for one in runs:
            one.set_aside_if_of_another_configuration()
        waiting = [one for one in runs if not (one.is_finished or one.has_diverged)]
        for one in waiting:
            one.folder.failure.unlink(missing_ok=True)  # it would count as progress
        tasks = [_task(benchmark, path, "run", one.name) for one in waiting]
        with _progress(runs, kind) as show:
            failures = executor.run("run", tasks, show) if tasks else {}
        for one in waiting:
            if one.name in failures and one.error is None:
                write_failure(one.folder, failures[one.name])
        if kind == "trial":
            score_trials(benchmark, available_cores())
    names = [entry.name for entry in planned if entry.kind == "classical"]
    accelerations = benchmark.specification.accelerations
    tasks = [
        _task(benchmark, path, "run", name)
        for name in names
        if not all(benchmark.folder.run(name).predictions(acceleration).is_dir() for acceleration in accelerations)
    ]
    for name, reason in (executor.run("run", tasks, lambda: None) if tasks else {}).items():
        write_failure(benchmark.folder.run(name), reason)


def measure(benchmark: Benchmark, path: Path, executor: Executor) -> None:
    """Measure what the models cost, unless this was done before.

    If models were added or one has failed, all are measured again, since only times of the same minutes are comparable.
    With a budget of time, a failed one is not, since the iterations of the others depend on their times.
    """
    costs = benchmark.read_costs()
    has_failed = not benchmark.specification.has_minutes and any(cost.error is not None for cost in costs.values())
    if has_failed or not costs.keys() >= benchmark.configs.keys():
        failures = executor.run("run", [_task(benchmark, path, "run", COST)], lambda: None)
        for reason in failures.values():
            print(f"The cost of the models could not be measured: {reason}")


def do(benchmark: Benchmark, name: str) -> None:
    """Run one task of the stage `run` in this process: a run of the plan, or the measurement of costs.

    Raises
    ------
    RunError
        If the run fails.
    ValueError
        If there is no run of this name, another process is working on it, or data have changed since the plan was made.
    """
    specification = benchmark.specification
    planned = {entry.name: entry for entry in benchmark.plan()}
    if name == COST:
        test = specification.folder(specification.splits.test, next(iter(specification.accelerations)))
        training = specification.data / specification.splits.training
        rate = specification.search.learning_rates[0] if specification.search else None
        configs = {
            label: training_config(configs, MIN_ITERATIONS, specification.warm_up, rate)
            for label, configs in benchmark.configs.items()
        }
        files = list_files(test)[0], list_files(training)[0]
        benchmark.write_costs(measure_costs(configs, files[0], _COST_ROUNDS, specification.device, True, files[1]))
    elif name in planned and planned[name].kind == "classical":
        cells = [benchmark.folder.run(entry.name) for entry in planned.values() if entry.kind == "cell"]
        accelerations = specification.accelerations
        shapes = [cell for cell in cells if all(cell.predictions(entry).is_dir() for entry in accelerations)]
        if not shapes:
            raise RunError("No run of a model has finished; images are cropped to the size of its predictions.")
        folder = benchmark.folder.run(name)
        folder.failure.unlink(missing_ok=True)
        reconstruct_test_split(specification, folder, shapes[0], available_cores())
    elif name in planned:
        run = benchmark.make_run(planned[name])
        folders = [run.training_data, *run.prediction_data.values()]
        check_unchanged(benchmark.folder, specification.data, [folder.name for folder in folders])
        run.set_aside_if_of_another_configuration()
        do_run(run)
    else:
        raise ValueError(f"The plan has no run {name!r}; expected {COST} or one of {', '.join(planned)}.")


def score(benchmark: Benchmark, path: Path, executor: Executor) -> None:
    """Score the predictions of all finished runs; what was scored before is not scored again.

    Parameters
    ----------
    benchmark : Benchmark
    path : Path
        Specification.
    executor : Executor

    Raises
    ------
    ValueError
        If predictions cannot be scored.
    """
    metrics = [*DEFAULT, *benchmark.specification.metrics]
    waiting = [name for name, volumes in _predicted(benchmark).items() if not is_scored(volumes, metrics)]
    tasks = [_task(benchmark, path, "score", name) for name in waiting]
    failures = executor.run("score", tasks, lambda: None) if tasks else {}
    if failures:
        raise ValueError("; ".join(f"{name} could not be scored: {reason}" for name, reason in failures.items()))


def score_one(benchmark: Benchmark, name: str) -> None:
    """Score the predictions of one run in this process.

    Raises
    ------
    ValueError
        If there is no such run, or its predictions are not those of all files.
    """
    predicted = _predicted(benchmark)
    if name not in predicted:
        raise ValueError(
            f"There are no predictions of a run {name!r} to score; expected one of: {', '.join(predicted)}."
        )
    metrics = [*DEFAULT, *benchmark.specification.metrics]
    score_runs(predicted[name], available_cores(), "score", metrics)


def _predicted(benchmark: Benchmark) -> dict[str, dict[Path, list[Volume]]]:
    """Return the volumes of the finished runs that can be scored, by run and table."""
    predicted: dict[str, dict[Path, list[Volume]]] = {}
    for path, volumes in find_predictions(benchmark).values():
        run = str(path.parent.parent.relative_to(benchmark.folder.path))
        predicted.setdefault(run, {})[path] = volumes
    return predicted


def report(benchmark: Benchmark, command: Sequence[str]) -> Results:
    """Score what has not been scored yet, and write tables and pages.

    Parameters
    ----------
    benchmark : Benchmark
    command : sequence of str
        Arguments of `direct-hifimamba`, for the record.
    """
    folder, planned = benchmark.folder, benchmark.plan()
    cells: dict[tuple[str, int], Run] = {}
    searched: list[Run] = []
    for entry in (entry for entry in planned if entry.kind != "classical"):
        try:
            run = benchmark.make_run(entry)
        except RunError:
            continue
        if entry.kind == "cell":
            cells[entry.model, entry.seed] = run
        else:
            searched.append(run)
    found = benchmark.read_costs()
    costs = {label: found.get(label, Cost(THREADS, error="It was not measured.")) for label in benchmark.configs}
    trials, jobs = benchmark.read_trials(), available_cores()
    results, scores = collect(benchmark, read_plan(folder), costs, trials, searched, cells, command, jobs)
    scores.save(folder.scores)
    results.save(folder.results_json)
    write_csv(folder.results_csv, results)
    write_markdown(folder.results_markdown, results)
    write_report(folder, results, scores)
    return results


def _task(benchmark: Benchmark, path: Path, stage: str, name: str) -> Task:
    words = ["benchmark", str(path.resolve()), "--output", str(benchmark.folder.path.resolve())]
    folder = benchmark.folder.run(name).path
    return Task(name, (*words, "--stage", stage, "--run", name), folder)


@contextmanager
def _progress(runs: Sequence[Run], kind: str) -> Iterator[Callable[[], None]]:
    """Yield a function that shows how far some runs are."""
    total = sum(one.iterations for one in runs)
    description = {"trial": "search", "cell": "train and predict"}[kind]
    with tqdm(total=total, desc=description, unit="iteration", disable=not runs) as bar:

        def show() -> None:
            bar.n = sum(one.iterations_done for one in runs)
            finished, failed = sum(one.is_finished for one in runs), sum(one.error is not None for one in runs)
            bar.set_postfix_str(", ".join([f"{finished} of {len(runs)} done", *([f"{failed} failed"] * bool(failed))]))

        show()
        bar.initial = bar.n
        yield show
        show()
