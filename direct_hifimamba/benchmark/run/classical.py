"""Reconstructions without training to compare with: compressed sensing with BART [1]_, and CG-SENSE [2]_.

References
----------
.. [1] Uecker et al. Berkeley Advanced Reconstruction Toolbox. Proc. ISMRM 23:2486, 2015.
.. [2] Pruessmann et al. Advances in sensitivity encoding with arbitrary k-space trajectories. Magn Reson Med
   46(4):638-651, 2001.
"""

import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import h5py
import numpy as np
import torch
import yaml
from direct.data.transforms import center_crop
from direct.functionals.challenges import fastmri_psnr
from numpy.typing import NDArray
from tqdm.contrib.concurrent import thread_map

from direct_hifimamba.benchmark.folder import RunFolder
from direct_hifimamba.benchmark.plan.hashes import list_files
from direct_hifimamba.benchmark.plan.specification import BART, Specification
from direct_hifimamba.data.formats.bart import from_slices, read_cfl, to_slices, write_cfl
from direct_hifimamba.data.formats.hdf5 import read_mask, read_slices
from direct_hifimamba.data.fourier import kspace_to_image, root_sum_of_squares
from direct_hifimamba.files import fill_folder, write_text
from direct_hifimamba.nn.layers.data_consistency import conjugate_gradient
from direct_hifimamba.nn.layers.sense import Acquisition as SenseAcquisition
from direct_hifimamba.nn.layers.sense import FourierConvention, Measurement

REGULARISATIONS = (0.0005, 0.002, 0.005, 0.01, 0.02, 0.05)
"""Weights of the l1 norm of the wavelet coefficients to choose from; BART scales the data to a maximum of about 1."""


class Acquisition(NamedTuple):
    """Fully sampled k-space of a slice and its mask."""

    kspace: NDArray[np.complex64]  #: ([coil, ]height, width), centred
    mask: NDArray[np.bool_]  #: of the columns, (width,)

    @classmethod
    def read(cls, path: Path) -> "Iterator[Acquisition]":
        """Yield the slices of a validation or test file one by one.

        Raises
        ------
        ValueError
            If the file has no sampling mask.
        """
        with h5py.File(path) as file:
            mask = read_mask(file)
            if mask is None:
                raise ValueError(f"{path} has no sampling mask; prepare the data again.")
            for kspace in read_slices(file):
                yield cls(kspace, mask)


def find_bart() -> Path | None:
    """Return the path of the program `bart`, None if it is not on the PATH."""
    path = shutil.which("bart")
    return None if path is None else Path(path)


def bart_version() -> str:
    """Return the version that BART reports; raises what :func:`run_bart` raises."""
    return run_bart(Path(), "version").strip()


