"""`direct-hifimamba simulate`: write a small simulated multi-coil data set."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from direct_hifimamba.data.data_sets import SIMULATED
from direct_hifimamba.data.formats.nifti import ORIENTATIONS
from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.simulate import TEMPLATE, SimulationOptions, simulate
from direct_hifimamba.data.simulation.files import LINE_MASKS, ORIGIN, write_samples
from direct_hifimamba.data.simulation.heads import find_heads
from direct_hifimamba.data.simulation.sample import SampleOptions

RANDOM = "random"

OF_VOLUMES = ("phase", "orientation", "slices", "slab")
OF_RANDOM_SLICES = ("number", "heads")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba simulate`."""
    defaults = SimulationOptions()
    parser.add_argument(
        "source",
        help=f"NIfTI magnitude volume, a folder of such volumes, {TEMPLATE} for the average brain in nilearn, or "
        f"{RANDOM} for slices whose anatomy, contrast, coils, noise, resolution and mask are all random",
    )
    parser.add_argument(
        "output",
        type=Path,
        help="folder for the HDF5 files: new, empty, or from an earlier call that is to be completed",
    )
    parser.add_argument("--number", type=int, help=f"{RANDOM} only: number of slices, each in a file (default: 1)")
    parser.add_argument(
        "--heads",
        type=Path,
        metavar="FOLDER",
        help=f"{RANDOM} only: folder with NIfTI volumes from which slices are cut, such as those of `heads`",
    )
    parser.add_argument(
        "--coils",
        dest="num_coils",
        type=int,
        help=f"number of coils (default: {defaults.num_coils}; {RANDOM}: 4 to 32)",
    )
    parser.add_argument(
        "--snr",
        type=float,
        help="mean foreground signal divided by the standard deviation of the noise (default: no noise; "
        f"{RANDOM}: 10 or more)",
    )
    parser.add_argument(
        "--phase", type=float, help=f"largest phase of the object in radians (default: {defaults.phase})"
    )
    parser.add_argument(
        "--orientation", choices=ORIENTATIONS, help=f"orientation of the slices (default: {defaults.orientation})"
    )
    parser.add_argument(
        "--slices", type=int, nargs=2, metavar=("START", "STOP"), help="range of slices, STOP excluded (default: all)"
    )
    parser.add_argument("--slab", type=int, metavar="N", help="write one file per N slices (default: one per volume)")
    parser.add_argument("--voxel-size", type=float, metavar="MM", help="resample the slices to pixels of this size")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="crop and zero-pad the slices to this size"
    )
    parser.add_argument(
        "--mask",
        nargs=3,
        metavar=("NAME", "ACCELERATION", "CENTER_FRACTION"),
        help="store an evaluation mask made by a mask function of DIRECT, such as FastMRIEquispaced 4 0.08 "
        f"(default: none; {RANDOM}: columns at 2x to 10x)",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="random seed (default: %(default)s)")


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba simulate`.

    Raises
    ------
    ValueError
        If an option does not apply to the source.
    """
    is_random = args.source == RANDOM
    for name in OF_VOLUMES if is_random else OF_RANDOM_SLICES:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} does not apply to the source {args.source}; leave it out.")
    mask = args.mask and MaskOptions.from_words(args.mask)
    if is_random:
        fixed = {"num_coils": args.num_coils, "snr": args.snr, "pixel_size": args.voxel_size}
        ranges: dict[str, Any] = {name: (value, value) for name, value in fixed.items() if value is not None}
        if args.snr is not None:
            ranges["noiseless_fraction"] = 0.0
        heads = tuple(find_heads(args.heads)) if args.heads else ()
        options = SampleOptions(heads=heads, shape=args.size, masks=LINE_MASKS, **ranges)
        number = 1 if args.number is None else args.number
        paths = write_samples(args.output, number, options, args.seed, mask)
        print(f"{len(paths)} files in {args.output}, {ORIGIN}")
        return
    given = {field.name: getattr(args, field.name) for field in fields(SimulationOptions)} | {"mask": mask}
    volume_options = SimulationOptions(**{name: value for name, value in given.items() if value is not None})
    paths = simulate(args.source, args.output, volume_options)
    print(f"{len(paths)} files in {args.output}, {SIMULATED}")
