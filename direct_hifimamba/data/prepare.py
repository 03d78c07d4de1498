"""Prepare a downloaded data set for training in DIRECT, and record the protocol.

``direct-hifimamba prepare DATA_SET SOURCE DEST`` writes::

    DEST/protocol.json              settings and versions; slices, masks and checksums of every file
    DEST/train/*.h5, DEST/val/*.h5  k-space, for DIRECT's `FastMRI` data set; its masks are drawn as it is read
    DEST/val_equispaced_4x/*.h5     the same k-space, linked, with an evaluation mask in every file
    DEST/train.lst, DEST/val.lst    names of the files, for `filenames_lists` (relative to the configuration file)

Measured k-space is linked to the download. `FastMRI` reads masks of whole columns only. Other masks, such as radial
ones, are stored with a copy of the k-space for DIRECT's `CMRxRecon` data set or, with several coils, with linked
k-space for our `FastMRIWithMasks`. `protocol.json` has the configuration of each folder.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from direct_hifimamba.data.blank import bright_level, is_blank
from direct_hifimamba.data.data_sets import DATA_SETS, MEASURED, SIMULATED, select_slices
from direct_hifimamba.data.fit import crop_or_pad, resample
from direct_hifimamba.data.formats import hdf5
from direct_hifimamba.data.fourier import image_to_kspace, root_sum_of_squares
from direct_hifimamba.data.masks import MaskOptions, draw_mask
from direct_hifimamba.data.parallel import map_files
from direct_hifimamba.data.protocol import (
    RESAMPLE,
    Settings,
    configuration_of,
    list_name,
    list_of,
    read_protocol,
    write_protocol,
)
from direct_hifimamba.data.provenance import add_provenance, package_versions, read_provenance
from direct_hifimamba.data.references import SourceError, check_center
from direct_hifimamba.data.sources import KSpaceFile, NiftiFile, RawFile
from direct_hifimamba.data.splits import Task, find_splits
from direct_hifimamba.files import PARTIAL_SUFFIX, hash_file, lock_folder, write_text

_WHO = ("source", "subject", "acquisition")
"""Keys of the provenance that files with a mask copy from their volume."""


class Outcome(NamedTuple):
    """Outcome of a task: a record for the protocol, or the reason why there is none."""

    task: Task
    record: dict[str, Any] | None = None
    skipped: str | None = None
    failed: str | None = None


def prepare_file(task: Task) -> Outcome:
    """Prepare one file and its masks, except those that exist already.

    Raises
    ------
    FileExistsError
        If a file of another preparation exists in its place.
    ValueError
        If DIRECT cannot use the requested masks.
    """
    if not task.source.exists():
        return Outcome(task, failed=f"it is a link to {task.source.readlink()}, which is not there")
    try:
        data_set = DATA_SETS[task.settings.data_set]
        acquisition = data_set.acquisition_of(task.source)
        if acquisition not in task.settings.acquisitions:
            return Outcome(task, skipped=f"its acquisition is {acquisition}")
        who = {"subject": data_set.subject_of(task.source)}
        if acquisition is not None:
            who["acquisition"] = acquisition
        if not task.path.exists():
            _write_kspace(task, who)
    except SourceError as error:
        return Outcome(task, failed=str(error))
    record = who | _record(task)
    if not who.items() <= (read_provenance(task.path) or {}).items():  # of an earlier version
        add_provenance(task.path, who)
    folders = task.settings.mask_folders(task.split)
    masks = {folder: _store_mask(task, record, folder, options) for folder, options in folders.items()}
    return Outcome(task, record | {"masks": masks})


def _write_kspace(task: Task, who: Mapping[str, str]) -> None:
    settings, checksum = task.settings, hash_file(task.source)
    with _open(task) as source:
        if settings.reconstruction is not None and isinstance(source, KSpaceFile):
            source.reconstructions = (f"reconstruction_{settings.reconstruction}",)
        chosen = select_slices(settings.slices, source.num_slices)
        kept = [index for index in chosen if _has_content(_image(source, index, settings))]
        if not kept:
            raise SourceError(f"of its {source.num_slices} slices, none of those asked for has anything in it")
        identity = task.identity()
        provenance = {
            **identity,
            "source": identity["source"] | {"sha256": checksum},
            "origin": settings.kspace,
            **who,
            "slices": kept,
            "dropped": {
                f"not {settings.slices}": [index for index in range(source.num_slices) if index not in chosen],
                "blank": [index for index in chosen if index not in kept],
            },
            "versions": package_versions("direct-recon", "h5py", "numpy", "torch"),
        }
        header: bytes | None = None
        kspace: Iterable[NDArray[np.complex64]] | h5py.VirtualLayout
        if settings.kspace == SIMULATED:
            kspace = (_simulate(_image(source, index, settings), settings) for index in kept)
        else:
            assert isinstance(source, KSpaceFile)  # as `Settings.of` makes sure
            some = sorted({kept[len(kept) * part // 4] for part in (1, 2, 3)})
            check_center(map(source.kspace, some), DATA_SETS[settings.data_set].centered)
            header = source.header()
            if settings.copy or settings.normalise_slices or not source.is_linkable:
                kspace = (_measured(source, index, settings) for index in kept)
            else:
                link = os.path.relpath(task.source.resolve(), task.path.parent.resolve())
                kspace = source.layout(kept, link)
        task.path.parent.mkdir(parents=True, exist_ok=True)
        hdf5.write_volume(task.path, kspace, provenance, header=header)


def _open(task: Task) -> KSpaceFile | NiftiFile:
    reader, settings = DATA_SETS[task.settings.data_set].reader, task.settings
    if issubclass(reader, RawFile):
        return reader(task.source, settings.axes, settings.variable)
    return reader(task.source)


def _image(source: KSpaceFile | NiftiFile, index: int, settings: Settings) -> NDArray[np.float32]:
    """Return the magnitude image of a slice, in the requested size if k-space is to be simulated from it."""
    if isinstance(source, KSpaceFile) and settings.kspace == MEASURED:
        return source.combined(index)
    assert settings.size is not None
    fit = resample if settings.fit == RESAMPLE else crop_or_pad
    return fit(source.magnitude(index), settings.size)


def _has_content(image: NDArray[np.float32]) -> bool:
    if not np.isfinite(image).all():
        raise SourceError("it has values that are NaN or infinite")
    return not is_blank(image, bright_level(image))


def _measured(source: KSpaceFile, index: int, settings: Settings) -> NDArray[np.complex64]:
    """Return the k-space of a slice, divided by the maximum of its image if slices are to be normalised."""
    kspace = source.kspace(index)
    return kspace / root_sum_of_squares(kspace).max() if settings.normalise_slices else kspace


def _simulate(image: NDArray[np.float32], settings: Settings) -> NDArray[np.complex64]:
    if settings.normalise_slices:
        image = (image - image.min()) / (image.max() - image.min())
    return image_to_kspace(image.astype(np.complex64))


def _record(task: Task) -> dict[str, Any]:
    """Return the part of the protocol that the prepared file contains itself."""
    provenance = read_provenance(task.path) or {}
    identity = task.identity()
    source = provenance.get("source", {})
    if provenance.get("settings") != identity["settings"] or not identity["source"].items() <= source.items():
        raise FileExistsError(
            f"{task.path} was not prepared from {task.source} with these settings; remove it, or choose another folder."
        )
    with h5py.File(task.path) as file:
        for link in hdf5.missing_links(file["kspace"]):
            raise FileNotFoundError(
                f"{task.path} links to {link}, which is not there. Put the download back, or remove {task.dest} and "
                "prepare it again; with --copy, it needs no download."
            )
        return {
            "shape": list(hdf5.kspace_shape(file)),
            **{name: file.attrs[name] for name in ("max", "norm", "sha256")},
            **{name: provenance[name] for name in ("source", "slices", "dropped", "versions")},
        }


def _store_mask(task: Task, record: dict[str, Any], folder: str, options: MaskOptions) -> dict[str, Any]:
    height, width = record["shape"][-2:]
    with h5py.File(task.path) as file:
        acquired = hdf5.acquired_columns(file)
    mask = draw_mask(options, (height, width), task.name, task.settings.seed, acquired)
    identity = {"seed": task.settings.seed, "volume_sha256": record["sha256"]}
    who = {"origin": task.settings.kspace, **{key: record[key] for key in _WHO if key in record}}
    provenance = {"mask": {"options": asdict(options), **mask.provenance()}, **identity, **who}
    # The reader of CMRxRecon would estimate coil sensitivities from 24 columns, sampled or not.
    is_view = mask.is_line_mask or task.settings.has_coils
    path = (task.dest / folder / task.name).with_suffix(".h5" if is_view else hdf5.CMRXRECON_SUFFIX)
    if path.exists():
        stored = read_provenance(path) or {}
        if stored.get("mask", {}).get("options") != asdict(options) or not identity.items() <= stored.items():
            raise FileExistsError(f"{path} belongs to another preparation; remove it, or choose another folder.")
    # Earlier versions did not clear the mask in the padding, and did not store the origin of the data.
    if not path.exists() or stored != provenance:
        path.parent.mkdir(exist_ok=True)
        if is_view:
            hdf5.write_view(path, task.path, mask.samples, provenance, None if mask.is_line_mask else mask.center)
        else:
            hdf5.write_cmrxrecon(path, task.path, mask.samples, provenance)
    return {"file": path.name, **mask.provenance()}


def prepare(
    source: Path, dest: Path, settings: Settings, splits: Sequence[str] | None = None, jobs: int = 1
) -> dict[str, Any]:
    """Prepare a data set. Files that were prepared before with the same settings are kept, and missing ones are added.

    Parameters
    ----------
    source : Path
        The download, unpacked.
    dest : Path
        New or empty folder, or the folder of the same preparation.
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
        If the download lacks the splits or acquisitions, or if files to which prepared ones link no longer exist.
    FileExistsError
        If `dest` has other content.
    ValueError
        If the folders, the masks or the division are invalid.
    """
    if dest.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{dest} lies in the download {source}; choose a folder outside.")
    found = find_splits(source, dest, settings, splits)
    dest.mkdir(parents=True, exist_ok=True)
    with lock_folder(dest):
        protocol = _open_protocol(dest, settings)
        tasks = [task for split in found.values() for task in split.tasks]
        outcomes = list(map_files(prepare_file, tasks, jobs, settings.data_set))
        for name, split in found.items():
            mine = [outcome for outcome in outcomes if outcome.task.split == name]
            files = dict(sorted((outcome.task.name, outcome.record) for outcome in mine if outcome.record))
            failed = {outcome.task.source_name: outcome.failed for outcome in mine if outcome.failed}
            skipped = split.skipped | {outcome.task.source_name: outcome.skipped for outcome in mine if outcome.skipped}
            if not files and not failed:
                raise FileNotFoundError(f"{split.folder} has nothing to prepare. Left out: {summarise(skipped)}.")
            write_text(dest / list_name(name), list_of(files))
            content = {"folder": split.folder.name, "files": files, "skipped": skipped, "failed": failed}
            protocol["splits"][name] = content
            protocol["configurations"] |= _configurations(settings, name, files)
        write_protocol(dest, protocol)
    return protocol


def _open_protocol(dest: Path, settings: Settings) -> dict[str, Any]:
    protocol = read_protocol(dest)
    if protocol is None or "settings" not in protocol:
        if protocol is not None or not all(entry.name.endswith(PARTIAL_SUFFIX) for entry in dest.iterdir()):
            raise FileExistsError(f"{dest} is neither empty nor a prepared data set; choose a new folder.")
        protocol = {
            "settings": settings.to_json(),
            "remarks": settings.remarks(),
            "splits": {},
            "configurations": {},
        }
        write_protocol(dest, protocol)
    before = protocol["settings"]
    now = settings.to_json()
    different = [
        f"{key} was {before.get(key)} and is now {now.get(key)}"
        for key in (now | before)
        if before.get(key) != now.get(key)
    ]
    if different:
        raise FileExistsError(f"{dest} was prepared with other settings: {'; '.join(different)}. Choose a new folder.")
    return protocol


def _configurations(settings: Settings, split: str, files: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    configurations = {split: configuration_of(settings)}
    for folder in settings.mask_folders(split):
        line_masks = all("num_center_lines" in record["masks"][folder] for record in files.values())
        configurations[folder] = configuration_of(settings, line_masks)
    return configurations


def summarise(reasons: Mapping[str, str]) -> str:
    """Return how many files have each of the reasons; `reasons` has the reason of each file name."""
    return "; ".join(f"{count} because {reason}" for reason, count in Counter(reasons.values()).items()) or "nothing"
