"""Score reconstructions of measured slices: a Markdown table, a CSV file and a picture.

Run `python projects/measured/score.py OUTPUT`. Fully sampled slices are undersampled by equispaced columns and
reconstructed: zero-filled, CG-SENSE, compressed sensing (where BART is installed), by weights in the package and by
checkpoints. README.md beside this file says how they are scored. Images are kept in OUTPUT/images, so that an
interrupted run resumes, and other methods are added by another run.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from scans import SCANS, UnavailableError, load_scan
from skimage.metrics import structural_similarity
from tqdm import tqdm

from direct_hifimamba.benchmark.run.classical import cg_sense, find_bart, run_bart
from direct_hifimamba.data.formats.bart import from_slices, read_cfl, to_slices, write_cfl
from direct_hifimamba.data.fourier import root_sum_of_squares
from direct_hifimamba.data.nlinv import nlinv
from direct_hifimamba.files import replace_when_complete, write_text
from direct_hifimamba.reconstruct import Reconstructor
from direct_hifimamba.reconstruction.volume import load

MULTICOIL = ("pulseq_cimax_brain16", "pulseq_cimax_phantom16", "pulseq_trio_phantom4", "twix_skyra_phantom2")
CENTER_FRACTIONS = {4: 0.08, 8: 0.04}
BART_WEIGHTS = (0.001, 0.003, 0.01, 0.03)
CG_WEIGHT = 0.001
BANDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Limits of the frequency bands, in units of the Nyquist frequency of each axis; the last one includes the corners."""

ZERO_FILLED, CG_SENSE, BART = "zero-filled", "CG-SENSE", "BART"
Image = NDArray[np.float32]


class Case(NamedTuple):
    """One slice of a scan, undersampled."""

    scan: str
    slice_number: int
    acceleration: int
    kspace: NDArray[np.complex64]  #: (coil, height, width), fully sampled

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Sampled columns, (width,)."""
        return equispaced_columns(self.kspace.shape[-1], self.acceleration)

    @property
    def reference(self) -> Image:
        """Root sum of squares of the fully sampled slice, noise included, (height, width)."""
        return root_sum_of_squares(self.kspace)

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"{self.scan}, slice {self.slice_number}, {self.acceleration}x"


class Method(NamedTuple):
    """A reconstruction to score."""

    name: str  #: in tables
    reconstruct: Callable[[Case], Image]
    version: str = ""  #: part of the names of its images, so that those of other weights are not taken for them


class Score(NamedTuple):
    """Scores of an image."""

    psnr: float  #: dB
    ssim: float
    bands: tuple[float, ...]  #: Energy of the error over that of the reference in each of `BANDS`.


def equispaced_columns(width: int, acceleration: int) -> NDArray[np.bool_]:
    """Return fastMRI's equispaced mask with offset 1: `CENTER_FRACTIONS` in the centre, the rest at equal distances."""
    center = round(width * CENTER_FRACTIONS[acceleration])
    start = (width - center + 1) // 2
    mask = np.zeros(width, bool)
    mask[start : start + center] = True
    spacing = acceleration * (center - width) / (center * acceleration - width)
    mask[np.round(np.arange(1, width - 1, spacing)).astype(int)] = True
    return mask


def score(reference: Image, image: Image) -> Score:
    """Score a magnitude image, scaled to the reference by least squares; the data range is the reference's maximum."""
    scaled = image * ((reference * image).sum() / np.square(image).sum())
    error = scaled - reference
    psnr = 10 * np.log10(reference.max() ** 2 / np.square(error).mean())
    ssim = structural_similarity(reference, scaled, data_range=reference.max())
    radius = np.hypot(*np.ix_(*(2 * np.fft.fftfreq(length) for length in reference.shape)))
    band = np.digitize(radius, BANDS[1:-1])
    energies = (np.square(np.abs(np.fft.fft2(values))) for values in (error, reference))
    of_error, of_reference = (np.bincount(band.ravel(), energy.ravel()) for energy in energies)
    return Score(float(psnr), float(ssim), tuple(of_error / of_reference))


def reconstruct_zero_filled(case: Case) -> Image:
    """Return the root sum of squares of the samples."""
    return root_sum_of_squares((case.kspace * case.mask).astype(np.complex64))


def reconstruct_cg_sense(case: Case) -> Image:
    """Return the image of CG-SENSE with sensitivities by NLINV; a single coil has the sensitivity 1."""
    masked = (case.kspace * case.mask).astype(np.complex64)
    mask = np.broadcast_to(case.mask, masked.shape[1:])
    maps = np.ones_like(masked) if len(masked) == 1 else nlinv(masked, mask)
    with torch.no_grad():
        return cg_sense(masked, mask.copy(), maps, CG_WEIGHT)


