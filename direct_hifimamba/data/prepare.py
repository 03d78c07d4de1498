"""From the download of a data set to files that DIRECT trains on, with a record of the protocol.

``direct-hifimamba prepare DATA_SET SOURCE DEST`` makes::

    DEST/protocol.json              what was done: settings, versions; slices, masks and checksums of every file
    DEST/train/*.h5, DEST/val/*.h5  k-space, for DIRECT's `FastMRI` data set; its masks are drawn as it is read
    DEST/val_equispaced_4x/*.h5     the same k-space, linked, with an evaluation mask in every file
    DEST/train.lst, DEST/val.lst    names of the files, for `filenames_lists` (relative to the configuration file)

Measured k-space is linked to the download. `FastMRI` reads masks of whole columns alone; others, such as radial ones,
come with a copy of the k-space for DIRECT's `CMRxRecon` data set. `protocol.json` has the configuration of each folder.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

import direct_hifimamba
from direct_hifimamba.data.blank import is_blank
from direct_hifimamba.data.data_sets import DATA_SETS, MEASURED, SIMULATED, select_slices
from direct_hifimamba.data.fit import crop_or_pad, resample
from direct_hifimamba.data.fourier import image_to_kspace, root_sum_of_squares
from direct_hifimamba.data.hdf5 import (
    CMRXRECON_SUFFIX,
    acquired_columns,
    kspace_shape,
    read_provenance,
    write_cmrxrecon,
    write_view,
    write_volume,
)
from direct_hifimamba.data.masks import MaskOptions, draw_mask
from direct_hifimamba.data.parallel import map_files
from direct_hifimamba.data.protocol import (
    RESAMPLE,
    Settings,
    configuration_of,
    list_name,
    read_protocol,
    write_protocol,
)
from direct_hifimamba.data.sources import KSpaceFile, NiftiFile, SourceError
from direct_hifimamba.files import PARTIAL_SUFFIX, replace_when_complete


@dataclass(frozen=True)
class Task:
    """One file of the download and what becomes of it."""

    settings: Settings
    source: Path
    source_name: str
    dest: Path
    split: str

    @property
    def name(self) -> str:
        """Name of the prepared file. Its masks depend on it."""
        return DATA_SETS[self.settings.data_set].file_name(self.source)

    @property
    def path(self) -> Path:
        """The prepared file."""
        return self.dest / self.split / self.name

    def identity(self) -> dict[str, Any]:
        """What the provenance of the prepared file must agree with."""
        source = {"name": self.source_name, "num_bytes": self.source.stat().st_size}
        return {"settings": self.settings.to_json(), "source": source}


class Outcome(NamedTuple):
    """What became of a task: a record for the protocol, or the reason why there is none."""

    task: Task
    record: dict[str, Any] | None = None
    skipped: str | None = None
    failed: str | None = None


def prepare_file(task: Task) -> Outcome:
    """Prepare one file and its masks, but for what is there already.

    Raises
    ------
    FileExistsError
        If a file is in the way that is not of this preparation.
    ValueError
        If DIRECT cannot use the masks that are asked for.
    """
    try:
        acquisition = DATA_SETS[task.settings.data_set].acquisition_of(task.source)
        if acquisition != task.settings.acquisition:
            return Outcome(task, skipped=f"its acquisition is {acquisition}")
        if not task.path.exists():
            _write_kspace(task)
    except SourceError as error:
        return Outcome(task, failed=str(error))
    record = _record(task)
    folders = task.settings.mask_folders(task.split)
    masks = {folder: _store_mask(task, record, folder, options) for folder, options in folders.items()}
    return Outcome(task, record | {"masks": masks})


def _write_kspace(task: Task) -> None:
    settings = task.settings
    with task.source.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    with DATA_SETS[settings.data_set].reader(task.source) as source:
        chosen = select_slices(settings.slices, source.num_slices)
        kept = [index for index in chosen if _has_content(_image(source, index, settings))]
        if not kept:
            raise SourceError(f"of its {source.num_slices} slices, none of those asked for has anything in it")
        identity = task.identity()
        provenance = {
            **identity,
            "source": identity["source"] | {"sha256": checksum},
            "origin": settings.kspace,
            "slices": kept,
            "dropped": {
                f"not {settings.slices}": [index for index in range(source.num_slices) if index not in chosen],
                "blank": [index for index in chosen if index not in kept],
            },
            "versions": _versions(),
        }
        task.path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, NiftiFile) or settings.kspace == SIMULATED:
            write_volume(
                task.path, (_simulate(_image(source, index, settings), settings) for index in kept), provenance
            )
        elif settings.copy:
            write_volume(task.path, map(source.kspace, kept), provenance, header=source.header())
        else:
            link = os.path.relpath(task.source.resolve(), task.path.parent.resolve())
            write_volume(task.path, source.layout(kept, link), provenance, header=source.header())


def _image(source: KSpaceFile | NiftiFile, index: int, settings: Settings) -> NDArray[np.float32]:
    """Magnitude image of a slice, of the size asked for if k-space is to be simulated from it."""
    if isinstance(source, KSpaceFile) and settings.kspace == MEASURED:
        return root_sum_of_squares(source.kspace(index))
    assert settings.size is not None
    fit = resample if settings.fit == RESAMPLE else crop_or_pad
    return fit(source.magnitude(index), settings.size)


def _has_content(image: NDArray[np.float32]) -> bool:
    if not np.isfinite(image).all():
        raise SourceError("it has values that are NaN or infinite")
    return not is_blank(image, float(image.max()))


def _simulate(image: NDArray[np.float32], settings: Settings) -> NDArray[np.complex64]:
    if settings.normalise_slices:
        image = (image - image.min()) / (image.max() - image.min())
    return image_to_kspace(image.astype(np.complex64))


def _versions() -> dict[str, str]:
    names = ("direct-recon", "h5py", "numpy", "torch")
    return {"direct-hifimamba": direct_hifimamba.__version__, **{name: version(name) for name in names}}


def _record(task: Task) -> dict[str, Any]:
    """What the protocol says about a prepared file, as far as the file says it itself."""
    provenance = read_provenance(task.path) or {}
    identity = task.identity()
    source = provenance.get("source", {})
    if provenance.get("settings") != identity["settings"] or not identity["source"].items() <= source.items():
        raise FileExistsError(
            f"{task.path} is not what {task.source} becomes with these settings; remove it, or choose another folder."
        )
    with h5py.File(task.path) as file:
        return {
            "shape": list(kspace_shape(file)),
            **{name: file.attrs[name] for name in ("max", "norm", "sha256")},
            **{name: provenance[name] for name in ("source", "slices", "dropped", "versions")},
        }


def _store_mask(task: Task, record: dict[str, Any], folder: str, options: MaskOptions) -> dict[str, Any]:
    height, width = record["shape"][-2:]
    with h5py.File(task.path) as file:
        acquired = acquired_columns(file)
    mask = draw_mask(options, (height, width), task.name, task.settings.seed, acquired)
    identity = {"seed": task.settings.seed, "volume_sha256": record["sha256"]}
    provenance = {"mask": {"options": asdict(options), **mask.provenance()}, **identity}
    write, suffix = (write_view, ".h5") if mask.is_line_mask else (write_cmrxrecon, CMRXRECON_SUFFIX)
    path = (task.dest / folder / task.name).with_suffix(suffix)
    if path.exists():
        stored = read_provenance(path) or {}
        if stored.get("mask", {}).get("options") != asdict(options) or not identity.items() <= stored.items():
            raise FileExistsError(f"{path} is not of this preparation; remove it, or choose another folder.")
    if not path.exists() or stored != provenance:  # an earlier version kept the mask in the padding
        path.parent.mkdir(exist_ok=True)
        write(path, task.path, mask.samples, provenance)
    return {"file": path.name, **mask.provenance()}


def find_split(source: Path, folder: str) -> Path | None:
    """The folder of a split: right in the download, or the only one of this name further down; None if there is none.

    Raises
    ------
    ValueError
        If there are several further down.
    """
    if (source / folder).is_dir():
        return source / folder
    found = sorted(path for path in source.glob(f"*/**/{folder}") if path.is_dir())
    if len(found) > 1:
        raise ValueError(f"{source} holds several folders {folder}: {', '.join(map(str, found))}. Choose one above it.")
    return found[0] if found else None


def find_files(folder: Path, split: str, dest: Path, settings: Settings) -> tuple[list[Task], dict[str, str]]:
    """The files of a split to prepare, and those that are of no use, with the reason.

    Raises
    ------
    ValueError
        If two files would get the same name.
    """
    pattern = DATA_SETS[settings.data_set].pattern
    tasks: dict[str, Task] = {}
    skipped = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.name.startswith("."):
            continue
        if not re.fullmatch(pattern, path.name):
            skipped[name] = f"its name does not match {pattern}"
            continue
        task = Task(settings, path, name, dest, split)
        other = tasks.setdefault(task.name, task)
        if other is not task:
            raise ValueError(f"{other.source} and {path} would both become {task.name}; remove one of them.")
    return list(tasks.values()), skipped


def prepare(
    source: Path, dest: Path, settings: Settings, splits: Sequence[str] | None = None, jobs: int = 1
) -> dict[str, Any]:
    """Prepare a data set. What was prepared before, with the same settings, is kept and completed.

    Parameters
    ----------
    source : Path
        The download, unpacked.
    dest : Path
        New or empty folder, or that of the same preparation.
    settings : Settings
    splits : sequence of str, optional
        Default: those that the download has.
    jobs : int
        Number of processes. The result does not depend on it.

    Returns
    -------
    dict
        The protocol.

    Raises
    ------
    FileNotFoundError
        If the download has not the splits.
    FileExistsError
        If `dest` holds anything else.
    ValueError
        If the folders or the masks are of no use.
    """
    if dest.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{dest} lies in the download {source}; choose a folder outside.")
    folders = _find_splits(source, settings, splits)
    found = {split: find_files(folder, split, dest, settings) for split, folder in folders.items()}
    protocol = _open_protocol(dest, settings)
    tasks = [task for split_tasks, _ in found.values() for task in split_tasks]
    outcomes = list(map_files(prepare_file, tasks, jobs, settings.data_set))
    for split, (_, skipped) in found.items():
        mine = [outcome for outcome in outcomes if outcome.task.split == split]
        files = {outcome.task.name: outcome.record for outcome in mine if outcome.record}
        files = dict(sorted(files.items()))
        failed = {outcome.task.source_name: outcome.failed for outcome in mine if outcome.failed}
        skipped |= {outcome.task.source_name: outcome.skipped for outcome in mine if outcome.skipped}
        if not files and not failed:
            raise FileNotFoundError(f"{folders[split]} has nothing to prepare. Left out: {summarise(skipped)}.")
        with replace_when_complete(dest / list_name(split)) as partial:
            partial.write_text("".join(f"{name}\n" for name in files), encoding="utf-8")
        content = {"folder": folders[split].name, "files": files, "skipped": skipped, "failed": failed}
        protocol["splits"][split] = content
        protocol["configurations"] |= _configurations(settings, split, files)
    write_protocol(dest, protocol)
    return protocol


def _find_splits(source: Path, settings: Settings, splits: Sequence[str] | None) -> dict[str, Path]:
    names = DATA_SETS[settings.data_set].splits
    if unknown := set(splits or ()).difference(names):
        raise ValueError(f"{settings.data_set} has no split {', '.join(unknown)}; expected some of {', '.join(names)}.")
    folders = {split: names[split].format(coils=settings.coils) for split in splits or names}
    found = {split: find_split(source, folder) for split, folder in folders.items()}
    missing = [folders[split] for split, path in found.items() if path is None]
    if missing and (splits or len(missing) == len(folders)):
        raise FileNotFoundError(f"{source} has no folder {' or '.join(missing)}; expected the unpacked download.")
    return {split: path for split, path in found.items() if path is not None}


def _open_protocol(dest: Path, settings: Settings) -> dict[str, Any]:
    protocol = read_protocol(dest)
    if protocol is None:
        if dest.exists() and not all(entry.name.endswith(PARTIAL_SUFFIX) for entry in dest.iterdir()):
            raise FileExistsError(f"{dest} is neither empty nor a prepared data set; choose a new folder.")
        dest.mkdir(parents=True, exist_ok=True)
        protocol = {
            "settings": settings.to_json(),
            "remarks": settings.remarks(),
            "splits": {},
            "configurations": {},
        }
        write_protocol(dest, protocol)
    before = protocol["settings"]
    different = [
        f"{key} was {before.get(key)} and is now {value}"
        for key, value in settings.to_json().items()
        if before.get(key) != value
    ]
    if different:
        raise FileExistsError(f"{dest} was prepared otherwise: {'; '.join(different)}. Choose a new folder.")
    return protocol


def _configurations(settings: Settings, split: str, files: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    configurations = {split: configuration_of(settings)}
    for folder in settings.mask_folders(split):
        line_masks = all("num_center_lines" in record["masks"][folder] for record in files.values())
        configurations[folder] = configuration_of(settings, line_masks)
    return configurations


def summarise(reasons: Mapping[str, str]) -> str:
    """How many files have each of the reasons, which stand under the names of the files."""
    return "; ".join(f"{count} because {reason}" for reason, count in Counter(reasons.values()).items()) or "nothing"
