"""`direct-hifimamba leaderboard`: merge the results of several benchmarks into one table."""

import argparse
from pathlib import Path

from direct_hifimamba.benchmark.leaderboard import write_leaderboard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba leaderboard`."""
    parser.add_argument(
        "results", type=Path, nargs="+", help="results.json of a benchmark, with scores.parquet beside it"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write, .md or .csv (default: Markdown on standard output)"
    )
    parser.add_argument(
        "--baseline",
        metavar="MODEL",
        help="model that the others are compared with (default: the baseline of the first results)",
    )


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba leaderboard`."""
    write_leaderboard(args.results, args.output, args.baseline)
