"""`direct-hifimamba reconstruct`: images from undersampled k-space of one file."""

import argparse
from pathlib import Path

import numpy as np

import direct_hifimamba
from direct_hifimamba.data.formats.nifti import save_slices
from direct_hifimamba.data.formats.raw_data import AXES
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME
from direct_hifimamba.reconstruction.reconstructor import (
    output_paths,
    write_contact_sheet,
    write_images,
)
from direct_hifimamba.reconstruction.volume import Request, reconstruct_volume


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba reconstruct`."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="model_<iteration>.pt of `direct train`, of any model; or the name of weights in the package, such as "
        "multicoil (direct-hifimamba weights)",
    )
    parser.add_argument(
        "input",
        type=Path,
        help="HDF5, .npz or .mat file (of prepare or CMRxRecon) with kspace (slices[, coils], height, width) and mask "
        "(width) or (height, width), and with sensitivity_map if the configuration uses stored sensitivities; or .npy "
        "file with k-space",
    )
    parser.add_argument(
        "output", type=Path, help="existing folder, or stem of the files: .h5, .nii.gz and .png are appended"
    )
    parser.add_argument(
        "--cfg", type=Path, metavar="FILE", help=f"configuration (default: {CONFIG_NAME} beside the checkpoint)"
    )
    parser.add_argument("--mask", type=Path, metavar="FILE", help="file with the mask (default: that of the input)")
    parser.add_argument(
        "--axes", metavar="NAMES", help=f"what the axes of an array are, such as height,width,coil: of {','.join(AXES)}"
    )
    parser.add_argument("--variable", metavar="NAME", help="name of k-space in the file (default: kspace)")
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not check that k-space agrees with the mask, the configuration and the training of shipped weights",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, mps, or auto: a GPU where there is one (default: %(default)s)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="number of processes, each with a slice and the model in memory (default: %(default)s)",
    )
    parser.add_argument("--complex", action="store_true", help="write complex images, not magnitudes, to the .h5 file")
    parser.add_argument("--phase", action="store_true", help="write the phase, in radians, to another NIfTI file")
    parser.add_argument(
        "--voxel-size",
        type=float,
        nargs=3,
        metavar=("SLICE", "ROW", "COLUMN"),
        help="distances in mm, for NIfTI (default: unknown, the affine is the identity)",
    )


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba reconstruct`."""
    if args.voxel_size is not None and not all(0 < size < np.inf for size in args.voxel_size):
        raise ValueError(f"The voxel size is {args.voxel_size}; expected three distances in mm, above 0.")
    paths = output_paths(args.output, args.input, args.phase)
    request = Request(
        checkpoint=args.checkpoint,
        source=args.input,
        config_path=args.cfg,
        device=args.device,
        mask_path=args.mask,
        axes=args.axes and tuple(args.axes.split(",")),
        variable=args.variable,
        complex_images=args.complex or args.phase,
        check=not args.no_check,
    )
    partial = paths.pop("partial")
    with reconstruct_volume(request, partial, args.jobs) as slices:
        provenance = {
            "checkpoint": args.checkpoint.name,
            "input": args.input.name,
            "version": direct_hifimamba.__version__,
            "warnings": slices.warnings,
        }
        images = slices.read("reconstruction")
        write_images(paths["images"], images if args.complex else map(np.abs, images), len(slices), provenance)
        magnitude = np.stack([np.abs(image) for image in slices.read("reconstruction")])
        save_slices(paths["magnitude"], magnitude, args.voxel_size)
        if args.phase:
            phase = np.stack([np.angle(image) for image in slices.read("reconstruction")])
            save_slices(paths["phase"], phase, args.voxel_size)
        write_contact_sheet(paths["sheet"], magnitude)
    print("Wrote", *paths.values())
    size = "the affine is the identity" if args.voxel_size is None else "voxels have the given size"
    print(f"NIfTI: the position of the patient is unknown, {size}.")
