"""`direct-hifimamba score`: score a submission to a challenge locally, against the references."""

import argparse
import csv
from pathlib import Path
from statistics import fmean

from direct_hifimamba.benchmark.export.challenges import CHALLENGES, score_submission
from direct_hifimamba.commands.jobs import add_jobs_argument
from direct_hifimamba.files import replace_when_complete


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba score`."""
    parser.add_argument("challenge", choices=CHALLENGES, help="challenge of the submission")
    parser.add_argument("submission", type=Path, help="folder that was written by export, or zip file")
    parser.add_argument("references", type=Path, help="folder with the fully sampled volumes")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.csv", help="also write the scores of every volume to this file"
    )
    add_jobs_argument(parser)


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba score`."""
    if args.output is not None and args.output.suffix != ".csv":  # it may be one of the volumes
        raise ValueError(f"The output is {args.output}; expected a name that ends in .csv.")
    scores = score_submission(args.challenge, args.submission, args.references, args.jobs)
    metrics = list(scores[0].values)
    for group in dict.fromkeys(score.group for score in scores):
        rows = [score.values for score in scores if score.group == group]
        means = ", ".join(f"{metric} {fmean(row[metric] for row in rows):.4f}" for metric in metrics)
        label = args.challenge if group == "." else group
        print(f"{label}: {means}; mean of {len(rows)} volumes")
    if args.output is not None:
        with replace_when_complete(args.output) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["volume", *metrics])
            writer.writerows([score.name, *score.values.values()] for score in scores)
