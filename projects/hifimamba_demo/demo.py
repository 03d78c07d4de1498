"""Train HiFi-MambaV2 on one averaged brain and compare it with the zero-filled image: a check of the installation.

Every step is a command that is printed before it runs: `direct-hifimamba simulate`, `direct train`, `direct predict`.
Finished steps are not repeated, and an interrupted training goes on from its last checkpoint.
"""

import argparse
import json
import math
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import h5py
import matplotlib as mpl
import numpy as np
from direct.functionals.challenges import fastmri_nmse, fastmri_psnr, fastmri_ssim
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from direct_hifimamba.data.fourier import root_sum_of_squares
from direct_hifimamba.files import replace_when_complete, write_text

CONFIG = Path(__file__).parent / "configs" / "demo.yaml"

SIMULATION = "--coils 4 --snr 80 --voxel-size 1.5 --size 128 128 --slab 8"
STORED_MASK = "--mask FastMRIEquispaced 4 0.08"
# Millimetres above the lowest slice of the template; at least 8 mm between the parts.
SPLITS = {
    "training": "--slices 12 84",
    "validation": f"--slices 92 96 {STORED_MASK}",
    "test": f"--slices 104 120 {STORED_MASK}",
}

METRICS = {"SSIM": fastmri_ssim, "PSNR": fastmri_psnr, "NMSE": fastmri_nmse}
ZERO_FILLED, NETWORK = "zero-filled", "HiFi-MambaV2"
# What the trained network must reach for the check to pass: gains over the zero-filled image, in the mean.
MIN_SSIM_GAIN, MIN_PSNR_GAIN, MAX_NMSE_RATIO = 0.1, 3.0, 0.5


@dataclass(frozen=True)
class Volume:
    """Magnitude volumes of shape (slices, height, width) in the units of the k-space file."""

    target: NDArray[np.float32]
    images: dict[str, NDArray[np.float32]]

    def metrics(self, method: str) -> dict[str, float]:
        """DIRECT's fastMRI metrics of one method, over the whole volume."""
        target, image = self.target[:, None], self.images[method][:, None]
        return {name: metric(target, image).item() for name, metric in METRICS.items()}


def main() -> None:
    """Run the demo.

    Raises
    ------
    SystemExit
        If a step fails, or if the network does not clearly beat the zero-filled image.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder (default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="training iterations (default: those of the configuration)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    args = parser.parse_args()

    config = OmegaConf.load(CONFIG)
    assert isinstance(config, DictConfig)
    if args.iterations is not None:
        shorten(config, args.iterations)
    args.output.mkdir(parents=True, exist_ok=True)
    config_path = args.output / CONFIG.name
    write_config(config, config_path)

    data = args.output / "data"
    for split, options in SPLITS.items():
        run(f"direct-hifimamba simulate icbm152 {data / split} {SIMULATION} {options}")
    checkpoint = train(config_path, config.training.num_iterations - 1, data, args)
    prediction = predict(config_path, checkpoint, data / "test", args)

    volumes = load_volumes(data / "test", prediction)
    check_against_direct(volumes, prediction)
    report(volumes, args.output)
    compare_on_measured_slice(args.output / "measured.png")


def compare_on_measured_slice(path: Path) -> None:
    """Write a picture of a measured slice, by the weights in the package, where the scan can be had."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "measured"))
    from picture import write_picture
    from scans import UnavailableError

    try:
        write_picture(path)
    except UnavailableError as error:
        print(f"\nThe measured slice is left out: {error}")
    else:
        print(f"\nA measured slice, reconstructed by the weights in the package, is in {path}.")


def shorten(config: DictConfig, iterations: int) -> None:
    """Set another number of iterations, warm-up and learning rate steps in proportion."""
    if iterations < 6:
        sys.exit(f"--iterations is {iterations}; expected at least 6: DIRECT writes no checkpoint before the fifth.")
    factor = iterations / config.training.num_iterations
    for key in ("num_iterations", "lr_warmup_iter", "lr_step_size"):
        config.training[key] = max(1, round(config.training[key] * factor))


def write_config(config: DictConfig, path: Path) -> None:
    """Write the configuration, or make sure that it is the one that the folder was made with."""
    if path.exists() and OmegaConf.load(path) != config:
        sys.exit(f"{path.parent} was made with another configuration; remove it or choose another --output.")
    with replace_when_complete(path) as partial:
        OmegaConf.save(config, partial)


def run(command: str) -> None:
    """Run a command of this Python's environment, showing what it prints."""
    print(f"\n$ {command}", flush=True)
    name, *arguments = shlex.split(command)
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or name
    process = subprocess.Popen([program, *arguments])
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.wait()  # DIRECT writes a checkpoint
        sys.exit("\nInterrupted; the same command goes on from here.")
    if status != 0:
        sys.exit(f"The command above ended with status {status}.")


def train(config_path: Path, last_iteration: int, data: Path, args: argparse.Namespace) -> Path:
    """Train, or go on with an interrupted training, and return the last checkpoint."""
    run_folder = args.output / "training" / config_path.stem
    last_saved = run_folder / "last_model.txt"  # which DIRECT writes after the checkpoint itself
    if not last_saved.exists() or int(last_saved.read_text() or 0) < last_iteration:
        run(
            f"direct train {run_folder.parent} --cfg {config_path} --training-root {data / 'training'} "
            f"--validation-root {data / 'validation'} --device {args.device} --num-gpus 0 --num-workers 0 --seed 0 "
            "--resume"
        )
    return run_folder / f"model_{last_iteration}.pt"


