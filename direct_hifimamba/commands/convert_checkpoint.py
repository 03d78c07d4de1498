"""`direct-hifimamba convert-checkpoint`: convert the authors' weights to a checkpoint of DIRECT."""

import argparse
from pathlib import Path

from direct_hifimamba.nn.hifimamba.reference import convert_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba convert-checkpoint`."""
    parser.add_argument("source", type=Path, metavar="IN", help="checkpoint of the authors' code")
    parser.add_argument("destination", type=Path, metavar="OUT", help="checkpoint to write, such as model_0.pt")


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba convert-checkpoint`."""
    config_path = convert_checkpoint(args.source, args.destination)
    print(f"Wrote {args.destination} for `direct predict --checkpoint` and its model configuration {config_path}.")
