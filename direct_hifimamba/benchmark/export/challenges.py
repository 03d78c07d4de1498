"""Submissions to challenges: made of what `direct predict` has written, checked, and scored against references.

The forms are those of the challenges' own instructions and evaluation code: fastMRI, Calgary-Campinas (MC-MRRec), and
CMRxRecon 2025.
"""

import functools
import io
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple, override

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat, savemat
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm import tqdm

from direct_hifimamba.benchmark.score.metrics import METRICS
from direct_hifimamba.data.fit import crop_or_pad
from direct_hifimamba.data.formats.hdf5 import kspace_shape, read_header, read_slices
from direct_hifimamba.data.fourier import root_sum_of_squares
from direct_hifimamba.data.parallel import map_files
from direct_hifimamba.data.sources import CalgaryCampinas, KSpaceFile
from direct_hifimamba.files import fill_folder, first_and_count

type Image = NDArray[np.float32]

RECONSTRUCTION, RANKED = "reconstruction", "img4ranking"


class Challenge(ABC):
    """A form of submissions.

    Attributes
    ----------
    suffix : str
        Of the names of volumes.
    archive : str, optional
        Name of the zip file that a submission consists of. None: it is a folder.
    metrics : mapping
        Functions of reference and reconstruction by the name of the score.
    """

    suffix: ClassVar[str] = ".h5"
    archive: ClassVar[str | None] = None
    metrics: ClassVar[Mapping[str, Callable[[Image, Image], float]]]

    @abstractmethod
    def find_data(self, data: Path, found: Collection[str]) -> dict[str, Path]:
        """Return the files of k-space by the names of the volumes that a submission has to have.

        Parameters
        ----------
        data : Path
        found : collection of str
            Names of the predictions: their paths in the folder, with `suffix`.
        """

    @abstractmethod
    def convert(self, name: str, images: Image, data: Path | None) -> Image:
        """Return what the challenge wants of reconstructed slices (slices, height, width).

        Raises
        ------
        ValueError
            If they do not have the size that belongs to the k-space.
        """

    def find_references(self, references: Path, names: Collection[str]) -> dict[str, Path]:
        """Return the files of references by the names of the volumes that a submission has to have.

        Parameters
        ----------
        references : Path
        names : collection of str
            Names of the volumes that it has.
        """
        return self.find_data(references, names)

    @abstractmethod
    def read_reference(self, path: Path, name: str) -> Image:
        """Return a reference in the form of a volume of a submission."""

    def group(self, name: str) -> str:
        """Return the name of the volumes that it is averaged with."""
        return str(PurePosixPath(name).parent)

    def places(self, name: str, found: Collection[str]) -> list[str]:
        """Return the paths of a volume in a submission."""
        return [name]

    def write(self, folder: Path, name: str, images: Image) -> None:
        """Write a volume into the folder of a submission."""
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file[RECONSTRUCTION] = images

    def read(self, content: bytes) -> Image:
        """Return the images of a volume of a submission."""
        return _read_reconstruction(io.BytesIO(content))


def _read_reconstruction(file: Path | io.BytesIO) -> Image:
    with h5py.File(file) as opened:
        return np.asarray(opened[RECONSTRUCTION], np.float32)


def _check_shape(images: Image, expected: tuple[int, ...]) -> None:
    if images.shape != expected:
        raise ValueError(f"has the shape {images.shape}, not {expected}")


class FastMRI(Challenge):
    """fastMRI: slices of the size in the ISMRMRD header, such as 320 x 320; metrics of whole volumes."""

    metrics: ClassVar = {name: METRICS[f"fastmri_{name.lower()}"].compare for name in ("SSIM", "PSNR", "NMSE")}

    @override
    def find_data(self, data: Path, found: Collection[str]) -> dict[str, Path]:
        return {path.name: path for path in data.glob("*.h5")}

    @override
    def convert(self, name: str, images: Image, data: Path | None) -> Image:
        if data is not None:
            _check_shape(images, _fastmri_shape(data))
        return images

    @override
    def read_reference(self, path: Path, name: str) -> Image:
        with h5py.File(path) as file:
            stored = next((key for key in KSpaceFile.reconstructions if key in file), None)
            if stored is not None:
                return np.asarray(file[stored], np.float32)
            images = np.stack([root_sum_of_squares(kspace) for kspace in read_slices(file)])
        return crop_or_pad(images, _fastmri_shape(path)[1:])


