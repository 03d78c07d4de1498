"""`direct-hifimamba verify`: check a prepared data set against its protocol."""

import argparse
import sys
from pathlib import Path

from direct_hifimamba.commands.jobs import add_jobs_argument
from direct_hifimamba.data.protocol import FILE_NAME
from direct_hifimamba.data.verify import verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba verify`."""
    parser.add_argument("dest", type=Path, help="folder that was written by `direct-hifimamba prepare`")
    add_jobs_argument(parser)


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba verify`.

    Raises
    ------
    SystemExit
        With status 1 if anything is wrong.
    """
    problems = verify(args.dest, args.jobs)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{args.dest} is not what its {FILE_NAME} says: {len(problems)} problems.", file=sys.stderr)
        sys.exit(1)
    print(f"{args.dest} is what its {FILE_NAME} says.")
