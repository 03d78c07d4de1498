"""Whether the weight of data consistency follows the noise, on simulated slices.

Run `python projects/multicoil/noise.py CHECKPOINT HEADS`, HEADS being a folder of NIfTI files that the training did not
use. Slices of four signal-to-noise ratios are reconstructed with every weight lambda of the network as it is and
multiplied by constants. The rule is good where no constant is much better than 1 at any ratio.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from maps import psnr
from tqdm import tqdm

from direct_hifimamba.data.simulation.heads import find_heads
from direct_hifimamba.data.simulation.sample import SampleOptions, draw_sample
from direct_hifimamba.nn.layers.data_consistency import ProximalDataConsistency
from direct_hifimamba.reconstruct import Reconstructor

FACTORS = (0.1, 0.3, 1.0, 3.0)
SNRS = (15.0, 30.0, 60.0, math.inf)


@contextmanager
def multiplied(network: torch.nn.Module, factor: float) -> Iterator[None]:
    """Multiply every lambda of a network by a factor."""
    layers = [module for module in network.modules() if isinstance(module, ProximalDataConsistency)]
    with torch.no_grad():
        for layer in layers:
            layer.log_weight.add_(math.log(factor))
        yield
        for layer in layers:
            layer.log_weight.sub_(math.log(factor))


def main() -> None:
    """Print a table of the mean PSNR in dB, 4x and 8x."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--number", type=int, default=12, help="slices per row (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    reconstructor = Reconstructor.from_checkpoint(args.checkpoint)
    print("| acceleration | SNR | " + " | ".join(f"lambda x {factor:g}" for factor in FACTORS) + " |")
    print("|---|---|" + "---|" * len(FACTORS))
    for acceleration in (4, 8):
        for snr in SNRS:
            options = SampleOptions(
                heads=tuple(find_heads(args.heads)),
                head_fraction=1.0,
                shape=(128, 128),
                num_coils=(6, 16),
                snr=(min(snr, 1e6), min(snr, 1e6)),
                noiseless_fraction=float(math.isinf(snr)),
                accelerations=(acceleration,),
                masks=("equispaced",),
            )
            scores = np.zeros((args.number, len(FACTORS)))
            for index in tqdm(range(args.number), f"{acceleration}x, SNR {snr:g}", unit="slice", leave=False):
                sample = draw_sample((6, acceleration, index), options)
                mask = sample.mask & (sample.kspace != 0).any(axis=0)  # some acquisitions leave out corners
                for column, factor in enumerate(FACTORS):
                    with multiplied(reconstructor.network, factor):
                        image = reconstructor((sample.kspace * mask)[None], mask)[0]
                    scores[index, column] = psnr(sample.target, image)
            means = " | ".join(f"{mean:.2f}" for mean in scores.mean(axis=0))
            print(f"| {acceleration} | {snr:g} | {means} |")


if __name__ == "__main__":
    main()
