"""Compare models of DIRECT on the same files, masks, losses and budget.

DIRECT trains every model in a separate process, once per seed, on masks of all accelerations in equal shares, and
evaluates it at each acceleration. After an interruption the same command resumes. If a model fails, the report says so,
the others continue, and the exit status is 1; the next call tries it again, unless its training diverged. Seeds can be
added to a specification that has been run, and models too if its budget is not in minutes; finished runs are kept.
Trained models are never deleted: if a configuration has changed, the folder of its run is renamed to
`..._superseded_1`.
"""

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from direct_hifimamba.benchmark.benchmark import run_benchmark
from direct_hifimamba.benchmark.folder import BenchmarkFolder
from direct_hifimamba.benchmark.plan.specification import Specification
from direct_hifimamba.commands.jobs import add_jobs_argument

FAILED = 1
INTERRUPTED = 128 + signal.SIGINT
"""Exit status, as shells have it."""


@contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into a KeyboardInterrupt, also where SIGINT is ignored, as after `nohup` or `&`."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
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
        "--output", type=Path, required=True, help="folder that is new, empty, or of the same benchmark"
    )
    add_jobs_argument(parser)


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba benchmark`.

    Raises
    ------
    SystemExit
        With status 130 after an interruption, 1 if a model failed.
    """
    command = ["benchmark", str(args.specification), "--output", str(args.output), "--jobs", str(args.jobs)]
    try:
        with _signals_as_interrupt():
            results = run_benchmark(Specification.load(args.specification), args.output, args.jobs, command)
    except KeyboardInterrupt:
        print("\nInterrupted; the same command resumes it.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    failed = dict.fromkeys((score.model, score.seed) for score in results.scores if score.status == "failed")
    for label, seed in failed:
        print(f"{label} with seed {seed} failed: {BenchmarkFolder(args.output).cell(label, seed or 0).failure}")
    print(f"Results in {args.output}; begin with {BenchmarkFolder(args.output).report}")
    if failed:
        sys.exit(FAILED)
