"""Comparison of coil sensitivities: CG-SENSE or a network with several estimates of them, on simulated slices.

Run `python projects/multicoil/maps.py HEADS [--checkpoint CHECKPOINT]`, where HEADS is a folder from `direct-hifimamba
heads`. The sensitivities are exact or estimated (`rss_estimate`, ESPIRiT, NLINV). The target of CG-SENSE is the image
without noise; the weight of its regularisation is always the same. The target of a network is the image with noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from tqdm import tqdm

from direct_hifimamba.benchmark.run.classical import cg_sense
from direct_hifimamba.data.espirit import espirit
from direct_hifimamba.data.fourier import kspace_to_image
from direct_hifimamba.data.nlinv import nlinv
from direct_hifimamba.data.simulation.heads import find_heads
from direct_hifimamba.data.simulation.sample import Sample, SampleOptions, draw_sample
from direct_hifimamba.reconstruct import Reconstructor

#: Weight of the regularisation of CG-SENSE.
WEIGHT = 0.01


def root_sum_of_squares_maps(sample: Sample) -> NDArray[np.complex64]:
    """Estimate sensitivities as DIRECT's `rss_estimate`: calibration images over their root sum of squares."""
    images = kspace_to_image(sample.kspace * sample.calibration_mask)
    return (images / np.maximum(np.linalg.norm(images, axis=0), 1e-12)).astype(np.complex64)


def psnr(target: NDArray[np.float32], image: NDArray[np.float32]) -> float:
    """Return the PSNR in dB, relative to the target's maximum, of an image after a least-squares scale."""
    scaled = image * (target * image).sum() / np.square(image).sum()
    return float(10 * np.log10(target.max() ** 2 / np.square(target - scaled).mean()))


def estimate_all(sample: Sample) -> dict[str, NDArray[np.complex64]]:
    """Return every kind of sensitivities of a slice."""
    masked = sample.kspace * sample.mask
    return {
        "exact": sample.sensitivity_map,
        "rss_estimate": root_sum_of_squares_maps(sample),
        "ESPIRiT": espirit(masked, sample.calibration_mask),
        "NLINV": nlinv(masked, sample.mask),
    }


def load_network(checkpoint: Path) -> Reconstructor:
    """Return a network that takes sensitivities as given, instead of estimating them as its configuration says."""
    config = OmegaConf.load(checkpoint.parent / "config.yaml")
    config.inference.dataset.sensitivity_maps = "stored"
    config.inference.dataset.transforms.sensitivity_map_estimation.estimate_sensitivity_maps = False
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(OmegaConf.to_yaml(config))
        file.flush()
        return Reconstructor.from_checkpoint(checkpoint, file.name)


def main() -> None:
    """Print a table for accelerations of 4 and 8."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--number", type=int, default=24, help="slices per acceleration (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="network to compare the sensitivities with, for CG-SENSE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = load_network(args.checkpoint) if args.checkpoint else None

    def score(sample: Sample, maps: NDArray[np.complex64]) -> float:
        if network is None:
            return psnr(sample.target, cg_sense(sample.kspace, sample.mask, maps, WEIGHT))
        mask = sample.mask & (sample.kspace != 0).any(axis=0)  # some acquisitions leave out corners
        image = network((sample.kspace * mask)[None], mask, sensitivity_map=maps[None], check=False)[0]
        return psnr(sample.noisy_target, image)

    columns: list[dict[str, float]] = []
    for acceleration in (4, 8):
        options = SampleOptions(
            heads=tuple(find_heads(args.heads)),
            head_fraction=1.0,
            shape=(128, 128),
            num_coils=(8, 16),
            snr=(30.0, 100.0),
            noiseless_fraction=0.0,
            accelerations=(acceleration,),
            masks=("equispaced",),
        )
        rows = []
        with torch.no_grad():
            for index in tqdm(range(args.number), f"{acceleration}x", unit="slice", leave=False):
                sample = draw_sample((5, acceleration, index), options)
                rows.append({name: score(sample, maps) for name, maps in estimate_all(sample).items()})
        columns.append({name: float(np.mean([row[name] for row in rows])) for name in rows[0]})
    print("| sensitivities | 4x | 8x |\n|---|---|---|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:.2f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
