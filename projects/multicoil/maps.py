"""Comparison of coil sensitivities: CG-SENSE with several estimates of them, on simulated slices.

Run `python projects/multicoil/maps.py HEADS`, where HEADS is a folder from `direct-hifimamba heads`. The sensitivities
are exact, estimated (`rss_estimate`, ESPIRiT), weighted by the square roots of ESPIRiT's eigenvalues, completed by a
second set (soft SENSE), estimated again from k-space that the current image predicts, or refined together with the
image. The target is the image without noise; the weight of the regularisation is always the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from direct_hifimamba.data.espirit import espirit, espirit_sets
from direct_hifimamba.data.fourier import kspace_to_image
from direct_hifimamba.data.simulation.sample import Sample, SampleOptions, draw_sample
from direct_hifimamba.nn.layers.data_consistency import conjugate_gradient
from direct_hifimamba.nn.layers.sense import Acquisition, FourierConvention, Measurement

#: Weight of the regularisation, and conjugate-gradient iterations.
WEIGHT = 0.01
ITERATIONS = 12

#: Width of the centre of k-space from which sensitivities are estimated again, in samples.
PREDICTED_CENTER = 24

#: Joint refinement: standard deviation in samples of the Gaussian filter in k-space on corrections; their number.
SMOOTHNESS, CORRECTIONS = 4.0, 3


def acquire(sample: Sample, maps: NDArray[np.complex64]) -> Acquisition:
    """Return the measurement model of a slice with given sensitivities."""
    kspace, sensitivity_map = (torch.view_as_real(torch.from_numpy(a))[None] for a in (sample.kspace, maps))
    mask = torch.from_numpy(sample.mask)[None, None, :, :, None]
    return Acquisition.from_measurement(
        Measurement(kspace, mask, sensitivity_map).reduce_mask(), FourierConvention(centered=True, normalized=True)
    )


def cg_sense(acquisition: Acquisition) -> torch.Tensor:
    """Return the regularised least-squares image (1, height, width), complex."""
    return conjugate_gradient(
        lambda x: acquisition.normal(x) + WEIGHT * x, acquisition.adjoint(acquisition.kspace), ITERATIONS
    )


def magnitude(acquisition: Acquisition, image: torch.Tensor) -> NDArray[np.float32]:
    """Return the magnitude (height, width) of an image (1, height, width) in the order of `acquisition`."""
    result: NDArray[np.float32] = acquisition.leave(image).norm(dim=-1)[0].numpy()
    return result


def root_sum_of_squares_maps(sample: Sample) -> NDArray[np.complex64]:
    """Estimate sensitivities as DIRECT's `rss_estimate`: calibration images over their root sum of squares."""
    images = kspace_to_image(sample.kspace * sample.calibration_mask)
    return (images / np.maximum(np.linalg.norm(images, axis=0), 1e-12)).astype(np.complex64)


