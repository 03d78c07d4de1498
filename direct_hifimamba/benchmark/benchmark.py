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
from direct_hifimamba.benchmark.plan.hashes import KSpaceMemory, list_files
from direct_hifimamba.benchmark.plan.inputs import describe_data, describe_inputs
from direct_hifimamba.benchmark.plan.record import check_same, check_unchanged, read_plan, record
from direct_hifimamba.benchmark.plan.specification import MIN_ITERATIONS, Specification
from direct_hifimamba.benchmark.report.report import write_report
from direct_hifimamba.benchmark.report.tables import write_csv, write_markdown
from direct_hifimamba.benchmark.run.classical import check_bart, reconstruct_test_split
from direct_hifimamba.benchmark.run.cost import measure_costs
from direct_hifimamba.benchmark.run.matrix import KINDS, Benchmark, Kind
from direct_hifimamba.benchmark.run.runner import Run, RunError, do_run, write_failure
from direct_hifimamba.benchmark.score.collect import collect, find_predictions
from direct_hifimamba.benchmark.score.results import Results
from direct_hifimamba.benchmark.score.scoring import is_scored, score_run

STAGES = ("plan", "run", "score", "report")
COST = "cost"
"""Name of the task that measures costs."""


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
    benchmark = Benchmark(path, specification, compose_models(specification), BenchmarkFolder(output))
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
    return Benchmark(path, specification, configs, folder)


def run(benchmark: Benchmark, executor: Executor) -> None:
    """Measure costs, search for learning rates, train and predict; what is finished is not repeated.

    Runs that failed are tried again, unless their training diverged. Why a run failed is written to its folder.

    Parameters
    ----------
    benchmark : Benchmark
    executor : Executor

    Raises
    ------
    ValueError
        If the executor cannot run anything.
    KeyboardInterrupt
        After all runs have ended.
    """
    accelerations = benchmark.specification.accelerations
    measure(benchmark, executor)
    _train(benchmark, executor, "trial")
    score(benchmark, executor, ("trial",))
    _train(benchmark, executor, "cell")
    classical = [run.name for run in benchmark.plan() if run.kind == "classical"]
    waiting = [name for name in classical if not benchmark.folder.run(name).is_complete(accelerations)]
    for name, reason in _execute(benchmark, executor, "run", waiting).items():
        write_failure(benchmark.folder.run(name), reason)


def _train(benchmark: Benchmark, executor: Executor, kind: Kind) -> None:
    """Do the trainings of one kind that are not finished."""
    runs = []
    for entry in (entry for entry in benchmark.plan() if entry.kind == kind):
        try:
            runs.append(benchmark.make_run(entry))
        except RunError as error:
            write_failure(benchmark.folder.run(entry.name), str(error))
    for one in runs:
        one.set_aside_if_of_another_configuration()
    waiting = [one for one in runs if not (one.is_finished or one.folder.has_diverged)]
    for one in waiting:
        one.folder.failure.unlink(missing_ok=True)  # it would count as progress
    with _progress(runs, kind) as show:
        failures = _execute(benchmark, executor, "run", [one.name for one in waiting], show)
    for one in waiting:
        if one.name in failures and one.folder.error is None:
            write_failure(one.folder, failures[one.name])


