"""Score weights on simulated slices of a head that the training did not use: the choices of docs/benchmarks/quality.md.

Run `python projects/multicoil/validate.py HEADS NAME`, HEADS being a folder of NIfTI files and NAME that of weights in
the package, or checkpoints. The reference is the root sum of squares of the fully sampled slice, noise included.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from maps import psnr
from tqdm import tqdm

from direct_hifimamba.data.simulation.heads import find_heads
from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample
from direct_hifimamba.reconstruction.volume import load

SLICES: dict[str, tuple[int, dict[str, Any]]] = {
    "96 x 96": (6, {"shape": (96, 96), "num_coils": (6, 16)}),
    "128 x 128": (12, {"shape": (128, 128), "num_coils": (6, 16)}),
    "256 x 256": (8, {"shape": (256, 256), "num_coils": (4, 16), "pixel_size": (0.7, 1.1)}),
    "one coil": (12, {"shape": (128, 128), "num_coils": (1, 1)}),
}
"""Number of slices and how they are drawn."""


def main() -> None:
    """Print a table of the mean PSNR in dB."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--cfg", type=Path, help="configuration (default: that of the checkpoints)")
    parser.add_argument("--flips", action=argparse.BooleanOptionalAction, help="as in direct-hifimamba reconstruct")
    parser.add_argument("--slices", choices=SLICES, nargs="+", default=["128 x 128", "256 x 256"])
    parser.add_argument("--accelerations", type=int, nargs="+", default=[4, 8])
    args = parser.parse_args()
    torch.set_num_threads(1)
    _, reconstructor = load(args.checkpoints, args.cfg, "cpu", args.flips)
    print("| slices | acceleration | PSNR, dB |\n|---|---|---|")
    for name in args.slices:
        number, drawn = SLICES[name]
        for acceleration in args.accelerations:
            options = SampleOptions(
                heads=tuple(find_heads(args.heads)),
                head_fraction=1.0,
                snr=(15, 200),
                accelerations=(acceleration,),
                masks=("equispaced",),
                **drawn,
            )
            scores = []
            for index in tqdm(range(number), f"{name}, {acceleration}x", unit="slice", leave=False):
                sample = draw_sample((77, acceleration, index), options)
                mask = sample.mask & (sample.kspace != 0).any(axis=0)  # some acquisitions leave out corners
                image = reconstructor((sample.kspace * mask)[None], mask, check=False)[0]
                scores.append(psnr(sample.noisy_target, image))
            print(f"| {name} | {acceleration} | {fmean(scores):.2f} |", flush=True)


if __name__ == "__main__":
    main()
