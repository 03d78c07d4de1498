"""Compare models of DIRECT on the same files, masks, losses and budget.

Every model is trained by DIRECT in a process of its own, once per seed, on the masks of all accelerations in equal
shares, and evaluated at each. Interrupted, the same command resumes. A model that fails is reported in its place, the
others continue, and the exit status is 1; the next call tries it again, unless its training diverged. Seeds can be
added to a specification that has been run, and models unless its budget is in minutes: what is finished is kept.
Trained models are never deleted: where a configuration has changed, the folder of its run is renamed to
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
    """Let the signal of `kill` do what Ctrl-C does; and that itself, also where it is ignored, as after nohup and &."""

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
    parser.add_argument("specification", type=Path, metavar="SPEC.yaml", help="what to compare, and how")
    parser.add_argument("--output", type=Path, required=True, help="folder: new, empty, or of the same benchmark")
    add_jobs_argument(parser)


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba benchmark`.

    Raises
    ------
    SystemExit
        With status 130 if it was interrupted, 1 if a model failed.
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
