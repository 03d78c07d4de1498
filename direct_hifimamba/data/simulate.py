"""Simulate k-space from magnitude images in NIfTI files, and write it in the HDF5 format of fastMRI.

Coils, phase and noise are invented, so that results on such data say nothing about measured k-space. The provenance in
every file says that it is `simulated from magnitude`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from direct_hifimamba.data.blank import bright_level, foreground, is_blank
from direct_hifimamba.data.data_sets import SIMULATED, subject_from_name
from direct_hifimamba.data.fit import crop_or_pad, resample
from direct_hifimamba.data.formats.hdf5 import write_volume
from direct_hifimamba.data.formats.nifti import ORIENTATIONS, load_magnitude
from direct_hifimamba.data.formats.optional import optional_package
from direct_hifimamba.data.fourier import image_to_kspace
from direct_hifimamba.data.masks import MaskOptions, draw_line_mask
from direct_hifimamba.data.provenance import claim_folder, package_versions
from direct_hifimamba.data.seeding import seed_from_name
from direct_hifimamba.files import hash_file

TEMPLATE = "icbm152"

COIL_RADIUS = 1.2
"""Distance of the coils from the centre, in half widths of the image. Their profiles have a standard deviation of 1."""


@dataclass(frozen=True)
class SimulationOptions:
    """Options of a simulation, which are stored with every file.

    Attributes
    ----------
    num_coils : int
        1 gives single-coil k-space without a coil axis.
    snr : float, optional
        Mean foreground magnitude of the volume, cut and resampled, divided by the standard deviation of the noise in
        the real part (and, independently, in the imaginary part) of every k-space sample. Since the Fourier transform
        is orthonormal and the coil sensitivities have unit norm, it is also the noise of each coil image and of the
        optimally combined image. None: no noise.
    phase : float
        Bound of the smooth phase of the object, in radians.
    orientation : str
        `axial`, `coronal` or `sagittal`, after reordering the axes to the closest RAS+ order. No oblique resampling:
        an oblique stack of thick slices keeps its slices, see :func:`nifti.load_magnitude`.
    slices : sequence of two ints, optional
        Start and stop of a Python slice, counted from inferior, posterior or left. None: all slices.
    slab : int, optional
        Number of slices per file. None: one file per volume.
    voxel_size : float, optional
        In-plane size of the pixels in mm after resampling. None: no resampling.
    size : sequence of two ints, optional
        Height and width after cropping or zero-padding about the centre. None: no cropping.
    mask : MaskOptions, optional
        Evaluation mask to store. None: no mask.
    seed : int
    """

    num_coils: int = 8
    snr: float | None = None
    phase: float = 1.0
    orientation: str = "axial"
    slices: Sequence[int] | None = None
    slab: int | None = None
    voxel_size: float | None = None
    size: Sequence[int] | None = None
    mask: MaskOptions | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"num_coils": self.num_coils, "slab": self.slab, "size": min(self.size or (1,))}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} is {count}; expected at least 1.")
        for name, value in {"snr": self.snr, "voxel_size": self.voxel_size}.items():
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} is {value}; expected a finite number above 0.")
        if not 0 <= self.phase < np.inf:
            raise ValueError(f"phase is {self.phase}; expected a finite number of radians from 0 up.")
        if self.orientation not in ORIENTATIONS:
            raise ValueError(f"orientation is {self.orientation!r}; expected one of {', '.join(ORIENTATIONS)}.")


def find_sources(source: str) -> dict[str, Path]:
    """Return the NIfTI files that `source` stands for, by the names of their simulated volumes.

    Parameters
    ----------
    source : str
        A NIfTI file, a folder of them, or `icbm152` for the averaged T1-weighted brain in nilearn.

    Raises
    ------
    ImportError
        If `source` is `icbm152` and nilearn is not installed.
    FileNotFoundError
        If there is no such file or no NIfTI file in the folder.
    ValueError
        If two files of the folder would get the same name.
    """
    if source == TEMPLATE:
        with optional_package("nilearn", f"Slices of the template {TEMPLATE}", extra="data"):
            from nilearn.datasets import MNI152_FILE_PATH
        return {TEMPLATE: Path(MNI152_FILE_PATH)}
    path = Path(source)
    if path.is_dir():
        paths = sorted(entry for entry in path.iterdir() if entry.name.endswith((".nii", ".nii.gz")))
        if not paths:
            raise FileNotFoundError(f"There is no .nii or .nii.gz file in the folder {source}.")
    elif path.is_file():
        paths = [path]
    else:
        raise FileNotFoundError(
            f"{source} does not exist; expected a NIfTI file, a folder of NIfTI files or the word {TEMPLATE}."
        )
    sources: dict[str, Path] = {}
    for entry in paths:
        name = entry.name.removesuffix(".gz").removesuffix(".nii")
        if name in sources:
            raise ValueError(f"The folder {source} has both {name}.nii and {name}.nii.gz; remove one of them.")
        sources[name] = entry
    return sources


def load_volume(path: Path, options: SimulationOptions) -> NDArray[np.float32]:
    """Read a NIfTI magnitude volume as a stack of upright slices of the requested size.

    Parameters
    ----------
    path : Path
    options : SimulationOptions
        Only `orientation`, `voxel_size` and `size` are used.

    Returns
    -------
    float32 array of shape (slices, height, width), in the units of the file

    Raises
    ------
    ValueError
        If the file is unreadable or contains no valid magnitude volume.
    """
    volume, spacing = load_magnitude(path, options.orientation)
    if options.voxel_size is not None:
        size = np.maximum(1, np.rint(np.multiply(volume.shape[1:], spacing) / options.voxel_size)).astype(int)
        volume = resample(volume, size.tolist())
    if options.size is not None:
        volume = crop_or_pad(volume, options.size)
    return np.ascontiguousarray(volume, dtype=np.float32)


def simulate_sensitivity_map(
    height: float, shape: tuple[int, int], num_coils: int, seed: np.random.SeedSequence
) -> NDArray[np.complex64]:
    """Return smooth complex sensitivities of a ring of coils in one slice, with unit norm over the coils.

    The coils surround the slice axis, with random rotation and shifts along it. Each has a Gaussian profile about its
    position and a phase that is linear in space.

    Parameters
    ----------
    height : float
        Place of the slice in the volume, from -1 to 1.
    shape : tuple of ints
        Height and width of the slice.
    num_coils : int
    seed : numpy.random.SeedSequence
        The coils are the same for every slice of the same seed.

    Returns
    -------
    complex64 array of shape (coil, height, width)
        Sum over the coils of the squared magnitude is 1 everywhere.
    """
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * (np.arange(num_coils) / num_coils + rng.uniform())
    places = COIL_RADIUS * np.stack([np.sin(angle), np.cos(angle), rng.uniform(-0.5, 0.5, num_coils)], axis=-1)
    slopes = rng.uniform(-1, 1, (num_coils, 3))
    offsets = rng.uniform(-np.pi, np.pi, num_coils)

    position = _positions(height, shape)
    squared_distance = np.square(position - places[:, None, None]).sum(-1)
    phase = (position * slopes[:, None, None]).sum(-1) + offsets[:, None, None]
    sensitivity_map = np.exp(-squared_distance / 2 + 1j * phase)
    return (sensitivity_map / np.linalg.norm(sensitivity_map, axis=0)).astype(np.complex64)


def simulate_phase(
    height: float, shape: tuple[int, int], bound: float, seed: np.random.SeedSequence
) -> NDArray[np.complex64]:
    """Return the phase factor of the object in one slice, whose phase is a random quadratic polynomial in space.

    Parameters
    ----------
    height : float
        Place of the slice in the volume, from -1 to 1.
    shape : tuple of ints
        Height and width of the slice.
    bound : float
        Largest magnitude of the phase, in radians.
    seed : numpy.random.SeedSequence
        The polynomial is the same for every slice of the same seed.

    Returns
    -------
    complex64 array of shape (height, width), of magnitude 1
    """
    y, x, z = np.moveaxis(_positions(height, shape), -1, 0)
    monomials = np.stack([y, x, z, y * y, x * x, z * z, y * x, x * z, z * y])
    weights = np.random.default_rng(seed).uniform(-1, 1, len(monomials))
    phase = bound * np.tensordot(weights / np.abs(weights).sum(), monomials, axes=1)
    return np.exp(1j * phase).astype(np.complex64)


def _positions(height: float, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return the positions of the pixels of a slice, shape (height, width, 3), with coordinates from -1 to 1."""
    axes = (np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), height)
    return np.stack(np.broadcast_arrays(*np.meshgrid(*axes, indexing="ij", sparse=True)), axis=-1)[:, :, 0]


