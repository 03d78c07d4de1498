"""The argument `--jobs` of several subcommands."""

import argparse


def add_jobs_argument(
    parser: argparse.ArgumentParser, default: int | None = 1, what: str = "processes (default: 1)"
) -> None:
    """Declare the argument `--jobs`, the number of `what`."""
    parser.add_argument("--jobs", type=_number, default=default, metavar="N", help=f"number of {what}")


def _number(word: str) -> int:
    if not (word.isdecimal() and int(word)):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of processes; expected an integer, 1 or more.")
    return int(word)
