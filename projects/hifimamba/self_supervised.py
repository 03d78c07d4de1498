"""What training without references (SSDU) is worth: beside images without training, and a training with references.

CG-SENSE needs no training; its weight is the best of four for the test itself. Every network trains on the same slices
of one head, undersampled by the same masks, for the same number of iterations, and is scored on another head.
Everything is simulated from magnitude images, 64 x 64 pixels and 4 coils. Finished steps are not repeated.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

import h5py
import numpy as np
from direct.functionals import fastmri_psnr, fastmri_ssim
from numpy.typing import NDArray

from direct_hifimamba.benchmark.run.classical import cg_sense, estimate_sensitivity_map
from direct_hifimamba.data.formats.hdf5 import read_slices
from direct_hifimamba.data.fourier import root_sum_of_squares

PROJECT = Path(__file__).parent
PARTS = (
    PROJECT / "common.yaml",
    PROJECT / "self_supervised.yaml",
    PROJECT / "masks" / "equispaced_4x.yaml",
    PROJECT.parents[1] / "configs" / "small.yaml",
)
CG_WEIGHTS = (0.001, 0.003, 0.01, 0.03)
MASK = "--coils 4 --snr 30 --voxel-size 3 --size 64 64 --mask FastMRIEquispaced 4 0.08"
SHARED = (
    "training.lr=0.002 training.weight_decay=0.0001 training.gradient_clipping=1.0 training.validation_steps=100000 "
    "training.batch_size=1 validation.batch_size=1 inference.batch_size=1"
)
TRAININGS = {
    "without references": "",
    "with references": "training.datasets.0.transforms.transforms_type=supervised model.engine_name=HiFiMambaV2Engine "
    "'training.loss.losses=[{function: l1_loss, multiplier: 1.0}]'",
}


def main() -> None:
    """Simulate, train and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path, help="folder that direct-hifimamba heads has filled")
    parser.add_argument("output", type=Path)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--data-consistency", choices=("hard", "proximal"), default="proximal")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    data = args.output / "data"
    # A mask for every slice of the training, as from as many scans.
    run(f"simulate {args.heads / 'colin27.nii.gz'} {data / 'train'} --slices 30 150 --slab 1 {MASK}")
    run(f"simulate {args.heads / 'robex.nii.gz'} {data / 'test'} --slices 86 110 --slab 8 {MASK}")
    scores = {
        "zero-filled": [score(data / "test", zero_filled)],
        "CG-SENSE": [max(score(data / "test", partial(sense, weight=weight)) for weight in CG_WEIGHTS)],
    }
    for name, overrides in TRAININGS.items():
        folder = args.output / name.replace(" ", "_")
        config = folder / "config.yaml"
        parts = shlex.join(map(str, PARTS))
        length = f"training.num_iterations={args.iterations} training.lr_warmup_iter={max(20, args.iterations // 10)}"
        own = f"model.data_consistency={args.data_consistency} {length} {overrides}"
        run(f"config compose {parts} {SHARED} {own} --output {config}")
        scores[name] = [train(folder, config, data, seed, args.iterations) for seed in args.seeds]
    print("\n| training | PSNR, dB | SSIM |\n|---|---|---|")
    for name, seeds in scores.items():
        columns = [", ".join(f"{score[index]:.{digits}f}" for score in seeds) for index, digits in ((0, 2), (1, 4))]
        print(f"| {name} | {' | '.join(columns)} |")


def run(command: str) -> None:
    """Run a command of direct-hifimamba, and end if it fails."""
    print(f"\n$ direct-hifimamba {command}", flush=True)
    subprocess.run([sys.executable, "-m", "direct_hifimamba.cli", *shlex.split(command)], check=True)


def zero_filled(kspace: NDArray[np.complex64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the zero-filled image (height, width) of k-space (coil, height, width)."""
    return root_sum_of_squares(kspace * mask)


def sense(kspace: NDArray[np.complex64], mask: NDArray[np.bool_], weight: float) -> NDArray[np.float32]:
    """Return the image by CG-SENSE with the sensitivities from which the networks start."""
    masked_kspace = kspace * mask
    sensitivity_map = estimate_sensitivity_map(masked_kspace, mask)
    return cg_sense(masked_kspace, np.tile(mask, (kspace.shape[1], 1)), sensitivity_map, weight)


def score(
    folder: Path, reconstruct: Callable[[NDArray[np.complex64], NDArray[np.bool_]], NDArray[np.float32]]
) -> tuple[float, float]:
    """Return the mean PSNR and SSIM of the images of a folder's slices, as DIRECT scores volumes."""
    scores = []
    for path in folder.glob("*.h5"):
        with h5py.File(path) as file:
            kspace, mask = list(read_slices(file)), file["mask"][()].astype(bool)
        target = np.stack([root_sum_of_squares(part) for part in kspace])[:, None]
        image = np.stack([reconstruct(part, mask) for part in kspace])[:, None]
        scores.append((fastmri_psnr(target, image).item(), fastmri_ssim(target, image).item()))
    return fmean(psnr for psnr, _ in scores), fmean(ssim for _, ssim in scores)


def train(folder: Path, config: Path, data: Path, seed: int, iterations: int) -> tuple[float, float]:
    """Train with a seed, and return the mean PSNR and SSIM over the volumes of the test after the last iteration."""
    run_folder = folder / f"seed_{seed}"
    metrics = run_folder / f"metrics_val_equispaced_4x_{iterations - 1}.json"
    if not metrics.exists():
        run(
            f"train {folder} --name seed_{seed} --seed {seed} --cosine-schedule --cfg {config} --training-root "
            f"{data / 'train'} --validation-root {data / 'test'} --device cpu --num-workers 0"
        )
    volumes = json.loads(metrics.read_text()).values()
    psnr, ssim = (fmean(volume[f"fastmri_{name}_metric"] for volume in volumes) for name in ("psnr", "ssim"))
    return psnr, ssim


if __name__ == "__main__":
    main()