def simulate_volume(
    name: str, source: Path, output: Path, options: SimulationOptions, provenance: dict[str, Any]
) -> Iterator[Path]:
    """Simulate the files of one volume, except those that exist already.

    Parameters
    ----------
    name : str
        Name of the files without suffix; seeds depend on it.
    source : Path
        NIfTI file.
    output : Path
        Folder to write to.
    options : SimulationOptions
    provenance : dict
        Provenance to store in addition to slices, noise and mask.

    Yields
    ------
    Path
        Each file of the volume, as soon as it is complete.

    Raises
    ------
    ValueError
        If the file is no valid volume, or if all slices of the range are blank.
    """
    volume = load_volume(source, options)
    maximum = bright_level(volume)
    signal = np.minimum(volume[foreground(volume, maximum)], maximum).mean(dtype=np.float64)
    noise_std = 0.0 if options.snr is None else float(signal / options.snr)
    kept = [
        index
        for index in range(len(volume))[slice(*(options.slices or (None,)))]
        if not is_blank(volume[index], maximum)
    ]
    if not kept:
        raise ValueError(
            f"{source} has no slice with foreground in slices {options.slices} of its {len(volume)} "
            f"{options.orientation} slices; choose another range."
        )
    shape = (volume.shape[1], volume.shape[2])
    heights = np.linspace(-1, 1, len(volume))
    coil_seed, phase_seed = np.random.SeedSequence(seed_from_name(name, options.seed)).spawn(2)

    def simulate_slices(indices: Sequence[int], rng: np.random.Generator) -> Iterator[NDArray[np.complex64]]:
        for index in indices:
            image = volume[index] * simulate_phase(heights[index], shape, options.phase, phase_seed)
            maps = simulate_sensitivity_map(heights[index], shape, options.num_coils, coil_seed)
            kspace = image_to_kspace(image * maps)
            noise = rng.standard_normal((2, *kspace.shape), np.float32)
            kspace += np.float32(noise_std) * (noise[0] + 1j * noise[1])
            yield kspace[0] if options.num_coils == 1 else kspace

    with tqdm(total=len(kept), desc=name, unit="slice") as progress:
        for indices in batched(kept, options.slab or len(kept)):
            part = name if options.slab is None else f"{name}_{indices[0]:03d}-{indices[-1]:03d}"
            path = output / f"{part}.h5"
            if not path.exists():
                mask = draw_line_mask(options.mask, shape, path.name, options.seed) if options.mask else None
                record = {
                    **provenance,
                    "subject": subject_from_name(name),
                    "slices": indices,
                    "noise_std": noise_std,
                    "mask": mask.provenance() if mask else None,
                }
                kspace = simulate_slices(indices, np.random.default_rng(seed_from_name(part, options.seed)))
                write_volume(path, kspace, record, mask.samples if mask else None)
            progress.update(len(indices))
            yield path


def simulate(source: str, output: Path, options: SimulationOptions) -> list[Path]:
    """Simulate every volume of a source into a folder. An interrupted simulation resumes.

    Parameters
    ----------
    source : str
        See :func:`find_sources`.
    output : Path
        New or empty folder, or the folder of the same simulation.
    options : SimulationOptions

    Returns
    -------
    list of Path
        The files of the data set.

    Raises
    ------
    FileExistsError
        If the folder has other content.
    """
    stored_options = json.loads(json.dumps(asdict(options)))  # as they are read: lists for tuples
    sources = find_sources(source)
    records = {
        name: {
            "origin": SIMULATED,
            "source": {"name": path.name, "sha256": hash_file(path)},
            "options": stored_options,
        }
        for name, path in sources.items()
    }
    versions = package_versions("direct-recon", "numpy", "torch", "nibabel", "scikit-image")
    with claim_folder(output, list(records.values())):
        return [
            path
            for name, record in records.items()
            for path in simulate_volume(name, sources[name], output, options, {**record, "versions": versions})
        ]
