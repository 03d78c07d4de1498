"""`direct-hifimamba export`: results for DIRECT's model zoo and for challenges."""

import argparse
from pathlib import Path

from direct_hifimamba.benchmark.export.challenges import CHALLENGES, export_submission
from direct_hifimamba.benchmark.export.zoo import export_zoo, push


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba export`."""
    subparsers = parser.add_subparsers(dest="form", metavar="form", required=True)
    zoo = subparsers.add_parser(
        "zoo",
        help="a trained model as configuration and weights, with table and model card, as in DIRECT's model zoo",
        allow_abbrev=False,
    )
    zoo.add_argument("run", type=Path, help="folder of a training of direct train, or of a run of a benchmark")
    zoo.add_argument("output", type=Path, nargs="?", help="new folder (default: zoo in the folder of the run)")
    zoo.add_argument("--name", help="of the files (default: the model's class); the acceleration is appended")
    zoo.add_argument(
        "--inference",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="YAML files with a section inference, such as one for each acceleration (default: that of the run)",
    )
    zoo.add_argument(
        "--metrics",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="metrics_inference.json of direct predict, in folders whose names end in 4x and the like (default: those "
        "of the run of a benchmark)",
    )
    zoo.add_argument("--push", metavar="REPO", help="upload to this repository of the Hugging Face hub")
    for name, challenge in CHALLENGES.items():
        submission = subparsers.add_parser(
            name, help=f"a submission to {name}", description=type(challenge).__doc__, allow_abbrev=False
        )
        submission.add_argument("predictions", type=Path, help="folder that direct predict has written")
        submission.add_argument("output", type=Path, help="new folder")
        submission.add_argument(
            "--data", type=Path, help="the challenge's folder of k-space: volumes and sizes that there have to be"
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
