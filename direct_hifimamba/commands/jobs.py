"""The argument `--jobs` of several subcommands."""

import argparse


def add_jobs_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the argument `--jobs`."""
    parser.add_argument("--jobs", type=_number, default=1, metavar="N", help="number of processes (default: 1)")


def _number(word: str) -> int:
    if not (word.isdecimal() and int(word)):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of processes; expected an integer, 1 or more.")
    return int(word)
