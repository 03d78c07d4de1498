"""What maps of noise, spread and residual show, and what not, on a measured slice: the figures of docs/uncertainty.md.

Run `python projects/multicoil/uncertainty.py KSPACE HEADS NAME`, where KSPACE is fully sampled (`.npy`; slice, coil,
height, width), HEADS a folder of NIfTI files that the training did not use, and NAME that of weights in the package, or
several checkpoints.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from direct_hifimamba.data.fourier import image_to_kspace, root_sum_of_squares
from direct_hifimamba.data.nlinv import nlinv
from direct_hifimamba.data.simulation.heads import find_heads
from direct_hifimamba.reconstruction.noise import estimate_noise_covariance, noise_map
from direct_hifimamba.reconstruction.uncertainty import calibrate, residual_map, spread
from direct_hifimamba.reconstruction.volume import load

CENTER_FRACTIONS = {4: 0.08, 8: 0.04}
LESION = (slice(60, 68), slice(60, 68))


def equispaced(width: int, acceleration: int) -> NDArray[np.bool_]:
    """Return columns of a full centre and others at equal distances, as in fastMRI."""
    mask = np.zeros(width, bool)
    center = round(width * CENTER_FRACTIONS[acceleration])
    start = (width - center + 1) // 2
    mask[start : start + center] = True
    spacing = acceleration * (center - width) / (center * acceleration - width)
    mask[np.round(np.arange(1, width - 1, spacing)).astype(int)] = True
    return mask


def move(kspace: NDArray[np.complex64], pixels: float) -> NDArray[np.complex64]:
    """Return k-space of a head that has moved along the columns before the second half of the lines was measured."""
    frequencies = (np.arange(kspace.shape[-2]) - kspace.shape[-2] // 2) / kspace.shape[-2]
    moved = kspace * np.exp(-2j * np.pi * pixels * frequencies)[:, None]
    return np.where(np.arange(kspace.shape[-1]) < kspace.shape[-1] // 2, kspace, moved).astype(np.complex64)


def add_spike(kspace: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return k-space with one wrong value in each coil, as bright as the centre, far from it."""
    spiked = kspace.copy()
    column = int(np.flatnonzero(kspace[0].any(axis=0))[3])
    spiked[:, kspace.shape[-2] // 3, column] = np.abs(kspace).max(axis=(1, 2))
    return spiked


def residual_of_lesion(
    residual: NDArray[np.complex64],
    covariance: NDArray[np.complex128],
    sampled: NDArray[np.bool_],
    maps: NDArray[np.complex64],
    height: float,
) -> float:
    """Return the residual of an image to which a bright square, one that is not there, has been added."""
    lesion = np.zeros(sampled.shape, np.complex64)
    lesion[LESION] = height
    return residual_map(residual - image_to_kspace(maps * lesion) * sampled, covariance)[1]


def main() -> None:
    """Print Markdown tables, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kspace", type=Path)
    parser.add_argument("heads", type=Path)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--cfg", type=Path)
    parser.add_argument("--number", type=int, default=24, help="simulated slices (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=32)
    parser.add_argument("--picture", type=Path, default=Path("uncertainty.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    _, reconstructor = load(args.checkpoints, args.cfg, "cpu")
    full = np.load(args.kspace)[0].astype(np.complex64)
    reference = root_sum_of_squares(full)
    is_object = reference > 0.1 * np.quantile(reference, 0.99)
    signal = float(reference[is_object].mean())
    is_ensemble = reconstructor.members > 1
    calibration = calibrate(reconstructor, find_heads(args.heads), number=args.number) if is_ensemble else None

    print(
        "| acceleration | error | noise | errors within 2 noise | spread | its correlation with the error | "
        "errors within 2 spread, without factor, with it |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = []
    tiles: list[NDArray[Any]] = []
    for acceleration in CENTER_FRACTIONS:
        sampled = np.tile(equispaced(full.shape[-1], acceleration), (full.shape[-2], 1))
        kspace = full * sampled
        covariance = estimate_noise_covariance([kspace], sampled)
        analysis = reconstructor.analyse_slice(kspace, sampled)
        image = np.abs(analysis.image)
        error = np.abs(image - reference)
        reconstruct = partial(reconstructor.reconstruct_slice, sampled=sampled)
        noise = noise_map(reconstruct, kspace, sampled, covariance, args.replicas)

        def percent(values: NDArray[Any]) -> str:
            return f"{100 * np.sqrt(np.square(values[is_object]).mean()) / signal:.1f} %"

        def coverage(width: NDArray[Any], error: NDArray[Any] = error) -> str:
            return f"{np.mean(error[is_object] <= 2 * width[is_object]):.0%}"

        shown = [image / reference.max(), *(5 * values / reference.max() for values in (error, noise))]
        cells = ["", "", ""]
        if calibration is not None:
            width, factor = spread(analysis.images), calibration.factor(sampled)
            shown.append(5 * factor * width / reference.max())
            correlation = np.corrcoef(width[is_object], error[is_object])[0, 1]
            cells = [percent(width), f"{correlation:.2f}", f"{coverage(width)}, {coverage(factor * width)}"]
        values, number = residual_map(analysis.residual, covariance)
        tiles += [*shown, values / 5]
        print(
            f"| {acceleration} | {percent(error)} | {percent(noise)} | {coverage(noise)} | {' | '.join(cells)} |",
            flush=True,
        )

        maps = nlinv(kspace, sampled)
        changes: dict[str, Callable[[NDArray[np.complex64]], NDArray[np.complex64]]] = {
            "moved by 1 pixel": lambda k: move(k, 1),
            "moved by 4 pixels": lambda k: move(k, 4),
            "a spike": add_spike,
        }
        row = [f"{number:.2f}"]
        for change in changes.values():
            changed = change(kspace)
            noise_of_changed = estimate_noise_covariance([changed], sampled)
            row.append(
                f"{residual_map(reconstructor.analyse_slice(changed, sampled).residual, noise_of_changed)[1]:.2f}"
            )
        row += [
            f"{residual_of_lesion(analysis.residual, covariance, sampled, maps, height * signal):.2f}"
            for height in (0.2, 1.0)
        ]
        rows.append(f"| {acceleration} | {' | '.join(row)} |")

    print("\n| acceleration | as it is | moved by 1 pixel | by 4 pixels | a spike | square added, 20 % | 100 % |")
    print("|---|---|---|---|---|---|---|")
    print(*rows, sep="\n")
    if calibration is not None:
        print("\n| acceleration | factor | coverage without | with it | in the worst slice |\n|---|---|---|---|---|")
        for line in zip(
            *(calibration.accelerations, calibration.factors, calibration.coverage_before),
            *(calibration.coverage_after, calibration.worst_after),
            strict=True,
        ):
            print("| {:g} | {:.2f} | {:.0%} | {:.0%} | {:.0%} |".format(*line))
    per_row = len(tiles) // len(CENTER_FRACTIONS)
    picture = np.vstack([np.hstack(tiles[start : start + per_row]) for start in range(0, len(tiles), per_row)])
    Image.fromarray((255 * picture.clip(0, 1)).astype(np.uint8)).save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