def run_bart(folder: Path, *arguments: str) -> str:
    """Run BART on one thread, in the folder with its files, and return what it prints.

    Raises
    ------
    FileNotFoundError
        If there is no program `bart`.
    RuntimeError
        If it fails.
    """
    program = find_bart()
    if program is None:
        raise FileNotFoundError("There is no program bart on the PATH; install BART, as with `apt install bart`.")
    command = [str(program), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {(process.stderr or process.stdout).strip()}")
    return process.stdout


def estimate_sensitivity_map(
    kspace: NDArray[np.complex64], mask: NDArray[np.bool_], gaussian: float = 0.7
) -> NDArray[np.complex64]:
    """Return sensitivities from the sampled columns around the centre, as DIRECT's `rss_estimate`.

    Parameters
    ----------
    kspace : complex64 array of shape (coil, height, width)
    mask : bool array of shape (width,)
    gaussian : float
        DIRECT's `sensitivity_maps_gaussian`: width of the apodisation in half widths of k-space.

    Returns
    -------
    complex64 array of shape (coil, height, width)
        The squared magnitudes add up to 1 over the coils.
    """
    center = mask.size // 2
    gaps = np.flatnonzero(~mask)
    center_lines = slice(gaps[gaps < center].max(initial=-1) + 1, gaps[gaps > center].min(initial=mask.size))
    window = np.zeros(mask.size, np.float32)
    window[center_lines] = np.exp(-np.square(np.linspace(-1, 1, mask.size) / gaussian))[center_lines]
    image = kspace_to_image(kspace * window)
    norm: NDArray[np.float32] = np.linalg.norm(image, axis=0)
    return (image / np.maximum(norm, np.finfo(np.float32).tiny)).astype(np.complex64)


def cg_sense(
    kspace: NDArray[np.complex64],
    mask: NDArray[np.bool_],
    sensitivity_map: NDArray[np.complex64],
    weight: float,
    iterations: int = 12,
) -> NDArray[np.float32]:
    """Return the magnitude image of one slice by regularised CG-SENSE [2]_: (A^H A + weight) x = A^H y.

    Parameters
    ----------
    kspace : complex64 array of shape (coil, height, width)
        Centred; samples outside the mask are ignored.
    mask : bool array of shape (height, width)
    sensitivity_map : complex64 array of the shape of `kspace`
    weight : float
        Of the squared magnitude of the image; sensitivities whose squared magnitudes add up to 1 give it its scale.
    iterations : int
        Of conjugate gradients, from zero.

    Returns
    -------
    float32 array of shape (height, width)
    """
    samples, maps = (torch.view_as_real(torch.from_numpy(array))[None] for array in (kspace, sensitivity_map))
    measurement = Measurement(samples, torch.from_numpy(mask)[None, None, :, :, None], maps).reduce_mask()
    acquisition = SenseAcquisition.from_measurement(measurement, FourierConvention(centered=True, normalized=True))
    image = conjugate_gradient(
        lambda x: acquisition.normal(x) + weight * x, acquisition.adjoint(acquisition.kspace), iterations
    )
    return acquisition.leave(image).norm(dim=-1)[0].numpy()


def reconstruct(kspace: NDArray[np.complex64], mask: NDArray[np.bool_], regularisation: float) -> NDArray[np.float32]:
    """Return a magnitude image by `bart pics` with an l1 norm on wavelet coefficients.

    Parameters
    ----------
    kspace : complex64 array of shape ([coil, ]height, width)
        Centred; samples outside the mask are ignored. A single coil has the sensitivity 1.
    mask : bool array of shape (width,)
    regularisation : float

    Returns
    -------
    float32 array of shape (height, width)
        In the units of the k-space.

    Raises
    ------
    FileNotFoundError
        If there is no program `bart`.
    RuntimeError
        If it fails.
    """
    sensitivity_map = np.ones_like(kspace) if kspace.ndim == 2 else estimate_sensitivity_map(kspace, mask)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for file, array in (("kspace", kspace * mask), ("map", sensitivity_map)):
            write_cfl(folder / file, from_slices(array.reshape(1, -1, *array.shape[-2:])))
        # -S: BART scales the data, and leaves the image scaled without it.
        run_bart(folder, "pics", "-S", "-l1", "-r", str(regularisation), "kspace", "map", "image")
        image: NDArray[np.float32] = np.abs(to_slices(read_cfl(folder / "image"))[0, 0])
        return image


def choose_regularisation(paths: Sequence[Path], jobs: int = 1) -> float:
    """Return the weight of `REGULARISATIONS` with the highest mean PSNR over the validation volumes.

    Parameters
    ----------
    paths : sequence of Path
        Files of the validation split.
    jobs : int

    Raises
    ------
    RuntimeError
        If BART fails, or if with every weight some image is not finite.
    """

    def score(task: tuple[Path, float]) -> float:
        path, regularisation = task
        images, targets = [], []
        for kspace, mask in Acquisition.read(path):
            images.append(reconstruct(kspace, mask, regularisation))
            if not np.isfinite(images[-1]).all():
                return -math.inf
            targets.append(root_sum_of_squares(kspace))
        return fastmri_psnr(np.stack(targets)[:, None], np.stack(images)[:, None]).item()

    tasks = [(path, weight) for weight in REGULARISATIONS for path in paths]
    scores = thread_map(score, tasks, max_workers=jobs, desc="choose the weight for BART", unit="file")
    means = np.reshape(scores, (len(REGULARISATIONS), -1)).mean(1)
    if means.max() == -math.inf:
        weights = ", ".join(f"{weight:g}" for weight in REGULARISATIONS)
        raise RuntimeError(f"BART's images of the validation split are not finite with any of the weights {weights}.")
    return REGULARISATIONS[int(means.argmax())]


def check_bart(specification: Specification, is_centered: bool) -> None:
    """Make sure that BART can reconstruct the data, if the specification names it.

    Raises
    ------
    ValueError
        If it cannot.
    """
    splits = specification.splits
    if BART not in specification.classical:
        return
    if splits.validation == splits.test:
        raise ValueError(f"classical names {BART}, whose weight would be chosen on the test split, {splits.test!r}.")
    folders = [specification.folder(splits.test, acceleration) for acceleration in specification.accelerations]
    if not is_centered or not all(_has_line_mask(path) for folder in folders for path in list_files(folder)):
        raise ValueError(f"classical names {BART}, which is run for centred k-space with masks of columns only.")


def _has_line_mask(path: Path) -> bool:
    with h5py.File(path) as file:
        mask = read_mask(file)
    return mask is not None and mask.ndim == 1


def reconstruct_test_split(specification: Specification, folder: RunFolder, shapes: RunFolder, jobs: int) -> None:
    """Reconstruct what is missing of the test split, with the weights that are best on the validation split.

    Parameters
    ----------
    specification : Specification
        Its data have one mask of columns per file, and its Fourier transform is centred.
    folder : RunFolder
        Folder for predictions as `direct predict` writes them, and a YAML file beside those of each acceleration with
        the `program` and its weight, `regularisation`.
    shapes : RunFolder
        A run with predictions of the size to which images are cropped.
    jobs : int

    Raises
    ------
    RuntimeError
        If BART fails, or gives an image that is not finite.
    """
    splits = specification.splits
    for acceleration in specification.accelerations:
        output = folder.predictions(acceleration)
        if output.exists():
            continue
        weight = choose_regularisation(list_files(specification.folder(splits.validation, acceleration)), jobs)
        chosen = {"program": f"BART {bart_version()}, pics -S -l1", "regularisation": weight}
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output.with_suffix(".yaml"), yaml.safe_dump(chosen))
        tests = list_files(specification.folder(splits.test, acceleration))
        _reconstruct_files(tests, output, weight, shapes.predictions(acceleration), jobs)


def _reconstruct_files(paths: Sequence[Path], output: Path, weight: float, shapes: Path, jobs: int) -> None:
    def write(path: Path) -> None:
        slices = [reconstruct(*acquisition, weight) for acquisition in Acquisition.read(path)]
        images = torch.from_numpy(np.stack(slices))
        if not images.isfinite().all():
            raise RuntimeError(f"BART's image of {path}, with the weight {weight:g}, is not finite.")
        with h5py.File(shapes / path.name) as reference:
            images = center_crop(images, reference["reconstruction"].shape[1:])
        with h5py.File(partial / path.name, "w") as file:
            file["reconstruction"] = images.numpy()

    with fill_folder(output) as partial:
        thread_map(write, paths, max_workers=jobs, desc=f"BART, {output.name}", unit="file")
