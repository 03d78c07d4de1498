"""`direct-hifimamba weights`: list the trained weights in the package, print their model cards or copy them."""

import argparse
import shutil
from pathlib import Path

from direct_hifimamba.files import fill_folder
from direct_hifimamba.reconstruction.pretrained import find_pretrained, format_card, list_pretrained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `direct-hifimamba weights`."""
    parser.add_argument("name", nargs="?", help="print the model card of these weights (default: list all)")
    parser.add_argument(
        "--copy",
        type=Path,
        metavar="FOLDER",
        help="copy configuration and weights to a new folder, for `train --initialization-checkpoint`",
    )


def main(args: argparse.Namespace) -> None:
    """Run `direct-hifimamba weights`."""
    if args.name is None:
        if args.copy is not None:
            raise ValueError(
                f"--copy {args.copy} lacks the name of the weights; expected {', '.join(list_pretrained())}."
            )
        for name in list_pretrained():
            pretrained = find_pretrained(name)
            print(f"{name}: {pretrained.card['title']}; number of networks: {len(pretrained.checkpoints)}")
        return
    pretrained = find_pretrained(args.name)
    if args.copy is None:
        print(format_card(pretrained), end="")
        return
    with fill_folder(args.copy) as partial:
        for path in (pretrained.config_path, *pretrained.checkpoints):
            shutil.copyfile(path, partial / path.name)
    print("Wrote", *sorted(args.copy.iterdir()))