def predict(config_path: Path, checkpoint: Path, data: Path, args: argparse.Namespace) -> Path:
    """Reconstruct the test volumes and return the folder with the reconstructions."""
    folder = args.output / "prediction"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        run(
            f"direct predict {partial} --cfg {config_path} --checkpoint {checkpoint} --data-root {data} "
            f"--device {args.device} --num-gpus 0 --num-workers 0"
        )
        partial.replace(folder)
    return folder


def load_volumes(data: Path, prediction: Path) -> dict[str, Volume]:
    """Targets, zero-filled images and reconstructions of all test files."""
    volumes = {}
    for path in sorted(data.glob("*.h5")):
        with h5py.File(path) as measured, h5py.File(prediction / path.name) as predicted:
            kspace, mask = measured["kspace"][()], measured["mask"][()]
            images = {
                ZERO_FILLED: np.stack([root_sum_of_squares(kspace_slice * mask) for kspace_slice in kspace]),
                NETWORK: predicted["reconstruction"][()],
            }
        volumes[path.name] = Volume(np.stack([root_sum_of_squares(kspace_slice) for kspace_slice in kspace]), images)
    return volumes


def check_against_direct(volumes: dict[str, Volume], prediction: Path) -> None:
    """Make sure that our table of the reconstructions is the one that DIRECT computed while it predicted."""
    theirs = json.loads((prediction / "metrics_inference.json").read_text())
    for file_name, volume in volumes.items():
        for name, value in volume.metrics(NETWORK).items():
            expected = theirs[file_name][f"fastmri_{name.lower()}_metric"]
            if not math.isclose(value, expected, rel_tol=1e-3):
                sys.exit(f"{name} of {file_name} is {value:.6f} here and {expected:.6f} in metrics_inference.json.")


def report(volumes: dict[str, Volume], output: Path) -> None:
    """Write table and figure, print the table, and end the program if the gain is too small."""
    rows = {
        (file_name, method): volume.metrics(method)
        for file_name, volume in volumes.items()
        for method in (ZERO_FILLED, NETWORK)
    }
    mean = {
        method: {name: fmean(rows[file_name, method][name] for file_name in volumes) for name in METRICS}
        for method in (ZERO_FILLED, NETWORK)
    }
    rows |= {("**mean**", method): values for method, values in mean.items()}
    table = "\n".join(
        [
            "| volume | method | SSIM | PSNR, dB | NMSE |",
            "|---|---|---|---|---|",
            *(
                f"| {volume} | {method} | {row['SSIM']:.4f} | {row['PSNR']:.2f} | {row['NMSE']:.5f} |"
                for (volume, method), row in rows.items()
            ),
        ]
    )
    write_text(output / "table.md", f"{table}\n")
    with replace_when_complete(output / "figure.png") as partial:
        draw(next(iter(volumes.values())), partial)
    print(f"\n{table}\n\nWritten to {output / 'table.md'}; images in {output / 'figure.png'}.")

    gained = (
        mean[NETWORK]["SSIM"] >= mean[ZERO_FILLED]["SSIM"] + MIN_SSIM_GAIN
        and mean[NETWORK]["PSNR"] >= mean[ZERO_FILLED]["PSNR"] + MIN_PSNR_GAIN
        and mean[NETWORK]["NMSE"] <= mean[ZERO_FILLED]["NMSE"] * MAX_NMSE_RATIO
    )
    if not gained:
        sys.exit(
            f"The network does not clearly beat the zero-filled image: expected in the mean at least {MIN_SSIM_GAIN} "
            f"more SSIM, {MIN_PSNR_GAIN} dB more PSNR and {MAX_NMSE_RATIO} times the NMSE or less."
        )


def draw(volume: Volume, path: Path) -> None:
    """Middle slice of a volume, whole and enlarged: target, images and their errors on one scale."""
    index = len(volume.target) // 2
    target = volume.target[index]
    images = {method: image[index] for method, image in volume.images.items()}
    errors = {f"error, {method}": np.abs(image - target) for method, image in images.items()}
    limit = max(np.quantile(error, 0.999) for error in errors.values())
    height, width = target.shape
    window = (slice(height // 4, height // 2), slice(5 * width // 8, 7 * width // 8))

    panels = {"target": target, **images, **errors}
    figure, axes = plt.subplots(2, len(panels), figsize=(2.6 * len(panels), 5.1), layout="constrained")
    for column, (title, panel) in enumerate(panels.items()):
        scale = {"cmap": "inferno", "vmax": limit} if title in errors else {"cmap": "gray", "vmax": target.max()}
        for row, pixels in enumerate((panel, panel[window])):
            shown = axes[row, column].imshow(pixels, vmin=0, **scale)
            axes[row, column].set_axis_off()
        axes[0, column].set_title(title, fontsize=10)
        if column < 3:
            frame = mpl.patches.Rectangle(
                (window[1].start - 0.5, window[0].start - 0.5), width // 4, height // 4, fill=False, edgecolor="yellow"
            )
            axes[0, column].add_patch(frame)
    figure.colorbar(shown, ax=axes[:, -1], label="magnitude of the error", shrink=0.8)
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)


if __name__ == "__main__":
    main()
