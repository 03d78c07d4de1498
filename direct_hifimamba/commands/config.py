"""`direct-hifimamba config compose`: merge several files into one configuration for DIRECT."""

import argparse
import sys
from pathlib import Path

from direct_hifimamba.files import refuse_to_replace, write_text
from direct_hifimamba.training import compose as module
from direct_hifimamba.training.compose import compose, to_yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba config`."""
    subparsers = parser.add_subparsers(metavar="action", required=True)
    composer = subparsers.add_parser(
        "compose",
        help="merge several configurations into one that DIRECT can read, and check it",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    composer.add_argument(
        "parts",
        nargs="+",
        metavar="FILE.yaml|key=value",
        help="files, which are merged in this order, and values that are set afterwards, such as training.lr=1e-3",
    )
    composer.add_argument("--output", type=Path, metavar="FILE", help="file to write (default: standard output)")


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba config compose`."""
    paths = [Path(part) for part in args.parts if "=" not in part]
    overrides = [part for part in args.parts if "=" in part]
    if args.output is not None:
        refuse_to_replace(args.output, paths)
    text = to_yaml(compose(paths, overrides), paths, overrides)
    if args.output is None:
        sys.stdout.write(text)
        return
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.output, text)
