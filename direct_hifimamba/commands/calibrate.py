"""`direct-hifimamba calibrate`: compare the spread of an ensemble with its error, on simulated slices."""

import argparse
from dataclasses import astuple
from pathlib import Path

from direct_hifimamba.data.simulation.heads import find_heads
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME
from direct_hifimamba.reconstruction.uncertainty import NOMINAL, calibrate
from direct_hifimamba.reconstruction.volume import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba calibrate`."""
    parser.add_argument(
        "checkpoint", type=Path, nargs="+", help="checkpoints of an ensemble, or the name of weights in the package"
    )
    parser.add_argument("heads", type=Path, help="folder of NIfTI head volumes that were not used for training")
    parser.add_argument("output", type=Path, help="JSON file to write, for `reconstruct --uncertainty --calibration`")
    parser.add_argument(
        "--cfg", type=Path, metavar="FILE", help=f"configuration (default: {CONFIG_NAME} beside the checkpoints)"
    )
    parser.add_argument(
        "--flips",
        action=argparse.BooleanOptionalAction,
        help="average over reflections; same meaning and default as in `reconstruct`",
    )
    parser.add_argument(
        "--accelerations",
        type=float,
        nargs="+",
        default=[4.0, 8.0],
        help="accelerations (default: 4 8)",
        metavar="NUMBER",
    )
    parser.add_argument(
        "--number", type=int, default=24, help="number of slices for each acceleration (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=128, help="height and width of the slices in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--coils",
        type=int,
        nargs=2,
        default=[6, 16],
        metavar=("MIN", "MAX"),
        help="smallest and largest number of coils (default: 6 16)",
    )


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba calibrate`."""
    if args.output.exists():
        raise FileExistsError(f"{args.output} exists already; remove it or choose another output.")
    if not args.output.parent.is_dir():
        raise FileNotFoundError(f"The folder {args.output.parent} is missing; make it first.")
    weights, reconstructor = load(args.checkpoint, args.cfg, flips=args.flips)
    calibration = calibrate(
        reconstructor, find_heads(args.heads), weights, args.accelerations, args.number, args.size, args.coils
    )
    print(f"| acceleration | factor | coverage without ({NOMINAL:.0%} expected) | with it | in the worst slice |")
    print("|---|---|---|---|---|")
    _, *columns = astuple(calibration)
    for row in zip(*columns, strict=True):
        print("| {:g} | {:.2f} | {:.0%} | {:.0%} | {:.0%} |".format(*row))
    calibration.write(args.output)