def reconstruct_bart(case: Case) -> Image:
    """Return the root sum of squares of BART's coil images with wavelets, of the weight that scores best.

    The weight is chosen on the reference, an advantage that no other method has. Sensitivities are those of `ecalib`
    without a crop, whose kernel is not wider than the calibration region.
    """
    columns = round(case.kspace.shape[-1] * CENTER_FRACTIONS[case.acceleration])
    images = reconstruct_pics(case.kspace * case.mask, 6 if columns >= 6 else 4, BART_WEIGHTS)
    return max(images, key=lambda image: score(case.reference, image).psnr)


def reconstruct_pics(masked_kspace: NDArray[np.complex64], kernel: int, weights: Sequence[float]) -> list[Image]:
    """Return the root sum of squares of the coil images of BART's `pics` with wavelets, for each weight.

    Parameters
    ----------
    masked_kspace : complex64 array of shape (coil, height, width)
    kernel : int
        Size of the kernel of `ecalib`.
    weights : sequence of floats
    """
    images = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_cfl(folder / "kspace", from_slices(masked_kspace[None]))
        run_bart(folder, "ecalib", "-m1", "-c0", f"-k{kernel}", "kspace", "maps")
        maps = to_slices(read_cfl(folder / "maps"))[0]
        for weight in weights:
            run_bart(folder, "pics", "-S", f"-RW:3:0:{weight}", "-i100", "kspace", "maps", "image")
            images.append(np.linalg.norm(maps * to_slices(read_cfl(folder / "image"))[0], axis=0))
    return images


def reconstruct_with(reconstructor: Reconstructor, case: Case) -> Image:
    """Return the image of a network."""
    # Some published scans have lines that are zero but for rounding, which the check would refuse.
    image: Image = reconstructor((case.kspace * case.mask)[None], case.mask, check=False)[0]
    return image


def collect_methods(weights: Sequence[str], checkpoints: dict[str, list[Path]], flips: bool) -> list[Method]:
    """Return all methods; BART is left out where it is not installed. `flips` is for checkpoints."""
    methods = [Method(ZERO_FILLED, reconstruct_zero_filled), Method(CG_SENSE, reconstruct_cg_sense)]
    if find_bart():
        methods.append(Method(BART, reconstruct_bart))
    else:
        print("There is no program bart on the PATH; compressed sensing is left out.")
    named = {name: load([Path(name)]) for name in weights}
    trained = {label: load(paths, flips=flips) for label, paths in checkpoints.items()}
    for label, (version, network) in (named | trained).items():
        words = [word.removeprefix("mean of ")[:8] for word in version]
        methods.append(Method(label, partial(reconstruct_with, network), "_".join(words)))
    return methods


def parse_checkpoints(word: str) -> tuple[str, list[Path]]:
    """Return the label and the files of LABEL=FILE[,FILE ...].

    Raises
    ------
    ArgumentTypeError
        If it has another form.
    """
    label, _, files = word.partition("=")
    if not label or not files:
        raise argparse.ArgumentTypeError(f"{word!r} is not of the form LABEL=FILE or LABEL=FILE,FILE.")
    return label, [Path(file) for file in files.split(",")]


