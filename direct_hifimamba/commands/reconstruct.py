"""`direct-hifimamba reconstruct`: reconstruct undersampled k-space of one file as images."""

import argparse
from pathlib import Path

import numpy as np

import direct_hifimamba
from direct_hifimamba.commands.jobs import add_jobs_argument
from direct_hifimamba.data.formats.images import SUFFIXES, Volume, check_volume, upright_affine, write_images
from direct_hifimamba.data.formats.raw_data import AXES, RawData
from direct_hifimamba.reconstruction.outputs import COMPLEX_FORMATS, DEFAULT_FORMATS, PARTIAL, PHASE, output_paths
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME, is_ensemble
from direct_hifimamba.reconstruction.slices import IMAGE, NOISE, RESIDUAL, SPREAD
from direct_hifimamba.reconstruction.volume import Request, reconstruct_volume


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba reconstruct`."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="+",
        help="model_<iteration>.pt of `direct train` for any model of DIRECT, several files for an ensemble; or the "
        "name of weights in the package, such as multicoil (`direct-hifimamba weights` lists them)",
    )
    parser.add_argument(
        "input",
        type=Path,
        help="file with k-space in any format of docs/formats.md, and with the mask (otherwise it is determined from "
        "k-space), and with sensitivity_map if the configuration uses stored sensitivities",
    )
    parser.add_argument(
        "output",
        type=Path,
        help="existing folder, or path without suffix, or path with the suffix of one format to write only this one: "
        f"{', '.join(SUFFIXES.values())}",
    )
    parser.add_argument(
        "--format",
        nargs="+",
        action="extend",
        choices=SUFFIXES,
        help=f"formats to write (default: {' '.join(DEFAULT_FORMATS)}); dicom is a folder with one file per slice",
    )
    parser.add_argument(
        "--cfg", type=Path, metavar="FILE", help=f"configuration (default: {CONFIG_NAME} beside the checkpoint)"
    )
    parser.add_argument("--mask", type=Path, metavar="FILE", help="file with the mask (default: that of the input)")
    parser.add_argument(
        "--sensitivity-map",
        type=Path,
        metavar="FILE",
        help="file with coil sensitivities, for configurations that use given ones (default: those of the input)",
    )
    parser.add_argument(
        "--axes",
        metavar="NAMES",
        help=f"names of the axes of an array in their order, such as height,width,coil; from {','.join(AXES)}",
    )
    parser.add_argument("--variable", metavar="NAME", help="name of the k-space array in the file (default: kspace)")
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not check whether k-space agrees with the mask, the configuration and the training of the weights",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, mps, or auto, which uses a GPU if there is one (default: %(default)s)",
    )
    parser.add_argument(
        "--flips",
        action=argparse.BooleanOptionalAction,
        help="average over the slice and its three reflections, which takes four times as long (default: for weights "
        "in the package as their model card says, otherwise no)",
    )
    add_jobs_argument(
        parser,
        default=None,
        what="processes with one thread each (default: one process with all threads); each holds the model and one "
        "slice in memory",
    )
    parser.add_argument(
        "--noise-maps",
        type=int,
        nargs="?",
        const=32,
        metavar="N",
        help="write the standard deviation of the noise in each pixel, from N reconstructions with added noise, which "
        "take as long as the image each (default: %(const)s)",
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="write the residual at the samples of k-space in units of the noise, and, for an ensemble, the spread",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="file written by `calibrate`, whose factor multiplies the spread (default: that of weights in the "
        "package, otherwise a factor of 1)",
    )
    parser.add_argument("--complex", action="store_true", help="write complex images to .h5 and .cfl files")
    parser.add_argument("--phase", action="store_true", help="also write the phase, in radians, to a second NIfTI file")
    parser.add_argument(
        "--voxel-size",
        type=float,
        nargs=3,
        metavar=("SLICE", "ROW", "COLUMN"),
        help="voxel spacing in mm, if the input contains no positions (default: unknown, stored as 1 in NIfTI)",
    )


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba reconstruct`."""
    if args.voxel_size is not None and not all(0 < size < np.inf for size in args.voxel_size):
        raise ValueError(f"The voxel size is {args.voxel_size}; expected three distances in mm, above 0.")
    has_spread = args.uncertainty and is_ensemble(args.checkpoint, args.flips)
    if args.calibration is not None and not has_spread:
        raise ValueError("--calibration is for the spread of an ensemble, with --uncertainty; leave it out.")
    asked_for = {NOISE: args.noise_maps is not None, SPREAD: has_spread, RESIDUAL: args.uncertainty}
    maps = [name for name, is_asked_for in asked_for.items() if is_asked_for]
    others = [path for path in (args.mask, args.sensitivity_map, args.cfg, args.calibration) if path is not None]
    paths = output_paths(args.output, args.input, args.format, args.phase, maps, others)
    if args.complex and not set(COMPLEX_FORMATS) & set(paths):
        raise ValueError(f"None of the formats {', '.join(paths)} has complex images; leave out --complex.")
    request = Request(
        checkpoints=tuple(args.checkpoint),
        source=args.input,
        config_path=args.cfg,
        device=args.device,
        mask_path=args.mask,
        sensitivity_map_path=args.sensitivity_map,
        axes=args.axes and tuple(args.axes.split(",")),
        variable=args.variable,
        complex_images=args.complex or args.phase,
        check=not args.no_check,
        replicas=args.noise_maps,
        uncertainty=args.uncertainty,
        calibration=args.calibration,
        flips=args.flips,
    )
    affine = None if args.voxel_size is None else upright_affine(args.voxel_size)

    def check(raw: RawData) -> None:
        if raw.affine is not None and affine is not None:
            raise ValueError(f"{args.input} says where its voxels are; leave out --voxel-size.")
        for name in paths:
            check_volume(name.partition(":")[0], Volume.of(raw, affine))

    with reconstruct_volume(request, paths.pop(PARTIAL), args.jobs, check, paths.values()) as slices:
        provenance = {
            "checkpoint": ", ".join(path.name for path in args.checkpoint),
            "weights": slices.weights,
            "version": direct_hifimamba.__version__,
            "warnings": slices.warnings,
            **({"residuals": slices.residuals, "spread_factor": slices.factor} if args.uncertainty else {}),
        }
        volume = Volume.of(slices.raw, affine, **provenance)
        for name, path in paths.items():
            _, _, map_name = name.partition(":")
            images = slices.read(map_name or IMAGE)
            if name == PHASE:
                images = map(np.angle, images)
            elif name == "png":
                images = slices.read_side_by_side()
            elif not (args.complex and name in COMPLEX_FORMATS):
                images = map(np.abs, images)
            write_images(path, images, volume)
    print("Wrote", *paths.values())
    if "dicom" in paths:
        print("DICOM images have 16 bits: values are rounded to 1/131070 of the brightest one. Other formats have 32.")
    if slices.raw.affine is None:
        size = "pixels are 1 apart" if affine is None else "voxels have the given size"
        print(f"The position of the patient is unknown: in NIfTI and DICOM, slices are upright axial ones, and {size}.")
