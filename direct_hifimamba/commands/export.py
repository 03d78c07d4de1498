"""`direct-hifimamba export`: write a model for DIRECT's model zoo, or a submission to a challenge."""

import argparse
from pathlib import Path

from direct_hifimamba.benchmark.export.challenges import CHALLENGES, export_submission
from direct_hifimamba.benchmark.export.zoo import export_zoo, push


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba export`."""
    subparsers = parser.add_subparsers(dest="form", metavar="form", required=True)
    zoo = subparsers.add_parser(
        "zoo",
        help="a trained model in the form of DIRECT's model zoo: configuration, weights, table and model card",
        allow_abbrev=False,
    )
    zoo.add_argument("run", type=Path, help="folder of a training by direct train, or of a run of a benchmark")
    zoo.add_argument("output", type=Path, nargs="?", help="new folder (default: zoo in the folder of the run)")
    zoo.add_argument("--name", help="name of the files (default: the model's class); the acceleration is appended")
    zoo.add_argument(
        "--inference",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="YAML files with a section inference, such as one per acceleration (default: the section of the run)",
    )
    zoo.add_argument(
        "--metrics",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="metrics_inference.json of direct predict, in folders whose names end with the acceleration, as in 4x "
        "(default: those of the run of a benchmark)",
    )
    zoo.add_argument("--push", metavar="REPO", help="upload to this repository of the Hugging Face hub")
    for name, challenge in CHALLENGES.items():
        submission = subparsers.add_parser(
            name, help=f"a submission to {name}", description=type(challenge).__doc__, allow_abbrev=False
        )
        submission.add_argument("predictions", type=Path, help="folder that was written by direct predict")
        submission.add_argument("output", type=Path, help="new folder")
        submission.add_argument(
            "--data",
            type=Path,
            help="folder with the challenge's k-space, to check that all volumes are there and have the right size",
        )


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba export`."""
    if args.form == "zoo":
        output = args.output or args.run / "zoo"
        names = export_zoo(args.run, output, args.name, args.inference, args.metrics, args.push)
        print(f"Wrote {', '.join(names)} to {output}.")
        if args.push:
            print(f"Uploaded to {push(output, args.push)}.")
        return
    number = export_submission(args.form, args.predictions, args.output, args.data)
    print(f"Wrote {number} volumes to {args.output}.")
    if args.data is None:
        print("Which volumes there have to be, and their sizes, was not checked: give the k-space with --data.")