def soft_sense(sample: Sample, number: int) -> NDArray[np.float32]:
    """Reconstruct with several sets of weighted sensitivities; return the magnitude (height, width)."""
    maps, eigenvalues = espirit_sets(sample.kspace * sample.mask, sample.calibration_mask, sets=number)
    sets = [acquire(sample, (m * np.sqrt(v)).astype(np.complex64)) for m, v in zip(maps, eigenvalues, strict=True)]
    kspace, sampled = sets[0].kspace, sets[0].sampled

    def split(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return images.chunk(number, dim=1)

    def normal(images: torch.Tensor) -> torch.Tensor:
        predicted = sum(a.forward(x) for a, x in zip(sets, split(images), strict=True)) * sampled
        return torch.cat([a.adjoint(predicted) for a in sets], dim=1) + WEIGHT * images

    images = conjugate_gradient(normal, torch.cat([a.adjoint(kspace) for a in sets], dim=1), ITERATIONS)
    # The magnitude of the object is the root sum of squares of the sets' images, weighted like the sensitivities.
    shares = [magnitude(a, x) * np.sqrt(v) for a, x, v in zip(sets, split(images), eigenvalues, strict=True)]
    return np.linalg.norm(shares, axis=0).astype(np.float32)


def maps_of_the_image(sample: Sample, acquisition: Acquisition) -> NDArray[np.complex64]:
    """Estimate sensitivities again, from a wider centre of k-space that is completed by the CG-SENSE image."""
    coil_images = acquisition.sensitivity_map * cg_sense(acquisition).unsqueeze(1)
    predicted = torch.fft.fftshift(torch.fft.fft2(coil_images, norm="ortho"), dim=(-2, -1))[0].numpy()
    kspace = np.where(sample.mask, sample.kspace, predicted).astype(np.complex64)
    return espirit(kspace, (PREDICTED_CENTER, PREDICTED_CENTER))


def refine_jointly(acquisition: Acquisition) -> Acquisition:
    """Correct sensitivities for a fixed image, by smooth gradient steps on the residual of all samples."""
    image = cg_sense(acquisition)
    rows, columns = (torch.fft.fftfreq(n, 1 / n) for n in image.shape[1:])
    window = torch.exp(-(rows[:, None].square() + columns.square()) / (2 * SMOOTHNESS**2))

    def smooth(values: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifft2(torch.fft.fft2(values) * window)

    energy = smooth(image.abs().square().to(image.dtype)).real
    energy = energy + 0.05 * energy.amax()
    for _ in range(CORRECTIONS):
        residual = acquisition.kspace - acquisition.forward(image) * acquisition.sampled
        coil_residual = torch.fft.ifftn(residual, dim=acquisition.dims, norm="ortho")
        maps = acquisition.sensitivity_map + smooth(image.conj().unsqueeze(1) * coil_residual) / energy
        maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True).clamp_min(1e-6)
        acquisition = acquisition._replace(sensitivity_map=maps)
    return acquisition


def psnr(target: NDArray[np.float32], image: NDArray[np.float32]) -> float:
    """Return the PSNR in dB, relative to the target's maximum, of an image after a least-squares scale."""
    scaled = image * (target * image).sum() / np.square(image).sum()
    return float(10 * np.log10(target.max() ** 2 / np.square(target - scaled).mean()))


def reconstruct_all(sample: Sample) -> dict[str, float]:
    """Return the PSNR in dB for every kind of sensitivities."""
    masked, espirit_maps = sample.kspace * sample.mask, espirit(sample.kspace * sample.mask, sample.calibration_mask)

    def plain(maps: NDArray[np.complex64]) -> NDArray[np.float32]:
        acquisition = acquire(sample, maps)
        return magnitude(acquisition, cg_sense(acquisition))

    def refined() -> NDArray[np.float32]:
        acquisition = refine_jointly(acquire(sample, espirit_maps))
        return magnitude(acquisition, cg_sense(acquisition))

    images: dict[str, Callable[[], NDArray[np.float32]]] = {
        "exact": lambda: plain(sample.sensitivity_map),
        "rss_estimate": lambda: plain(root_sum_of_squares_maps(sample)),
        "ESPIRiT": lambda: plain(espirit_maps),
        "ESPIRiT, kernel 6 (4 for 4 columns)": lambda: plain(
            espirit(masked, sample.calibration_mask, min(6, int(sample.calibration_mask.any(axis=0).sum())))
        ),
        "ESPIRiT, weighted": lambda: soft_sense(sample, 1),
        "ESPIRiT, weighted, two sets": lambda: soft_sense(sample, 2),
        "estimated again from the image": lambda: plain(maps_of_the_image(sample, acquire(sample, espirit_maps))),
        "refined jointly": refined,
    }
    return {name: psnr(sample.target, image()) for name, image in images.items()}


def main() -> None:
    """Print a table for accelerations of 4 and 8."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", type=Path)
    parser.add_argument("--number", type=int, default=24, help="slices per acceleration (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns: list[dict[str, float]] = []
    for acceleration in (4, 8):
        options = SampleOptions(
            heads=tuple(sorted(args.heads.glob("*.nii.gz"))),
            head_fraction=1.0,
            shape=(128, 128),
            num_coils=(8, 16),
            snr=(30.0, 100.0),
            noiseless_fraction=0.0,
            accelerations=(acceleration,),
            masks=("equispaced",),
        )
        with torch.no_grad():
            rows = [
                reconstruct_all(draw_sample((5, acceleration, index), options))
                for index in tqdm(range(args.number), f"{acceleration}x", unit="slice", leave=False)
            ]
        columns.append({name: float(np.mean([row[name] for row in rows])) for name in rows[0]})
    print("| sensitivities | 4x | 8x |\n|---|---|---|")
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:.2f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