def load_cases(scans: Sequence[str], accelerations: Sequence[int], all_slices: bool) -> list[Case]:
    """Return the slices to score; a scan that is not available is left out with a message."""
    cases = []
    for scan in scans:
        try:
            kspace = load_scan(scan)
        except UnavailableError as error:
            print(f"Left out: {error}")
            continue
        indices = range(len(kspace)) if all_slices else [len(kspace) // 2]
        cases += [Case(scan, index, rate, kspace[index]) for index in indices for rate in accelerations]
    return cases


def load_or_compute(path: Path, compute: Callable[[], Image]) -> Image:
    """Return the image in a file, computed and written first if there is none."""
    if not path.exists():
        image = compute()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_when_complete(path) as temporary, temporary.open("wb") as file:
            np.save(file, image.astype(np.float32))
    stored: Image = np.load(path)
    return stored


def format_tables(rows: dict[tuple[str, str], Score], methods: Sequence[str]) -> str:
    """Return a table of PSNR and SSIM and one of errors in frequency bands; `rows` by case and method."""
    cases = list(dict.fromkeys(case for case, _ in rows))
    lines = ["| | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for case in cases:
        best = max(rows[case, method].psnr for method in methods)
        marks = {method: "**" * (rows[case, method].psnr == best) for method in methods}
        cells = [
            f"{marks[name]}{rows[case, name].psnr:.2f}{marks[name]}, {rows[case, name].ssim:.3f}" for name in methods
        ]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    bands = [f"{low:g} to {high:g}" for low, high in pairwise(BANDS)]
    lines += ["", "| | method | " + " | ".join(bands) + " |", "|---" * (len(bands) + 2) + "|"]
    for (case, method), row in rows.items():
        lines.append(f"| {case} | {method} | " + " | ".join(f"{value:.3g}" for value in row.bands) + " |")
    return "\n".join(lines) + "\n"


def write_csv(path: Path, rows: dict[tuple[str, str], Score]) -> None:
    """Write one line per image."""
    with replace_when_complete(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["slice", "method", "psnr", "ssim", *(f"error_from_{low:g}" for low in BANDS[:-1])])
        for (case, method), row in rows.items():
            values = (row.psnr, row.ssim, *row.bands)
            writer.writerow([case, method, *(f"{value:.5g}" for value in values)])


def draw(
    path: Path,
    panels: Sequence[dict[str, Image]],
    reference: Image | None = None,
    size: tuple[float, float] = (2.2, 2.4),
) -> None:
    """Draw rows of images by their titles; with a reference, the differences from it below, ten times as bright.

    `size` is the width and height of an image in inches, of 100 pixels each.
    """
    count = len(panels[0])
    rows = len(panels) * (1 if reference is None else 2)
    figure, axes = plt.subplots(
        rows, count, figsize=(size[0] * count, size[1] * rows), layout="constrained", squeeze=False
    )
    for row, images in enumerate(panels):
        for column, (title, image) in enumerate(images.items()):
            first = row * rows // len(panels)
            axes[first, column].imshow(image, cmap="gray", vmin=0, vmax=np.quantile(image, 0.999))
            axes[first, column].set_title(title, fontsize=9)
            if reference is not None:
                scaled = image * ((reference * image).sum() / np.square(image).sum())
                error = np.abs(scaled - reference)
                axes[first + 1, column].imshow(error, cmap="inferno", vmin=0, vmax=reference.max() / 10)
    for axis in axes.flat:
        axis.set_axis_off()
    with replace_when_complete(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    plt.close(figure)


def draw_scan(path: Path, cases: Sequence[Case], images: dict[tuple[str, str], Image], methods: Sequence[str]) -> None:
    """Draw the images of one slice at every acceleration, with their errors."""
    panels = []
    for case in cases:
        panel = {f"reference, {case.acceleration}x": case.reference}
        panels.append(panel | {method: images[case.label, method] for method in methods})
    draw(path, panels, cases[0].reference)


def main(arguments: Sequence[str] | None = None) -> None:
    """Score, and write table, CSV file and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder")
    parser.add_argument("--scans", nargs="+", default=MULTICOIL, choices=SCANS, metavar="NAME")
    parser.add_argument("--accelerations", type=int, nargs="+", default=[4, 8], choices=CENTER_FRACTIONS)
    parser.add_argument("--all-slices", action="store_true", help="of each scan (default: the middle one)")
    parser.add_argument("--weights", nargs="*", default=["multicoil"], help="of the package (default: multicoil)")
    parser.add_argument(
        "--checkpoint",
        nargs="*",
        action="extend",
        default=[],
        type=parse_checkpoints,
        metavar="LABEL=FILE[,FILE]",
        help="networks of direct train; several files make an ensemble",
    )
    parser.add_argument(
        "--flips", action="store_true", help="of checkpoints, the mean over a slice and its reflections"
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    methods = collect_methods(args.weights, dict(args.checkpoint), args.flips)
    cases = load_cases(args.scans, args.accelerations, args.all_slices)
    if not cases:
        parser.error("none of the scans is available")
    names = [method.name for method in methods]
    images, rows = {}, {}
    for case in tqdm(cases, "measured slices", unit="slice"):
        for method in methods:
            file = "_".join(filter(None, (case.scan, f"{case.slice_number}", f"{case.acceleration}x", *method[::2])))
            image = load_or_compute(args.output / "images" / f"{file}.npy", partial(method.reconstruct, case))
            images[case.label, method.name] = image
            rows[case.label, method.name] = score(case.reference, image)
    write_text(args.output / "scores.md", format_tables(rows, names))
    write_csv(args.output / "scores.csv", rows)
    first = [case for case in cases if (case.scan, case.slice_number) == (cases[0].scan, cases[0].slice_number)]
    mpl.use("agg")
    draw_scan(args.output / "images.png", first, images, names)
    print(format_tables(rows, names))


if __name__ == "__main__":
    main()
