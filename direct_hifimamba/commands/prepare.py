"""`direct-hifimamba prepare`: convert a public data set or raw files to files that DIRECT reads."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from direct_hifimamba.commands.jobs import add_jobs_argument
from direct_hifimamba.data.data_sets import DATA_SETS, MEASURED, SIMULATED
from direct_hifimamba.data.formats.raw_data import AXES
from direct_hifimamba.data.masks import MaskOptions
from direct_hifimamba.data.prepare import prepare, summarise
from direct_hifimamba.data.protocol import CROP, FILE_NAME, MULTI_COIL, RECONSTRUCTIONS, RESAMPLE, SINGLE_COIL, Settings
from direct_hifimamba.data.splits import find_leaks
from direct_hifimamba.files import first_and_count


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba prepare`."""
    parser.add_argument(
        "data_set", choices=DATA_SETS, help="name of the data set; raw means files in any format of docs/formats.md"
    )
    parser.add_argument("source", type=Path, help="folder with the unpacked download or the raw files")
    parser.add_argument(
        "dest", type=Path, help="folder to write to: new, empty, or from an earlier call that is to be completed"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="splits to prepare: train, val, test (default: those in the download)",
    )
    add_jobs_argument(parser)
    parser.add_argument(
        "--kspace",
        choices=(MEASURED, "magnitude"),
        help="measured k-space (default if the data set has it), or the Fourier transform of magnitude images",
    )
    parser.add_argument(
        "--coils", choices=(SINGLE_COIL, MULTI_COIL), help="fastMRI: single-coil or multi-coil data (default: single)"
    )
    parser.add_argument(
        "--acquisition",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="type of measurement, one or several; fastMRI: CORPDFS_FBK (default), CORPD_FBK, ...; M4Raw: T1 "
        "(default), T2, FLAIR",
    )
    parser.add_argument(
        "--divide",
        nargs=3,
        metavar=("SPLIT", "NEW", "FRACTION"),
        help="make a new split from a fraction of the subjects of another split, as in: val test 0.5",
    )
    parser.add_argument(
        "--slices",
        metavar="RULE",
        help="slices to take: all, central:N, or inner:N, which leaves out N slices on either side (default: as in the "
        "paper)",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of magnitude images (default: as in the paper)",
    )
    parser.add_argument(
        "--fit",
        choices=(CROP, RESAMPLE),
        help="how magnitude images are brought to this size: crop and zero-pad (default), or resample",
    )
    parser.add_argument(
        "--reconstruction",
        choices=RECONSTRUCTIONS,
        help="fastMRI: use magnitude images from reconstruction_esc or from reconstruction_rss, which the paper uses "
        "also for a single coil (default: esc if the file has it, otherwise rss)",
    )
    parser.add_argument(
        "--normalise-slices",
        action="store_true",
        help="divide each magnitude image, or the measured k-space of each slice (which is then copied), by the "
        "maximum of the image, as in the paper; the input then contains the scale of the target",
    )
    parser.add_argument(
        "--mask",
        nargs="+",
        action="append",
        metavar="WORD",
        help="evaluation mask: name, acceleration and center fraction, as in FastMRIEquispaced 4 0.08, or Radial 16; "
        "repeat the option for several masks (default: as in the paper)",
    )
    parser.add_argument("--mask-training", action="store_true", help="also store masks for the training split")
    parser.add_argument("--copy", action="store_true", help="copy measured k-space instead of linking the download")
    parser.add_argument(
        "--axes",
        metavar="NAMES",
        help=f"raw: names of the axes of arrays in their order, such as height,width,coil; from {','.join(AXES)}",
    )
    parser.add_argument(
        "--variable", metavar="NAME", help="raw: name of the k-space array in the files (default: kspace)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the masks and of --divide (default: %(default)s)")


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba prepare`.

    Raises
    ------
    SystemExit
        With status 1 if a file of the download could not be used.
    """
    options = {field.name: getattr(args, field.name, None) for field in fields(Settings)} | {
        "kspace": SIMULATED if args.kspace == "magnitude" else args.kspace,
        "size": args.size and tuple(args.size),
        "masks": args.mask and tuple(map(MaskOptions.from_words, args.mask)),
        "axes": args.axes and tuple(args.axes.split(",")),
        "divide": args.divide and (*args.divide[:2], _fraction(args.divide[2])),
    }
    settings = Settings.of(args.data_set, **options)
    protocol = prepare(args.source, args.dest, settings, args.split, args.jobs)
    for name, split in protocol["splits"].items():
        num_slices = sum(len(record["slices"]) for record in split["files"].values())
        print(f"{name}: {len(split['files'])} files with {num_slices} slices, k-space {settings.kspace}")
        if split["skipped"]:
            print(f"  left out: {summarise(split['skipped'])}")
    for name in set(settings.folders).difference(protocol["splits"]):
        print(f"{name}: not there")
    for remark in settings.remarks():
        print(f"Note: {remark}")
    if leaks := find_leaks(protocol["splits"]):
        print(f"Warning: splits are not independent: {first_and_count(leaks)}", file=sys.stderr)
    print(f"Written to {args.dest}; {FILE_NAME} there says what was done and how to configure DIRECT.")
    failed = {name: reason for split in protocol["splits"].values() for name, reason in split["failed"].items()}
    for name, reason in failed.items():
        print(f"Not usable: {name}: {reason}", file=sys.stderr)
    if failed:
        sys.exit(1)


def _fraction(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"The fraction of --divide is {word!r}; expected a number between 0 and 1.") from None
