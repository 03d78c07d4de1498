"""`direct-hifimamba simulate`: write a small simulated multi-coil data set."""

import argparse
from pathlib import Path

from direct_hifimamba.data.data_sets import SIMULATED
from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.nifti import ORIENTATIONS
from direct_hifimamba.data.simulate import TEMPLATE, SimulationOptions, simulate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `direct-hifimamba simulate`."""
    defaults = SimulationOptions()
    parser.add_argument(
        "source", help=f"NIfTI magnitude volume, folder of them, or {TEMPLATE} for the averaged brain in nilearn"
    )
    parser.add_argument("output", type=Path, help="folder for the HDF5 files: new, empty, or to be completed")
    parser.add_argument("--coils", type=int, default=defaults.num_coils, help="number of coils (default: %(default)s)")
    parser.add_argument(
        "--snr", type=float, help="mean foreground signal over noise standard deviation (default: no noise)"
    )
    parser.add_argument(
        "--phase", type=float, default=defaults.phase, help="bound of the object's phase, rad (default: %(default)s)"
    )
    parser.add_argument(
        "--orientation", choices=ORIENTATIONS, default=defaults.orientation, help="default: %(default)s"
    )
    parser.add_argument(
        "--slices", type=int, nargs=2, metavar=("START", "STOP"), help="range of slices, STOP excluded (default: all)"
    )
    parser.add_argument("--slab", type=int, metavar="N", help="write a file for every N slices (default: for a volume)")
    parser.add_argument("--voxel-size", type=float, metavar="MM", help="resample the pixels to this size")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="crop and zero-pad the slices to this size"
    )
    parser.add_argument(
        "--mask",
        nargs=3,
        metavar=("NAME", "ACCELERATION", "CENTER_FRACTION"),
        help="store an evaluation mask of a DIRECT mask function, such as FastMRIEquispaced 4 0.08 (default: none)",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="default: %(default)s")


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba simulate`."""
    options = SimulationOptions(
        num_coils=args.coils,
        snr=args.snr,
        phase=args.phase,
        orientation=args.orientation,
        slices=args.slices,
        slab=args.slab,
        voxel_size=args.voxel_size,
        size=args.size,
        mask=args.mask and MaskOptions.from_words(args.mask),
        seed=args.seed,
    )
    paths = simulate(args.source, args.output, options)
    print(f"{len(paths)} files in {args.output}, {SIMULATED}")
