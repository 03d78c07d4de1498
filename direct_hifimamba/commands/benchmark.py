"""Compare models of DIRECT on the same files, masks, losses and budget.

There are four stages: `plan` checks everything and writes the list of runs, `run` trains every model once per seed and
predicts the test split, `score` computes metrics, and `report` writes tables and pages. Without --stage, all stages are
run. They can be interrupted at any time; the same command resumes.

If a run fails, the others continue, the report shows the failure, and the exit status is 1. The next call repeats the
failed run, unless its training diverged. If a training of the learning-rate search diverges, this is not a failure.

Seeds, metrics and classical reconstructions can be added to a specification that has been run; models can be added if
the budget is not in minutes. Trained models are never deleted: if a configuration has changed, the folder of its run is
renamed to `..._superseded_1`.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from direct_hifimamba.benchmark import benchmark as stages
from direct_hifimamba.benchmark.executors import EXECUTORS, Executor, make_executor
from direct_hifimamba.benchmark.run.estimate import format_estimates
from direct_hifimamba.benchmark.run.matrix import Benchmark
from direct_hifimamba.benchmark.run.runner import RunError, lock_folder
from direct_hifimamba.commands.jobs import add_jobs_argument

FAILED = 1
INTERRUPTED = 128 + signal.SIGINT
"""Exit status after an interruption, as in shells."""


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Turn signals into SIGINT, and SIGINT into a KeyboardInterrupt, even if it is ignored, as after `nohup` or `&`.

    While DIRECT trains, it handles SIGINT itself and writes a checkpoint. Slurm sends SIGUSR2 before a time limit.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def forward(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    handlers = {signal.SIGINT: interrupt, signal.SIGTERM: forward, signal.SIGUSR2: forward}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba benchmark`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("specification", type=Path, metavar="SPEC.yaml", help="specification of the benchmark")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder: a new one, an empty one, or that of the same benchmark"
    )
    parser.add_argument("--stage", choices=stages.STAGES, help="run only this stage (default: all)")
    parser.add_argument("--run", metavar="NAME", help="do only this run of plan.json, in this process")
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="where runs are done (default: local)")
    parser.add_argument(
        "--slurm",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="options of sbatch, such as partition=gpu time=600; run.gpus-per-node=1 applies to the stage run only",
    )
    add_jobs_argument(parser, default=None, what="parallel runs (default: one per GPU, or one per core without a GPU)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="plan, measure a few iterations, and print all runs with estimated time and disk space",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read all data again, also files whose size and time have not changed"
    )


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba benchmark`.

    Raises
    ------
    SystemExit
        With status 130 after an interruption, 1 if a run failed, unless the stage is `plan` alone.
    """
    path, output, options = args.specification, args.output, _slurm_options(args.slurm)
    try:
        with _signals_as_interrupt():
            if args.run is not None:
                one = stages.score_one if args.stage == "score" else stages.do
                one(stages.load(path, output), args.run)
                return
            chosen = stages.STAGES if args.stage is None else (args.stage,)
            with lock_folder(output):
                is_planned = "plan" in chosen or args.dry_run
                benchmark = stages.plan(path, output, args.verify) if is_planned else stages.load(path, output)
                if args.dry_run:
                    stages.measure(benchmark, _executor(args, benchmark, options))
                    print(format_estimates(benchmark))
                    return
                if "run" in chosen:
                    stages.run(benchmark, _executor(args, benchmark, options))
                if "score" in chosen:
                    stages.score(benchmark, _executor(args, benchmark, options))
                if "report" in chosen:
                    stages.report(benchmark, ["benchmark", str(path), "--output", str(output)])
                    print(f"Results in {output}; begin with {benchmark.folder.report}")
    except KeyboardInterrupt:
        print("\nInterrupted; the same command resumes it.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except RunError as error:
        print(error, file=sys.stderr)
        sys.exit(FAILED)
    if chosen == ("plan",):
        return
    runs = [(entry, benchmark.folder.run(entry.name)) for entry in benchmark.plan()]
    failed = [(entry, folder) for entry, folder in runs if folder.failure.exists()]
    for entry, folder in failed:
        print(f"{entry.name} failed: {folder.failure}")
    # A learning rate that is too large is a result of the search.
    if not all(entry.kind == "trial" and folder.has_diverged for entry, folder in failed):
        sys.exit(FAILED)


def _executor(args: argparse.Namespace, benchmark: Benchmark, options: dict[str, Any]) -> Executor:
    return make_executor(args.executor, args.output, benchmark.specification.device, args.jobs, options)


def _slurm_options(words: list[str]) -> dict[str, Any]:
    """Return options by their names; those of a stage, such as `run.time=60`, are nested."""
    for word in words:
        if "=" not in word:
            raise ValueError(f"--slurm has {word!r}; expected KEY=VALUE, such as partition=gpu.")
    try:
        options: dict[str, Any] = OmegaConf.to_container(OmegaConf.from_dotlist(words))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ValueError(f"--slurm is {' '.join(words)}: {error}") from error
    return options