def _fastmri_shape(path: Path) -> tuple[int, int, int]:
    """Return the shape of the images that belong to a file of k-space, as DIRECT crops them with `crop: header`."""
    with h5py.File(path) as file:
        if not isinstance(file.get("kspace"), h5py.Dataset):
            raise ValueError(f"{path} has no array 'kspace'; expected the k-space of the challenge.")
        slices, *_, height, width = kspace_shape(file)
        size = read_header(file).get("reconstruction_size", (height, width))
    return (slices, *size[:2]) if size[1] <= width else (slices, width, width)


def _num_channels(path: Path) -> int:
    with h5py.File(path) as file:
        kspace = file.get("kspace")
        return int(kspace.shape[-1] // 2) if isinstance(kspace, h5py.Dataset) else 0


class CalgaryCampinas12And32(Challenge):
    """Calgary-Campinas: 156 of 256 slices, and metrics of each slice.

    Predictions lie in folders such as `12-channel-R=5`. A submission has them in `Track01`, and together with those of
    32 channels, if there are any, in `Track02`. Units are those of a Fourier transform that divides by the number of
    pixels, where DIRECT's divides by its root.
    """

    metrics: ClassVar = {name: METRICS[f"calgary_campinas_{name.lower()}"].compare for name in ("SSIM", "PSNR", "VIF")}
    slices: ClassVar[int] = 256
    cropped: ClassVar[slice] = slice(50, -50)
    folder: ClassVar[str] = r"(?:Track0[12]/)?(12|32)-channel-R=(5|10)"

    @override
    def find_data(self, data: Path, found: Collection[str]) -> dict[str, Path]:
        wanted = {}
        for folder in {str(PurePosixPath(name).parent) for name in found}:
            match = re.fullmatch(self.folder, folder)
            if match is None:
                raise ValueError(f"There are predictions in a folder {folder!r}; expected such as 12-channel-R=5.")
            for path in data.rglob("*.h5"):
                acceleration = re.search(r"R=(\d+)", path.relative_to(data).as_posix())
                if (acceleration is None or acceleration[1] == match[2]) and _num_channels(path) == int(match[1]):
                    wanted[f"{folder}/{path.name}"] = path
        return wanted

    @override
    def convert(self, name: str, images: Image, data: Path | None) -> Image:
        slices, height, width = self.slices, *images.shape[1:]
        if data is not None:
            with h5py.File(data) as file:
                slices, height, width, _ = file["kspace"].shape
        if len(images) == slices:
            images = images[self.cropped]
        _check_shape(images, (len(range(slices)[self.cropped]), height, width))
        return images / np.sqrt(np.float32(height * width))

    @override
    def places(self, name: str, found: Collection[str]) -> list[str]:
        has_track_2 = any(other.startswith("32") for other in found)
        return [*([f"Track01/{name}"] if name.startswith("12") else []), *([f"Track02/{name}"] if has_track_2 else [])]

    @override
    def read_reference(self, path: Path, name: str) -> Image:
        with CalgaryCampinas(path) as source:
            images = np.stack([source.magnitude(index) for index in range(source.num_slices)[self.cropped]])
        return images / np.sqrt(np.float32(np.prod(images.shape[1:])))


def _after_normalisation(metric: Callable[[Image, Image], float]) -> Callable[[Image, Image], float]:
    """Return the mean of a metric over images (height, width, ...), each divided by its 99.5th percentile."""

    def score(reference: Image, images: Image) -> float:
        stacks = (part.reshape(*part.shape[:2], -1).transpose(2, 0, 1) for part in (reference, images))
        pairs = zip(*([image / (np.percentile(image, 99.5) or 1) for image in stack] for stack in stacks), strict=True)
        return float(np.mean([metric(*pair) for pair in pairs]))

    return score


def _matlab_kspace(file: h5py.File) -> h5py.Dataset:
    """Return the only k-space of a file of CMRxRecon, of shape ([frame, ]slice, coil, width, height)."""
    found = [stored for stored in file.values() if isinstance(stored, h5py.Dataset) and stored.ndim in (4, 5)]
    if len(found) != 1:
        raise ValueError(f"has {len(found)} arrays of 4 or 5 axes; expected one, k-space of several coils")
    return found[0]


def _with_frames(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (5 - len(shape)) + shape


class CMRxRecon2025(Challenge):
    """CMRxRecon 2025: the tree of the challenge's data in `Submission.zip`, with `img4ranking` in MATLAB files.

    Of a volume, two slices in the middle, the first three frames (all of mapping) and the central third of the rows and
    half of the columns are ranked. Both images are divided by the 99.5th percentile of their magnitudes.
    """

    suffix = ".mat"
    archive = "Submission.zip"
    metrics: ClassVar = {
        "PSNR": _after_normalisation(lambda one, other: peak_signal_noise_ratio(one, other, data_range=one.max())),
        "SSIM": _after_normalisation(lambda one, other: structural_similarity(one, other, data_range=one.max())),
        "NMSE": _after_normalisation(lambda one, other: np.square(one - other).sum() / np.square(one).sum()),
    }
    tree: ClassVar[str] = "Task*/MultiCoil/*/*/{kind}_Task*/*/*/*/*.mat"
    single_frames: ClassVar[tuple[str, ...]] = ("blackblood", "t1w", "t2w")
    all_frames: ClassVar[tuple[str, ...]] = ("t1map", "t2map", "t2smap", "t1mappost", "t1rho")

    @override
    def find_data(self, data: Path, found: Collection[str]) -> dict[str, Path]:
        return {path.relative_to(data).as_posix(): path for path in data.glob(self.tree.format(kind="UnderSample"))}

    @override
    def convert(self, name: str, images: Image, data: Path | None) -> Image:
        if data is None:
            raise ValueError("has no number of frames; give the challenge's folder of k-space with --data")
        with h5py.File(data) as file:
            frames, slices, _, width, height = _with_frames(_matlab_kspace(file).shape)
        _check_shape(images, (frames * slices, height, width))
        return self._rank(name, images.reshape(frames, slices, height, width))

    def _rank(self, name: str, images: Image) -> Image:
        """Return the part of images (frame, slice, height, width) that is ranked, with the axes of MATLAB."""
        file = PurePosixPath(name).name.lower()
        frames = 1 if any(word in file for word in self.single_frames) else 3
        if not any(word in file for word in self.all_frames):
            images = images[:frames]
        if images.shape[1] > 2:
            middle = (images.shape[1] + 1) // 2
            images = images[:, middle - 2 : middle]
        height, width = images.shape[2:]
        part = crop_or_pad(images, ((2 * height + 3) // 6, (width + 1) // 2)).transpose(2, 3, 1, 0)
        while part.ndim > 2 and part.shape[-1] == 1:
            part = part[..., 0]
        return part

    @override
    def find_references(self, references: Path, names: Collection[str]) -> dict[str, Path]:
        named = {re.sub(r"_kus_.*", ".mat", name.replace("/UnderSample_", "/FullSample_")): name for name in names}
        files = {
            path.relative_to(references).as_posix(): path
            for path in references.glob(self.tree.format(kind="FullSample"))
        }
        return {named.get(name, name): path for name, path in files.items()}

    @override
    def read_reference(self, path: Path, name: str) -> Image:
        if not h5py.is_hdf5(path):
            return np.asarray(loadmat(path)[RANKED], np.float32)
        with h5py.File(path) as file:
            if RANKED in file:
                return np.asarray(file[RANKED], np.float32).T
            stored = _matlab_kspace(file)[()]
        kspace = (stored["real"] + 1j * stored["imag"]).astype(np.complex64)
        frames, slices, *_, width, height = _with_frames(kspace.shape)
        coils = kspace.reshape(frames * slices, -1, width, height).swapaxes(-1, -2)
        images = np.stack(list(map(root_sum_of_squares, coils)))
        return self._rank(name, images.reshape(frames, slices, height, width))

    @override
    def group(self, name: str) -> str:
        task, _, modality, *_ = PurePosixPath(name).parts
        return f"{task}/{modality}"

    @override
    def write(self, folder: Path, name: str, images: Image) -> None:
        content = io.BytesIO()
        savemat(content, {RANKED: images}, do_compression=True)
        with zipfile.ZipFile(folder / self.archive, "a") as archive:
            archive.writestr(name, content.getvalue())

    @override
    def read(self, content: bytes) -> Image:
        return np.asarray(loadmat(io.BytesIO(content))[RANKED], np.float32)


CHALLENGES: dict[str, Challenge] = {
    "fastmri": FastMRI(),
    "calgary-campinas": CalgaryCampinas12And32(),
    "cmrxrecon": CMRxRecon2025(),
}


def export_submission(challenge: str, predictions: Path, output: Path, data: Path | None = None) -> int:
    """Write a submission of what `direct predict` or `direct-hifimamba reconstruct` has written, after checking it.

    Parameters
    ----------
    challenge : str
        Key of `CHALLENGES`.
    predictions : Path
        Folder of HDF5 files with `reconstruction` (slices, height, width). For Calgary-Campinas, with folders such as
        `12-channel-R=5`; for CMRxRecon, with the tree of the challenge's data, `TaskR1/MultiCoil/...`.
    output : Path
        New or empty folder.
    data : Path, optional
        Folder of the challenge's k-space: the volumes that there have to be, and their sizes. CMRxRecon needs it.

    Returns
    -------
    int
        Number of volumes.

    Raises
    ------
    OSError
        If a file cannot be read or written, or `output` is not empty.
    ValueError
        If volumes are missing, are too many, or have another size or values that are not finite.
    """
    form = CHALLENGES[challenge]
    files = {
        path.relative_to(predictions).with_suffix(form.suffix).as_posix(): path
        for path in sorted(predictions.rglob("*"))
        if path.suffix in (".h5", ".mat")
    }
    if not files:
        raise FileNotFoundError(f"{predictions} has no HDF5 files; expected what direct predict has written.")
    wanted = {} if data is None else form.find_data(data, files)
    if data is not None:
        _compare(files, wanted, predictions, data)
    problems = []
    with fill_folder(output) as partial:
        for name, path in tqdm(files.items(), "export", unit="volume"):
            try:
                images = form.convert(name, _read_prediction(path), wanted.get(name))
            except ValueError as error:
                problems.append(f"{name} {error}")
                continue
            for place in form.places(name, files):
                form.write(partial, place, images)
        if problems:
            raise ValueError(f"{predictions} is no submission: {first_and_count(problems)}.")
    return len(files)


def _read_prediction(path: Path) -> Image:
    try:
        images = _read_reconstruction(path)
    except (OSError, KeyError) as error:
        raise ValueError(f"has no {RECONSTRUCTION!r} ({error})") from error
    if images.ndim != 3 or not np.isfinite(images).all():
        raise ValueError(f"has the shape {images.shape}, or values that are not finite; expected slices of magnitudes")
    return images


def _compare(found: Collection[str], wanted: Collection[str], folder: Path, data: Path) -> None:
    missing, extra = sorted(set(wanted).difference(found)), sorted(set(found).difference(wanted))
    if missing:
        raise ValueError(f"{folder} lacks {first_and_count(missing)} of the {len(wanted)} volumes of {data}.")
    if extra:
        raise ValueError(f"{folder} has {first_and_count(extra)}, of which {data} has nothing.")


class Score(NamedTuple):
    """Scores of a volume, by the name of the metric."""

    name: str
    group: str
    values: dict[str, float]


def score_submission(challenge: str, submission: Path, references: Path, jobs: int = 1) -> list[Score]:
    """Score a submission as the challenge does.

    Parameters
    ----------
    challenge : str
        Key of `CHALLENGES`.
    submission : Path
        Folder that :func:`export_submission` has written, or a zip file of its content.
    references : Path
        Folder of the fully sampled volumes: files with `reconstruction_rss` or fully sampled k-space under the names
        of the volumes; for CMRxRecon, the tree with `FullSample_...` in place of `UnderSample_...`.
    jobs : int
        Number of processes.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError
        If volumes are missing, are too many, or have another size than the references.
    """
    form = CHALLENGES[challenge]
    if form.archive is not None and submission.is_dir():
        submission = submission / form.archive
        if not submission.is_file():
            raise FileNotFoundError(f"{submission} is missing; expected the zip file that export has written.")
    names = _names(submission, form.suffix)
    if not names:
        raise FileNotFoundError(f"{submission} has no {form.suffix} files; expected a submission to {challenge}.")
    wanted = form.find_references(references, names)
    _compare(names, wanted, submission, references)
    score = functools.partial(_score, challenge, submission, wanted)
    results = list(map_files(score, names, jobs, "score"))
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        raise ValueError(f"{submission} cannot be scored: {first_and_count(problems)}.")
    return [result for result in results if isinstance(result, Score)]


def _names(submission: Path, suffix: str) -> list[str]:
    if submission.is_file():
        if not zipfile.is_zipfile(submission):
            raise ValueError(f"{submission} is no zip file; expected one, or a folder.")
        with zipfile.ZipFile(submission) as archive:
            return sorted(name for name in archive.namelist() if name.endswith(suffix))
    return sorted(path.relative_to(submission).as_posix() for path in submission.rglob(f"*{suffix}"))


def _score(challenge: str, submission: Path, references: Mapping[str, Path], name: str) -> Score | str:
    """Return the scores of a volume, or what is wrong with it."""
    form = CHALLENGES[challenge]
    root = zipfile.Path(submission) if submission.is_file() else submission
    try:
        images = form.read((root / name).read_bytes())
        reference = form.read_reference(references[name], name)
        _check_shape(images, reference.shape)
    except (OSError, KeyError, ValueError) as error:
        return f"{name} {error}"
    return Score(name, form.group(name), {key: metric(reference, images) for key, metric in form.metrics.items()})
