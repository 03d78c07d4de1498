"""`direct-hifimamba reconstruct`: images from undersampled k-space of one file."""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

import direct_hifimamba
from direct_hifimamba.data.acquisition import check_acquisition, read_acquisition, read_sensitivity_map
from direct_hifimamba.data.formats.nifti import save_slices
from direct_hifimamba.data.formats.raw_data import AXES
from direct_hifimamba.reconstruction.domain import OutsideDomainWarning
from direct_hifimamba.reconstruction.pretrained import CONFIG_NAME, is_pretrained
from direct_hifimamba.reconstruction.reconstructor import (
    Reconstructor,
    output_paths,
    write_contact_sheet,
    write_images,
)


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
    axes = args.axes and args.axes.split(",")
    kspace, mask, raw = read_acquisition(args.input, args.mask, axes, args.variable)
    print(*raw.messages, sep="\n", end="\n" if raw.messages else "")
    sampled = check_acquisition(kspace, mask, not args.no_check)
    load = Reconstructor.from_pretrained if is_pretrained(args.checkpoint) else Reconstructor.from_checkpoint
    reconstructor = load(str(args.checkpoint), args.cfg, args.device)
    departures = [] if args.no_check else reconstructor.find_departures(kspace, sampled)
    for departure in departures:
        print(f"direct-hifimamba: warning: {departure}", file=sys.stderr)
    maps = read_sensitivity_map(args.input, axes) if reconstructor.needs_sensitivity_map else None
    with warnings.catch_warnings(action="ignore", category=OutsideDomainWarning):
        images = reconstructor(
            kspace,
            mask,
            args.complex or args.phase,
            progress=True,
            sensitivity_map=maps,
            image_size=raw.image_size,
            check=not args.no_check,
        )
    magnitude = np.abs(images)
    provenance = {
        "checkpoint": args.checkpoint.name,
        "input": args.input.name,
        "version": direct_hifimamba.__version__,
        "warnings": departures,
    }
    write_images(paths["images"], images if args.complex else magnitude, provenance)
    save_slices(paths["magnitude"], magnitude, args.voxel_size)
    if args.phase:
        save_slices(paths["phase"], np.angle(images), args.voxel_size)
    write_contact_sheet(paths["sheet"], magnitude)
    print("Wrote", *paths.values())
    size = "the affine is the identity" if args.voxel_size is None else "voxels have the given size"
    print(f"NIfTI: the position of the patient is unknown, {size}.")