def _execute(
    benchmark: Benchmark,
    executor: Executor,
    stage: str,
    names: Sequence[str],
    show_progress: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Run one stage of some runs, and return why some have failed."""
    path, output = benchmark.path.resolve(), benchmark.folder.path.resolve()
    words = ("benchmark", str(path), "--output", str(output), "--stage", stage)
    tasks = [Task(name, (*words, "--run", name), benchmark.folder.run(name).path) for name in names]
    return executor.run(stage, tasks, show_progress)


def measure(benchmark: Benchmark, executor: Executor) -> None:
    """Measure what the models cost, unless this was done before.

    If models were added or one has failed, all are measured again, since only times of the same minutes are comparable.
    With a budget of time, a failed one is not, since the iterations of the others depend on their times.
    """
    costs = benchmark.read_costs()
    has_failed = not benchmark.specification.has_minutes and any(cost.error is not None for cost in costs.values())
    if has_failed or not costs.keys() >= benchmark.configs.keys():
        for reason in _execute(benchmark, executor, "run", [COST]).values():
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
        data_file, training_file = list_files(test)[0], list_files(training)[0]
        costs = measure_costs(configs, data_file, device=specification.device, training_file=training_file)
        benchmark.write_costs(costs)
    elif name in planned and planned[name].kind == "classical":
        cells = (benchmark.folder.run(entry.name) for entry in planned.values() if entry.kind == "cell")
        shapes = next((cell for cell in cells if cell.is_complete(specification.accelerations)), None)
        if shapes is None:
            raise RunError("No run of a model has finished; images are cropped to the size of its predictions.")
        splits = (specification.splits.validation, specification.splits.test)
        folders = [specification.folder(split, rate) for split in splits for rate in specification.accelerations]
        check_unchanged(benchmark.folder, specification.data, [folder.name for folder in folders])
        folder = benchmark.folder.run(name)
        folder.failure.unlink(missing_ok=True)
        reconstruct_test_split(specification, folder, shapes, available_cores())
    elif name in planned:
        run = benchmark.make_run(planned[name])
        folders = [run.training_data, *run.prediction_data.values()]
        check_unchanged(benchmark.folder, specification.data, [folder.name for folder in folders])
        run.set_aside_if_of_another_configuration()
        do_run(run)
    else:
        raise ValueError(f"The plan has no run {name!r}; expected {COST} or one of {', '.join(planned)}.")


def score(benchmark: Benchmark, executor: Executor, kinds: Sequence[Kind] = KINDS) -> None:
    """Score the predictions of all finished runs; what was scored before is not scored again.

    Parameters
    ----------
    benchmark : Benchmark
    executor : Executor
    kinds : sequence of str
        Kinds of runs that are scored.

    Raises
    ------
    ValueError
        If predictions cannot be scored.
    """
    waiting = [
        run.name
        for run, tables in find_predictions(benchmark).items()
        if run.kind in kinds and not is_scored(tables, benchmark.metrics(run.kind))
    ]
    failures = _execute(benchmark, executor, "score", waiting)
    if failures:
        raise ValueError("; ".join(f"{name} could not be scored: {reason}" for name, reason in failures.items()))


def score_one(benchmark: Benchmark, name: str) -> None:
    """Score the predictions of one run in this process.

    Raises
    ------
    ValueError
        If there is no such run, or its predictions are not those of all files.
    """
    predicted = {run.name: (run.kind, tables) for run, tables in find_predictions(benchmark).items()}
    if name not in predicted:
        raise ValueError(
            f"There are no predictions of a run {name!r} to score; expected one of: {', '.join(predicted)}."
        )
    kind, tables = predicted[name]
    score_run(tables, benchmark.metrics(kind))


def report(benchmark: Benchmark, command: Sequence[str]) -> Results:
    """Score what has not been scored yet, and write tables and pages.

    Parameters
    ----------
    benchmark : Benchmark
    command : sequence of str
        Arguments of `direct-hifimamba`, for the record.
    """
    folder = benchmark.folder
    results, scores = collect(benchmark, command)
    scores.save(folder.scores)
    results.save(folder.results_json)
    write_csv(folder.results_csv, results)
    write_markdown(folder.results_markdown, results)
    write_report(folder, results, scores)
    return results


@contextmanager
def _progress(runs: Sequence[Run], kind: str) -> Iterator[Callable[[], None]]:
    """Yield a function that shows how far some runs are."""
    total = sum(one.iterations for one in runs)
    description = {"trial": "search", "cell": "train and predict"}[kind]
    with tqdm(total=total, desc=description, unit="iteration", disable=not runs) as bar:

        def show() -> None:
            bar.n = sum(one.iterations_done for one in runs)
            finished, failed = sum(one.is_finished for one in runs), sum(one.folder.failure.exists() for one in runs)
            bar.set_postfix_str(", ".join([f"{finished} of {len(runs)} done", *([f"{failed} failed"] * bool(failed))]))

        show()
        bar.initial = bar.n
        yield show
        show()
